//! SlackFit (SuperServe, NSDI'25), with the plans of the frontier for its subnets: the policy that ours is measured
//! against.

use super::{ran, work};
use crate::diffusion::plan::Plan;
use crate::engine::policy::{Ask, Member, Planned, Policy, Refusal, RequestId, Turn, Wish};
use crate::routing::ladder::Menu;
use crate::routing::runs::{Order, Runs};
use crate::routing::{Ladder, Rung, StepTimes};
use std::sync::Arc;
use std::time::Duration;

/// Evenly spaced buckets of latency that the (plan, batch) pairs are sorted into.
const BUCKETS: f64 = 64.0;

/// Requests wait in the order of their deadlines. When the device is free, the slack of the first one chooses the bucket
/// of latency that is closest to it from below, and with it a plan and a batch, which runs to its end.
///
/// The paper says no more of the choice within a bucket: here it is the larger batch, then the better plan. It refuses
/// nothing; where no pair fits the slack, the fastest plan runs on as many requests as there are. Exact plans are not of
/// the paper: each image of one is a batch of its own, in the same order.
#[derive(Clone, Debug)]
pub struct SlackFit {
    ladder: Ladder,
    times: StepTimes,
    max_batch: usize,
    runs: Runs,
    /// The batch that runs.
    batch: Vec<Member>,
}

impl SlackFit {
    /// On the plans of `ladder`.
    pub fn new(ladder: Ladder, times: StepTimes, max_batch: usize) -> Self {
        Self { ladder, times, max_batch, runs: Runs::new(Order::Deadline), batch: Vec::new() }
    }

    /// The rung and the number of images for this slack, of at most `images` that each add `rows` samples.
    fn choose(&self, slack: f64, images: usize, rows: usize) -> (usize, usize) {
        let most = (self.max_batch / rows).max(1).min(images.max(1));
        let latency = |rung: usize, batch: usize| {
            let Rung { calls, cost, .. } = &self.ladder.rungs()[rung];
            let called: f64 =
                calls.iter().map(|&(kind, count)| count as f64 * self.times.call(kind, batch * rows)).sum();
            called + self.times.scale() * cost.finish * batch as f64
        };
        let width = latency(self.ladder.top(), self.max_batch) / BUCKETS;
        let pairs = (0..=self.ladder.top()).flat_map(|rung| (1..=most).map(move |batch| (rung, batch)));
        let fits = pairs.map(|(rung, batch)| (latency(rung, batch), rung, batch)).filter(|&(takes, ..)| takes <= slack);
        let best = fits.max_by_key(|&(takes, rung, batch)| ((takes / width) as i64, batch, rung));
        best.map_or((0, most), |(_, rung, batch)| (rung, batch))
    }

    fn form(&mut self, now: Duration) -> Option<Turn> {
        let head = self.runs.iter().find(|run| run.waiting() > 0)?;
        let mut plans = Vec::new();
        if let Wish::Exact(plan) = &head.ask.wish {
            let (place, plan) = (self.runs.place(&head.ask), plan.clone());
            plans.push((self.runs.begin(place, plan.clone(), &self.times), plan));
        } else {
            let (slack, rows) = (head.ask.deadline.saturating_sub(now).as_secs_f64(), head.ask.rows);
            let canvas = head.ask.canvas;
            let alike = |run: &&crate::routing::runs::Run| {
                (run.ask.rows, run.ask.canvas) == (rows, canvas) && matches!(run.ask.wish, Wish::Quality { .. })
            };
            let images = self.runs.iter().filter(alike).map(|run| run.waiting() as usize).sum();
            let (rung, mut batch) = self.choose(slack, images, rows);
            let places: Vec<(usize, u32, Arc<Plan>)> = (0..)
                .zip(self.runs.iter())
                .filter(|(_, run)| alike(run))
                .map(|(place, run)| (place, run.waiting(), self.ladder.plan(&run.menu, rung).clone()))
                .collect();
            for (place, waiting, plan) in places {
                for _ in 0..waiting.min(u32::try_from(batch).unwrap_or(u32::MAX)) {
                    plans.push((self.runs.begin(place, plan.clone(), &self.times), plan.clone()));
                    batch -= 1;
                }
            }
        }
        self.batch = plans.iter().map(|(member, _)| *member).collect();
        Some(Turn { kind: 0, members: Vec::new(), plans })
    }
}

impl Policy for SlackFit {
    fn quote(&self, ask: &Ask) -> Result<Planned, Refusal> {
        Ok(match &ask.wish {
            Wish::Exact(plan) => Planned { plan: plan.clone(), quality: None },
            Wish::Quality { .. } => {
                let (rung, _) = self.choose(ask.within().as_secs_f64(), 1, ask.rows);
                let rung = &self.ladder.rungs()[rung];
                Planned { plan: rung.plan.clone(), quality: Some(rung.quality) }
            }
        })
    }

    fn admit(&mut self, ask: Ask) -> Result<Planned, Refusal> {
        let planned = self.quote(&ask)?;
        let menu = match &ask.wish {
            Wish::Exact(plan) => Menu::exact(plan.clone(), ask.is_guided, &self.times),
            Wish::Quality { .. } => {
                Menu::Rungs { floor: 0, top: self.ladder.top(), own: self.ladder.own(&ask, &self.times) }
            }
        };
        self.runs.insert(ask, menu);
        Ok(planned)
    }

    fn next(&mut self, now: Duration) -> Option<Turn> {
        let running = |runs: &Runs, member: &Member| {
            let run = runs.iter().find(|run| run.ask.id == member.request)?;
            Some(run.running.iter().find(|running| running.image == member.image)?.kind)
        };
        self.batch.retain(|member| running(&self.runs, member).is_some());
        let mut turn = if self.batch.is_empty() { self.form(now)? } else { Turn::default() };
        turn.kind = running(&self.runs, self.batch.first()?)?;
        turn.members = self.batch.clone();
        Some(turn)
    }

    fn ran(&mut self, turn: &Turn, took: Duration, now: Duration) {
        ran(&mut self.runs, &mut self.times, turn, took, now);
    }

    fn leave(&mut self, request: RequestId) {
        self.runs.remove(request);
    }

    fn work(&self) -> Duration {
        Duration::from_secs_f64(self.times.scale() * work(&self.runs, &self.times, |menu| self.ladder.cost(menu, 0)))
    }
}
