//! The environment: `ACCORDION_*` variables, each named by the flag that it stands for.

use crate::cli::{Command, logs};
use clap::{CommandFactory, Parser};
use std::collections::BTreeSet;
use std::ffi::OsStr;

/// The hashes of the keys.
pub(super) const KEYS: &str = "ACCORDION_KEY_HASHES";
/// What all of them begin with.
const PREFIX: &str = "ACCORDION_";
/// The variables that Kubernetes sets for a service called `accordion`.
const SERVICE: [&str; 2] = ["ACCORDION_SERVICE_", "ACCORDION_PORT"];

/// The command line under the environment. A variable that is set to nothing counts as not set, as compose files write it;
/// but not that of the keys, whose flag refuses to lock a server with nothing.
pub(super) fn parse<C: Parser>() -> Result<C, clap::Error> {
    C::from_arg_matches(&without_empty(C::command()).try_get_matches()?)
}

fn without_empty(command: clap::Command) -> clap::Command {
    let is_empty = |value: &OsStr| value.as_encoded_bytes().trim_ascii().is_empty();
    let is_ignored = move |name: &OsStr| name != KEYS && std::env::var_os(name).is_some_and(|value| is_empty(&value));
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if is_ignored(name) => arg.env(None::<&str>),
        _ => arg,
    });
    command.mut_subcommands(without_empty)
}

/// Logs the variables with our prefix that are no setting: most likely somebody meant one.
pub(super) fn warn_of_unknown() {
    fn add(known: &mut BTreeSet<String>, command: &clap::Command) {
        let names = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str());
        known.extend(names.map(str::to_owned));
        command.get_subcommands().for_each(|command| add(known, command));
    }
    let mut known = BTreeSet::from([logs::FILTER.to_owned()]);
    add(&mut known, &Command::command());
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let is_ours = |name: &String| name.starts_with(PREFIX) && !SERVICE.iter().any(|prefix| name.starts_with(prefix));
    let unknown: Vec<String> = set.filter(|name| is_ours(name) && !known.contains(name)).collect();
    if !unknown.is_empty() {
        tracing::warn!(variables = unknown.join(", "), "not settings of this program: `accordion help` lists those");
    }
}
