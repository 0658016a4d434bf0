//! `accordion generate`: images without a server.

mod many;
mod npz;

use super::device::Device;
use crate::console::note;
use crate::diffusion::plan::{Plan, Solver};
use crate::engine::image::{Format, JPEG_QUALITY, Raster};
use crate::engine::original::Part;
use crate::engine::settings::Settings;
use crate::engine::{Engine, Job, Original, Place};
use crate::files::{check_writable, listed, sha256_of, write_whole};
use crate::nets::model::WEIGHTS;
use crate::nets::{Canvas, Condition, Model, Threads, text_to_image};
use crate::routing::Fixed;
use crate::subnet_name::FULL;
use crate::training::progress::Progress;
use crate::{Error, Result, Size};
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
    /// What the images are to show, of a model that draws texts; given several times, the prompts take turns.
    #[arg(long)]
    prompt: Vec<String>,
    /// What they are not to show.
    #[arg(long, requires = "prompt", default_value = "", hide_default_value = true)]
    negative_prompt: String,
    /// One of the model's sizes, such as 512x512; the first without it.
    #[arg(long)]
    size: Option<Size>,
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
    /// Scale of classifier-free guidance; 1 is off. Without it 1 for a class and 7.5 for a prompt.
    #[arg(long)]
    guidance: Option<f64>,
    /// The picture that they start from: a png, jpeg or webp file of a size that the model draws. Where it is transparent and there is no
    /// mask, that is what is drawn anew.
    #[arg(long)]
    image: Option<PathBuf>,
    /// What is drawn anew of it: a picture of its size that is transparent there, or else white; the rest stays as it is.
    #[arg(long, requires = "image")]
    mask: Option<PathBuf>,
    /// How much of the picture is made anew, above 0 and at most 1: the share of the plan's steps that are made. Without it what the plan
    /// says, or 0.8, or 1 where a mask says what.
    #[arg(long, requires = "image")]
    strength: Option<f64>,
    /// Leave out of PNG files what they were drawn with, which `accordion show` prints.
    #[arg(long)]
    no_settings: bool,
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
        let guidance = self.guidance()?;
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
        model.check_plan(&plan)?;
        let Told { conditions, negative } = self.told(&model)?;
        let Started { original, strength, canvas, files } = self.started(&model, &plan)?;
        let plan = plan.started(strength);
        let shape = model.canvases()[canvas].picture;
        let original = original.map(Arc::new);
        let exact = Job::exact(Arc::new(plan.clone()), self.seed);
        let job = Job { guidance, negative, canvas, original, strength, ..exact };
        let sampler = self.device.open(&model, MAX_BATCH, Threads::ALL)?.into_sampler();
        // As the model calls them, however they were spelt.
        let name = |class: usize| sampler.about().classes.get(class).cloned().unwrap_or_else(|| class.to_string());
        let settings = (!self.no_settings).then(|| Settings {
            images: self.n,
            classes: conditions.iter().filter_map(Condition::class).map(name).collect(),
            prompts: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            guidance,
            image: files[0].clone(),
            mask: files[1].clone(),
            strength,
            ..Settings::new(&model.card.name, sampler.about(), plan.to_string(), self.seed, shape.size())
        });
        let queue_images = if let Target::Grid(_) = to { self.n as usize } else { many::IN_FLIGHT };
        let place = Place::alone(queue_images)?;
        let policy = Box::new(Fixed::unmeasured(model.subnets(), MAX_BATCH));
        let engine = Engine::start(sampler, place, policy)?;
        let Target::Grid(format) = to else {
            let (record, n) = (self.record(&model, &plan, guidance, files), self.n);
            let order = Order { engine: &engine, shape, job, conditions: &conditions, n, record, settings };
            match to {
                Target::Array => order.into_array(&self.out)?,
                _ => order.into_directory(&self.out)?,
            }
            engine.close();
            return Ok(engine.join()?);
        };
        let steps = u64::from(self.n) * plan.made().len() as u64;
        let (told, mut heard) = mpsc::channel(STEPS_UNHEARD);
        let jobs = self.jobs(Job { events: Some(told), ..job }, &conditions);
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
        let grid = match conditions.len() {
            1 => Raster::grid(shape, &images),
            rows => Raster::rows(shape, &images, rows),
        };
        let encoded = grid
            .encode_with(format, JPEG_QUALITY, settings.as_ref())
            .map_err(|error| Error::input(self.out.display(), error))?;
        write_whole(&self.out, &encoded)
    }

    /// The scale of guidance.
    fn guidance(&self) -> Result<f64> {
        let guidance = self.guidance.unwrap_or(if self.prompt.is_empty() { 1.0 } else { text_to_image::GUIDANCE });
        if !(0.0..=20.0).contains(&guidance) {
            return Err(Error::input("--guidance", "must lie between 0 and 20"));
        }
        if guidance != 1.0 && self.class.is_empty() && self.prompt.is_empty() {
            return Err(Error::input("--guidance", "needs a --class or a --prompt to be guided towards"));
        }
        Ok(guidance)
    }

    /// What the images are of.
    fn told(&self, model: &Model) -> Result<Told> {
        let Some(contexts) = model.contexts()? else {
            if !self.prompt.is_empty() {
                return Err(Error::input("--prompt", "is of a model that draws texts, which this one does not"));
            }
            let class = |name: &String| Ok(Condition::Class(model.class(name)?));
            let mut conditions = self.class.iter().map(class).collect::<Result<Vec<_>>>()?;
            if conditions.is_empty() {
                conditions.push(Condition::None);
            }
            return Ok(Told { conditions, negative: Condition::None });
        };
        if !self.class.is_empty() || self.prompt.is_empty() {
            return Err(Error::input("--prompt", "is wanted, which says what the images are to show"));
        }
        let encode = |flag: &str, prompt: &str| {
            let context = contexts.of(prompt)?;
            if context.is_cut {
                note(format_args!("{flag}: is longer than the model reads, which is its beginning"));
            }
            Ok(Condition::Text(context.values))
        };
        let conditions = self.prompt.iter().map(|prompt| encode("--prompt", prompt)).collect::<Result<_>>()?;
        Ok(Told { conditions, negative: encode("--negative-prompt", &self.negative_prompt)? })
    }

    /// What they start from.
    fn started(&self, model: &Model, plan: &Plan) -> Result<Started> {
        let read = |path: &Option<PathBuf>| {
            path.as_deref().map(|path| std::fs::read(path).map_err(Error::io(path))).transpose()
        };
        let (image, mask) = (read(&self.image)?, read(&self.mask)?);
        let files = [&image, &mask].map(|file| file.as_deref().map(sha256_of));
        let Some(image) = image else {
            if plan.strength < 1.0 {
                return Err(Error::input("--plan", "starts from a picture, with ~strength: give --image"));
            }
            return Ok(Started { original: None, strength: 1.0, canvas: self.canvas(model)?, files });
        };
        let canvases = model.canvases();
        let asked = self.size.map(|_| self.canvas(model)).transpose()?;
        let (original, canvas) = Original::read(&canvases, asked, &image, mask.as_deref()).map_err(|refused| {
            let flag = match refused.file {
                Part::Image => ("--image", &self.image),
                Part::Mask => ("--mask", &self.mask),
            };
            Error::input(
                format!("{} {}", flag.0, flag.1.as_deref().unwrap_or(Path::new("")).display()),
                refused.problem,
            )
        })?;
        let of_plan = Some(plan.strength).filter(|strength| *strength < 1.0);
        if let (Some(ours), Some(theirs)) = (self.strength, of_plan)
            && ours != theirs
        {
            return Err(Error::input("--strength", format!("is {ours}, but the plan's ~strength is {theirs}")));
        }
        let strength = self.strength.or(of_plan).unwrap_or(original.usual_strength());
        if !(strength > 0.0 && strength <= 1.0) {
            return Err(Error::input("--strength", format!("is {strength}, but must be above 0 and at most 1")));
        }
        Ok(Started { original: Some(original), strength: plan.started(strength).strength, canvas, files })
    }

    /// The index of their size.
    fn canvas(&self, model: &Model) -> Result<usize> {
        let Some(asked) = self.size else { return Ok(0) };
        let canvases = model.canvases();
        let size = |canvas: &Canvas| canvas.picture.size();
        canvases.iter().position(|canvas| size(canvas) == asked).ok_or_else(|| {
            let sizes: Vec<Size> = canvases.iter().map(size).collect();
            Error::input("--size", format!("{asked} is none of the model's, {}", listed(&sizes)))
        })
    }

    /// What is written beside many images.
    fn record(&self, model: &Model, plan: &Plan, guidance: f64, [image, mask]: [Option<String>; 2]) -> Record {
        let hash = model.card.sha256.get(WEIGHTS).map(|hash| format!(" {hash}")).unwrap_or_default();
        Record {
            model: format!("{}{hash}", model.card.name),
            plan: plan.to_string(),
            seed: self.seed,
            guidance,
            classes: self.class.clone(),
            prompts: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            size: self.size,
            image,
            mask,
        }
    }

    /// Images of one thing are one job, whose images the seed numbers; of several, each is a job with a seed of its own.
    fn jobs(&self, job: Job, conditions: &[Condition]) -> Vec<Job> {
        match conditions {
            [condition] => vec![Job { images: self.n, condition: condition.clone(), ..job }],
            _ => (0..self.n).map(|index| in_turn(&job, conditions, index)).collect(),
        }
    }
}

/// What images start from.
struct Started {
    original: Option<Original>,
    strength: f64,
    /// The index of their size.
    canvas: usize,
    /// The SHA-256 of the picture and of the mask.
    files: [Option<String>; 2],
}

/// What images are of, and what guidance leads them away from.
struct Told {
    /// They take turns; never empty.
    conditions: Vec<Condition>,
    negative: Condition,
}
