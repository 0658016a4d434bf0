//! Where log lines go, and in which form.

use crate::console::LogWriter;
use crate::server::LogFormat;
use crate::{Error, Result};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Filters log lines; `info` and above without it.
pub(super) const FILTER: &str = "ACCORDION_LOG";

/// Writes log lines to stderr from here on.
///
/// # Errors
/// For a filter that cannot be read.
pub(super) fn start(format: LogFormat) -> Result<()> {
    start_with(format, filter()?);
    Ok(())
}

/// As [`start`], but without the lines of servers in this process: one a request would drown what a load test says, and
/// take time from what it measures.
pub(super) fn start_without_requests() -> Result<()> {
    let servers = "accordion::server=warn".parse().expect("a directive");
    start_with(LogFormat::Text, filter()?.add_directive(servers));
    Ok(())
}

fn filter() -> Result<EnvFilter> {
    let text = std::env::var(FILTER).unwrap_or_default();
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).parse(text.trim());
    filter
        .map_err(|_| Error::input(FILTER, format!("`{text}` is no filter such as info, debug or accordion=debug,warn")))
}

fn start_with(format: LogFormat, filter: EnvFilter) {
    let lines = tracing_subscriber::fmt().with_writer(|| LogWriter).with_env_filter(filter);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).init(),
    }
}
