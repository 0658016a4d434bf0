//! The policies that an engine can be given: ours, and those that it is measured against.

mod elastic;
mod fixed;
mod slackfit;

pub use elastic::Elastic;
pub use fixed::Fixed;
pub use slackfit::SlackFit;

use crate::diffusion::plan::Plan;
use crate::engine::policy::{Member, Policy, Turn};
use crate::routing::ladder::{Cost, Load, Menu};
use crate::routing::runs::{Run, Runs};
use crate::routing::times::Kind;
use crate::routing::{Ladder, StepTimes};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Which policy an engine runs. In a file or on the command line: `elastic`, `slackfit` or `fixed:<plan>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PolicyChoice {
    /// [`Elastic`]: what a server is meant to run.
    #[default]
    Elastic,
    /// [`SlackFit`], to compare with.
    SlackFit,
    /// [`Fixed`], to compare with.
    Fixed(Plan),
}

impl PolicyChoice {
    /// The policy, on this frontier and these times; a call holds at most `max_batch` samples.
    pub fn build(&self, ladder: Ladder, times: StepTimes, max_batch: usize) -> Box<dyn Policy> {
        match self {
            Self::Elastic => Box::new(Elastic::new(ladder, times, max_batch)),
            Self::SlackFit => Box::new(SlackFit::new(ladder, times, max_batch)),
            Self::Fixed(plan) => {
                let quality = ladder.quality(plan);
                Box::new(Fixed::new(Arc::new(plan.clone()), quality, times, max_batch))
            }
        }
    }
}

impl fmt::Display for PolicyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elastic => f.write_str("elastic"),
            Self::SlackFit => f.write_str("slackfit"),
            Self::Fixed(plan) => write!(f, "fixed:{plan}"),
        }
    }
}

impl FromStr for PolicyChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.strip_prefix("fixed:")) {
            ("elastic", _) => Ok(Self::Elastic),
            ("slackfit", _) => Ok(Self::SlackFit),
            (_, Some(plan)) => Ok(Self::Fixed(plan.parse()?)),
            _ => Err(Error::input(
                "policy",
                format!("`{text}` is unknown: accepted are elastic, slackfit, fixed:<plan>"),
            )),
        }
    }
}

impl TryFrom<String> for PolicyChoice {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<PolicyChoice> for String {
    fn from(choice: PolicyChoice) -> Self {
        choice.to_string()
    }
}

/// The running images of `runs` of the size `canvas` whose next calls are of this kind, in order, as many as `rows` samples allow and at
/// least one.
fn fill<'a>(runs: impl Iterator<Item = &'a Run>, kind: Kind, canvas: usize, rows: usize) -> Vec<Member> {
    let mut used = 0;
    let mut members = Vec::new();
    for run in runs.filter(|run| run.ask.canvas == canvas) {
        for running in run.running.iter().filter(|running| running.kind == kind) {
            used += run.ask.rows;
            if used > rows && !members.is_empty() {
                return members;
            }
            members.push(Member { request: run.ask.id, image: running.image });
        }
    }
    members
}

/// The samples of these members' call.
fn rows(runs: &Runs, members: &[Member]) -> usize {
    let of = |member: &Member| runs.iter().find(|run| run.ask.id == member.request).map_or(0, |run| run.ask.rows);
    members.iter().map(of).sum()
}

/// Learns what a turn took, and moves its members on.
fn ran(runs: &mut Runs, times: &mut StepTimes, turn: &Turn, took: Duration, now: Duration) {
    // Of another size than the measured one a call's samples are counted roughly: it says nothing of the machine.
    let of = |member: &Member| runs.iter().find(|run| run.ask.id == member.request);
    if turn.members.iter().find_map(of).is_none_or(|run| run.ask.canvas == 0) {
        times.observe(turn.kind, rows(runs, &turn.members).max(1), took, now);
    }
    runs.advance(turn, times);
}

/// Time of encoding what the images of a request start from, where none has begun, and of decoding those that run, in seconds as it
/// was measured.
fn coding(times: &StepTimes, run: &Run) -> f64 {
    times.encoding(run.encodings()) + run.running.iter().map(|image| image.finish).sum::<f64>()
}

/// Time of the taken work in efficient batches, in seconds as it was measured, where an image that waits has the cost `image`.
fn work(runs: &Runs, times: &StepTimes, image: impl Fn(&Menu) -> Cost) -> f64 {
    let of = |run: &Run| {
        let running: f64 = run.running.iter().map(|running| running.left).sum();
        let waiting = Load::new(run.waiting().into(), run.ask.rows);
        let waiting = if run.waiting() == 0 { 0.0 } else { image(&run.menu).of(waiting) };
        run.ask.rows as f64 * running + waiting + coding(times, run)
    };
    runs.iter().map(of).sum()
}
