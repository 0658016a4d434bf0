//! What the engine asks of whoever decides: which requests it takes, by which plans they run, and what runs next.
//!
//! A policy is told the time and never asks for it: it is a state machine that a test can drive with a clock of its own.

use crate::diffusion::Plan;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Names a request within one engine.
pub type RequestId = u64;

/// A request for images, as a policy sees it. Points in time are since the engine's start.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Its name; no other request of the engine has it.
    pub id: RequestId,
    /// When it came.
    pub arrived: Duration,
    /// When its last image must be drawn.
    pub deadline: Duration,
    /// How many images.
    pub images: u32,
    /// Whether something leads the images: what a negative prompt says, or nothing.
    pub is_guided: bool,
    /// Samples that an image adds to the calls of a step: 2 where it is guided; of a larger size than the usual one as many more as are
    /// as much work.
    pub rows: usize,
    /// The index of the size of its images: those of one size share calls.
    pub canvas: usize,
    /// What it may run.
    pub wish: Wish,
    /// The share of their steps that plans make of it, as [`Plan::strength`]: its images start from a picture.
    pub strength: f64,
    /// How many pictures are encoded before its first image begins.
    pub encodings: usize,
}

impl Ask {
    /// For one image of the usual size from noise, without guidance.
    pub fn new(id: RequestId, arrived: Duration, deadline: Duration, wish: Wish) -> Self {
        Self {
            id,
            arrived,
            deadline,
            images: 1,
            is_guided: false,
            rows: 1,
            canvas: 0,
            wish,
            strength: 1.0,
            encodings: 0,
        }
    }

    /// From its arrival to its deadline.
    pub fn within(&self) -> Duration {
        self.deadline.saturating_sub(self.arrived)
    }
}

/// What a request may run.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    /// This plan and no other.
    Exact(Arc<Plan>),
    /// A plan of the frontier: as good as can be up to `target`, and never below `floor`. Both are qualities as the
    /// profile measures them.
    Quality {
        /// Below it the client prefers a refusal.
        floor: f64,
        /// Above it the client sees no use in waiting.
        target: f64,
    },
}

/// What a policy promises a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The plan that its images run by, if nothing changes meanwhile.
    pub plan: Arc<Plan>,
    /// Its quality, where it was measured.
    pub quality: Option<f64>,
}

/// Why a policy does not take a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// No accepted plan meets the deadline, even on an idle machine.
    Infeasible {
        /// The fastest accepted plan.
        fastest: Arc<Plan>,
        /// What it takes on an idle machine.
        takes: Duration,
    },
    /// An idle machine would do it; this one has too much to do.
    Overloaded {
        /// When enough of the work will be done.
        retry_after: Duration,
    },
}

/// One image of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// The request.
    pub request: RequestId,
    /// The image's index in it.
    pub image: u32,
}

/// One call of the denoiser.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// Which calls are made, by an index of the policy's own: those of its members are of the same subnets.
    pub kind: usize,
    /// Whose samples it denoises, each once.
    pub members: Vec<Member>,
    /// Images that begin with a plan, and images that go on by another one. They need not be members.
    pub plans: Vec<(Member, Arc<Plan>)>,
}

/// With whom an engine shares its device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Company {
    /// Engines that want the device, this one among them: while it has work it gets as much of the device as each other.
    pub engines: usize,
    /// How long it waits beside that, at most: what others have begun is not interrupted.
    pub wait: Duration,
    /// The share of the device's time that others have used lately, from 0 to 1.
    pub taken: f64,
}

impl Company {
    /// Nobody else is there.
    pub const ALONE: Self = Self { engines: 1, wait: Duration::ZERO, taken: 0.0 };
}

/// Decides for one engine. The engine calls [`Policy::next`], runs the turn, and reports it with [`Policy::ran`].
pub trait Policy: Send + fmt::Debug {
    /// With whom the device is shared from here on; at first with nobody. One that promises nothing need not know.
    fn meet(&mut self, _company: Company) {}

    /// By how much the promise is broken that suffers most, of those that could be kept alone and would not be in this company.
    fn breach(&self, _now: Duration, _company: &Company) -> Option<Duration> {
        None
    }

    /// What [`Policy::admit`] would answer.
    ///
    /// # Errors
    /// The [`Refusal`].
    fn quote(&self, ask: &Ask) -> Result<Planned, Refusal>;

    /// Takes a request that arrives now, at `ask.arrived`.
    ///
    /// # Errors
    /// The [`Refusal`]: then nothing is remembered of it.
    fn admit(&mut self, ask: Ask) -> Result<Planned, Refusal>;

    /// The call to run now; `None` when no image is left.
    fn next(&mut self, now: Duration) -> Option<Turn>;

    /// The turn has run, and had the device for so long: every member is one denoiser call further, those that are drawn are
    /// forgotten.
    fn ran(&mut self, turn: &Turn, took: Duration, now: Duration);

    /// Forgets a request: its client has gone, or its batch failed. Unknown ones are no mistake.
    fn leave(&mut self, request: RequestId);

    /// The work taken and not yet done, in seconds of the device.
    fn work(&self) -> Duration;
}
