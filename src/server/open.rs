//! From a config to a whole server: model, profile, engines.

use crate::Result;
use crate::engine::{Engine, Fleet};
use crate::evaluation::profile::{Device, PROFILE, Profile};
use crate::evaluation::survey::Effort;
use crate::nets::{HostSampler, Model, Runner, warm};
use crate::server::{AppState, Measured, ServeConfig};
use prometheus::Registry;
use std::sync::Arc;
use std::time::Instant;

/// Loads the model that `config` names, with its profile, runs every subnet once, and starts an engine for each device.
/// The server's metrics go into `registry`.
///
/// A model without a profile is profiled quickly, and the log says so.
///
/// # Errors
/// [`crate::Error::Input`] or [`crate::Error::Io`] naming the file and the field, or the field of `config`.
pub fn open(config: &ServeConfig, registry: Registry) -> Result<Arc<AppState>> {
    let model = Model::open(&config.model)?;
    let mut runners = Vec::new();
    for device in &config.devices {
        runners.push((device.clone(), Runner::new(&model, config.threads())?));
    }
    let profile = profile(config, &model, &mut runners[0].1)?;
    let path = config.model.join(PROFILE);
    let measured = Measured::new(&profile, config.max_batch).map_err(|error| error.in_file(&path))?;
    let mut engines = Vec::new();
    for (index, (device, mut runner)) in runners.into_iter().enumerate() {
        let policy = config.policy.build(measured.ladder.clone(), measured.times.clone(), config.max_batch);
        warm(&mut runner, config.max_batch)?;
        let name = if config.devices.len() == 1 { device } else { format!("{device}:{index}") };
        let (sampler, limits) = (HostSampler::new(Box::new(runner)), config.engine_limits());
        engines.push((name, Engine::start(Box::new(sampler), model.card.noise, limits, policy)?));
    }
    AppState::new(model.card.name.clone(), Fleet::new(engines), measured, config, registry)
}

/// The model's profile. Where it has none it is measured quickly; where it is of another machine its times are.
fn profile(config: &ServeConfig, model: &Model, runner: &mut Runner) -> Result<Profile> {
    let path = config.model.join(PROFILE);
    let (effort, start) = (Effort::Quick { max_batch: config.max_batch }, Instant::now());
    let file = path.display().to_string();
    let seconds = || (start.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    if !path.exists() {
        let survey = Profile::measure(runner, model.card.noise, config.pin, &effort, &mut |_| {})?;
        let plans = survey.profile.frontier.len();
        tracing::warn!(file, plans, seconds = seconds(), "no profile: measured a rough one; run `accordion profile`");
        return Ok(survey.profile);
    }
    let profile = Profile::open(&path)?;
    profile.check_against(model.subnets(), &path)?;
    if profile.device == Device::here(runner.threads()) {
        return Ok(profile);
    }
    let profile = profile.measured_here(runner, config.pin, &effort, &mut |_| {});
    tracing::warn!(
        file,
        seconds = seconds(),
        "a profile of another machine: measured the times here; run `accordion profile`"
    );
    Ok(profile)
}
