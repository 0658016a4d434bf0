//! `config/serve.toml`.

use crate::files::read_toml;
use crate::nets::opened::weight_limit;
use crate::nets::{Placement, Threads};
use crate::ops::cuda::Precision;
use crate::routing::{Budgets, PolicyChoice};
use crate::server::auth::Auth;
use crate::server::guards::check_origin;
use crate::{Error, Result};
use serde::{Deserialize, Deserializer};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// What `accordion serve` is told. Every field has a default: an empty file is a valid one.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServeConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where HAProxy's agent-check is answered; nowhere without it, or with an empty text.
    #[serde(deserialize_with = "address_or_none")]
    pub agent_listen: Option<SocketAddr>,
    /// The model directories, that of the usual model first.
    pub models: Vec<PathBuf>,
    /// Whether their files are held against the hashes in their `model.toml`.
    pub verify: bool,
    /// Where to denoise, an engine each: `cpu`, or GPUs as `cuda:0`.
    pub devices: Vec<Placement>,
    /// The type of weights and activations on a GPU.
    pub precision: Precision,
    /// Who decides what runs when, and by which plan.
    pub policy: PolicyChoice,
    /// Samples in one call of the denoiser; an image under guidance is two, and runs alone where only one fits.
    pub max_batch: usize,
    /// Gigabytes that the denoisers' weights shall take on the CPU, those of all models together; 0 is no limit.
    pub max_weight_gb: f64,
    /// Images that may wait for their first step, of all models together; beyond it requests get 429.
    pub queue_images: usize,
    /// Threads that denoise, for each device; 0 is one for each core.
    pub threads: usize,
    /// Whether each of them but the first is bound to a core of its own.
    pub pin: bool,
    /// The form of log lines.
    pub log_format: LogFormat,
    /// Origins of pages in a browser that may read answers, or `*`; none without entries.
    pub cors_origins: Vec<String>,
    /// Who may ask for images.
    pub auth: Auth,
    /// What is told about an image in its file.
    pub privacy: Privacy,
    /// What a request may ask.
    pub limits: Limits,
    /// What each named budget means.
    pub budgets: Budgets,
}

fn address_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let address = (!text.is_empty()).then(|| text.parse()).transpose();
    address.map_err(|_| serde::de::Error::custom(format!("`{text}` is no address and port, such as 127.0.0.1:8081")))
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object a line, for machines.
    Json,
}

/// What is told about an image in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Privacy {
    /// Whether a PNG file holds what it was drawn with: model, plan, seed, class or prompt, guidance.
    pub embed_settings: bool,
}

impl Default for Privacy {
    fn default() -> Self {
        Self { embed_settings: true }
    }
}

/// What a request, a connection and a shutdown may take.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Images in one request.
    pub max_n: u32,
    /// Pixels of all images of one request together.
    pub max_pixels: usize,
    /// Solver steps of one image.
    pub max_steps: usize,
    /// Connections at once; beyond it probes are answered, and everything else gets 503.
    pub max_connections: usize,
    /// Seconds that a connection may wait for a request, its first or the next.
    pub idle_timeout_s: u64,
    /// Seconds for a request's head to arrive, from its first byte.
    pub header_timeout_s: u64,
    /// Seconds for a request's body to arrive.
    pub body_timeout_s: u64,
    /// Seconds from a complete request to its images.
    pub request_timeout_s: u64,
    /// Seconds for a client to take what is written to it, from the moment when it holds the writing up.
    pub write_timeout_s: u64,
    /// Seconds that one call of the denoiser may take before `/livez` fails.
    pub hang_timeout_s: u64,
    /// Seconds from SIGTERM, when readiness fails, to when nothing new is accepted: balancers need time to notice.
    pub drain_grace_s: u64,
    /// Seconds for accepted requests to finish after that.
    pub drain_timeout_s: u64,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            agent_listen: None,
            models: vec![PathBuf::from("models/fashion-mnist")],
            verify: true,
            devices: vec![Placement::Cpu],
            precision: Precision::F32,
            policy: PolicyChoice::default(),
            max_batch: 16,
            max_weight_gb: 0.0,
            queue_images: 256,
            threads: 0,
            pin: false,
            log_format: LogFormat::default(),
            cors_origins: Vec::new(),
            auth: Auth::default(),
            privacy: Privacy::default(),
            limits: Limits::default(),
            budgets: Budgets::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_n: 16,
            max_pixels: 1 << 24,
            max_steps: 250,
            max_connections: 1024,
            idle_timeout_s: 75,
            header_timeout_s: 30,
            body_timeout_s: 30,
            request_timeout_s: 300,
            write_timeout_s: 60,
            hang_timeout_s: 60,
            drain_grace_s: 5,
            drain_timeout_s: 120,
        }
    }
}

impl ServeConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Input`] naming the file and the field.
    pub fn load(path: &Path) -> Result<Self> {
        let config: Self = read_toml(path)?;
        config.check().map_err(|(field, problem)| Error::field(path, field, problem))?;
        Ok(config)
    }

    /// The bytes that the denoisers' weights shall take on the CPU together, where there is a limit.
    pub fn weight_limit(&self) -> Option<usize> {
        weight_limit(self.max_weight_gb)
    }

    /// Who denoises.
    pub fn threads(&self) -> Threads {
        Threads { count: (self.threads > 0).then_some(self.threads), pin: self.pin }
    }

    /// Checks what the types cannot say. The error is a field's name and what is wrong with it.
    pub(super) fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        let limits = &self.limits;
        let seconds = |s: u64| usize::try_from(s).unwrap_or(usize::MAX);
        if !(0.0..=1e6).contains(&self.max_weight_gb) {
            let problem = format!("is {}, but must be from 0, for no limit, to 1000000", self.max_weight_gb);
            return Err(("max_weight_gb", problem));
        }
        for (field, value) in [
            ("max_batch", self.max_batch),
            ("queue_images", self.queue_images),
            ("limits.max_n", limits.max_n as usize),
            ("limits.max_pixels", limits.max_pixels),
            ("limits.max_steps", limits.max_steps),
            ("limits.max_connections", limits.max_connections),
            ("limits.idle_timeout_s", seconds(limits.idle_timeout_s)),
            ("limits.header_timeout_s", seconds(limits.header_timeout_s)),
            ("limits.body_timeout_s", seconds(limits.body_timeout_s)),
            ("limits.request_timeout_s", seconds(limits.request_timeout_s)),
            ("limits.write_timeout_s", seconds(limits.write_timeout_s)),
            ("limits.hang_timeout_s", seconds(limits.hang_timeout_s)),
            ("limits.drain_timeout_s", seconds(limits.drain_timeout_s)),
        ] {
            // Far above anything sensible, far below what the clock and the semaphores count to.
            if value == 0 || value > u32::MAX as usize {
                return Err((field, format!("{value} is not accepted: it must be 1 to {}", u32::MAX)));
            }
        }
        // The only one that may be 0.
        if limits.drain_grace_s > u64::from(u32::MAX) {
            let given = limits.drain_grace_s;
            return Err(("limits.drain_grace_s", format!("{given} is not accepted: it must be 0 to {}", u32::MAX)));
        }
        if self.threads > Threads::MOST {
            return Err(("threads", format!("{} is not accepted: it must be 0 to {}", self.threads, Threads::MOST)));
        }
        if limits.max_n as usize > self.queue_images {
            let (n, queue) = (limits.max_n, self.queue_images);
            return Err((
                "limits.max_n",
                format!("{n} is more than queue_images = {queue}: such a request never fits"),
            ));
        }
        for origin in &self.cors_origins {
            check_origin(origin).map_err(|problem| ("cors_origins", problem))?;
        }
        if self.models.is_empty() {
            let problem = "is empty: name at least one directory, as in [\"models/fashion-mnist\"]";
            return Err(("models", problem.to_owned()));
        }
        if self.devices.is_empty() {
            return Err(("devices", "is empty: name at least one, as in [\"cpu\"]".to_owned()));
        }
        for (field, (_, budget)) in
            ["budgets.fast", "budgets.balanced", "budgets.best"].into_iter().zip(self.budgets.named())
        {
            let shares = 0.0..=1.0;
            if !shares.contains(&budget.quality) || !shares.contains(&budget.min_quality) {
                return Err((field, "quality and min_quality are shares of the best: they must be 0 to 1".to_owned()));
            }
            if budget.min_quality > budget.quality {
                return Err((field, format!("min_quality {} is above quality {}", budget.min_quality, budget.quality)));
            }
            if budget.within_ms == 0 || budget.within_ms > limits.request_timeout_s.saturating_mul(1000) {
                let most = limits.request_timeout_s.saturating_mul(1000);
                return Err((
                    field,
                    format!("within_ms is {}, but must be 1 to {most}, the request time-out", budget.within_ms),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<ServeConfig> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ServeConfig::load(file.path())
    }

    #[test]
    fn the_shipped_file_shows_every_field_with_its_default() {
        let shipped = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/serve.toml")).unwrap();
        assert_eq!(load(&shipped).unwrap(), ServeConfig::default());
        // A setting is a commented line `# name = value`; a comment in words is `## ...`.
        let settings: String = shipped
            .lines()
            .filter(|line| !line.starts_with("##"))
            .fold(String::new(), |all, line| all + line.strip_prefix("# ").unwrap_or(line) + "\n");
        assert_eq!(load(&settings).unwrap(), ServeConfig::default());
        for field in [
            "listen",
            "agent_listen",
            "models",
            "max_batch",
            "max_weight_gb",
            "queue_images",
            "threads",
            "pin",
            "devices",
            "policy",
            "verify",
        ]
        .into_iter()
        .chain(["quality", "within_ms", "min_quality"])
        .chain(["log_format", "cors_origins"])
        .chain(["max_n", "max_pixels", "max_steps", "max_connections"])
        .chain(["idle_timeout_s", "header_timeout_s", "body_timeout_s", "request_timeout_s"])
        .chain(["write_timeout_s", "hang_timeout_s"])
        .chain(["drain_grace_s", "drain_timeout_s"])
        {
            assert!(settings.lines().any(|line| line.starts_with(&format!("{field} = "))), "{field}");
        }
        // It has no default that can be written down: an empty list is refused.
        assert!(shipped.contains("\n## key_hashes = "));
    }

    #[test]
    fn no_threads_are_one_for_each_core() {
        assert_eq!(ServeConfig::default().threads(), Threads::ALL);
        let pinned = load("threads = 3\npin = true").unwrap().threads();
        assert_eq!(pinned, Threads { count: Some(3), pin: true });
    }

    #[test]
    fn a_mistake_is_refused_with_the_file_and_the_field() {
        for (text, says) in [
            ("lisen = \"127.0.0.1:1\"", "unknown field `lisen`"),
            ("max_batch = \"many\"", ": max_batch: invalid type"),
            ("listen = \"localhost\"", ": listen: "),
            ("threads = 1025", ": threads: 1025 is not accepted: it must be 0 to 1024"),
            ("pin = 1", ": pin: invalid type"),
            ("agent_listen = \"here\"", ": agent_listen: `here` is no address and port"),
            ("log_format = \"xml\"", ": log_format: unknown variant `xml`, expected `text` or `json`"),
            ("cors_origins = [\"example.com\"]", ": cors_origins: `example.com` is not accepted: it must be \"*\" or"),
            (
                "cors_origins = [\"https://example.com/app\"]",
                ": cors_origins: `https://example.com/app` is not accepted",
            ),
            ("cors_origins = [\"https://*.example.com\"]", ": cors_origins: `https://*.example.com` is not accepted"),
            ("[auth]\nkey_hashes = [\"sha256:12\"]", ": auth.key_hashes: entry 0 is not `sha256:` and 64"),
            ("[auth]\nkey_hashes = []", ": auth.key_hashes: holds no key: give a hash"),
            ("[auth]\nkeys = []", ": auth.keys: unknown field"),
            ("[limits]\nmax_n = -1", ": limits.max_n: "),
            ("[limits]\nmax_n = 300", ": limits.max_n: 300 is more than queue_images = 256"),
            ("[limits]\nbody_timeout_s = 0", ": limits.body_timeout_s: 0 is not accepted"),
            ("[budgets]\nfast = \"heun\"", ": budgets.fast: "),
            ("[budgets.fast]\nquality = 2", ": budgets.fast: quality and min_quality are shares"),
            ("[budgets.fast]\nmin_quality = 0.9", ": budgets.fast: min_quality 0.9 is above quality 0.8"),
            ("[budgets.best]\nwithin_ms = 300001", ": budgets.best: within_ms is 300001, but must be 1 to 300000"),
            ("policy = \"fifo\"", ": policy: policy: `fifo` is unknown: accepted are elastic, slackfit, fixed:<plan>"),
            ("devices = []", ": devices: is empty"),
            ("models = []", ": models: is empty: name at least one directory"),
            ("model = \"models/a\"", ": unknown field `model`, expected one of `listen`, `agent_listen`, `models`"),
            ("max_weight_gb = -1.0", ": max_weight_gb: is -1, but must be from 0, for no limit, to"),
            (
                "devices = [\"tpu\"]",
                ": devices[0]: device `tpu` is unknown: accepted are cpu, cuda:0, cuda:1 and so on",
            ),
            ("max_batch", "expected"),
        ] {
            let message = load(text).unwrap_err().to_string();
            assert!(message.contains(says) && !message.contains('\n'), "{text}: {message}");
        }
        assert!(matches!(ServeConfig::load(Path::new("/no/such.toml")), Err(Error::Io { .. })));
    }
}
