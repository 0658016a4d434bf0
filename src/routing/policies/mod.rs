//! The policies that an engine can be given: ours, and those that it is measured against.

mod elastic;
mod fixed;
mod slackfit;

pub use elastic::Elastic;
pub use fixed::Fixed;
pub use slackfit::SlackFit;

use crate::engine::policy::Member;
use crate::routing::StepTimes;
use crate::routing::runs::Runs;

/// The running images whose next call is of `subnet`, in order, as many as `rows` samples allow and at least one.
fn fill(runs: &Runs, subnet: usize, rows: usize) -> Vec<Member> {
    let mut used = 0;
    let mut members = Vec::new();
    for run in runs.iter() {
        for running in run.running.iter().filter(|running| running.subnet == subnet) {
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

/// Time of the taken work in efficient batches, in seconds as it was measured, where an image that waits takes `image`.
fn work(runs: &Runs, image: impl Fn(&crate::engine::policy::Wish) -> f64) -> f64 {
    let of = |run: &crate::routing::runs::Run| {
        let running: f64 = run.running.iter().map(|running| running.left).sum();
        run.ask.rows as f64 * (running + f64::from(run.waiting()) * image(&run.ask.wish))
    };
    runs.iter().map(of).sum()
}

/// The time of an exact plan's image in efficient batches, in seconds as it was measured.
fn exact_seconds(plan: &crate::diffusion::Plan, times: &StepTimes) -> f64 {
    crate::routing::ladder::calls(plan, 0, times).map_or(0.0, |calls| crate::routing::ladder::seconds(&calls, times))
}
