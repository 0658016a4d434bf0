//! `accordion generate`: images without a server.

use super::device::Device;
use crate::diffusion::plan::{Plan, Solver};
use crate::engine::image::{Format, Raster};
use crate::engine::{Engine, EngineLimits, Job, Step};
use crate::files::{check_writable, write_whole};
use crate::nets::{Model, Threads};
use crate::routing::Fixed;
use crate::subnet_name::FULL;
use crate::training::progress::Progress;
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Steps that may be made before they are counted; more than the steps of a call.
const STEPS_UNHEARD: usize = 1024;
/// Samples in one call of the denoiser.
const MAX_BATCH: usize = 16;

/// Generate images into a file: one image, or a grid of several, with a row for each class where several are given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model directory.
    #[arg(long, env = "ACCORDION_MODEL", default_value = "models/fashion-mnist")]
    model: PathBuf,
    /// Class name or number; several, separated by commas, take turns, and each has a row of the grid. Without it the model
    /// draws what it likes.
    #[arg(long, value_delimiter = ',')]
    class: Vec<String>,
    /// Number of images.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    n: u32,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Subnet, by name or ratio.
    #[arg(long, conflicts_with = "plan")]
    subnet: Option<String>,
    /// Steps of EDM's Heun solver.
    #[arg(long, conflicts_with = "plan")]
    steps: Option<usize>,
    /// A whole plan, such as `dpmpp2m-12@0.250*8,full*4`, in place of subnet and steps.
    #[arg(long)]
    plan: Option<Plan>,
    /// Scale of classifier-free guidance; 1 is off.
    #[arg(long, default_value_t = 1.0)]
    guidance: f64,
    #[command(flatten)]
    device: Device,
    /// Image file; its ending chooses among png, webp and jpeg (or jpg).
    #[arg(long)]
    out: PathBuf,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let ending = self.out.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let unknown = |_| Error::input("--out", format!("ending `{ending}` is none of png, webp, jpeg, jpg"));
        let format: Format = ending.parse().map_err(unknown)?;
        if !(0.0..=20.0).contains(&self.guidance) {
            return Err(Error::input("--guidance", "must lie between 0 and 20"));
        }
        if self.guidance != 1.0 && self.class.is_empty() {
            return Err(Error::input("--guidance", "needs a --class to be guided towards"));
        }
        check_writable(&self.out)?;
        let model = Model::open(&self.model)?;
        let plan = match &self.plan {
            Some(plan) => plan.clone(),
            None => {
                let subnet = model.subnet(self.subnet.as_deref().unwrap_or(FULL))?;
                Plan::constant(Solver::Heun, self.steps.unwrap_or(18), &model.subnets()[subnet].name)?
            }
        };
        for run in &plan.widths {
            model.subnet(&run.subnet)?;
        }
        let mut classes = self.class.iter().map(|name| model.class(name).map(Some)).collect::<Result<Vec<_>>>()?;
        if classes.is_empty() {
            classes.push(None);
        }
        let (shape, noise) = (model.image(), model.card.noise);
        let limits = EngineLimits { queue_images: self.n as usize };
        let policy = Box::new(Fixed::unmeasured(model.subnets(), MAX_BATCH));
        let sampler = self.device.open(&model, MAX_BATCH, Threads::ALL)?.into_sampler();
        let engine = Engine::start(sampler, noise, limits, policy)?;
        let steps = u64::from(self.n) * plan.steps as u64;
        let (told, mut heard) = mpsc::channel(STEPS_UNHEARD);
        let jobs = self.jobs(plan, &classes, told);
        let tickets = jobs.into_iter().map(|job| engine.submit(job)).collect::<std::result::Result<Vec<_>, _>>()?;
        let mut progress = Progress::new("generate", "steps", 0, steps);
        let mut made = 0;
        // It ends when no job is left that could tell of a step.
        while heard.blocking_recv().is_some() {
            made += 1;
            progress.at(made, "");
        }
        progress.finish();
        let mut images = Vec::with_capacity(self.n as usize);
        for ticket in tickets {
            images.extend(ticket.blocking_wait()?.images);
        }
        engine.close();
        engine.join()?;
        let grid = match classes.len() {
            1 => Raster::grid(shape, &images),
            rows => Raster::rows(shape, &images, rows),
        };
        let encoded = grid.encode(format).map_err(|error| Error::input(self.out.display(), error))?;
        write_whole(&self.out, &encoded)
    }

    /// One class is one job, whose images the seed numbers; of several, each image is a job with a seed of its own. All tell
    /// `told` of their steps.
    fn jobs(&self, plan: Plan, classes: &[Option<usize>], told: mpsc::Sender<Step>) -> Vec<Job> {
        let job = Job { guidance: self.guidance, events: Some(told), ..Job::exact(Arc::new(plan), self.seed) };
        match classes {
            [class] => vec![Job { images: self.n, class: *class, ..job }],
            _ => (0..self.n as usize)
                .map(|index| Job {
                    class: classes[index % classes.len()],
                    seed: self.seed.wrapping_add(index as u64),
                    ..job.clone()
                })
                .collect(),
        }
    }
}
