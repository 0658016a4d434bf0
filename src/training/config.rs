//! The one file that a training run is described by.

use super::data::Source;
use crate::ImageShape;
use crate::diffusion::preconditioning::Preconditioning;
use crate::files::read_toml;
use crate::nets::{Backbone, Model, Network};
use crate::philox::Stream;
use crate::supernet::Order;
use crate::supernet::allocation::{self, Wanted};
use crate::training::data::Dataset;
use crate::{Error, Result};
use candle_core::DType;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// How far `sigma_data` may be from the deviation of the images without a warning.
const SIGMA_DATA_FACTOR: f64 = 1.25;

/// A training config: network, data, and the stages from scratch to a supernet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file that it was read from, for messages.
    #[serde(skip)]
    pub path: PathBuf,
    /// The model's name.
    pub name: String,
    /// Licence of the weights that come out.
    #[serde(default)]
    pub licence: Option<String>,
    /// Number format of the weights that come out.
    #[serde(default)]
    pub dtype: Weights,
    /// Everything random is drawn from this.
    #[serde(default)]
    pub seed: u64,
    /// The network and its options.
    pub backbone: Backbone,
    /// How the network is wrapped.
    pub preconditioning: Preconditioning,
    /// The images.
    pub data: Source,
    /// What is minimised.
    #[serde(default)]
    pub loss: Loss,
    /// First stage: the full width from scratch.
    pub full: Stage,
    /// How channels are ranked after the first stage.
    #[serde(default)]
    pub ranking: Ranking,
    /// Which subnets are cut.
    #[serde(default)]
    pub allocation: Wanted,
    /// Second stage: all widths on shared weights.
    pub all: Stage,
    /// How the second stage samples subnets.
    #[serde(default)]
    pub sampling: Sampling,
    /// How one subnet is trained further, by `accordion finetune`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetune: Option<Stage>,
}

/// Number format of weights on disk; in memory they are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// As trained.
    #[default]
    F32,
    /// Half the size; 11 significant bits.
    F16,
    /// Half the size; 8 significant bits.
    Bf16,
}

impl Weights {
    /// The tensor type.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// What ranking and evaluation read of a training config: the rest is training's to check.
#[derive(Clone, Debug, Deserialize)]
pub struct DataConfig {
    /// The file that it was read from, for messages.
    #[serde(skip)]
    path: PathBuf,
    /// The images.
    pub data: Source,
    /// Their noise levels.
    #[serde(default)]
    pub loss: Loss,
}

impl DataConfig {
    /// Reads a config. Relative paths in it are taken from its own folder.
    ///
    /// # Errors
    /// One sentence with the file and the field.
    pub fn open(path: &Path) -> Result<Self> {
        let Self { data, loss, .. } = read_toml(path)?;
        Ok(Self { path: path.to_path_buf(), data: data.within(folder(path)), loss })
    }

    /// The images, labelled with the classes of `model`.
    ///
    /// # Errors
    /// As [`Source::load`], and [`Error::Input`] if the images or the names of their classes are not the model's.
    pub fn load_for(&self, model: &Model) -> Result<Dataset> {
        let dataset = self.data.load()?.for_classes(&model.card.classes);
        let fits = dataset.and_then(|dataset| dataset.check(model.image(), model.network.classes()).map(|()| dataset));
        fits.map_err(|error| error.in_file(&self.path))
    }
}

/// Where the relative paths of a config begin.
pub(super) fn folder(config: &Path) -> &Path {
    config.parent().unwrap_or(Path::new(""))
}

/// EDM's training loss (Karras et al. 2022, section 5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// How noise levels are drawn.
    pub levels: Levels,
    /// Mean of ln(sigma), where that is normal.
    pub p_mean: f64,
    /// Standard deviation of ln(sigma), where that is normal.
    pub p_std: f64,
    /// Share of samples that are trained without their class (Ho and Salimans 2022).
    pub label_dropout: f64,
    /// Whether half of the images are mirrored.
    pub flip: bool,
}

/// How noise levels are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Levels {
    /// ln(sigma) is normal (Karras et al. 2022, table 1).
    #[default]
    LogNormal,
    /// The time of the variance preserving process is uniform (Song et al. 2021).
    UniformTime,
}

impl Loss {
    /// The earliest time that is trained on (Song et al. 2021, appendix C).
    const FIRST_TIME: f64 = 1e-5;

    /// A noise level, drawn from `stream`.
    pub fn level(&self, stream: &Stream) -> f64 {
        match self.levels {
            Levels::LogNormal => (self.p_mean + self.p_std * stream.normal(0)).exp(),
            Levels::UniformTime => {
                Preconditioning::vp_sigma(Self::FIRST_TIME + (1.0 - Self::FIRST_TIME) * stream.uniform(0))
            }
        }
    }
}

impl Default for Loss {
    fn default() -> Self {
        Self { levels: Levels::default(), p_mean: -1.2, p_std: 1.2, label_dropout: 0.1, flip: false }
    }
}

/// One run of the optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Images to see.
    pub images: u64,
    /// Images a step.
    #[serde(default = "Stage::batch")]
    pub batch: usize,
    /// Peak learning rate of Adam.
    pub learning_rate: f64,
    /// Images over which the rate rises from zero.
    #[serde(default)]
    pub warmup_images: u64,
    /// The last rate over the peak; between them it falls along a cosine.
    #[serde(default)]
    pub final_share: f64,
    /// Images over which the average of the weights forgets half.
    pub ema_half_life: f64,
    /// Largest norm of the gradient of a step.
    #[serde(default = "Stage::gradient_clip")]
    pub gradient_clip: f64,
    /// Decoupled weight decay (Loshchilov and Hutter 2019).
    #[serde(default)]
    pub weight_decay: f64,
}

/// Whether it is a share of a whole.
fn share(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

/// Whether it is a positive number.
fn positive(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

impl Stage {
    fn batch() -> usize {
        64
    }

    fn gradient_clip() -> f64 {
        1.0
    }

    /// Checks what the types do not. The error is a field and what is wrong with it.
    pub(super) fn check(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        for (holds, field, problem) in [
            (self.batch > 0, "batch", "must be positive"),
            (self.images >= self.batch as u64, "images", "must be at least a batch"),
            (positive(self.learning_rate), "learning_rate", "must be positive"),
            (share(self.final_share), "final_share", "must lie between 0 and 1"),
            (positive(self.ema_half_life), "ema_half_life", "must be positive"),
            (positive(self.gradient_clip), "gradient_clip", "must be positive"),
            (self.weight_decay >= 0.0 && self.weight_decay.is_finite(), "weight_decay", "must not be negative"),
        ] {
            if !holds {
                return Err((field, problem));
            }
        }
        Ok(())
    }

    /// The learning rate after `seen` images: linear warm-up, then half a cosine.
    pub fn rate(&self, seen: u64) -> f64 {
        if seen < self.warmup_images {
            return self.learning_rate * (seen + self.batch as u64).min(self.warmup_images) as f64
                / self.warmup_images as f64;
        }
        let span = self.images.saturating_sub(self.warmup_images).max(1) as f64;
        let progress = ((seen - self.warmup_images) as f64 / span).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.learning_rate * (self.final_share + (1.0 - self.final_share) * cosine)
    }

    /// Share of the average that a step of `batch` images keeps, after `seen` images. The half-life grows with the run at
    /// first, so that the average is not held back by the initial weights (EDM's ramp-up of 5 %).
    pub fn ema_keep(&self, seen: u64) -> f64 {
        let half_life = self.ema_half_life.min(seen as f64 * 0.05).max(1e-3);
        0.5f64.powf(self.batch as f64 / half_life)
    }
}

/// How channels are ranked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ranking {
    /// Samples of the Taylor importance; one backward pass each.
    pub samples: usize,
    /// Whether channels may leave their GroupNorm group.
    pub order: Order,
}

impl Default for Ranking {
    fn default() -> Self {
        Self { samples: 1024, order: Order::WithinGroup }
    }
}

/// Which subnets a step of the second stage trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// One subnet a step, small ones more often (the paper, eq. 6).
    One,
    /// The full network, the smallest and a random one, on the same noisy images (Yu and Huang 2019).
    Sandwich,
}

/// Whom narrower subnets learn from, beside the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Teacher {
    /// The full network of the same step; only with the sandwich rule, which runs it anyway.
    Full,
    /// The network that the second stage began with.
    Frozen,
}

/// How the second stage samples subnets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Which subnets a step trains.
    pub rule: Rule,
    /// Weight of the smallest ratio over the weight of the largest; between them it falls linearly (m in the paper, eq. 6).
    pub reweighting: f64,
    /// Share of the distillation loss in the loss of a narrower subnet, from 0 to 1.
    pub distillation: f64,
    /// Whom it is distilled from.
    pub teacher: Teacher,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { rule: Rule::One, reweighting: 3.0, distillation: 0.0, teacher: Teacher::Full }
    }
}

impl Config {
    /// Reads and checks a config. Relative paths in it are taken from its own folder.
    ///
    /// # Errors
    /// One sentence with the file and the field.
    pub fn load(path: &Path) -> Result<Self> {
        let read: Self = read_toml(path)?;
        let config = Self { path: path.to_path_buf(), data: read.data.within(folder(path)), ..read };
        config.check().map_err(|(field, problem)| Error::field(path, &field, problem))?;
        Ok(config)
    }

    /// Checks that the images and classes of the data are those of the config's network.
    ///
    /// # Errors
    /// [`Error::Input`] with the config's file and the field.
    pub fn check_data(&self, dataset: &Dataset) -> Result<()> {
        let (image, classes) = (self.backbone.image(), self.backbone.classes());
        if dataset.shape != image {
            let size = |image: ImageShape| format!("{}x{}x{}", image.height, image.width, image.channels);
            let problem = format!("images are {}, but backbone takes {}", size(dataset.shape), size(image));
            return Err(Error::field(&self.path, "data", problem));
        }
        if classes > 0 && dataset.classes.len() != classes {
            let problem = format!("{classes} is not the number of classes in data, {}", dataset.classes.len());
            return Err(Error::field(&self.path, "backbone.label_dim", problem));
        }
        Ok(())
    }

    /// What is allowed but rarely meant, a sentence each.
    pub fn warnings(&self, dataset: &Dataset) -> Vec<String> {
        let in_file = |warning| format!("{}: backbone.{warning}", self.path.display());
        let mut warnings: Vec<String> = self.backbone.warning().map(in_file).into_iter().collect();
        if self.preconditioning == Preconditioning::Vp && self.loss.levels == Levels::LogNormal {
            warnings.push(format!(
                "{}: loss.levels: `log-normal` hardly trains on the levels where sampling of a vp network begins; \
                 `uniform-time` does",
                self.path.display()
            ));
        }
        let (_, std) = dataset.statistics();
        if let Preconditioning::Edm { sigma_data } = self.preconditioning
            && !(std / SIGMA_DATA_FACTOR..=std * SIGMA_DATA_FACTOR).contains(&sigma_data)
        {
            warnings.push(format!(
                "{}: preconditioning.sigma_data: {sigma_data} is more than a factor of {SIGMA_DATA_FACTOR} from the \
                 deviation of the images, {std:.3}, which it should be",
                self.path.display()
            ));
        }
        warnings
    }

    fn check(&self) -> std::result::Result<(), (String, String)> {
        let require = |holds: bool, field: &str, problem: &str| match holds {
            true => Ok(()),
            false => Err((field.to_string(), problem.to_string())),
        };
        let finetune = self.finetune.iter().map(|stage| ("finetune", stage));
        for (name, stage) in [("full", &self.full), ("all", &self.all)].into_iter().chain(finetune) {
            stage.check().map_err(|(field, problem)| (format!("{name}.{field}"), problem.to_owned()))?;
        }
        let loss = &self.loss;
        require(loss.p_mean.is_finite(), "loss.p_mean", "must be finite")?;
        require(positive(loss.p_std), "loss.p_std", "must be positive")?;
        let has_times = loss.levels == Levels::LogNormal || self.preconditioning == Preconditioning::Vp;
        require(has_times, "loss.levels", "`uniform-time` needs preconditioning.kind = \"vp\"")?;
        require(share(loss.label_dropout), "loss.label_dropout", "must lie between 0 and 1")?;
        require(self.ranking.samples > 0, "ranking.samples", "must be positive")?;
        require(self.ranking.order != Order::Original, "ranking.order", "must be global or within-group")?;
        require(self.allocation.align > 0, "allocation.align", "must be positive")?;
        let step = allocation::ratios(self.allocation.step).is_ok();
        require(step, "allocation.step", "must be a number of thousandths from 0.001 to 0.75")?;
        let sampling = &self.sampling;
        require(
            sampling.reweighting >= 1.0 && sampling.reweighting.is_finite(),
            "sampling.reweighting",
            "must be at least 1",
        )?;
        require(share(sampling.distillation), "sampling.distillation", "must lie between 0 and 1")?;
        let unseen_teacher =
            sampling.distillation > 0.0 && sampling.teacher == Teacher::Full && sampling.rule == Rule::One;
        require(
            !unseen_teacher,
            "sampling.teacher",
            "`full` needs rule = \"sandwich\"; `frozen` goes with both rules",
        )?;
        if let Preconditioning::Edm { sigma_data } = self.preconditioning {
            require(positive(sigma_data), "preconditioning.sigma_data", "must be positive")?;
        }
        let in_backbone = |(field, problem): (&str, &str)| (format!("backbone.{field}"), problem.to_owned());
        self.backbone.check_trainable().map_err(in_backbone)?;
        match Network::new(&self.backbone, self.preconditioning) {
            Err(Error::Input { place, problem }) => Err((format!("backbone.{place}"), problem)),
            _ => Ok(()),
        }
    }
}
