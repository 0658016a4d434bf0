//! `accordion train-features`: a classifier of a model's data, in whose features the quality of its images is measured.

use super::train::stop_on_signal;
use crate::console::{note, print};
use crate::nets::Model;
use crate::nets::model::FEATURES;
use crate::training::classification::{Config, Learner, finished};
use crate::training::progress::Progress;
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The state of the run, in the model directory until it is done.
const STATE: &str = "features.state.safetensors";
/// Time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);
/// Share of the old value in the loss of the progress line.
const LOSS_SMOOTHING: f64 = 0.99;

/// Train the classifier in whose features the quality of a model's images is measured, into the model directory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its config.
    #[arg(long, env = "ACCORDION_CONFIG")]
    config: PathBuf,
    /// Model directory.
    #[arg(long, env = "ACCORDION_MODEL", default_value = "models/fashion-mnist")]
    model: PathBuf,
    /// Continue the run that lies in the directory.
    #[arg(long)]
    resume: bool,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let config = Config::load(&self.config)?;
        let mut model = Model::open(&self.model)?;
        let path = self.model.join(STATE);
        if path.exists() && !self.resume {
            return Err(Error::input("--model", format!("{} holds a run; --resume continues it", path.display())));
        }
        let dataset = config.load_for(&config.data, &model)?;
        let heldout = config.load_for(&config.heldout, &model)?.for_classes(&dataset.classes)?;
        let layout = config.layout(&dataset)?;
        let stop = stop_on_signal()?;
        tracing::info!("{}", dataset.summary());

        let mut learner = Learner::new(&config, &dataset, &layout, path.exists().then_some(&path))?;
        let mut progress = Progress::new("features", "images", learner.state.position.seen, config.training.images);
        let (mut loss, mut saved, mut started) = (None, Instant::now(), Instant::now());
        while !learner.is_finished() {
            let now = learner.step()?;
            let smoothed = loss.map_or(now, |old| LOSS_SMOOTHING * old + (1.0 - LOSS_SMOOTHING) * now);
            loss = Some(smoothed);
            progress.at(learner.state.position.seen, &format!("loss {smoothed:.4}"));
            let is_stopped = stop.load(Ordering::Relaxed);
            if is_stopped || learner.is_finished() || saved.elapsed() >= CHECKPOINT_EVERY {
                learner.state.position.seconds += started.elapsed().as_secs_f64();
                learner.state.write(&learner.program().spec, &path)?;
                (saved, started) = (Instant::now(), Instant::now());
            }
            if is_stopped && !learner.is_finished() {
                progress.finish();
                note(format_args!("stopped; `--resume` continues from {}", path.display()));
                return Ok(());
            }
        }
        progress.finish();
        let mut progress =
            Progress::new("reference", "images", 0, (heldout.len() + heldout.len().min(dataset.len())) as u64);
        let weights = learner.state.supernet(&learner.program().spec, true)?;
        let file = finished(layout, weights, &dataset, &heldout, |done| progress.at(done as u64, ""))?;
        progress.finish();
        file.write(&self.model.join(FEATURES))?;
        let position = &learner.state.position;
        let config_name = self.config.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rounded = |value: f64| (value * 1e4).round() / 1e4;
        let made = toml::Table::from_iter([
            ("command".to_owned(), format!("accordion train-features --config {config_name} --model DIR").into()),
            ("images".to_owned(), toml::Value::from(position.seen as i64)),
            ("minutes".to_owned(), toml::Value::from((position.seconds / 6.0).round() / 10.0)),
            ("test_accuracy".to_owned(), toml::Value::from(rounded(file.accuracy))),
        ]);
        model.card.made.insert("features".into(), made.into());
        model.write_card(&self.model)?;
        // The last that is done: until here it can be done again.
        std::fs::remove_file(&path).map_err(Error::io(&path))?;
        let reference = &file.reference;
        print(format_args!(
            "test accuracy {:.4}; Frechet distance to {} held-out images: {:.3} of real ones, {:.1} of the classes' means\n",
            file.accuracy, reference.images, reference.real, reference.blur
        ))
    }
}
