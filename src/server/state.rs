//! What every handler sees.

use crate::engine::Engine;
use crate::routing::{Budgets, require_subnets};
use crate::server::metrics::Metrics;
use crate::server::{Limits, ServeConfig};
use crate::{Error, Result};
use prometheus::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

/// A loaded model and the rules for using it.
#[derive(Debug)]
pub struct AppState {
    pub(super) model: String,
    pub(super) engine: Arc<Engine>,
    /// From the narrowest to the widest.
    pub(super) subnets: Vec<String>,
    pub(super) budgets: Budgets,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
    /// Seconds since 1970.
    pub(super) started: u64,
    draining: AtomicBool,
}

impl AppState {
    /// Puts `engine` behind the limits and budgets of `config`; `model` is its name for clients. The server's metrics
    /// go into `registry`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field for a budget whose subnets the model lacks, or a `config` that contradicts
    /// itself; for a `registry` that already holds metrics of these names.
    pub fn new(
        model: impl Into<String>,
        engine: Engine,
        config: &ServeConfig,
        registry: Registry,
    ) -> Result<Arc<Self>> {
        config.check().map_err(|(field, problem)| Error::input(field, problem))?;
        let subnets: Vec<String> = engine.subnets().iter().map(|subnet| subnet.name.clone()).collect();
        for (name, plan) in config.budgets.named() {
            require_subnets(plan, &subnets).map_err(|problem| Error::input(format!("budgets.{name}"), problem))?;
        }
        let engine = Arc::new(engine);
        let metrics = Metrics::register(registry, &engine).map_err(|problem| Error::input("metrics", problem))?;
        Ok(Arc::new(Self {
            model: model.into(),
            engine,
            subnets,
            budgets: config.budgets.clone(),
            limits: config.limits.clone(),
            metrics,
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            draining: AtomicBool::new(false),
        }))
    }

    /// From here on readiness fails and new requests for images are refused; those already here are served.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}
