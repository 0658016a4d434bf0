//! `accordion rank`: sort the channels of a model by importance.

use super::part::Part;
use super::tensors::TensorFile;
use crate::files::{check_vacant, write_directory};
use crate::nets::text_to_image::DECODER_IMPORTANCE;
use crate::nets::{Decoder, Model};
use crate::supernet::{Order, Spec, Supernet, ranking};
use crate::training::config::DataConfig;
use crate::training::decoder::{Latents, importance};
use crate::training::importance::{Samples, taylor};
use crate::training::progress::Progress;
use crate::{Error, Result};
use candle_core::DType;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Sort the channels of a model by importance.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory.
    #[arg(long, env = "ACCORDION_MODEL")]
    model: PathBuf,
    /// Whose channels are sorted. The full width of a decoder computes what it did.
    #[arg(long, env = "ACCORDION_PART", default_value = "denoiser")]
    part: Part,
    /// Training config whose `[data]` table names the images to rank on, and whose `[loss]` table the noise levels.
    #[arg(long, env = "ACCORDION_DATA", conflicts_with = "inputs")]
    data: Option<PathBuf>,
    /// File to rank on with `x0` and `noise` [N, C, H, W] and `sigma` [N], or, for a variance preserving model, `x0`, `eps` and
    /// times `t`; for a conditional model also `class_labels` [N, classes] or `class_index` [N].
    #[arg(long, env = "ACCORDION_INPUTS")]
    inputs: Option<PathBuf>,
    /// Whether channels may leave their GroupNorm group.
    #[arg(long, env = "ACCORDION_ORDER")]
    order: Order,
    /// What ranks a channel.
    #[arg(long, env = "ACCORDION_METHOD", default_value = "taylor")]
    method: Method,
    /// Images drawn from `--data`, one backward pass each.
    #[arg(long, env = "ACCORDION_SAMPLES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Seed of what is drawn.
    #[arg(long, env = "ACCORDION_SEED", default_value_t = 0)]
    seed: u64,
    /// The ranked model directory to make.
    #[arg(long, env = "ACCORDION_OUT")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Method {
    /// What the loss would lose with it, to first order; of a decoder, how much its picture would change.
    Taylor,
    /// Nothing: a control.
    Random,
    /// The sum of its absolute weights: a control.
    Magnitude,
}

impl Method {
    fn as_str(self) -> &'static str {
        match self {
            Self::Taylor => "taylor",
            Self::Random => "random",
            Self::Magnitude => "magnitude",
        }
    }
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        check_vacant(&self.out)?;
        let model = Model::open(&self.model)?;
        match self.part {
            Part::Denoiser => self.rank_denoiser(model),
            Part::Decoder => self.rank_decoder(&model),
        }
    }

    fn rank_denoiser(&self, model: Model) -> Result<()> {
        let (scores, samples) = self.scores(model.network.spec(), &model.supernet, || self.taylor(&model))?;
        let original = ranking::to_original(&model.supernet, &scores);
        let notes = self.notes(samples);
        let ranked = model.ranked(&scores, self.order)?;
        write_directory(&self.out, |dir| {
            ranking::write(ranked.network.spec(), &original, &notes, &dir.join(ranking::FILE))?;
            ranked.write(dir, DType::F32)
        })
    }

    fn rank_decoder(&self, model: &Model) -> Result<()> {
        let decoder = Decoder::wanted(model)?;
        let taylor = || self.taylor_of_decoder(model, &decoder);
        let (scores, samples) = self.scores(&decoder.program.spec, &decoder.supernet, taylor)?;
        let original = ranking::to_original(&decoder.supernet, &scores);
        let notes = self.notes(samples);
        let ranked = decoder.ranked(&scores, self.order)?;
        write_directory(&self.out, |dir| {
            model.copy_but_decoder(&self.model, dir)?;
            ranking::write(&ranked.program.spec, &original, &notes, &dir.join(DECODER_IMPORTANCE))?;
            ranked.write(dir, DType::F32)?;
            model.write_card(dir)
        })
    }

    /// What a file of scores says of how they were made.
    fn notes(&self, samples: usize) -> Vec<(&'static str, String)> {
        let mut notes = vec![("method", self.method.as_str().to_string()), ("samples", samples.to_string())];
        // Given inputs and magnitudes draw nothing.
        if self.method == Method::Random || self.method == Method::Taylor && self.data.is_some() {
            notes.push(("seed", self.seed.to_string()));
        }
        notes
    }

    /// Scores in the current order of a network's channels, and the samples that they are a mean over; those of `taylor` where that is the
    /// method.
    fn scores(
        &self,
        spec: &Spec,
        supernet: &Supernet,
        taylor: impl FnOnce() -> Result<(Vec<Vec<f64>>, usize)>,
    ) -> Result<(Vec<Vec<f64>>, usize)> {
        match self.method {
            Method::Random => Ok((ranking::from_original(supernet, &ranking::random(spec, self.seed)), 0)),
            Method::Magnitude => Ok((ranking::magnitude(spec, supernet)?, 0)),
            Method::Taylor => taylor(),
        }
    }

    fn taylor(&self, model: &Model) -> Result<(Vec<Vec<f64>>, usize)> {
        model.network.check_denoises()?;
        let samples = self.read_samples(model)?;
        let mut progress = Progress::new("rank", "samples", 0, samples.len() as u64);
        let scores = taylor(&model.network, &model.supernet, &samples, |done| progress.at(done as u64, ""));
        progress.finish();
        Ok((scores?, samples.len()))
    }

    fn taylor_of_decoder(&self, model: &Model, decoder: &Decoder) -> Result<(Vec<Vec<f64>>, usize)> {
        if self.inputs.is_some() {
            return Err(Error::input("--inputs", "are noisy images; a decoder is ranked on those of --data"));
        }
        let Some(path) = &self.data else {
            return Err(Error::input("--method", "taylor ranks a decoder on pictures: give --data CONFIG.toml"));
        };
        let pictures = DataConfig::open(path)?.pictures_for(model)?;
        let samples =
            importance::Samples::draw(&mut Latents::new(model, &pictures)?, self.seed, self.samples as usize)?;
        let mut progress = Progress::new("rank", "samples", 0, u64::from(self.samples));
        let (program, supernet) = (&decoder.program, &decoder.supernet);
        let scores = importance::importance(program, supernet, &samples, |done| progress.at(done as u64, ""));
        progress.finish();
        Ok((scores?, samples.latents.len()))
    }

    fn read_samples(&self, model: &Model) -> Result<Samples> {
        let network = &model.network;
        if let Some(path) = &self.inputs {
            return TensorFile::open(path)?.samples(network);
        }
        let Some(path) = &self.data else {
            let problem = "taylor ranks on images: give --data CONFIG.toml or --inputs FILE.safetensors";
            return Err(Error::input("--method", problem));
        };
        let config = DataConfig::open(path)?;
        // As it always was: a signal ends the program.
        let examples = config.examples_for(model, &AtomicBool::new(false))?.expect("nobody stops it");
        Samples::draw(&*examples, network, &config.loss, self.seed, self.samples as usize)
    }
}
