//! From a config to a whole server: model, profile, engines.

use crate::digits::seconds;
use crate::engine::{Engine, Fleet};
use crate::evaluation::profile::{Device, PROFILE, Profile};
use crate::evaluation::prompted::Examples;
use crate::evaluation::survey::Effort;
use crate::nets;
use crate::nets::model::Verify;
use crate::nets::{Model, Opened, Placement, warm};
use crate::server::{AppState, Measured, ServeConfig};
use crate::text::Contexts;
use crate::{Error, Result};
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
    let gpus = config.devices.iter().filter(|device| **device != Placement::Cpu).count();
    if gpus > 0 && gpus < config.devices.len() {
        return Err(Error::input("devices", "must be all cpu or all cuda: the profile is of one kind of device"));
    }
    let mut model = Model::open_with(&config.model, if config.verify { Verify::Yes } else { Verify::No })?;
    let mut models = Vec::new();
    for (index, &device) in config.devices.iter().enumerate() {
        let is_last = index + 1 == config.devices.len();
        let supernet = if is_last { model.take_supernet() } else { model.supernet.clone() };
        let (most, limit) = (config.max_batch, config.weight_limit());
        let opened = nets::open(&model, supernet, device, config.precision, most, config.threads(), limit)?;
        models.push((device.to_string(), opened));
    }
    let texts = model.contexts()?;
    let profile = profile(config, &model, texts.as_ref(), &mut *models[0].1)?;
    let path = config.model.join(PROFILE);
    let measured = Measured::new(&profile, config.max_batch).map_err(|error| error.in_file(&path))?;
    let mut engines = Vec::new();
    let repeated = |name: &String| config.devices.iter().filter(|device| device.to_string() == *name).count() > 1;
    for (index, (device, mut opened)) in models.into_iter().enumerate() {
        let policy = config.policy.build(measured.ladder.clone(), measured.times.clone(), config.max_batch);
        warm(opened.denoiser(), config.max_batch)?;
        let name = if repeated(&device) { format!("{device}:{index}") } else { device };
        engines.push((name, Engine::start(opened.into_sampler(), config.engine_limits(), policy)?));
    }
    AppState::new(model.card.name.clone(), Fleet::new(engines), texts, measured, config, registry)
}

/// The model's profile. Where it has none it is measured quickly; where it is of another device its times are.
fn profile(config: &ServeConfig, model: &Model, texts: Option<&Contexts>, opened: &mut dyn Opened) -> Result<Profile> {
    let path = config.model.join(PROFILE);
    let (effort, start) = (Effort::Quick { max_batch: config.max_batch }, Instant::now());
    let file = path.display().to_string();
    if !path.exists() {
        let survey = Profile::measure(opened, &Examples::encoded(texts)?, &effort, None, &mut |_| {})?;
        let plans = survey.profile.frontier.len();
        tracing::warn!(
            file,
            plans,
            seconds = seconds(start.elapsed()),
            "no profile: measured a rough one; run `accordion profile`"
        );
        return Ok(survey.profile);
    }
    let profile = Profile::open(&path)?;
    profile.check_against(model.subnets(), &model.decoders(), &model.card.sha256, &path)?;
    if profile.device == Device::of(opened) {
        return Ok(profile);
    }
    let profile = profile.measured_here(opened, &effort, &mut |_| {})?;
    tracing::warn!(
        file,
        seconds = seconds(start.elapsed()),
        "a profile of another machine: measured the times here; run `accordion profile`"
    );
    Ok(profile)
}
