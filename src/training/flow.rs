//! From scratch to a supernet: train the full width, rank, allocate, train all widths. Every part resumes.

use super::config::Config;
use super::data::Dataset;
use super::state::{Position, StageName, State};
use super::trainer::{Trainer, initial};
use super::{importance, progress::Progress};
use crate::files::write_directory;
use crate::nets::model::{CARD, Card, DataStatistics};
use crate::nets::{Model, Network};
use crate::subnet_name::SubnetName;
use crate::supernet::{Subnet, Supernet, ranking};
use crate::{Error, Result};
use candle_core::DType;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The state of the stage that is running.
const STATE: &str = "state.safetensors";
/// Where the first stage leaves its network.
const PRETRAINED: &str = "full";
/// Where ranking and allocation leave theirs.
const RANKED: &str = "ranked";

/// What a run of the flow is asked for.
pub struct Flow<'a> {
    /// The config.
    pub config: &'a Config,
    /// Where everything goes; the final model lies in the directory itself.
    pub out: &'a Path,
    /// Continue what lies in `out`.
    pub resume: bool,
    /// One stage only, or both with ranking and allocation between them.
    pub only: Option<StageName>,
    /// A ranked and allocated model to begin the second stage with, in place of the first stage's.
    pub init: Option<&'a Path>,
    /// Time between two checkpoints.
    pub checkpoint_every: Duration,
    /// Raised to stop at the next step, with a checkpoint.
    pub stop: &'a AtomicBool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for is done.
    Finished,
    /// It was stopped; `--resume` continues.
    Stopped,
}

impl Flow<'_> {
    /// Runs the flow.
    ///
    /// # Errors
    /// [`Error::Input`] if the config, the data or the directory do not fit.
    pub fn run(&self) -> Result<Outcome> {
        let network = Network::new(&self.config.backbone, self.config.preconditioning)?;
        if self.only == Some(StageName::Full) && self.init.is_some() {
            return Err(Error::input("--init", "begins the stage of all widths: it does not go with --widths full"));
        }
        let mut resumed = self.resumed(&network)?;
        if resumed.as_ref().is_some_and(|state| state.position.stage == StageName::Finetune) {
            return Err(Error::input("--out", format!("{} holds a run of finetune", self.out.display())));
        }
        let stage = resumed.as_ref().map(|state| state.position.stage);
        if self.only == Some(StageName::Full) && stage == Some(StageName::All) {
            let problem = format!("the run in {} is past the full width", self.out.display());
            return Err(Error::input("--widths full", problem));
        }
        let runs_full = self.only != Some(StageName::All) && self.init.is_none() && stage != Some(StageName::All);
        let pretrained = self.out.join(PRETRAINED);
        if runs_full && stage.is_none() && pretrained.exists() {
            // What a first stage would leave there lies there already, from a run whose state is gone.
            let problem = "is left from a run whose state is gone; --widths all continues it, or give a new --out";
            return Err(Error::input(pretrained.display(), problem));
        }
        let dataset = self.dataset(&network, resumed.as_ref())?;
        if runs_full {
            self.say(&dataset);
            std::fs::create_dir_all(self.out).map_err(Error::io(self.out))?;
            let state = match resumed.take() {
                Some(state) => state,
                None => State::begin(StageName::Full, &initial(network.spec(), self.config.seed)?, &dataset.classes)?,
            };
            let spec = network.spec();
            let full = [Subnet::new(spec, 1.0, &spec.full())];
            let mut trainer = Trainer::new(&network, self.config, &dataset, &full, state, None)?;
            if self.train(&network, &mut trainer)? == Outcome::Stopped {
                return Ok(Outcome::Stopped);
            }
            let supernet = trainer.state.supernet(spec, true)?;
            let made = self.made(toml::Table::new(), "train", &trainer.state.position);
            // It is there already if an earlier sitting ended between this and the next checkpoint.
            if !pretrained.exists() {
                let model = self.model(&dataset, supernet, made)?;
                write_directory(&pretrained, |dir| model.write(dir, DType::F32))?;
            }
            if self.only == Some(StageName::Full) {
                return Ok(Outcome::Finished);
            }
        }
        let ranked = self.ranked(&network, &dataset)?;
        if !runs_full {
            self.say(&dataset);
        }
        std::fs::create_dir_all(self.out).map_err(Error::io(self.out))?;
        // A state of the first stage is behind us: what it led to is ranked.
        let state = match resumed.filter(|state| state.position.stage == StageName::All) {
            Some(state) => state,
            None => State::begin(StageName::All, &ranked.supernet, &dataset.classes)?,
        };
        let teacher = Some(&ranked.supernet);
        let mut trainer = Trainer::new(&network, self.config, &dataset, ranked.subnets(), state, teacher)?;
        if self.train(&network, &mut trainer)? == Outcome::Stopped {
            return Ok(Outcome::Stopped);
        }
        let supernet = trainer.state.supernet(network.spec(), true)?;
        let rows = ranked.table.subnets.clone();
        let made = self.made(ranked.card.made, "train", &trainer.state.position);
        let model = self.model(&dataset, supernet, made)?.with_subnets(&ranked.table.target, rows)?;
        model.write(self.out, self.config.dtype.dtype())?;
        Ok(Outcome::Finished)
    }

    /// The state that lies in the directory, if one does.
    pub(super) fn resumed(&self, network: &Network) -> Result<Option<State>> {
        let path = self.out.join(STATE);
        match (path.exists(), self.resume) {
            (true, true) => State::read(network.spec(), &path).map(Some),
            (true, false) => {
                Err(Error::input("--out", format!("{} holds a run; --resume continues it", self.out.display())))
            }
            (false, _) => Ok(None),
        }
    }

    /// Whether the model in `dir` is of the network that the config is for.
    pub(super) fn check_card(&self, card: &Card, dir: &Path) -> Result<()> {
        if card.backbone != self.config.backbone {
            return Err(Error::field(&dir.join(CARD), "backbone", "is not the backbone of the config"));
        }
        if card.preconditioning != self.config.preconditioning {
            return Err(Error::field(&dir.join(CARD), "preconditioning", "is not that of the config"));
        }
        Ok(())
    }

    /// What was loaded, and what the config may not mean: once nothing is refused any more.
    pub(super) fn say(&self, dataset: &Dataset) {
        tracing::info!("{}", dataset.summary());
        self.config.warnings(dataset).iter().for_each(|warning| tracing::warn!("{warning}"));
    }

    /// The config's images, labelled as what this run continues was trained with: the same class stays the same number.
    fn dataset(&self, network: &Network, resumed: Option<&State>) -> Result<Dataset> {
        let dataset = self.config.data.load()?;
        self.config.check_data(&dataset)?;
        let kept = [RANKED, PRETRAINED].map(|stage| self.out.join(stage)).into_iter().find(|dir| dir.exists());
        let known = match (resumed, self.init.map(PathBuf::from).or(kept)) {
            // A network without classes ignores those of the data, and its model has none.
            _ if network.classes() == 0 => Some(Vec::new()),
            (Some(state), _) => Some(state.classes.clone()),
            (None, Some(dir)) => Some(Model::open(&dir)?.card.classes),
            (None, None) => None,
        };
        match known {
            Some(classes) => dataset.for_classes(&classes).map_err(|error| error.in_file(&self.config.path)),
            None => Ok(dataset),
        }
    }

    /// What `model.toml` says of how the model was made, after the stage that stands at `position`.
    pub(super) fn made(&self, mut made: toml::Table, command: &str, position: &Position) -> toml::Table {
        let stage = toml::Table::from_iter([
            ("images".to_string(), toml::Value::from(position.seen as i64)),
            ("hours".to_string(), toml::Value::from((position.seconds / 36.0).round() / 100.0)),
            ("threads".to_string(), toml::Value::from(rayon::current_num_threads() as i64)),
        ]);
        let config = self.config.path.file_name().unwrap_or_default().to_string_lossy();
        made.insert("command".into(), format!("accordion {command} --config {config} --out DIR").into());
        made.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        made.insert("seed".into(), toml::Value::from(self.config.seed as i64));
        made.insert(position.stage.as_str().into(), stage.into());
        made
    }

    /// The ranked and allocated model that the second stage begins with: given, kept from an earlier sitting, or made now.
    fn ranked(&self, network: &Network, dataset: &Dataset) -> Result<Model> {
        let kept = self.out.join(RANKED);
        let given = self.init.map(PathBuf::from).or_else(|| kept.exists().then_some(kept.clone()));
        if let Some(dir) = given {
            let model = Model::open(&dir)?;
            self.check_card(&model.card, &dir)?;
            if model.card.classes != dataset.classes {
                let (theirs, ours) = (model.card.classes.join(", "), dataset.classes.join(", "));
                let problem = format!("are {theirs}, but the run was begun with {ours}; accepted is the same order");
                return Err(Error::field(&dir.join(CARD), "classes", problem));
            }
            return Ok(model);
        }
        let pretrained = Model::open(&self.out.join(PRETRAINED)).map_err(|error| {
            Error::input(
                "--widths all",
                format!("needs --init with a ranked model, or a finished first stage ({error})"),
            )
        })?;
        let ranking = &self.config.ranking;
        tracing::info!(samples = ranking.samples, order = ranking.order.as_str(), "ranking channels");
        let (loss, seed) = (&self.config.loss, self.config.seed);
        let samples = importance::Samples::draw(dataset, network, loss, seed, ranking.samples)?;
        let mut progress = Progress::new("rank", "samples", 0, ranking.samples as u64);
        let scores = importance::taylor(network, &pretrained.supernet, &samples, |done| progress.at(done as u64, ""))?;
        progress.finish();
        let original = ranking::to_original(&pretrained.supernet, &scores);
        let mut model = pretrained.ranked(&scores, ranking.order)?;
        let sorted = ranking::from_original(&model.supernet, &original);
        let wanted = &self.config.allocation;
        let rows = wanted.subnets(network.spec(), &sorted, ranking.order)?;
        let how = toml::Table::from_iter([
            ("samples".to_string(), toml::Value::from(ranking.samples as i64)),
            ("order".to_string(), ranking.order.as_str().into()),
            ("target".to_string(), wanted.target.as_str().into()),
        ]);
        model.card.made.insert("ranking".into(), how.into());
        let model = model.with_subnets(wanted.target.as_str(), rows)?;
        write_directory(&kept, |dir| {
            let notes = [("method", "taylor".to_string()), ("samples", ranking.samples.to_string())];
            ranking::write(model.network.spec(), &original, &notes, &dir.join(ranking::FILE))?;
            model.write(dir, DType::F32)
        })?;
        Ok(model)
    }

    /// A model of these weights, with the card that the config gives it.
    fn model(&self, dataset: &Dataset, supernet: Supernet, made: toml::Table) -> Result<Model> {
        let config = self.config;
        let mut card =
            Card::new(config.name.clone(), config.backbone.clone(), config.preconditioning, dataset.classes.clone());
        card.licence = config.licence.clone();
        let (mean, std) = dataset.statistics();
        card.data = Some(DataStatistics { mean, std });
        card.made = made;
        Model::unallocated(card, supernet)
    }

    pub(super) fn train(&self, network: &Network, trainer: &mut Trainer) -> Result<Outcome> {
        let path = self.out.join(STATE);
        let name = trainer.state.position.stage.as_str();
        let mut progress = Progress::new(name, "images", trainer.state.position.seen, trainer.images());
        let mut saved = Instant::now();
        while !trainer.is_finished() {
            trainer.step()?;
            let position = &trainer.state.position;
            let losses: Vec<String> = trainer
                .ratios()
                .iter()
                .zip(&position.losses)
                .filter_map(|(ratio, loss)| loss.map(|loss| format!("{}: loss {loss:.4}", SubnetName::of(*ratio))))
                .collect();
            progress.at(position.seen, &losses.join(", "));
            let stop = self.stop.load(Ordering::Relaxed);
            if stop || trainer.is_finished() || saved.elapsed() >= self.checkpoint_every {
                trainer.state.write(network.spec(), &path).map_err(|error| match error {
                    Error::NotFinite { place, .. } => trainer.not_finite(format!("{place} is not finite")),
                    other => other,
                })?;
                saved = Instant::now();
            }
            if stop && !trainer.is_finished() {
                progress.finish();
                return Ok(Outcome::Stopped);
            }
        }
        progress.finish();
        Ok(Outcome::Finished)
    }
}
