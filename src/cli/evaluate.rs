//! `accordion evaluate`: how well subnets denoise, and how near the images of plans are to real ones.

mod distances;
mod loss;

use super::device::Device;
use crate::nets::Model;
use crate::{Error, Result};
use std::path::PathBuf;

/// How well subnets denoise images that training has not seen (`--metric loss`), or how near the images of plans are to real
/// ones, in features (`fd`, `kid`, `pr`), and to what they shall show (`clip`).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory.
    #[arg(long, env = "ACCORDION_MODEL", default_value = "models/fashion-mnist")]
    model: PathBuf,
    /// What is measured, one or several of them separated by commas: loss, the denoising loss of every subnet, alone; fd or fid, the
    /// Fréchet distance; kid, the kernel distance; pr, precision, recall, density and coverage; clip, the CLIP score.
    #[arg(long, value_delimiter = ',', default_value = "loss")]
    metric: Vec<Metric>,
    /// TOML file whose `[data]` table names the real images (and whose `[loss]` table the noise levels of the loss).
    #[arg(long, env = "ACCORDION_DATA")]
    data: Option<PathBuf>,
    /// Noisy images of the loss, the same for every subnet.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Seed of what is drawn; of images that of the first, and the next have the next ones.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON in place of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    images: Images,
    #[command(flatten)]
    device: Device,
}

/// Which images are compared with which.
#[derive(Debug, clap::Args)]
struct Images {
    /// A plan whose images are measured, or fast, balanced or best for that of the model's profile; may be given several times.
    #[arg(long)]
    plan: Vec<String>,
    /// Images of each plan: classes take turns.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(4..))]
    n: u32,
    /// Scale of classifier-free guidance; 1 is off.
    #[arg(long, default_value_t = 1.0)]
    guidance: f64,
    /// The network of the features, if not the model's own: a file with the weights of the FID Inception (.pth or safetensors), or
    /// the directory of a CLIP as transformers writes it.
    #[arg(long)]
    features: Option<PathBuf>,
    /// The text that the CLIP score holds an image against; `{class}` stands for the name of its class.
    #[arg(long, default_value = "a photo of a {class}")]
    prompt: String,
    /// Mean and covariance of real images as `mu` and `sigma` of an .npz file, in place of --data.
    #[arg(long, conflicts_with = "data")]
    reference: Option<PathBuf>,
    /// TOML file whose `[data]` table names other real images: they are measured like a plan, which says what the best is that a
    /// plan can reach.
    #[arg(long)]
    real: Option<PathBuf>,
    /// A directory where features are kept: what was interrupted goes on, and no plan is drawn twice.
    #[arg(long)]
    work: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Metric {
    /// The denoising loss.
    Loss,
    /// The Fréchet distance.
    #[value(alias = "fid")]
    Fd,
    /// The kernel distance.
    Kid,
    /// Precision, recall, density and coverage.
    Pr,
    /// The CLIP score.
    Clip,
}

impl Metric {
    /// Whether it holds images against real ones.
    fn is_distance(self) -> bool {
        matches!(self, Self::Fd | Self::Kid | Self::Pr)
    }
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let model = Model::open(&self.model)?;
        if !self.metric.contains(&Metric::Loss) {
            return self.distances(&model);
        }
        if self.metric.len() > 1 {
            return Err(Error::input("--metric", "`loss` is of subnets and goes with no other, which are of plans"));
        }
        let data = self.data.as_ref().ok_or_else(|| Error::input("--data", "is needed for the loss: a TOML file"))?;
        loss::run(&model, data, self.seed, self.samples as usize, self.json)
    }
}
