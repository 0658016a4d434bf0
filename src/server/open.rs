//! From a config to whole servers and models: model, profile, engines.

use crate::digits::seconds;
use crate::engine::{Engine, Fleet};
use crate::evaluation::profile::{Device, PROFILE, Profile};
use crate::evaluation::prompted::Examples;
use crate::evaluation::survey::Effort;
use crate::files::read_toml;
use crate::nets;
use crate::nets::model::{CARD, Card, Verify};
use crate::nets::{Model, Network, Opened, Placement, warm};
use crate::server::catalogue::same_name;
use crate::server::{AppState, Loaded, Measured, Origin, Room, ServeConfig};
use crate::text::Contexts;
use crate::{Error, Result};
use prometheus::Registry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Loads the models that `config` names, with their profiles, runs every subnet once, and starts an engine of each for each device.
/// The server's metrics go into `registry`.
///
/// A model without a profile is profiled quickly, and the log says so.
///
/// # Errors
/// [`crate::Error::Input`] or [`crate::Error::Io`] naming the file and the field, or the field of `config`.
pub fn open(config: &ServeConfig, registry: Registry) -> Result<Arc<AppState>> {
    let room = Room::new(config)?;
    let models = load(config, &room, &config.models, &[])?;
    AppState::new(models, room, config, registry)
}

/// Loads the models of these directories into `room`, beside those that are `kept`.
///
/// # Errors
/// As [`open`].
pub(super) fn load(
    config: &ServeConfig,
    room: &Room,
    directories: &[PathBuf],
    kept: &[Arc<Loaded>],
) -> Result<Vec<Loaded>> {
    let gpus = config.devices.iter().filter(|device| **device != Placement::Cpu).count();
    if gpus > 0 && gpus < config.devices.len() {
        return Err(Error::input("devices", "must be all cpu or all cuda: the profile is of one kind of device"));
    }
    let cards: Vec<Card> =
        directories.iter().map(|directory| read_toml(&directory.join(CARD))).collect::<Result<_>>()?;
    check_names(directories, &cards, kept)?;
    let limits = weight_limits(config, directories, &cards, kept)?;
    directories.iter().zip(limits).map(|(directory, limit)| load_one(config, room, directory, limit)).collect()
}

/// Before anything large is read: that all names differ.
fn check_names(directories: &[PathBuf], cards: &[Card], kept: &[Arc<Loaded>]) -> Result<()> {
    let kept = kept.iter().map(|model| (&*model.name, &*model.origin.directory));
    let mut known: Vec<(&str, &Path)> = kept.collect();
    for (directory, card) in directories.iter().zip(cards) {
        if let Some((name, other)) = known.iter().find(|(name, _)| *name == card.name) {
            return Err(same_name(name, [other, directory]));
        }
        known.push((&card.name, directory));
    }
    Ok(())
}

/// The bytes that the weights of each model shall take on one CPU device, where there is a limit: of what the `kept` ones leave, in
/// proportion to what they take without one.
fn weight_limits(
    config: &ServeConfig,
    directories: &[PathBuf],
    cards: &[Card],
    kept: &[Arc<Loaded>],
) -> Result<Vec<Option<usize>>> {
    let Some(limit) = config.weight_limit() else { return Ok(vec![None; cards.len()]) };
    let engines = kept.iter().flat_map(|model| model.fleet.engines());
    let left = limit.saturating_sub(engines.map(|(_, engine)| engine.about().weight_bytes).sum());
    let wanted = cards.iter().zip(directories).map(|(card, directory)| {
        let network = Network::new(&card.backbone, card.preconditioning);
        Ok(network.map_err(|error| error.in_table(&directory.join(CARD), "backbone."))?.unlimited_bytes())
    });
    let wanted: Vec<usize> = wanted.collect::<Result<_>>()?;
    Ok(shares(left / config.devices.len(), &wanted).into_iter().map(Some).collect())
}

/// `whole` in parts that are to each other as `wanted` are.
fn shares(whole: usize, wanted: &[usize]) -> Vec<usize> {
    let all = wanted.iter().sum::<usize>().max(1);
    wanted.iter().map(|&part| (whole as f64 * (part as f64 / all as f64)) as usize).collect()
}

fn load_one(config: &ServeConfig, room: &Room, directory: &Path, limit: Option<usize>) -> Result<Loaded> {
    // Before the files are read: what changes meanwhile is read again the next time.
    let origin = Origin::of(directory)?;
    let mut model = Model::open_with(directory, if config.verify { Verify::Yes } else { Verify::No })?;
    let mut opened = Vec::new();
    for (index, &device) in config.devices.iter().enumerate() {
        let is_last = index + 1 == config.devices.len();
        let supernet = if is_last { model.take_supernet() } else { model.supernet.clone() };
        let network = nets::open(&model, supernet, device, config.precision, config.max_batch, config.threads(), limit);
        let network = match device {
            Placement::Cpu => network?,
            // Which of the models is too large beside the others.
            Placement::Cuda(_) => network.map_err(|error| error.within(&format!("{}: ", directory.display())))?,
        };
        opened.push((device.to_string(), network));
    }
    let texts = model.contexts()?;
    let profile = profile(config, directory, &model, texts.as_ref(), &mut *opened[0].1)?;
    let measured =
        Measured::new(&profile, config.max_batch).map_err(|error| error.in_file(&directory.join(PROFILE)))?;
    let mut engines = Vec::new();
    let repeated = |name: &String| config.devices.iter().filter(|device| device.to_string() == *name).count() > 1;
    for (index, (device, mut opened)) in opened.into_iter().enumerate() {
        let policy = config.policy.build(measured.ladder.clone(), measured.times.clone(), config.max_batch);
        warm(opened.denoiser(), config.max_batch)?;
        let name = if repeated(&device) { format!("{device}:{index}") } else { device };
        engines.push((name, Engine::start(opened.into_sampler(), room.place(index), policy)?));
    }
    Ok(Loaded::new(model.card.name.clone(), origin, Fleet::new(engines), texts, measured))
}

/// The profile of a model. Where it has none it is measured quickly; where it is of another device its times are.
fn profile(
    config: &ServeConfig,
    directory: &Path,
    model: &Model,
    texts: Option<&Contexts>,
    opened: &mut dyn Opened,
) -> Result<Profile> {
    let path = directory.join(PROFILE);
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

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn a_limit_is_shared_in_proportion_to_what_is_wanted() {
        assert_eq!(shares(900, &[100, 200]), [300, 600]);
        assert_eq!(shares(900, &[5]), [900]);
        assert_eq!(shares(900, &[0, 0]), [0, 0]);
    }
}
