//! What the loop of a run asks of a stage under way.

use super::config::Stage;
use super::state::{Position, State};
use crate::supernet::Spec;
use crate::{Error, Result};

/// A stage under way: steps of the optimiser on a state that can be written.
pub trait Learner {
    /// One step of the optimiser.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the loss or the gradient is not; the state is then that before the step.
    fn learn(&mut self) -> Result<()>;

    /// What is written to disk.
    fn state(&self) -> &State;

    /// What the state is of.
    fn spec(&self) -> &Spec;

    /// How long and how fast.
    fn stage(&self) -> &Stage;

    /// What the losses are called in the progress line, in the order of [`Position::losses`].
    fn names(&self) -> Vec<String>;

    /// Whether the stage has seen all its images.
    fn is_finished(&self) -> bool {
        self.state().position.seen >= self.stage().images
    }

    /// An error about the step that comes next or, for a state that cannot be written, the one before it.
    fn not_finite(&self, what: impl std::fmt::Display) -> Error
    where
        Self: Sized,
    {
        let Position { stage, seen, .. } = &self.state().position;
        let (stage, step) = (stage.as_str(), seen / self.stage().batch as u64);
        Error::NotFinite {
            place: format!("{stage}, after step {step} ({seen} images)"),
            problem: format!(
                "{what}; the last checkpoint is left as it was; a lower {stage}.learning_rate than {} may help",
                self.stage().learning_rate
            ),
        }
    }
}
