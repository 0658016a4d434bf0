//! `accordion generate`: images without a server.

mod many;
mod npz;

use super::device::Device;
use crate::diffusion::plan::{Plan, Solver};
use crate::engine::image::{Format, Raster};
use crate::engine::{Engine, EngineLimits, Job, Step};
use crate::files::{check_writable, write_whole};
use crate::nets::model::WEIGHTS;
use crate::nets::{Model, Threads};
use crate::routing::Fixed;
use crate::subnet_name::FULL;
use crate::training::progress::Progress;
use crate::{Error, Result};
use many::{Order, Record, in_turn};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Steps that may be made before they are counted; more than the steps of a call.
const STEPS_UNHEARD: usize = 1024;
/// Images of a grid.
const MAX_GRID: u32 = 1024;
/// Samples in one call of the denoiser.
const MAX_BATCH: usize = 16;

/// Generate images into a file: one image, or a grid of several, with a row for each class where several are given; or any number
/// of them into a directory or an array, where what was interrupted goes on when it is asked for again.
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
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// Seed of the noise; of several images in a directory or an array, that of the first, and the next have the next ones.
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
    /// Image file, whose ending chooses among png, webp and jpeg (or jpg); or DIR/ for numbered PNG files; or a file that ends in
    /// .npz for one array of all images, arr_0, with their classes as arr_1.
    #[arg(long)]
    out: PathBuf,
}

/// Where images go.
#[derive(Clone, Copy)]
enum Target {
    /// Into one picture.
    Grid(Format),
    /// Into numbered files.
    Directory,
    /// Into one array.
    Array,
}

impl Target {
    fn of(out: &Path) -> Result<Self> {
        let text = out.to_string_lossy();
        if text.ends_with('/') || out.is_dir() {
            return Ok(Self::Directory);
        }
        let ending = out.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        match ending.parse() {
            Ok(format) => Ok(Self::Grid(format)),
            Err(_) if ending.eq_ignore_ascii_case("npz") => Ok(Self::Array),
            Err(_) => {
                let problem = format!("ending `{ending}` is none of png, webp, jpeg, jpg, npz; a directory ends in /");
                Err(Error::input("--out", problem))
            }
        }
    }
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let to = Target::of(&self.out)?;
        if let Target::Grid(_) = to
            && self.n > MAX_GRID
        {
            let problem = format!(
                "{} images are too many for one file of at most {MAX_GRID}; give --out DIR/ or OUT.npz",
                self.n
            );
            return Err(Error::input("--n", problem));
        }
        if !(0.0..=20.0).contains(&self.guidance) {
            return Err(Error::input("--guidance", "must lie between 0 and 20"));
        }
        if self.guidance != 1.0 && self.class.is_empty() {
            return Err(Error::input("--guidance", "needs a --class to be guided towards"));
        }
        if let Target::Grid(_) | Target::Array = to {
            check_writable(&self.out)?;
        }
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
        let shape = model.image();
        let queue_images = if let Target::Grid(_) = to { self.n as usize } else { many::IN_FLIGHT };
        let limits = EngineLimits { queue_images };
        let policy = Box::new(Fixed::unmeasured(model.subnets(), MAX_BATCH));
        let sampler = self.device.open(&model, MAX_BATCH, Threads::ALL)?.into_sampler();
        let engine = Engine::start(sampler, limits, policy)?;
        let Target::Grid(format) = to else {
            let order = self.order(&engine, &model, plan, &classes);
            match to {
                Target::Array => order.into_array(&self.out)?,
                _ => order.into_directory(&self.out)?,
            }
            engine.close();
            return Ok(engine.join()?);
        };
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

    /// Many images, each with a seed of its own.
    fn order<'a>(&self, engine: &'a Engine, model: &Model, plan: Plan, classes: &'a [Option<usize>]) -> Order<'a> {
        let hash = model.card.sha256.get(WEIGHTS).map(|hash| format!(" {hash}")).unwrap_or_default();
        let record = Record {
            model: format!("{}{hash}", model.card.name),
            plan: plan.to_string(),
            seed: self.seed,
            guidance: self.guidance,
            classes: self.class.clone(),
        };
        let job = Job { guidance: self.guidance, ..Job::exact(Arc::new(plan), self.seed) };
        Order { engine, shape: model.image(), job, classes, n: self.n, record }
    }

    /// One class is one job, whose images the seed numbers; of several, each image is a job with a seed of its own. All tell
    /// `told` of their steps.
    fn jobs(&self, plan: Plan, classes: &[Option<usize>], told: mpsc::Sender<Step>) -> Vec<Job> {
        let job = Job { guidance: self.guidance, events: Some(told), ..Job::exact(Arc::new(plan), self.seed) };
        match classes {
            [class] => vec![Job { images: self.n, condition: (*class).into(), ..job }],
            _ => (0..self.n).map(|index| in_turn(&job, classes, index)).collect(),
        }
    }
}
