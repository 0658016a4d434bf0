//! What every handler sees.

use crate::engine::{EngineError, Place, Queue, Turns};
use crate::routing::Budgets;
use crate::server::answering::Answering;
use crate::server::catalogue::Catalogue;
use crate::server::config::Privacy;
use crate::server::guards::Guards;
use crate::server::kept::Kept;
use crate::server::load::LoadMeter;
use crate::server::metrics::Metrics;
use crate::server::process::UsageMeter;
use crate::server::{ApiError, Limits, Loaded, ServeConfig};
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

/// What the engines of all models share: the queue in front of them and the devices under them.
#[derive(Clone, Debug)]
pub struct Room {
    queue: Queue,
    /// One for each device of the config, in its order.
    devices: Vec<Arc<Turns>>,
}

impl Room {
    /// What `config` says.
    ///
    /// # Errors
    /// [`Error::Input`] for a queue that cannot be.
    pub fn new(config: &ServeConfig) -> Result<Self> {
        let devices = config.devices.iter().map(|_| Arc::default()).collect();
        Ok(Self { queue: Queue::new(config.queue_images)?, devices })
    }

    /// The place of a model's engine on the device of this index.
    pub fn place(&self, device: usize) -> Place {
        Place::new(&self.queue, &self.devices[device])
    }

    pub(super) fn devices(&self) -> &[Arc<Turns>] {
        &self.devices
    }
}

/// The loaded models and the rules for using them.
#[derive(Debug)]
pub struct AppState {
    pub(super) catalogue: Arc<Catalogue>,
    pub(super) room: Room,
    pub(super) budgets: Budgets,
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
    leaving: AtomicBool,
    draining: AtomicBool,
}

impl AppState {
    /// Puts models, whose engines are in `room`, behind the limits and budgets of `config`. The server's metrics go into `registry`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field for a `config` that contradicts itself; for no model, or two of one name; for a `registry`
    /// that already holds metrics of these names.
    pub fn new(models: Vec<Loaded>, room: Room, config: &ServeConfig, registry: Registry) -> Result<Arc<Self>> {
        config.check().map_err(|(field, problem)| Error::input(field, problem))?;
        let catalogue = Arc::new(Catalogue::new(models.into_iter().map(Arc::new).collect())?);
        let longest = Duration::from_secs(config.limits.request_timeout_s);
        let metrics = Metrics::register(registry, &catalogue, &config.budgets, longest);
        let metrics = metrics.map_err(|problem| Error::input("metrics", problem))?;
        Ok(Arc::new(Self {
            catalogue,
            room,
            budgets: config.budgets.clone(),
            limits: config.limits.clone(),
            privacy: config.privacy,
            metrics: Arc::new(metrics),
            answering: Answering::default(),
            kept: Arc::default(),
            large_bodies: Semaphore::new(LARGE_BODIES),
            guards: Guards::new(config),
            meter: LoadMeter::new(),
            usage: UsageMeter::new(),
            leaving: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }))
    }

    /// The loaded models, the usual one first.
    pub fn models(&self) -> Arc<[Arc<Loaded>]> {
        self.catalogue.all()
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
    /// [`EngineError::Dead`] once the thread of an engine has died, [`ApiError::Stalled`] while one call of the denoiser
    /// takes longer than `limits.hang_timeout_s`.
    pub fn health(&self) -> std::result::Result<(), ApiError> {
        let models = self.catalogue.alive();
        if !models.iter().all(|model| model.fleet.is_alive()) {
            return Err(EngineError::Dead.into());
        }
        let limit = self.limits.hang_timeout_s;
        let engines = models.iter().flat_map(|model| model.fleet.engines());
        match engines.filter_map(|(_, engine)| engine.stats().stalled_for()).max() {
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
