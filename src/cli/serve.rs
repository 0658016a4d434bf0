//! `accordion serve`: the HTTP server.

use crate::cli::device::gigabytes;
use crate::cli::{logs, variables};
use crate::console::print;
use crate::nets::{Placement, Threads};
use crate::ops::cuda::Precision;
use crate::server::{
    AppState, Host, LogFormat, ServeConfig, Signals, answer_agents, hung_up, open, process_registry, raise_descriptors,
    reload, serve, terminated,
};
use crate::{Error, Result};
use prometheus::Registry;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Where the config is looked for when none is given.
const CONFIG: &str = "config/serve.toml";

/// Serve images over HTTP.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Load config and models, check them, print one line, and exit: 0 if they are accepted, 2 if not.
    #[arg(long)]
    check_config: bool,
    /// Address to listen on, in place of the config's.
    #[arg(long, env = "ACCORDION_LISTEN")]
    listen: Option<SocketAddr>,
    /// Address for HAProxy's agent-check, in place of the config's.
    #[arg(long, env = "ACCORDION_AGENT_LISTEN")]
    agent_listen: Option<SocketAddr>,
    /// The form of log lines, in place of the config's.
    #[arg(long, env = "ACCORDION_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// Hashes of the accepted API keys with commas between them, in place of the config's.
    #[arg(long, env = variables::KEYS, hide_env_values = true)]
    key_hashes: Option<Unseen>,
}

/// What a server is told, whoever starts it.
#[derive(Debug, clap::Args)]
pub(super) struct Settings {
    /// Server config; `config/serve.toml` if that file exists, else the defaults.
    #[arg(long, env = "ACCORDION_CONFIG")]
    config: Option<PathBuf>,
    /// Model directory, in place of the config's list: several with commas, or the flag several times; the first is the usual one.
    #[arg(long, env = "ACCORDION_MODEL", value_delimiter = ',')]
    model: Vec<PathBuf>,
    /// Do not hold the models' files against their hashes, whatever the config says: where huge files make the start slow.
    #[arg(long)]
    no_verify: bool,
    /// Where to denoise, in place of the config's: cpu, or GPUs as cuda:0,cuda:1.
    #[arg(long, env = "ACCORDION_DEVICES", value_delimiter = ',')]
    devices: Vec<Placement>,
    /// The type of weights and activations on a GPU, in place of the config's: f32, f16 or bf16.
    #[arg(long, env = "ACCORDION_PRECISION")]
    precision: Option<Precision>,
    /// Samples in one call of the denoiser, in place of the config's.
    #[arg(long, env = "ACCORDION_MAX_BATCH")]
    max_batch: Option<usize>,
    /// Images that may wait, in place of the config's.
    #[arg(long, env = "ACCORDION_QUEUE_IMAGES")]
    queue_images: Option<usize>,
    /// Gigabytes that the denoisers' weights shall take on the CPU, those of all models together; 0 is no limit.
    #[arg(long, env = "ACCORDION_MAX_WEIGHT_GB", value_parser = gigabytes)]
    max_weight_gb: Option<f64>,
    /// Threads that denoise, in place of the config's; 0 is one for each core.
    #[arg(long, env = "ACCORDION_THREADS", value_parser = clap::value_parser!(u16).range(..=Threads::MOST as i64))]
    threads: Option<u16>,
    /// Whether each of them but the first is bound to a core of its own, in place of the config's.
    #[arg(long, env = "ACCORDION_PIN", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new())]
    pin: Option<bool>,
}

impl Settings {
    /// The file's settings under those of the flags and the environment, and the file.
    pub fn config(self) -> Result<(ServeConfig, Option<PathBuf>)> {
        let (mut config, path) = file(self.config)?;
        if !self.model.is_empty() {
            config.models = self.model;
        }
        config.verify &= !self.no_verify;
        if !self.devices.is_empty() {
            config.devices = self.devices;
        }
        config.precision = self.precision.unwrap_or(config.precision);
        config.max_batch = self.max_batch.unwrap_or(config.max_batch);
        config.queue_images = self.queue_images.unwrap_or(config.queue_images);
        config.max_weight_gb = self.max_weight_gb.unwrap_or(config.max_weight_gb);
        config.threads = self.threads.map_or(config.threads, usize::from);
        config.pin = self.pin.unwrap_or(config.pin);
        Ok((config, path))
    }
}

/// The settings of the file `given`, or of the one that is there by default, and that file; the defaults without any.
pub(super) fn file(given: Option<PathBuf>) -> Result<(ServeConfig, Option<PathBuf>)> {
    let default = PathBuf::from(CONFIG);
    let path = given.or_else(|| default.exists().then_some(default));
    let config = path.as_deref().map(ServeConfig::load).transpose()?.unwrap_or_default();
    Ok((config, path))
}

/// Text that is never shown: somebody may give a key where its hash belongs, and clap's own errors show values.
#[derive(Clone)]
struct Unseen(String);

impl std::fmt::Debug for Unseen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

impl From<String> for Unseen {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Args {
    /// Runs the subcommand until SIGTERM or SIGINT.
    pub fn run(self) -> Result<()> {
        let (check_config, is_listed) = (self.check_config, self.settings.model.is_empty());
        let (config, path) = self.config()?;
        logs::start(config.log_format)?;
        variables::warn_of_unknown();
        let registry = process_registry().map_err(|problem| Error::input("metrics", problem))?;
        if check_config {
            let state = load(&config, &Source { path: path.clone(), is_listed }, registry)?;
            let place = path.as_deref().map_or("the defaults".into(), Path::to_string_lossy);
            let models = state.models();
            let models: Vec<String> =
                models.iter().map(|model| format!("{} of {} subnets", model.name(), model.subnets().len())).collect();
            let noun = if models.len() == 1 { "model" } else { "models" };
            return print(format_args!("{place}: accepted, with {noun} {}", models.join(", ")));
        }
        #[cfg(feature = "otlp")]
        let _collector = crate::server::Collector::from_env()?;
        let io = |source| Error::Io { path: PathBuf::from(config.listen.to_string()), source };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(io)?;
        let source = Source { path, is_listed };
        runtime.block_on(run(config, source, registry))
    }

    /// The file's settings under those of the flags and the environment, and the file.
    fn config(self) -> Result<(ServeConfig, Option<PathBuf>)> {
        let (mut config, path) = self.settings.config()?;
        config.listen = self.listen.unwrap_or(config.listen);
        config.agent_listen = self.agent_listen.or(config.agent_listen);
        config.log_format = self.log_format.unwrap_or(config.log_format);
        if let Some(Unseen(text)) = self.key_hashes {
            config.auth.key_hashes = text.parse().map_err(|problem: String| Error::input("--key-hashes", problem))?;
        }
        Ok((config, path))
    }
}

/// Where the config came from.
#[derive(Clone)]
struct Source {
    /// Its file.
    path: Option<PathBuf>,
    /// Whether the models are those that the file lists, not those of a flag or the environment.
    is_listed: bool,
}

impl Source {
    /// `config` with the models that are listed now.
    fn again(&self, config: &ServeConfig) -> Result<ServeConfig> {
        let Some(path) = self.path.as_deref().filter(|_| self.is_listed) else { return Ok(config.clone()) };
        Ok(ServeConfig { models: ServeConfig::load(path)?.models, ..config.clone() })
    }

    /// An error about a field of the config names its file.
    fn named(&self, error: Error) -> Error {
        match &self.path {
            Some(path) => error.in_file(path),
            None => error,
        }
    }
}

/// Listens at once, loads the models meanwhile, and serves them.
async fn run(config: ServeConfig, source: Source, registry: Registry) -> Result<()> {
    let host = Host::new(&config, registry.clone()).map_err(|error| source.named(error))?;
    raise_descriptors(config.limits.max_connections);
    let (listener, address) = bind(config.listen).await?;
    tracing::debug!(%address, "listening");
    if let Some(agent) = config.agent_listen {
        let (listener, address) = bind(agent).await?;
        tracing::info!(%address, "answering agent-checks");
        tokio::spawn(answer_agents(listener, host.clone()));
    }
    let (signals, hangups) = (terminated().map_err(at(config.listen))?, hung_up().map_err(at(config.listen))?);
    let prepared = async {
        let state = prepare(&host, &config, &source, registry, address).await?;
        follow(state, config, source, hangups).await
    };
    tokio::select! {
        served = serve(listener, host.clone(), signals) => served,
        failed = prepared => failed,
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.map_err(at(address))?;
    let bound = listener.local_addr().map_err(at(address))?;
    Ok((listener, bound))
}

fn at(address: SocketAddr) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io { path: PathBuf::from(address.to_string()), source }
}

/// Loads the models, and makes the host ready.
async fn prepare(
    host: &Host,
    config: &ServeConfig,
    source: &Source,
    registry: Registry,
    address: SocketAddr,
) -> Result<Arc<AppState>> {
    let (of, named) = (config.clone(), source.clone());
    let state = loading(move || load(&of, &named, registry)).await?;
    let models = state.models();
    let names: Vec<&str> = models.iter().map(|model| model.name()).collect();
    let subnets: usize = models.iter().map(|model| model.subnets().len()).sum();
    host.ready(state.clone());
    tracing::info!(%address, models = names.join(", "), subnets, threads = config.threads().number(), "ready");
    Ok(state)
}

/// Serves other models after every hangup, where the list or a directory of it has changed. Never returns.
async fn follow(state: Arc<AppState>, config: ServeConfig, source: Source, mut hangups: Signals) -> Result<()> {
    loop {
        hangups.next().await;
        if state.is_leaving() {
            continue;
        }
        let (state, config, source) = (state.clone(), config.clone(), source.clone());
        let reloaded = loading(move || {
            let config = source.again(&config)?;
            reload(&state, &config).map_err(|error| source.named(error))
        });
        if let Err(error) = reloaded.await {
            tracing::error!(%error, "the models are served as they were");
        }
    }
}

/// Does this on a thread of its own, which the end of the process does not wait for.
async fn loading<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (answer, loaded) = oneshot::channel();
    let named = "accordion-loading";
    let thread = std::thread::Builder::new().name(named.to_owned()).spawn(move || answer.send(work()));
    thread.map_err(Error::io(named.as_ref()))?;
    // Where it panicked, it has said why.
    loaded.await.unwrap_or_else(|_| Err(Error::input("models", "could not be loaded")))
}

/// As [`open`]; an error about a field of the config names its file.
fn load(config: &ServeConfig, source: &Source, registry: Registry) -> Result<Arc<AppState>> {
    open(config, registry).map_err(|error| source.named(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn a_flag_outdoes_the_file_also_where_it_says_no() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "pin = true").unwrap();
        let config = file.path().to_str().unwrap();
        for (flag, pinned) in [(&[][..], true), (&["--pin"], true), (&["--pin=false"], false), (&["--pin=true"], true)]
        {
            let line =
                Line::try_parse_from([&["serve", "--config", config], flag].concat()).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(line.settings.config().unwrap().0.pin, pinned, "{flag:?}");
        }
    }
}
