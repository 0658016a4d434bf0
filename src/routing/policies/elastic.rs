//! Our policy: every request the best image that its budget affords, under any load.
//!
//! - **Admission** asks whether every deadline holds, the newcomer's too, if all that has been taken is drawn by the
//!   fastest plans that its clients accept. If so, it is taken; no other promise is made at this point than a deadline.
//! - **A plan is chosen when an image begins**, not when it arrives: the best one under a cap that is common to all. The
//!   cap is the highest rung at which the work that waits and the work that will arrive at the present rate can be done
//!   in a horizon, and at which every deadline holds. A common cap is what gives the best mean quality, since quality
//!   grows ever more slowly with time: a second taken from a good image and given to a poor one is a gain. Where the
//!   time lies between two rungs, images take turns on them.
//! - **Running images are re-planned** only if deadlines do not hold otherwise: then what is left of them is shortened.
//! - **The most urgent image leads**; its call is filled up with others at the same subnet, in the order of their
//!   deadlines, up to the batch at which a sample is cheapest, or less where the leader has no time for that. An image
//!   that would begin at another width takes the leader's instead where that costs no more in its company.

use super::{exact_seconds, fill, ran, rows, work};
use crate::diffusion::plan::Plan;
use crate::engine::policy::{Ask, Member, Planned, Policy, Refusal, RequestId, Turn, Wish};
use crate::routing::demand::Demand;
use crate::routing::runs::{Order, Run, Running, Runs};
use crate::routing::{Ladder, Rung, StepTimes};
use std::sync::Arc;
use std::time::Duration;

/// What admission adds to every time, for what no prediction knows.
const ADMISSION_SAFETY: f64 = 1.2;
/// The same when plans are chosen: less, so that what was admitted seldom has to be re-planned.
const PLANNING_SAFETY: f64 = 1.15;
/// The horizon in which work shall be done, in typical deadlines.
const HORIZON: f64 = 1.0;
/// The horizon at most: nobody gains by waiting longer, and the queue has an end.
const MAX_HORIZON_S: f64 = 2.0;
/// How much of the horizon is given out. Above 1 some work always waits, so that the device never does.
const UTILISATION: f64 = 1.2;
/// Retry-After at most.
const MAX_RETRY: Duration = Duration::from_secs(300);

/// Degrades instead of dropping; refuses only what would break a deadline.
#[derive(Clone, Debug)]
pub struct Elastic {
    ladder: Ladder,
    times: StepTimes,
    max_batch: usize,
    runs: Runs,
    demand: Demand,
    /// When the call that runs now should be over.
    busy_until: Duration,
    /// What images have been given less than their share between two rungs, from 0 to 1.
    owed: f64,
}

/// How much is squeezed out of requests to make deadlines hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Squeeze {
    /// Waiting images run on this rung at most.
    waiting: usize,
    /// Running images are re-planned to this rung, where that is less than they have left.
    running: Option<usize>,
}

/// Work of a request.
#[derive(Clone, Copy, Debug)]
struct Burden {
    /// Samples that its images add to calls.
    rows: usize,
    /// Time in efficient batches, as it was measured.
    seconds: f64,
    /// Calls that come one after the other.
    calls: usize,
    /// The widest subnet.
    subnet: usize,
}

impl Elastic {
    /// On the plans of `ladder`; a call holds at most `max_batch` samples.
    pub fn new(ladder: Ladder, times: StepTimes, max_batch: usize) -> Self {
        let demand = Demand::new(ladder.rungs().len());
        Self {
            ladder,
            times,
            max_batch,
            runs: Runs::new(Order::Deadline),
            demand,
            busy_until: Duration::ZERO,
            owed: 0.0,
        }
    }

    /// The lowest and the highest rung that a request accepts; `None` for an exact plan.
    fn range(&self, wish: &Wish) -> Option<(usize, usize)> {
        match wish {
            Wish::Exact(_) => None,
            Wish::Quality { floor, target } => {
                let floor = self.ladder.at_least(*floor);
                Some((floor, self.ladder.at_least(*target).max(floor)))
            }
        }
    }

    /// The rung of a waiting image under a cap; `None` for an exact plan.
    fn rung(&self, wish: &Wish, cap: usize) -> Option<usize> {
        self.range(wish).map(|(floor, top)| cap.clamp(floor, top))
    }

    fn plan(&self, wish: &Wish, cap: usize) -> Arc<Plan> {
        match (wish, self.rung(wish, cap)) {
            (Wish::Exact(plan), _) => plan.clone(),
            (_, rung) => self.ladder.rungs()[rung.unwrap_or(0)].plan.clone(),
        }
    }

    /// Time of an image that waits, in efficient batches, and its denoiser calls.
    fn waiting(&self, wish: &Wish, cap: usize) -> (f64, usize) {
        match (wish, self.rung(wish, cap)) {
            (Wish::Exact(plan), _) => (exact_seconds(plan, &self.times), plan.evaluations()),
            (_, rung) => {
                let rung = &self.ladder.rungs()[rung.unwrap_or(0)];
                (rung.seconds, rung.evaluations())
            }
        }
    }

    /// Time of what is left of a running image and its calls, where it may be re-planned down to `rung`.
    fn left(&self, wish: &Wish, running: &Running, rung: Option<usize>) -> (f64, usize) {
        let as_it_is = (running.left, running.calls);
        let Some(rung) = rung.and_then(|cap| self.rung(wish, cap)) else { return as_it_is };
        let (step, _) = running.plan.position(running.done);
        let share = (running.plan.steps - step) as f64 / running.plan.steps as f64;
        let target = &self.ladder.rungs()[rung];
        let evaluations = target.evaluations() as f64;
        let calls = (share * evaluations).round().max(1.0);
        let seconds = target.seconds * calls / evaluations;
        // In the middle of a step the second half comes first.
        let half = if running.boundary().is_none() { (self.times.measured_row(running.subnet), 1) } else { (0.0, 0) };
        if seconds + half.0 < as_it_is.0 { (seconds + half.0, calls as usize + half.1) } else { as_it_is }
    }

    /// What `images` of a request that have not begun will ask of the device.
    fn burden(&self, ask: &Ask, images: u32, cap: usize) -> Burden {
        let (seconds, calls) = self.waiting(&ask.wish, cap);
        let rows = ask.rows as f64 * f64::from(images);
        Burden { rows: rows as usize, seconds: seconds * rows, calls, subnet: self.subnet(&ask.wish, cap) }
    }

    /// What is left of a request.
    fn left_of(&self, run: &Run, squeeze: Squeeze) -> Burden {
        let none = Burden { rows: 0, seconds: 0.0, calls: 0, subnet: 0 };
        let mut burden = if run.waiting() == 0 { none } else { self.burden(&run.ask, run.waiting(), squeeze.waiting) };
        for running in &run.running {
            let (seconds, calls) = self.left(&run.ask.wish, running, squeeze.running);
            burden.rows += run.ask.rows;
            burden.seconds += seconds * run.ask.rows as f64;
            burden.calls = burden.calls.max(calls);
            burden.subnet = burden.subnet.max(running.subnet);
        }
        burden
    }

    /// The largest lateness of any deadline, in seconds (negative: how much time is to spare), if work is done in the
    /// order of deadlines under `squeeze` and `extra` is taken too.
    fn lateness(&self, now: Duration, squeeze: Squeeze, extra: Option<&Ask>, safety: f64) -> f64 {
        let scale = safety * self.times.scale();
        let begun = self.busy_until.saturating_sub(now).as_secs_f64();
        let (mut seconds, mut rows, mut worst) = (0.0, 0, f64::NEG_INFINITY);
        let mut add = |ask: &Ask, burden: Burden| {
            seconds += burden.seconds;
            rows += burden.rows;
            // Its calls come one after the other, each with what is as urgent; others join only where there is time.
            let batch = self.times.efficient_batch(burden.subnet).min(rows).max(ask.rows.min(self.max_batch));
            let alone = burden.calls as f64 * self.times.measured(burden.subnet, batch);
            let due = ask.deadline.as_secs_f64() - now.as_secs_f64();
            worst = f64::max(worst, begun + scale * f64::max(seconds, alone) - due);
        };
        let place = extra.map(|ask| self.runs.place(ask));
        let runs = self.runs.iter().map(Some).chain([None]).enumerate();
        for (index, run) in runs {
            if let Some(ask) = extra.filter(|_| place == Some(index)) {
                add(ask, self.burden(ask, ask.images, squeeze.waiting));
            }
            if let Some(run) = run {
                add(&run.ask, self.left_of(run, squeeze));
            }
        }
        worst
    }

    /// The widest subnet of a waiting image's plan.
    fn subnet(&self, wish: &Wish, cap: usize) -> usize {
        match (wish, self.rung(wish, cap)) {
            (Wish::Exact(plan), _) => {
                plan.widths.iter().filter_map(|run| self.times.subnet(&run.subnet)).max().unwrap_or(0)
            }
            (_, rung) => self.ladder.rungs()[rung.unwrap_or(0)].widest(),
        }
    }

    /// The highest rung for which `holds`, which holds below any rung for which it holds; `None` if it never does.
    fn highest(&self, holds: impl Fn(usize) -> bool) -> Option<usize> {
        let (mut low, mut high) = (0, self.ladder.rungs().len());
        while low < high {
            let middle = (low + high) / 2;
            if holds(middle) { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1)
    }

    /// The highest rung at which all deadlines hold; `None` where they do not hold even with the fastest plans.
    fn urgent_cap(&self, now: Duration, extra: Option<&Ask>) -> Option<usize> {
        let squeeze = |cap| Squeeze { waiting: cap, running: None };
        self.highest(|cap| self.lateness(now, squeeze(cap), extra, PLANNING_SAFETY) <= 0.0)
    }

    /// The rung at which the work that waits and the work that will arrive is done within the horizon, and how much of
    /// the way to the next one there would be time for, from 0 to 1.
    fn fair_cap(&self) -> (usize, f64) {
        let Some(within) = self.demand.within() else { return (self.ladder.top(), 0.0) };
        let horizon = (HORIZON * within).min(MAX_HORIZON_S) / self.times.scale();
        let total = |cap: usize| {
            let arrives = horizon * self.demand.at(cap, |rung| self.ladder.rungs()[rung].seconds);
            work(&self.runs, |wish| self.waiting(wish, cap).0) + arrives
        };
        let time = UTILISATION * horizon;
        // The lowest rung need not be sustainable: there is no other.
        let cap = self.highest(|cap| cap == 0 || total(cap) <= time).unwrap_or(0);
        if cap == self.ladder.top() {
            return (cap, 0.0);
        }
        let (low, high) = (total(cap), total(cap + 1));
        (cap, ((time - low) / (high - low)).clamp(0.0, 1.0))
    }

    /// The rung under which the next image of a request begins.
    fn next_cap(&mut self, now: Duration, urgent: usize, ask: &Ask) -> usize {
        let (fair, rest) = self.fair_cap();
        self.owed += rest;
        let fair = if self.owed >= 1.0 && fair < self.ladder.top() {
            self.owed -= 1.0;
            fair + 1
        } else {
            fair
        };
        self.owed = self.owed.min(1.0);
        if fair <= urgent {
            return fair;
        }
        // All cannot have the next rung, but perhaps this one can.
        let rungs = self.ladder.rungs();
        let scale = PLANNING_SAFETY * self.times.scale();
        let more = scale * (rungs[urgent + 1].seconds - rungs[urgent].seconds) * ask.rows as f64;
        let late = self.lateness(now, Squeeze { waiting: urgent, running: None }, None, PLANNING_SAFETY);
        let calls = rungs[urgent + 1].calls.iter();
        let own: f64 = calls.map(|&(subnet, count)| count as f64 * self.times.measured(subnet, ask.rows)).sum();
        let due = ask.deadline.saturating_sub(now).as_secs_f64();
        if late + more <= 0.0 && scale * own <= due { urgent + 1 } else { urgent }
    }

    /// Time of a request on an idle machine with the fastest plans that it accepts, as it was measured.
    fn idle(&self, ask: &Ask) -> f64 {
        let (seconds, calls) = self.waiting(&ask.wish, 0);
        let alone = calls as f64 * self.times.measured(self.subnet(&ask.wish, 0), ask.rows);
        alone.max(seconds * ask.rows as f64 * f64::from(ask.images))
    }

    /// Shortens running images until deadlines hold, or as far as their clients accept.
    fn squeeze(&mut self, now: Duration) -> Vec<(Member, Arc<Plan>)> {
        let with = |rung| Squeeze { waiting: 0, running: Some(rung) };
        let rung = self.highest(|rung| self.lateness(now, with(rung), None, PLANNING_SAFETY) <= 0.0).unwrap_or(0);
        let mut changes = Vec::new();
        for run in self.runs.iter() {
            for running in &run.running {
                let Some(step) = running.boundary() else { continue };
                let Some(target) = self.rung(&run.ask.wish, rung) else { continue };
                if self.left(&run.ask.wish, running, Some(rung)).0 >= running.left {
                    continue;
                }
                let rest = self.ladder.rest(target, &running.plan, step);
                if let Some(plan) = running.plan.continued(step, &rest) {
                    changes.push((Member { request: run.ask.id, image: running.image }, Arc::new(plan)));
                }
            }
        }
        changes.iter().for_each(|(member, plan)| self.runs.replan(*member, plan.clone(), &self.times));
        changes
    }

    /// The batch for a leader: the most efficient one, or less where its time is too short for that.
    fn batch(&self, now: Duration, leader: &Run, running: &Running) -> usize {
        let slack = leader.ask.deadline.saturating_sub(now).as_secs_f64();
        let mut batch = self.times.efficient_batch(running.subnet).max(leader.ask.rows).min(self.max_batch);
        while batch > leader.ask.rows
            && running.calls as f64 * self.times.call(running.subnet, batch) * PLANNING_SAFETY > slack
        {
            batch /= 2;
        }
        batch
    }

    /// The plan by which an image under `cap` joins calls of `subnet` that have so many rows: its own if that begins
    /// there, or else a better one that does and takes no longer in their company than its own would apart.
    fn joining(&self, wish: &Wish, cap: usize, subnet: usize, rows: usize) -> Option<Arc<Plan>> {
        let own = self.plan(wish, cap);
        if self.times.subnet(own.subnet_at(0)) == Some(subnet) {
            return Some(own);
        }
        let (floor, top) = self.range(wish)?;
        let (rungs, low) = (self.ladder.rungs(), cap.clamp(floor, top));
        // What one more sample adds to the calls of a subnet, given how many are there.
        let more = |subnet: usize, rows: usize| {
            let without = if rows == 0 { 0.0 } else { self.times.measured(subnet, rows) };
            self.times.measured(subnet, rows + 1) - without
        };
        let running = |subnet: usize| {
            let at = |run: &Run| run.ask.rows * run.running.iter().filter(|image| image.subnet == subnet).count();
            self.runs.iter().map(at).sum()
        };
        let apart: f64 =
            rungs[low].calls.iter().map(|&(subnet, count)| count as f64 * more(subnet, running(subnet))).sum();
        let together = |rung: &&Rung| match rung.calls[..] {
            [(only, count)] => only == subnet && count as f64 * more(subnet, rows) <= apart,
            _ => false,
        };
        let better = rungs.get(low + 1..=top).unwrap_or_default();
        better.iter().find(together).map(|rung| rung.plan.clone())
    }
}

impl Policy for Elastic {
    fn quote(&self, ask: &Ask) -> Result<Planned, Refusal> {
        let takes = self.times.scale() * self.idle(ask);
        if takes > ask.within().as_secs_f64() {
            let takes = Duration::from_secs_f64(takes);
            return Err(Refusal::Infeasible { fastest: self.plan(&ask.wish, 0), takes });
        }
        let fastest = Squeeze { waiting: 0, running: Some(0) };
        let late = self.lateness(ask.arrived, fastest, Some(ask), ADMISSION_SAFETY);
        if late > 0.0 && !self.runs.is_empty() {
            let retry_after = Duration::from_secs_f64(late).min(MAX_RETRY);
            return Err(Refusal::Overloaded { retry_after });
        }
        let cap = self.urgent_cap(ask.arrived, Some(ask)).unwrap_or(0).min(self.fair_cap().0);
        let plan = self.plan(&ask.wish, cap);
        Ok(Planned { quality: self.ladder.quality(&plan), plan })
    }

    fn admit(&mut self, ask: Ask) -> Result<Planned, Refusal> {
        // Before the demand knows of it: what a request gets depends on the others and on its own budget alone.
        let planned = self.quote(&ask);
        let (within, rows) = (ask.within(), ask.rows as f64 * f64::from(ask.images));
        match self.range(&ask.wish) {
            Some((_, top)) => self.demand.ask(ask.arrived, within, top, rows),
            None => self.demand.ask_exact(ask.arrived, within, rows * self.waiting(&ask.wish, 0).0),
        }
        planned.inspect(|_| self.runs.insert(ask))
    }

    fn next(&mut self, now: Duration) -> Option<Turn> {
        let mut plans = Vec::new();
        let urgent = self.urgent_cap(now, None).unwrap_or_else(|| {
            plans = self.squeeze(now);
            0
        });
        // The most urgent request leads; its next image begins where none of it runs.
        let leader = self.runs.iter().next()?;
        if leader.running.is_empty() {
            let ask = leader.ask.clone();
            let cap = self.next_cap(now, urgent, &ask);
            let plan = self.plan(&ask.wish, cap);
            plans.push((self.runs.begin(0, plan.clone(), &self.times), plan));
        }
        let leader = self.runs.iter().next()?;
        let first = leader.running.first()?;
        let (subnet, batch) = (first.subnet, self.batch(now, leader, first));
        // Others begin while there is room beside those that run already.
        let mut members = fill(&self.runs, subnet, batch);
        while let Some(place) = self.runs.iter().position(|run| run.waiting() > 0) {
            let run = self.runs.iter().nth(place)?;
            let (ask, company) = (run.ask.clone(), rows(&self.runs, &members));
            if company + ask.rows > batch {
                break;
            }
            let owed = self.owed;
            let cap = self.next_cap(now, urgent, &ask);
            let Some(plan) = self.joining(&ask.wish, cap, subnet, company) else {
                self.owed = owed;
                break;
            };
            plans.push((self.runs.begin(place, plan.clone(), &self.times), plan));
            members = fill(&self.runs, subnet, batch);
        }
        let takes = self.times.call(subnet, rows(&self.runs, &members));
        self.busy_until = now + Duration::from_secs_f64(takes);
        Some(Turn { subnet, members, plans })
    }

    fn ran(&mut self, turn: &Turn, took: Duration, now: Duration) {
        ran(&mut self.runs, &mut self.times, turn, took, now);
        self.busy_until = now;
    }

    fn leave(&mut self, request: RequestId) {
        self.runs.remove(request);
    }

    fn work(&self) -> Duration {
        let image = |wish: &Wish| self.waiting(wish, 0).0;
        Duration::from_secs_f64(self.times.scale() * work(&self.runs, image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_company_is_cheap_an_image_takes_the_width_that_runs() {
        let joins = |full_batch_ms: f64| {
            let row = |name: &str, ms: f64, batch: f64| (name.to_owned(), vec![(1, ms / 1e3), (8, batch / 1e3)]);
            let rows = [row("0.250", 1.0, 8.0), row("0.500", 2.0, 16.0), row("full", 4.0, full_batch_ms)];
            let times = StepTimes::new(rows, 8);
            let plans = [("dpmpp2m-4@0.250", 0.8), ("dpmpp2m-8@full", 0.96)];
            let ladder = Ladder::new(plans.map(|(plan, quality)| (plan.parse().unwrap(), quality)), &times).unwrap();
            let policy = Elastic::new(ladder, times, 8);
            let plan = |target| policy.joining(&Wish::Quality { floor: 0.0, target }, 0, 2, 2);
            assert_eq!(plan(0.8), None, "it may have no better one");
            plan(1.0).map(|plan| plan.to_string())
        };
        // Eight more samples in calls that run anyway, or four calls of its own of 4 ms together.
        assert_eq!(joins(7.0).as_deref(), Some("dpmpp2m-8@full"), "0.43 ms more a call");
        assert_eq!(joins(8.0), None, "0.57 ms more a call");
    }
}
