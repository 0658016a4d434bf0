//! `accordion train`: from a config to a supernet.

use crate::console::{note, print};
use crate::nets::Model;
use crate::server::stopped;
use crate::supernet::Subnet;
use crate::training::config::Config;
use crate::training::flow::{Flow, Outcome};
use crate::training::learner::Learner;
use crate::training::state::{StageName, State};
use crate::training::trainer::{Trainer, initial};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Train a supernet: the full width, then ranking and allocation, then all widths together.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Training config.
    #[arg(long, env = "ACCORDION_CONFIG")]
    config: PathBuf,
    /// Directory for the model, its intermediate stages and the state of the run.
    #[arg(long, required_unless_present = "bench_steps")]
    out: Option<PathBuf>,
    /// Continue the run that lies in the directory.
    #[arg(long)]
    resume: bool,
    /// What is trained: the denoiser; of a model that draws texts the autoencoder, by the config's `[vae]`; or all widths of its decoder,
    /// by `[decoder]`.
    #[arg(long, value_enum, default_value_t = Part::Denoiser)]
    part: Part,
    /// Run one stage only.
    #[arg(long)]
    widths: Option<StageName>,
    /// Begin with this model in place of a network from scratch: its full width is trained further where the config has `[full]`, and it
    /// is ranked as it is where not.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Begin the stage of all widths with this ranked and allocated model.
    #[arg(long)]
    init: Option<PathBuf>,
    /// Minutes between two checkpoints.
    #[arg(long, default_value_t = 5.0)]
    checkpoint_minutes: f64,
    /// Time this many steps of the full width, print one JSON line and write nothing.
    #[arg(long)]
    bench_steps: Option<usize>,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Part {
    Denoiser,
    Vae,
    Decoder,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let config = Config::load(&self.config)?;
        if let Some(steps) = self.bench_steps {
            return bench(&config, self.model.as_deref(), steps);
        }
        let checkpoint_every = checkpoint_every(self.checkpoint_minutes)?;
        let out = self.out.expect("clap requires it");
        let flow = Flow {
            config: &config,
            out: &out,
            resume: self.resume,
            only: self.widths,
            model: self.model.as_deref(),
            init: self.init.as_deref(),
            checkpoint_every,
            stop: stop_on_signal()?,
        };
        if self.part != Part::Denoiser && (self.widths.is_some() || self.init.is_some()) {
            return Err(Error::input("--part", "of another than the denoiser does not go with --widths and --init"));
        }
        let outcome = match (self.part, &self.model) {
            (Part::Denoiser, _) => flow.run(),
            (Part::Vae, Some(dir)) => flow.autoencoder(&Model::open(dir)?, dir),
            (Part::Decoder, Some(dir)) => flow.decoder(Model::open(dir)?, dir),
            (_, None) => Err(Error::input("--part", "needs --model, the model whose part it is")),
        };
        outcome.map(|outcome| report(outcome, &out))
    }
}

/// The time between two checkpoints, of `--checkpoint-minutes`.
///
/// # Errors
/// If it is not positive, or longer than anything runs.
pub(super) fn checkpoint_every(minutes: f64) -> Result<Duration> {
    if !(minutes > 0.0 && minutes < 1e6) {
        return Err(Error::input("--checkpoint-minutes", "must be positive"));
    }
    Ok(Duration::from_secs_f64(minutes * 60.0))
}

/// Says how a run ended.
pub(super) fn report(outcome: Outcome, out: &Path) {
    match outcome {
        Outcome::Finished => note(format_args!("done: {}", out.display())),
        Outcome::Stopped => note(format_args!("stopped; `--resume` continues from {}", out.display())),
    }
}

/// A flag that SIGINT, SIGTERM and SIGHUP raise, from now on.
///
/// # Errors
/// When the system gives no thread or refuses to register the handlers.
pub(super) fn stop_on_signal() -> Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    let io = |source| Error::Io { path: PathBuf::from("signals"), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io)?;
    // Registered before anything is computed: a signal that comes early must not kill the process.
    let mut signals = {
        let _inside = runtime.enter();
        stopped().map_err(io)?
    };
    std::thread::spawn(move || {
        runtime.block_on(signals.next());
        STOP.store(true, Ordering::Relaxed);
    });
    Ok(&STOP)
}

/// Median speed of a step of the full width on the config's data.
fn bench(config: &Config, model: Option<&Path>, steps: usize) -> Result<()> {
    let model = model.map(Model::open).transpose()?;
    let network = config.network(model.as_ref())?;
    let classes = model.as_ref().map(|model| model.card.classes.as_slice());
    let (flip, never) = (config.loss.flip, AtomicBool::new(false));
    let examples = config.data.examples(&config.path, model.as_ref(), classes, flip, &never)?;
    let examples = examples.expect("nobody stops it");
    let spec = network.spec();
    let full = [Subnet::new(spec, 1.0, &spec.full())];
    let weights = model.map_or_else(|| initial(spec, config.seed), |model| Ok(model.supernet))?;
    let state = State::begin(StageName::Full, &weights, examples.classes())?;
    let mut trainer = Trainer::new(&network, config, &*examples, &full, state, None)?;
    let mut seconds = Vec::with_capacity(steps);
    for step in 0..steps + 2 {
        let start = Instant::now();
        trainer.step()?;
        // The first two steps allocate.
        if step >= 2 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    let report = serde_json::json!({
        "images_per_s": trainer.stage().batch as f64 / median,
        "params": spec.parameters(&spec.full()),
        "batch": trainer.stage().batch,
        "threads": rayon::current_num_threads(),
    });
    print(report)
}
