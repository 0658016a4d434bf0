//! From a config to a whole server: model, profile, engines.

use crate::Result;
use crate::engine::{Engine, Fleet};
use crate::evaluation::profile::{PROFILE, Profile};
use crate::nets::{Model, Runner};
use crate::server::{AppState, Measured, ServeConfig};
use std::sync::Arc;

/// Loads the model that `config` names, with its profile, and starts an engine for each device.
///
/// A model without a profile is profiled quickly, and the log says so.
///
/// # Errors
/// [`crate::Error::Input`] or [`crate::Error::Io`] naming the file and the field, or the field of `config`.
pub fn open(config: &ServeConfig) -> Result<Arc<AppState>> {
    let model = Model::open(&config.model)?;
    let mut runners = Vec::new();
    for device in &config.devices {
        runners.push((device.clone(), Runner::new(&model, config.threads())?));
    }
    let path = config.model.join(PROFILE);
    let profile = Profile::open(&path)?;
    profile.check_against(model.subnets(), &path)?;
    let measured = Measured::new(&profile, config.max_batch).map_err(|error| error.in_file(&path))?;
    let mut engines = Vec::new();
    for (index, (device, runner)) in runners.into_iter().enumerate() {
        let policy = config.policy.build(measured.ladder.clone(), measured.times.clone(), config.max_batch);
        let name = if config.devices.len() == 1 { device } else { format!("{device}:{index}") };
        engines.push((name, Engine::start(Box::new(runner), model.card.noise, config.engine_limits(), policy)?));
    }
    AppState::new(model.card.name.clone(), Fleet::new(engines), measured, config, prometheus::Registry::new())
}
