//! The one file that a training run is described by.

use super::data::{Examples, Source};
use super::state::StageName;
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
use std::sync::atomic::AtomicBool;

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
    /// The network and its options; without them that of the model which the run begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backbone: Option<Backbone>,
    /// How the network is wrapped; given where the backbone is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preconditioning: Option<Preconditioning>,
    /// The images.
    pub data: Source,
    /// What is minimised.
    #[serde(default)]
    pub loss: Loss,
    /// First stage: the full width, from scratch or, where the run begins with a model, trained further; without it that model is ranked
    /// as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<Stage>,
    /// How channels are ranked after the first stage.
    #[serde(default)]
    pub ranking: Ranking,
    /// Which subnets are cut.
    #[serde(default)]
    pub allocation: Wanted,
    /// Second stage: all widths on shared weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<Stage>,
    /// How the second stage samples subnets.
    #[serde(default)]
    pub sampling: Sampling,
    /// How one subnet is trained further, by `accordion finetune`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetune: Option<Stage>,
    /// How the autoencoder of a model that draws texts is trained, by `accordion train --part vae`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<Stage>,
    /// How all widths of its decoder are trained, by `accordion train --part decoder`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<Stage>,
    /// Which widths of the decoder a step of that trains, and what they learn.
    #[serde(default)]
    pub decoder_widths: DecoderWidths,
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

    /// What a denoiser such as `model` learns from, with its classes or captions.
    ///
    /// # Errors
    /// As [`Source::examples`], and [`Error::Input`] if the images are not of the model's size.
    pub fn examples_for(&self, model: &Model, stop: &AtomicBool) -> Result<Option<Box<dyn Examples>>> {
        let classes = Some(model.card.classes.as_slice());
        let examples = self.data.examples(&self.path, Some(model), classes, self.loss.flip, stop)?;
        let Some(examples) = examples else { return Ok(None) };
        let checked = examples.check(model.network.state(), model.network.classes());
        checked.map_err(|error| error.in_file(&self.path))?;
        Ok(Some(examples))
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

    /// The images alone, as pictures for the autoencoder of `model`.
    ///
    /// # Errors
    /// As [`Source::pictures`].
    pub fn pictures_for(&self, model: &Model) -> Result<Dataset> {
        self.data.pictures(model.canvases()[0].picture).map_err(|error| error.in_file(&self.path))
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
    /// How noise levels are drawn; without it as suits the network ([`Loss::levels`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub levels: Option<Levels>,
    /// Mean of ln(sigma), where that is normal.
    pub p_mean: f64,
    /// Standard deviation of ln(sigma), where that is normal.
    pub p_std: f64,
    /// Share of samples that are trained without their class or caption (Ho and Salimans 2022).
    pub label_dropout: f64,
    /// The most that the squared error of a sample weighs in training, in units of that of its image: gamma of min-SNR weighting (Hang et
    /// al. 2023), which is 5 there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_snr: Option<f64>,
    /// Whether half of the images are mirrored.
    pub flip: bool,
    /// In the training of an autoencoder: the weight of the divergence of latents from the normal distribution, over that of the squared
    /// error of the picture, both as means over their values.
    pub kl: f64,
}

/// How noise levels are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Levels {
    /// ln(sigma) is normal (Karras et al. 2022, table 1).
    LogNormal,
    /// The time of the variance preserving process is uniform (Song et al. 2021).
    UniformTime,
    /// The steps of a process in steps are drawn alike (Ho et al. 2020).
    UniformSteps,
}

impl Loss {
    /// The earliest time that is trained on (Song et al. 2021, appendix C).
    const FIRST_TIME: f64 = 1e-5;

    /// How noise levels are drawn for a network that is wrapped so.
    pub fn levels(&self, preconditioning: Preconditioning) -> Levels {
        self.levels.unwrap_or(match preconditioning {
            Preconditioning::Ddpm { .. } => Levels::UniformSteps,
            Preconditioning::Vp | Preconditioning::Ve | Preconditioning::Edm { .. } => Levels::LogNormal,
        })
    }

    /// Checks that a network that is wrapped so has the levels that are drawn, and the weights.
    ///
    /// # Errors
    /// [`Error::Input`] with the field.
    pub fn check(&self, preconditioning: Preconditioning) -> Result<()> {
        let (is_vp, is_ddpm) =
            (preconditioning == Preconditioning::Vp, matches!(preconditioning, Preconditioning::Ddpm { .. }));
        for (holds, field, problem) in [
            (self.p_mean.is_finite(), "p_mean", "must be finite"),
            (positive(self.p_std), "p_std", "must be positive"),
            (share(self.label_dropout), "label_dropout", "must lie between 0 and 1"),
            (
                self.levels(preconditioning) != Levels::UniformTime || is_vp,
                "levels",
                "`uniform-time` needs preconditioning.kind = \"vp\"",
            ),
            (
                self.levels(preconditioning) != Levels::UniformSteps || is_ddpm,
                "levels",
                "`uniform-steps` needs preconditioning.kind = \"ddpm\"",
            ),
            (self.kl >= 0.0 && self.kl.is_finite(), "kl", "must not be negative"),
            (self.min_snr.is_none_or(positive), "min_snr", "must be positive"),
            (
                self.min_snr.is_none() || is_vp || is_ddpm,
                "min_snr",
                "needs a variance preserving network: preconditioning.kind = \"vp\" or \"ddpm\"",
            ),
        ] {
            if !holds {
                return Err(Error::input(format!("loss.{field}"), problem));
            }
        }
        Ok(())
    }

    /// A noise level of a network that is wrapped so, drawn from `stream`.
    pub fn level(&self, preconditioning: Preconditioning, stream: &Stream) -> f64 {
        match self.levels(preconditioning) {
            Levels::UniformSteps => {
                let steps = preconditioning.steps().count() as u32;
                let step = stream.below(0, steps) as usize;
                preconditioning.steps().nth(step).expect("whoever draws has checked that there are steps")
            }
            Levels::LogNormal => (self.p_mean + self.p_std * stream.normal(0)).exp(),
            Levels::UniformTime => {
                Preconditioning::vp_sigma(Self::FIRST_TIME + (1.0 - Self::FIRST_TIME) * stream.uniform(0))
            }
        }
    }
}

impl Loss {
    /// The weight in training of the squared error `|D - x0|^2` at noise level `sigma`. The signal to noise ratio is `1 / sigma^2`,
    /// which weighs the error of the noise alike everywhere; `min_snr` bounds it (Hang et al. 2023, section 3.4), as it does for what
    /// predicts v.
    pub fn weight(&self, preconditioning: Preconditioning, sigma: f64) -> f64 {
        match self.min_snr {
            Some(most) => (1.0 / (sigma * sigma)).min(most),
            None => preconditioning.loss_weight(sigma),
        }
    }
}

impl Default for Loss {
    fn default() -> Self {
        Self { levels: None, p_mean: -1.2, p_std: 1.2, label_dropout: 0.1, min_snr: None, flip: false, kl: 1e-6 }
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
    /// Whether the encoder of texts is trained along, of a model that draws texts.
    #[serde(default)]
    pub text_encoder: bool,
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

/// Which widths of a decoder a step trains, and what they learn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecoderWidths {
    /// Which subnets a step trains.
    pub rule: Rule,
    /// As [`Sampling::reweighting`].
    pub reweighting: f64,
    /// Share of the distance to what the decoder made before in the loss; the rest is that to the picture itself. 1 keeps what the decoder
    /// draws where it draws more than the least squares would: one that was trained to look right is blurred by them.
    pub distillation: f64,
}

impl Default for DecoderWidths {
    fn default() -> Self {
        Self { rule: Rule::One, reweighting: Sampling::default().reweighting, distillation: 1.0 }
    }
}

impl DecoderWidths {
    /// How subnets are sampled.
    pub fn sampling(&self) -> Sampling {
        let Self { rule, reweighting, distillation } = *self;
        Sampling { rule, reweighting, distillation, teacher: Teacher::Frozen }
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

    /// The network of the run: that of the model which it begins with, or else the config's own.
    ///
    /// # Errors
    /// [`Error::Input`] where there is none, or a network that training does not know how to teach.
    pub fn network(&self, model: Option<&Model>) -> Result<Network> {
        let network = match (model, &self.backbone, self.preconditioning) {
            (Some(model), ..) => model.network.clone(),
            (None, Some(backbone), Some(preconditioning)) => Network::new(backbone, preconditioning)?,
            (None, ..) => {
                let problem = "is missing: only where --model or --init names a model may it be left out";
                return Err(Error::field(&self.path, "backbone", problem));
            }
        };
        network.check_denoises()?;
        Ok(network)
    }

    /// How long and how fast a stage runs.
    ///
    /// # Errors
    /// [`Error::Input`] if the config does not say it.
    pub fn stage(&self, name: StageName) -> Result<&Stage> {
        let stage = match name {
            StageName::Full => &self.full,
            StageName::All => &self.all,
            StageName::Finetune => &self.finetune,
            StageName::Vae => &self.vae,
            StageName::Decoder => &self.decoder,
        };
        let problem = "is missing: it says how many images are seen, and how fast they are learnt from";
        stage.as_ref().ok_or_else(|| Error::field(&self.path, name.as_str(), problem))
    }

    /// Checks that examples are of the size that a network takes, and of as many classes as it has.
    ///
    /// # Errors
    /// [`Error::Input`] with the config's file and the field.
    pub fn check_data(&self, examples: &dyn Examples, network: &Network) -> Result<()> {
        let (image, classes) = (network.state(), network.classes());
        if examples.shape() != image {
            let size = |image: ImageShape| format!("{}x{}x{}", image.height, image.width, image.channels);
            let problem = format!("images are {}, but backbone takes {}", size(examples.shape()), size(image));
            return Err(Error::field(&self.path, "data", problem));
        }
        if classes > 0 && examples.classes().len() != classes {
            let problem = format!("{classes} is not the number of classes in data, {}", examples.classes().len());
            return Err(Error::field(&self.path, "backbone.label_dim", problem));
        }
        Ok(())
    }

    /// What is allowed but rarely meant of training this network, a sentence each.
    pub fn warnings(&self, examples: &dyn Examples, network: &Network) -> Vec<String> {
        let in_file = |warning| format!("{}: backbone.{warning}", self.path.display());
        let mut warnings: Vec<String> =
            self.backbone.as_ref().and_then(Backbone::warning).map(in_file).into_iter().collect();
        let preconditioning = network.preconditioning();
        if preconditioning == Preconditioning::Vp && self.loss.levels(preconditioning) == Levels::LogNormal {
            warnings.push(format!(
                "{}: loss.levels: `log-normal` hardly trains on the levels where sampling of a vp network begins; \
                 `uniform-time` does",
                self.path.display()
            ));
        }
        let (_, std) = examples.statistics();
        if let Preconditioning::Edm { sigma_data } = preconditioning
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
        for (name, stage) in [
            ("full", &self.full),
            ("all", &self.all),
            ("finetune", &self.finetune),
            ("vae", &self.vae),
            ("decoder", &self.decoder),
        ] {
            let refused = |(field, problem)| (format!("{name}.{field}"), String::from(problem));
            stage.iter().try_for_each(|stage| stage.check().map_err(refused))?;
        }
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
        let of_decoder = &self.decoder_widths;
        require(
            of_decoder.reweighting >= 1.0 && of_decoder.reweighting.is_finite(),
            "decoder_widths.reweighting",
            "must be at least 1",
        )?;
        require(share(of_decoder.distillation), "decoder_widths.distillation", "must lie between 0 and 1")?;
        let (backbone, preconditioning) = match (&self.backbone, self.preconditioning) {
            (Some(backbone), Some(preconditioning)) => (backbone, preconditioning),
            (None, None) => return Ok(()),
            (Some(_), None) => return Err(("preconditioning".into(), "is missing, but backbone is given".into())),
            (None, Some(_)) => return Err(("backbone".into(), "is missing, but preconditioning is given".into())),
        };
        let input = |prefix: &str, error: Error| match error {
            Error::Input { place, problem } => (format!("{prefix}{place}"), problem),
            other => (prefix.to_owned(), other.to_string()),
        };
        self.loss.check(preconditioning).map_err(|error| input("", error))?;
        if let Preconditioning::Edm { sigma_data } = preconditioning {
            require(positive(sigma_data), "preconditioning.sigma_data", "must be positive")?;
        }
        let in_backbone = |(field, problem): (&str, &str)| (format!("backbone.{field}"), problem.to_owned());
        backbone.check_trainable().map_err(in_backbone)?;
        Network::new(backbone, preconditioning).map(drop).map_err(|error| input("backbone.", error))
    }
}
