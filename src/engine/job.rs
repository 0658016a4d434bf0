//! What the engine is asked and what it answers.

use crate::diffusion::plan::Plan;
use crate::engine::original::Original;
use crate::engine::policy::{Planned, Refusal, Wish};
use crate::nets::Condition;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// One request for images.
#[derive(Clone, Debug)]
pub struct Job {
    /// Solver, steps and subnets, or the qualities between which they are chosen.
    pub wish: Wish,
    /// When the request came.
    pub arrived: Instant,
    /// From then to when its last image must be drawn.
    pub within: Duration,
    /// The noise of all images of the request comes from this seed.
    pub seed: u64,
    /// How many images: image `i` is the same whatever this number is.
    pub images: u32,
    /// What the images are of.
    pub condition: Condition,
    /// What guidance leads them away from.
    pub negative: Condition,
    /// Classifier-free guidance; 1 is off. Where the images are of nothing, it changes nothing.
    pub guidance: f64,
    /// The index of their size in [`crate::nets::About::canvases`].
    pub canvas: usize,
    /// The picture that they are made from, if there is one.
    pub original: Option<Arc<Original>>,
    /// How much of it is made anew, as [`Plan::strength`]; an exact plan says it itself.
    pub strength: f64,
    /// Where its steps are told, if anybody wants to know. A listener that is slow misses some.
    pub events: Option<mpsc::Sender<Step>>,
}

impl Job {
    /// The longest that a job without a deadline may take.
    pub const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

    /// One image of `plan` without a class or a deadline.
    pub fn exact(plan: Arc<Plan>, seed: u64) -> Self {
        Self {
            wish: Wish::Exact(plan),
            arrived: Instant::now(),
            within: Self::LONGEST,
            seed,
            images: 1,
            condition: Condition::None,
            negative: Condition::None,
            guidance: 1.0,
            canvas: 0,
            original: None,
            strength: 1.0,
            events: None,
        }
    }

    /// Whether guidance changes anything.
    pub fn is_guided(&self) -> bool {
        self.condition != Condition::None && self.guidance != 1.0
    }
}

/// A step that an image has made.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The image's index in its request.
    pub image: u32,
    /// Steps that are made.
    pub step: usize,
    /// The plan that it follows, which says how many [are](Plan::made).
    pub plan: Arc<Plan>,
    /// The image as the denoiser sees it now, in the form of [`Finished::images`].
    pub estimate: Vec<u8>,
}

/// The images of a job and where its time went.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// One `[height, width, channels]` image each, row-major: the model's [-1, 1] as bytes.
    pub images: Vec<Vec<u8>>,
    /// The plan that each of them ran by: where it was changed on the way, the text says how.
    pub plans: Vec<Arc<Plan>>,
    /// From its arrival to its first step.
    pub queued: Duration,
    /// From its first step to its last.
    pub denoising: Duration,
}

/// Why a job has no images.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The job does not fit the model or the engine: a caller that did not check. -> 400
    #[error("{0}")]
    Unfit(String),
    /// No accepted plan is fast enough, even on an idle machine. -> 422
    #[error(
        "no accepted plan meets the budget: the fastest is {fastest}, which takes {:.0} ms on this machine when it is \
         idle",
        takes.as_secs_f64() * 1e3
    )]
    Infeasible {
        /// The fastest accepted plan.
        fastest: Arc<Plan>,
        /// What it takes on an idle machine.
        takes: Duration,
    },
    /// The deadline could be met, but not with all the work that was taken before. -> 429 with Retry-After
    #[error("no accepted plan meets the budget at present; retry in {} s", retry_after.as_secs())]
    Overloaded {
        /// When enough of the work will be done; whole seconds.
        retry_after: Duration,
    },
    /// No room for so many images. -> 429 with Retry-After
    #[error("the queue is full: {waiting} of {capacity} images wait; retry in {} s", retry_after.as_secs())]
    QueueFull {
        /// Images that wait.
        waiting: usize,
        /// Images that may wait.
        capacity: usize,
        /// When there should be room, from the work that waits; whole seconds.
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

impl From<Refusal> for EngineError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Infeasible { fastest, takes } => Self::Infeasible { fastest, takes },
            Refusal::Overloaded { retry_after } => Self::Overloaded { retry_after: whole_seconds(retry_after) },
        }
    }
}

/// At least one: sooner than that nobody needs to come back.
pub(super) fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs_f64().ceil().max(1.0) as u64)
}

impl From<EngineError> for crate::Error {
    /// For callers that have no use for the difference, such as `accordion generate`.
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Unfit(problem) => Self::input("request", problem),
            error => Self::Engine(error),
        }
    }
}

/// The right to the answer of a submitted job. Dropping it cancels the job within one step.
#[derive(Debug)]
pub struct Ticket {
    pub(super) planned: Planned,
    pub(super) answer: oneshot::Receiver<Result<Finished, EngineError>>,
}

impl Ticket {
    /// What the job was promised when it was taken.
    pub fn planned(&self) -> &Planned {
        &self.planned
    }

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
