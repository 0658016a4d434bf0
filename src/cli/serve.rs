//! `accordion serve`: the HTTP server.

use crate::nets::Threads;
use crate::server::{ServeConfig, open, serve, signalled};
use crate::{Error, Result};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where the config is looked for when none is given.
const CONFIG: &str = "config/serve.toml";

/// Serve images over HTTP.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Server config; `config/serve.toml` if that file exists, else the defaults.
    #[arg(long, env = "ACCORDION_CONFIG")]
    config: Option<PathBuf>,
    /// Address to listen on, in place of the config's.
    #[arg(long, env = "ACCORDION_LISTEN")]
    listen: Option<SocketAddr>,
    /// Model directory, in place of the config's.
    #[arg(long, env = "ACCORDION_MODEL")]
    model: Option<PathBuf>,
    /// Samples in one call of the denoiser, in place of the config's.
    #[arg(long, env = "ACCORDION_MAX_BATCH")]
    max_batch: Option<usize>,
    /// Images that may wait, in place of the config's.
    #[arg(long, env = "ACCORDION_QUEUE_IMAGES")]
    queue_images: Option<usize>,
    /// Threads that denoise, in place of the config's; 0 is one for each core.
    #[arg(long, env = "ACCORDION_THREADS", value_parser = clap::value_parser!(u16).range(..=Threads::MOST as i64))]
    threads: Option<u16>,
    /// Bind each of them but the first to a core of its own, whatever the config says.
    #[arg(long, env = "ACCORDION_PIN")]
    pin: bool,
    /// Hashes of the accepted API keys with commas between them, in place of the config's.
    #[arg(long, env = "ACCORDION_KEY_HASHES", hide_env_values = true)]
    key_hashes: Option<Unseen>,
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
        let default = PathBuf::from(CONFIG);
        let path = self.config.or_else(|| default.exists().then_some(default));
        let mut config = path.as_deref().map(ServeConfig::load).transpose()?.unwrap_or_default();
        config.listen = self.listen.unwrap_or(config.listen);
        config.model = self.model.unwrap_or(config.model);
        config.max_batch = self.max_batch.unwrap_or(config.max_batch);
        config.queue_images = self.queue_images.unwrap_or(config.queue_images);
        config.threads = self.threads.map_or(config.threads, usize::from);
        config.pin |= self.pin;
        if let Some(Unseen(text)) = self.key_hashes {
            config.auth.key_hashes = text.parse().map_err(|problem: String| Error::input("--key-hashes", problem))?;
        }
        let state = open(&config);
        let state = state.map_err(|error| match &path {
            Some(path) => error.in_file(path),
            None => error,
        })?;
        let io = |source| Error::Io { path: PathBuf::from(config.listen.to_string()), source };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(io)?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(config.listen).await.map_err(io)?;
            let address = listener.local_addr().map_err(io)?;
            tracing::info!(%address, model = %config.model.display(), "ready");
            serve(listener, state, signalled().map_err(io)?).await
        })
    }
}
