//! One sitting of a run of training: steps, progress and checkpoints until it is done or stopped.

use super::learner::Learner;
use super::progress::Progress;
use super::state::State;
use crate::supernet::Spec;
use crate::{Error, Result};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The state of the stage that is running.
const STATE: &str = "state.safetensors";

/// Where a run goes, and how long it may.
#[derive(Clone, Copy)]
pub struct Sitting<'a> {
    /// Where everything goes.
    pub out: &'a Path,
    /// Continue what lies there.
    pub resume: bool,
    /// Time between two checkpoints.
    pub checkpoint_every: Duration,
    /// Raised to stop at the next step, with a checkpoint.
    pub stop: &'a AtomicBool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for is done.
    Finished,
    /// It was stopped; `--resume` continues.
    Stopped,
}

impl Sitting<'_> {
    /// The state that lies in the directory, if one does, of a network of this `spec`.
    ///
    /// # Errors
    /// [`Error::Input`] where one does and is not to be continued, or does not fit.
    pub fn resumed(&self, spec: &Spec) -> Result<Option<State>> {
        let path = self.out.join(STATE);
        match (path.exists(), self.resume) {
            (true, true) => State::read(spec, &path).map(Some),
            (true, false) => {
                Err(Error::input("--out", format!("{} holds a run; --resume continues it", self.out.display())))
            }
            (false, _) => Ok(None),
        }
    }

    /// Makes steps until the stage is finished, or stopped.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where a step diverges: the last checkpoint is left as it was; [`Error::Io`].
    pub fn run(&self, learner: &mut impl Learner) -> Result<Outcome> {
        let path = self.out.join(STATE);
        let (name, names) = (learner.state().position.stage.as_str(), learner.names());
        let mut progress = Progress::new(name, "images", learner.state().position.seen, learner.stage().images);
        let mut saved = Instant::now();
        while !learner.is_finished() {
            learner.learn()?;
            let position = &learner.state().position;
            let losses = names.iter().zip(&position.losses);
            let losses = losses.filter_map(|(name, loss)| loss.map(|loss| format!("{name}: loss {loss:.4}")));
            progress.at(position.seen, &losses.collect::<Vec<String>>().join(", "));
            let stop = self.stop.load(Ordering::Relaxed);
            if stop || learner.is_finished() || saved.elapsed() >= self.checkpoint_every {
                learner.state().write(learner.spec(), &path).map_err(|error| match error {
                    Error::NotFinite { place, .. } => learner.not_finite(format!("{place} is not finite")),
                    other => other,
                })?;
                saved = Instant::now();
            }
            if stop && !learner.is_finished() {
                progress.finish();
                return Ok(Outcome::Stopped);
            }
        }
        progress.finish();
        Ok(Outcome::Finished)
    }
}
