//! From scratch to a supernet: train the full width, rank, allocate, train all widths. Every part resumes.

use super::config::{Config, Stage};
use super::data::Examples;
pub use super::sitting::Outcome;
use super::sitting::Sitting;
use super::state::{Position, StageName, State};
use super::texts::TrainedTexts;
use super::trainer::{Trainer, initial};
use super::{importance, progress::Progress};
use crate::files::write_directory;
use crate::nets::model::{CARD, Card, DataStatistics};
use crate::nets::text_to_image::TEXT_ENCODER;
use crate::nets::{Model, Network};
use crate::supernet::{Subnet, Supernet, ranking};
use crate::{Error, Result};
use candle_core::DType;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

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
    /// A model to begin with, in place of a network from scratch.
    pub model: Option<&'a Path>,
    /// A ranked and allocated model to begin the second stage with, in place of the first stage's.
    pub init: Option<&'a Path>,
    /// Time between two checkpoints.
    pub checkpoint_every: Duration,
    /// Raised to stop at the next step, with a checkpoint.
    pub stop: &'a AtomicBool,
}

impl Flow<'_> {
    /// Runs the flow.
    ///
    /// # Errors
    /// [`Error::Input`] if the config, the data or the directory do not fit.
    pub fn run(&self) -> Result<Outcome> {
        if self.only == Some(StageName::Full) && self.init.is_some() {
            return Err(Error::input("--init", "begins the stage of all widths: it does not go with --widths full"));
        }
        if self.model.is_some() && self.init.is_some() {
            return Err(Error::input("--init", "is the model that the run begins with: it does not go with --model"));
        }
        let given = self.model.or(self.init).map(|dir| Ok::<_, Error>((Model::open(dir)?, dir))).transpose()?;
        if let Some((model, dir)) = &given {
            self.check_card(&model.card, dir)?;
        }
        let network = self.config.network(given.as_ref().map(|(model, _)| model))?;
        let mut resumed = self.sitting().resumed(network.spec())?;
        let stage = resumed.as_ref().map(|state| state.position.stage);
        if let Some(other @ (StageName::Finetune | StageName::Vae | StageName::Decoder)) = stage {
            return Err(Error::input("--out", format!("{} holds a run of {}", self.out.display(), other.as_str())));
        }
        if self.only == Some(StageName::Full) && stage == Some(StageName::All) {
            let problem = format!("the run in {} is past the full width", self.out.display());
            return Err(Error::input("--widths full", problem));
        }
        let is_ranked_as_it_is = self.model.is_some() && self.config.full.is_none() && self.only.is_none();
        let runs_full = self.only != Some(StageName::All)
            && self.init.is_none()
            && stage != Some(StageName::All)
            && !is_ranked_as_it_is;
        let pretrained = self.out.join(PRETRAINED);
        if runs_full && stage.is_none() && pretrained.exists() {
            // What a first stage would leave there lies there already, from a run whose state is gone.
            let problem = "is left from a run whose state is gone; --widths all continues it, or give a new --out";
            return Err(Error::input(pretrained.display(), problem));
        }
        let given = given.map(|(model, _)| model);
        // What an earlier sitting left to go on with.
        let kept = [RANKED, PRETRAINED].map(|stage| self.out.join(stage)).into_iter().find(|dir| dir.exists());
        let kept = kept.filter(|_| !runs_full && self.init.is_none()).map(|dir| Model::open(&dir)).transpose()?;
        let begun_with = kept.as_ref().or(given.as_ref());
        let Some(mut examples) = self.examples(&network, resumed.as_ref(), begun_with)? else {
            return Ok(Outcome::Stopped);
        };
        let mut first = kept;
        if runs_full {
            let begun = Begun { network: &network, examples: &*examples, model: given.as_ref() };
            let stage = self.config.stage(StageName::Full)?;
            let texts = self.texts(stage, &begun)?;
            self.say(&begun);
            std::fs::create_dir_all(self.out).map_err(Error::io(self.out))?;
            let state = match resumed.take() {
                Some(state) => state,
                None => {
                    let weights = given.as_ref().map(|model| model.supernet.clone());
                    let weights = weights.map_or_else(|| initial(network.spec(), self.config.seed), Ok)?;
                    self.begin(StageName::Full, &weights, &begun, texts.as_ref())?
                }
            };
            let spec = network.spec();
            let full = [Subnet::new(spec, 1.0, &spec.full())];
            let trainer = Trainer::new(&network, self.config, &*examples, &full, state, None)?;
            let mut trainer = trainer.with_texts(texts)?;
            if self.sitting().run(&mut trainer)? == Outcome::Stopped {
                return Ok(Outcome::Stopped);
            }
            // It is there already if an earlier sitting ended between this and the next checkpoint.
            if !pretrained.exists() {
                let model = self.model(&begun, &trainer, toml::Table::new())?;
                write_directory(&pretrained, |dir| model.write(dir, DType::F32))?;
            }
            if self.only == Some(StageName::Full) {
                return Ok(Outcome::Finished);
            }
            let model = Model::open(&pretrained)?;
            if stage.text_encoder {
                // From here on captions mean what the encoder of texts makes of them now.
                let again = self.examples(&network, None, Some(&model))?;
                let Some(again) = again else { return Ok(Outcome::Stopped) };
                examples = again;
            }
            first = Some(model);
        }
        let ranked = self.ranked(&network, &*examples, first, given)?;
        let begun = Begun { network: &network, examples: &*examples, model: Some(&ranked) };
        if !runs_full {
            self.say(&begun);
        }
        let texts = self.texts(self.config.stage(StageName::All)?, &begun)?;
        std::fs::create_dir_all(self.out).map_err(Error::io(self.out))?;
        // A state of the first stage is behind us: what it led to is ranked.
        let state = match resumed.filter(|state| state.position.stage == StageName::All) {
            Some(state) => state,
            None => self.begin(StageName::All, &ranked.supernet, &begun, texts.as_ref())?,
        };
        let teacher = Some(&ranked.supernet);
        let trainer = Trainer::new(&network, self.config, &*examples, ranked.subnets(), state, teacher)?;
        let mut trainer = trainer.with_texts(texts)?;
        if self.sitting().run(&mut trainer)? == Outcome::Stopped {
            return Ok(Outcome::Stopped);
        }
        let model = self.model(&begun, &trainer, ranked.card.made.clone())?;
        let model = model.with_subnets(&ranked.table.target, ranked.table.subnets.clone())?;
        model.write(self.out, self.config.dtype.dtype())?;
        Ok(Outcome::Finished)
    }

    /// This sitting of it.
    pub(super) fn sitting(&self) -> Sitting<'_> {
        let Self { out, resume, checkpoint_every, stop, .. } = *self;
        Sitting { out, resume, checkpoint_every, stop }
    }

    /// A state at the beginning of a stage.
    pub(super) fn begin(
        &self,
        stage: StageName,
        weights: &Supernet,
        begun: &Begun,
        texts: Option<&TrainedTexts>,
    ) -> Result<State> {
        let state = State::begin(stage, weights, begun.examples.classes())?;
        Ok(state.with_beside(texts.map_or_else(|| Ok(Vec::new()), TrainedTexts::initial)?))
    }

    /// The encoder of texts, where this stage trains it along.
    pub(super) fn texts(&self, stage: &Stage, begun: &Begun) -> Result<Option<TrainedTexts>> {
        if !stage.text_encoder {
            return Ok(None);
        }
        let model = begun.model.ok_or_else(|| {
            Error::field(&self.config.path, "text_encoder", "is trained along, but the network reads no texts")
        })?;
        TrainedTexts::new(model, begun.examples.captions()).map(Some)
    }

    /// Whether the model in `dir` is of the network that the config is for.
    pub(super) fn check_card(&self, card: &Card, dir: &Path) -> Result<()> {
        if self.config.backbone.as_ref().is_some_and(|backbone| *backbone != card.backbone) {
            return Err(Error::field(&dir.join(CARD), "backbone", "is not the backbone of the config"));
        }
        if self.config.preconditioning.is_some_and(|preconditioning| preconditioning != card.preconditioning) {
            return Err(Error::field(&dir.join(CARD), "preconditioning", "is not that of the config"));
        }
        Ok(())
    }

    /// What was loaded, and what the config may not mean: once nothing is refused any more.
    pub(super) fn say(&self, begun: &Begun) {
        tracing::info!("{}", begun.examples.summary());
        self.config.warnings(begun.examples, begun.network).iter().for_each(|warning| tracing::warn!("{warning}"));
    }

    /// What the config's data is to a run that begins with this model: classes keep the numbers that it, or the run that is resumed,
    /// knows them by. None where the run was stopped.
    pub(super) fn examples(
        &self,
        network: &Network,
        resumed: Option<&State>,
        model: Option<&Model>,
    ) -> Result<Option<Box<dyn Examples>>> {
        let known = match (resumed, model) {
            // A network without classes ignores those of the data, and its model has none.
            _ if network.classes() == 0 => Some(Vec::new()),
            (Some(state), _) => Some(state.classes.clone()),
            (None, Some(model)) => Some(model.card.classes.clone()),
            (None, None) => None,
        };
        let Config { data, loss, path, .. } = self.config;
        let examples = data.examples(path, model, known.as_deref(), loss.flip, self.stop)?;
        let Some(examples) = examples else { return Ok(None) };
        self.config.check_data(&*examples, network)?;
        Ok(Some(examples))
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

    /// The ranked and allocated model that the second stage begins with: given, `first` where an earlier sitting has left that, or
    /// `first` ranked now, which is what the first stage led to, or `given` to a run without one.
    fn ranked(
        &self,
        network: &Network,
        examples: &dyn Examples,
        first: Option<Model>,
        given: Option<Model>,
    ) -> Result<Model> {
        let kept = self.out.join(RANKED);
        let known = match (first, given) {
            (_, Some(given)) if self.init.is_some() => Ok(given),
            (Some(first), _) if kept.exists() => Ok(first),
            (first, given) => Err(first.or(given)),
        };
        let pretrained = match known {
            Ok(model) => {
                let dir = self.init.unwrap_or(&kept);
                self.check_card(&model.card, dir)?;
                if model.card.classes != examples.classes() {
                    let (theirs, ours) = (model.card.classes.join(", "), examples.classes().join(", "));
                    let problem =
                        format!("are {theirs}, but the run was begun with {ours}; accepted is the same order");
                    return Err(Error::field(&dir.join(CARD), "classes", problem));
                }
                return Ok(model);
            }
            Err(pretrained) => pretrained.ok_or_else(|| {
                let missing = self.out.join(PRETRAINED);
                let problem = format!(
                    "needs --init with a ranked model, --model, or a finished first stage, but {} is not there",
                    missing.display()
                );
                Error::input("--widths all", problem)
            })?,
        };
        let ranking = &self.config.ranking;
        tracing::info!(samples = ranking.samples, order = ranking.order.as_str(), "ranking channels");
        let (loss, seed) = (&self.config.loss, self.config.seed);
        let samples = importance::Samples::draw(examples, network, loss, seed, ranking.samples)?;
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

    /// A model of the averages of what a stage trained, with the card that the config gives it, and that of the model which the run
    /// began with.
    pub(super) fn model(&self, begun: &Begun, trainer: &Trainer, made: toml::Table) -> Result<Model> {
        let (mean, std) = begun.examples.statistics();
        let config = self.config;
        let card = match (begun.model, &config.backbone, config.preconditioning) {
            (Some(model), ..) => model.card.clone(),
            (None, Some(backbone), Some(preconditioning)) => {
                Card::new(String::new(), backbone.clone(), preconditioning, begun.examples.classes().to_vec())
            }
            (None, ..) => unreachable!("a network from scratch is that of the config"),
        };
        let card = Card {
            name: config.name.clone(),
            licence: config.licence.clone().or(card.licence),
            data: Some(DataStatistics { mean, std }),
            made: self.made(made, "train", &trainer.state.position),
            ..card
        };
        trained(card, begun.model, trainer)
    }
}

/// A model of the averages of what a stage trained, which began with the model `of`, where it did not from scratch.
pub(super) fn trained(card: Card, of: Option<&Model>, trainer: &Trainer) -> Result<Model> {
    let model = Model::unallocated(card, trainer.state.supernet(trainer.network().spec(), true)?)?;
    let Some(of) = of else { return Ok(model) };
    let model = model.with_parts_of(of);
    match trainer.texts() {
        Some(texts) => model.with_trained(TEXT_ENCODER, texts.averages(trainer.state.beside())),
        None => Ok(model),
    }
}

/// What a stage trains on.
pub(super) struct Begun<'a> {
    pub network: &'a Network,
    pub examples: &'a dyn Examples,
    /// The model that it begins with, where it does.
    pub model: Option<&'a Model>,
}
