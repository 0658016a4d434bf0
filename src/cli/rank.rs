//! `accordion rank`: sort the channels of a model by importance.

use super::tensors::TensorFile;
use crate::files::{check_vacant, write_directory};
use crate::nets::Model;
use crate::supernet::{Order, ranking};
use crate::training::config::DataConfig;
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
    /// What the loss would lose with it, to first order.
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
        let (scores, samples) = self.scores(&model)?;
        let original = ranking::to_original(&model.supernet, &scores);
        let mut notes = vec![("method", self.method.as_str().to_string()), ("samples", samples.to_string())];
        // Given inputs and magnitudes draw nothing.
        if self.method == Method::Random || self.method == Method::Taylor && self.data.is_some() {
            notes.push(("seed", self.seed.to_string()));
        }
        let ranked = model.ranked(&scores, self.order)?;
        write_directory(&self.out, |dir| {
            ranking::write(ranked.network.spec(), &original, &notes, &dir.join(ranking::FILE))?;
            ranked.write(dir, DType::F32)
        })
    }

    /// Scores in the model's current order, and the samples that they are a mean over.
    fn scores(&self, model: &Model) -> Result<(Vec<Vec<f64>>, usize)> {
        let spec = model.network.spec();
        match self.method {
            Method::Random => Ok((ranking::from_original(&model.supernet, &ranking::random(spec, self.seed)), 0)),
            Method::Magnitude => Ok((ranking::magnitude(spec, &model.supernet)?, 0)),
            Method::Taylor => {
                model.network.check_denoises()?;
                let samples = self.read_samples(model)?;
                let mut progress = Progress::new("rank", "samples", 0, samples.len() as u64);
                let scores = taylor(&model.network, &model.supernet, &samples, |done| progress.at(done as u64, ""));
                progress.finish();
                Ok((scores?, samples.len()))
            }
        }
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
