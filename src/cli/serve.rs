//! `accordion serve`: the HTTP server.

use crate::cli::device::gigabytes;
use crate::cli::{logs, variables};
use crate::console::print;
use crate::nets::{Placement, Threads};
use crate::ops::cuda::Precision;
use crate::server::{
    AppState, Host, LogFormat, ServeConfig, answer_agents, open, process_registry, raise_descriptors, serve, signalled,
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
    /// Load config and model, check them, print one line, and exit: 0 if they are accepted, 2 if not.
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
    /// Model directory, in place of the config's.
    #[arg(long, env = "ACCORDION_MODEL")]
    model: Option<PathBuf>,
    /// Do not hold the model's files against their hashes, whatever the config says: where huge files make the start slow.
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
    /// Gigabytes that the denoiser's weights shall take on a CPU; 0 is no limit.
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
        config.model = self.model.unwrap_or(config.model);
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
    /// Runs the subcommand until SIGTERM, SIGINT or SIGHUP.
    pub fn run(self) -> Result<()> {
        let check_config = self.check_config;
        let (config, path) = self.config()?;
        logs::start(config.log_format)?;
        variables::warn_of_unknown();
        let registry = process_registry().map_err(|problem| Error::input("metrics", problem))?;
        if check_config {
            let state = load(&config, path.as_deref(), registry)?;
            let (model, subnets) = (state.model(), state.subnets().len());
            let place = path.as_deref().map_or("the defaults".into(), Path::to_string_lossy);
            return print(format_args!("{place}: accepted, with model {model} of {subnets} subnets"));
        }
        #[cfg(feature = "otlp")]
        let _collector = crate::server::Collector::from_env()?;
        let io = |source| Error::Io { path: PathBuf::from(config.listen.to_string()), source };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(io)?;
        runtime.block_on(run(config, path, registry))
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

/// Listens at once, loads the model meanwhile, and serves it.
async fn run(config: ServeConfig, path: Option<PathBuf>, registry: Registry) -> Result<()> {
    let host = Host::new(&config, registry.clone()).map_err(|error| in_config(error, path.as_deref()))?;
    raise_descriptors(config.limits.max_connections);
    let (listener, address) = bind(config.listen).await?;
    tracing::debug!(%address, "listening");
    if let Some(agent) = config.agent_listen {
        let (listener, address) = bind(agent).await?;
        tracing::info!(%address, "answering agent-checks");
        tokio::spawn(answer_agents(listener, host.clone()));
    }
    let signals = signalled().map_err(at(config.listen))?;
    tokio::select! {
        served = serve(listener, host.clone(), signals) => served,
        failure = prepare(host, config, path, registry, address) => Err(failure),
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

/// Loads the model on a thread of its own, which the end of the process does not wait for. Returns only on a failure.
async fn prepare(
    host: Arc<Host>,
    config: ServeConfig,
    path: Option<PathBuf>,
    registry: Registry,
    address: SocketAddr,
) -> Error {
    let (answer, loaded) = oneshot::channel();
    let (directory, threads) = (config.model.clone(), config.threads().number());
    let loading = move || answer.send(load(&config, path.as_deref(), registry));
    if let Err(source) = std::thread::Builder::new().name("accordion-loading".to_owned()).spawn(loading) {
        return Error::Io { path: directory, source };
    }
    match loaded.await {
        Ok(Ok(state)) => {
            let (model, subnets) = (state.model().to_owned(), state.subnets().len());
            host.ready(state);
            tracing::info!(%address, model, subnets, threads, "ready");
            std::future::pending().await
        }
        Ok(Err(error)) => error,
        // It panicked, and has said why.
        Err(_) => Error::input(directory.display(), "the model could not be loaded"),
    }
}

/// As [`open`]; an error about a field of the config names its file.
fn load(config: &ServeConfig, path: Option<&Path>, registry: Registry) -> Result<Arc<AppState>> {
    open(config, registry).map_err(|error| in_config(error, path))
}

fn in_config(error: Error, path: Option<&Path>) -> Error {
    match path {
        Some(path) => error.in_file(path),
        None => error,
    }
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
