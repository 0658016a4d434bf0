//! What every handler sees.

use crate::engine::{EngineError, Fleet};
use crate::evaluation::profile::Profile;
use crate::routing::{Budgets, Ladder, StepTimes};
use crate::server::answering::Answering;
use crate::server::config::Privacy;
use crate::server::guards::Guards;
use crate::server::kept::Kept;
use crate::server::load::LoadMeter;
use crate::server::metrics::Metrics;
use crate::server::process::UsageMeter;
use crate::server::{ApiError, Limits, ServeConfig};
use crate::text::Contexts;
use crate::{Error, Result};
use prometheus::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// Bodies with pictures that are read at a time: each is held in memory, and connections are many.
pub(super) const LARGE_BODIES: usize = 32;

/// The time, as the OpenAI API tells it.
pub(super) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A loaded model and the rules for using it.
#[derive(Debug)]
pub struct AppState {
    pub(super) model: String,
    pub(super) fleet: Arc<Fleet>,
    /// From the narrowest to the widest.
    pub(super) subnets: Vec<String>,
    pub(super) budgets: Budgets,
    pub(super) ladder: Ladder,
    pub(super) times: StepTimes,
    /// What the qualities of the ladder are.
    pub(super) metric: String,
    /// What encodes prompts, of a model that draws texts.
    pub(super) texts: Option<Arc<Contexts>>,
    pub(super) limits: Limits,
    pub(super) privacy: Privacy,
    pub(super) metrics: Arc<Metrics>,
    pub(super) answering: Answering,
    pub(super) kept: Arc<Kept>,
    /// Places for bodies that may be large while they are read.
    pub(super) large_bodies: Semaphore,
    pub(super) guards: Guards,
    pub(super) meter: LoadMeter,
    pub(super) usage: UsageMeter,
    /// Seconds since 1970.
    pub(super) started: u64,
    leaving: AtomicBool,
    draining: AtomicBool,
}

/// What is measured of a model, as serving needs it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The frontier.
    pub ladder: Ladder,
    /// The times of calls.
    pub times: StepTimes,
    /// What the qualities of the ladder are.
    pub metric: String,
}

impl Measured {
    /// The frontier and the times of a profile; a call holds at most `max_batch` samples.
    ///
    /// # Errors
    /// [`Error::Input`] for a profile without plans.
    pub fn new(profile: &Profile, max_batch: usize) -> Result<Self> {
        let mut rows: Vec<(String, Vec<(usize, f64)>)> = Vec::new();
        for row in &profile.latency {
            let point = (row.batch, row.ms / 1e3);
            match rows.iter_mut().find(|(subnet, _)| *subnet == row.subnet) {
                Some((_, points)) => points.push(point),
                None => rows.push((row.subnet.clone(), vec![point])),
            }
        }
        let encode = profile.encode_ms.unwrap_or(0.0) / 1e3;
        let decoders = profile.decode.iter().map(|row| (row.subnet.clone(), row.ms / 1e3)).collect();
        let times = StepTimes::new(rows, max_batch).with_codec(encode, decoders);
        let plans = profile.frontier.iter().map(|rated| (rated.plan.clone(), rated.quality));
        let is_guided = profile.quality.guidance.is_some();
        let ladder = Ladder::of_measured(plans, is_guided, &times)?;
        Ok(Self { ladder, times, metric: profile.quality.metric.to_string() })
    }
}

impl AppState {
    /// Puts `fleet` behind the limits and budgets of `config`; `model` is its name for clients, `texts` encodes its prompts, where it
    /// draws texts. The server's metrics go into `registry`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field for a `config` that contradicts itself; for a `registry` that already holds
    /// metrics of these names.
    pub fn new(
        model: impl Into<String>,
        fleet: Fleet,
        texts: Option<Contexts>,
        measured: Measured,
        config: &ServeConfig,
        registry: Registry,
    ) -> Result<Arc<Self>> {
        config.check().map_err(|(field, problem)| Error::input(field, problem))?;
        let subnets: Vec<String> = fleet.any().about().subnets.iter().map(|subnet| subnet.name.to_string()).collect();
        let fleet = Arc::new(fleet);
        let longest = Duration::from_secs(config.limits.request_timeout_s);
        let metrics = Metrics::register(registry, &fleet, &config.budgets, longest);
        let metrics = metrics.map_err(|problem| Error::input("metrics", problem))?;
        Ok(Arc::new(Self {
            model: model.into(),
            fleet,
            subnets,
            budgets: config.budgets.clone(),
            ladder: measured.ladder,
            times: measured.times,
            metric: measured.metric,
            texts: texts.map(Arc::new),
            limits: config.limits.clone(),
            privacy: config.privacy,
            metrics: Arc::new(metrics),
            answering: Answering::default(),
            kept: Arc::default(),
            large_bodies: Semaphore::new(LARGE_BODIES),
            guards: Guards::new(config),
            meter: LoadMeter::new(),
            usage: UsageMeter::new(),
            started: seconds_since_1970(),
            leaving: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }))
    }

    /// What draws the images: for those who ask it for some past HTTP.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The names of its subnets, from the narrowest to the widest.
    pub fn subnets(&self) -> &[String] {
        &self.subnets
    }

    /// The scale of guidance where a request says none: 1, which is off, but for models that draw texts.
    pub(super) fn usual_guidance(&self) -> f64 {
        self.fleet.any().about().usual_guidance()
    }

    /// From here on readiness fails, so that balancers look elsewhere; requests for images are served.
    pub fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Whether [`Self::leave`] or [`Self::drain`] was called.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// Only a restart helps where this fails.
    ///
    /// # Errors
    /// [`EngineError::Dead`] once the engine's thread has died, [`ApiError::Stalled`] while one call of the denoiser
    /// takes longer than `limits.hang_timeout_s`.
    pub fn health(&self) -> std::result::Result<(), ApiError> {
        if !self.fleet.is_alive() {
            return Err(EngineError::Dead.into());
        }
        let limit = self.limits.hang_timeout_s;
        match self.fleet.engines().filter_map(|(_, engine)| engine.stats().stalled_for()).max() {
            Some(stalled) if stalled > Duration::from_secs(limit) => Err(ApiError::Stalled(limit)),
            _ => Ok(()),
        }
    }

    /// From here on readiness fails and new requests for images are refused; those already here are served.
    pub fn drain(&self) {
        self.leave();
        self.draining.store(true, Relaxed);
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}
