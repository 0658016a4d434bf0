//! What the engine is asked and what it answers.

use crate::diffusion::plan::Plan;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// One request for images.
#[derive(Clone, Debug)]
pub struct Job {
    /// Solver, steps and subnets.
    pub plan: Arc<Plan>,
    /// The noise of all images of the request comes from this seed.
    pub seed: u64,
    /// How many images: image `i` is the same whatever this number is.
    pub images: u32,
    /// Index of the class; `None` is the unconditional call.
    pub class: Option<usize>,
    /// Classifier-free guidance; 1 is off. Without a class it changes nothing.
    pub guidance: f64,
}

/// The images of a job and where its time went.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// One `[height, width, channels]` image each, row-major, in the model's units: nominally [-1, 1].
    pub images: Vec<Vec<f64>>,
    /// From its arrival to its first step.
    pub queued: Duration,
    /// From its first step to its last.
    pub denoising: Duration,
}

/// Why a job has no images.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The job does not fit the model or the engine: a caller that did not check. -> 400
    #[error("{0}")]
    Unfit(String),
    /// No room for so many images. -> 429 with Retry-After
    #[error("the queue is full: {waiting} of {capacity} images wait; retry in {} s", retry_after.as_secs())]
    QueueFull {
        /// Images that wait.
        waiting: usize,
        /// Images that may wait.
        capacity: usize,
        /// When there should be room, from the work that waits and the rate so far; whole seconds.
        retry_after: Duration,
    },
    /// The engine finishes what it has and takes no more. -> 503
    #[error("the server is shutting down")]
    Draining,
    /// The denoiser failed or panicked in a batch that held this job. -> 500
    #[error("the denoiser failed: {0}")]
    Denoiser(String),
    /// The engine's thread has ended before its time: it will not come back. -> 500; liveness fails
    #[error("the engine has died")]
    Dead,
}

impl From<EngineError> for crate::Error {
    /// For callers that have no use for the difference, such as `accordion generate`.
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Unfit(problem) => Self::input("request", problem),
            error => Self::Tensor(candle_core::Error::Msg(error.to_string())),
        }
    }
}

/// The right to the answer of a submitted job. Dropping it cancels the job within one step.
#[derive(Debug)]
pub struct Ticket {
    pub(super) answer: oneshot::Receiver<Result<Finished, EngineError>>,
}

impl Ticket {
    /// Waits for the images.
    ///
    /// # Errors
    /// [`EngineError::Denoiser`] or [`EngineError::Dead`].
    pub async fn wait(self) -> Result<Finished, EngineError> {
        self.answer.await.unwrap_or(Err(EngineError::Dead))
    }

    /// Like [`Ticket::wait`], for a caller without a runtime.
    ///
    /// # Errors
    /// [`EngineError::Denoiser`] or [`EngineError::Dead`].
    pub fn blocking_wait(self) -> Result<Finished, EngineError> {
        self.answer.blocking_recv().unwrap_or(Err(EngineError::Dead))
    }
}
