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
//! - **Requests take turns**: a call is led by the one that has waited longest for what it asks, that is, whose time since
//!   its arrival is the largest multiple of what it takes on an idle machine. So a short request does not wait for the end
//!   of a long one, and a long one, whose turn comes nearer with all the time that it waits, does not starve. Where the
//!   deadlines have no call to spare, the most urgent one leads.
//! - **A call is filled up** with images at the leader's subnet, in the same order, up to the batch at which a sample is
//!   cheapest, or less where the leader has no time for that. An image that would begin at another width takes the
//!   leader's instead where that costs no more in its company.
//! - **Beside other engines on the device** a promise counts on this engine's share of it alone: as much as each other gets that
//!   has work now. The horizon counts on what the others have left of the device lately.

use super::{fill, ran, rows, work};
use crate::diffusion::plan::Plan;
use crate::engine::policy::{Ask, Company, Member, Planned, Policy, Refusal, RequestId, Turn};
use crate::routing::demand::Demand;
use crate::routing::ladder::{Cost, Load, Menu};
use crate::routing::runs::{Order, Run, Running, Runs};
use crate::routing::times::Kind;
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
/// Where a request asks for more than can be degraded, others leave it the time to be done in so many times what it takes
/// on an idle machine.
const PACE: f64 = 4.0;
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
    company: Company,
}

/// What is left of a request, as deadlines see it.
struct Rest<'a> {
    menu: &'a Menu,
    /// Samples that an image adds to a call.
    image: usize,
    /// From now to its deadline, in seconds.
    due: f64,
    /// Samples of its images that have not begun.
    waiting: usize,
    /// Samples of its images that run.
    running: usize,
    /// Images that have not begun.
    images: u32,
    /// Time of encoding what its images start from and of decoding those that run, as it was measured.
    coding: f64,
    /// What they ask of the device together.
    cost: Cost,
}

/// The work that others have to leave time for, by what a cap does to it.
struct Backlog {
    /// Time that no cap changes, in efficient batches, as it was measured: of running images and exact plans.
    fixed: f64,
    /// Images that wait: all, and those of requests that accept no rung below, or none above each.
    waiting: Load,
    floors: Vec<Load>,
    tops: Vec<Load>,
    /// Time of images that wait and have a ladder of their own, by cap, as it was measured.
    own: Vec<f64>,
}

impl<'a> Rest<'a> {
    /// Of a request of which so many images have not begun, and none runs.
    fn waiting(now: Duration, ask: &Ask, menu: &'a Menu, images: u32, times: &StepTimes) -> Self {
        let due = ask.deadline.as_secs_f64() - now.as_secs_f64();
        let encodings = if images == ask.images { ask.encodings } else { 0 };
        let coding = times.encoding(encodings);
        Self {
            images,
            menu,
            image: ask.rows,
            due,
            waiting: ask.rows * images as usize,
            running: 0,
            coding,
            cost: Cost::default(),
        }
    }
}

impl Backlog {
    /// Nothing yet, on a ladder of so many rungs.
    fn new(rungs: usize) -> Self {
        let none = vec![Load::default(); rungs];
        Self { fixed: 0.0, waiting: Load::default(), floors: none.clone(), tops: none, own: vec![0.0; rungs] }
    }

    /// So many more images wait, or fewer where they are negative.
    fn wait(&mut self, menu: &Menu, load: Load) {
        match menu {
            Menu::Exact(_, cost) => self.fixed += cost.of(load),
            Menu::Rungs { floor, top, own: Some(ladder) } => {
                for (cap, seconds) in self.own.iter_mut().enumerate() {
                    *seconds += ladder.rungs()[cap.clamp(*floor, *top)].cost.of(load);
                }
            }
            Menu::Rungs { floor, top, own: None } => {
                self.waiting += load;
                self.floors[*floor] += load;
                self.tops[*top] += load;
            }
        }
    }

    /// The time of all of it if nothing begins above rung `cap`.
    fn seconds(&self, ladder: &Ladder, cap: usize) -> f64 {
        let rungs = ladder.rungs();
        let (mut bound, mut seconds) = (Load::default(), 0.0);
        let above = self.floors[cap + 1..].iter().zip(&rungs[cap + 1..]);
        for (&load, rung) in
            above.chain(self.tops[..cap].iter().zip(&rungs[..cap])).filter(|(load, _)| load.images > 0.0)
        {
            bound += load;
            seconds += rung.cost.of(load);
        }
        let mut free = self.waiting;
        free += bound.times(-1.0);
        self.fixed + self.own[cap] + seconds + rungs[cap].cost.of(free)
    }
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
            company: Company::ALONE,
        }
    }

    /// How many times as long as it was measured work takes at most now, beside those who share the device.
    fn slowness(&self, company: &Company) -> f64 {
        self.times.scale() * company.engines as f64
    }

    /// Time of what is left of a running image, its calls, and the time of its picture, where it may be re-planned down to `rung`.
    fn left(&self, menu: &Menu, running: &Running, rung: Option<usize>) -> (f64, usize, f64) {
        let as_it_is = (running.left, running.calls, running.finish);
        let Some(rung) = rung.and_then(|cap| menu.rung(cap)) else { return as_it_is };
        let (step, _) = running.plan.position(running.done);
        let share = (running.plan.steps - step) as f64 / running.plan.steps as f64;
        let target = &self.ladder.rungs()[rung].cost;
        let evaluations = target.calls as f64;
        let calls = (share * evaluations).round().max(1.0);
        let seconds = target.seconds * calls / evaluations;
        // In the middle of a step the second half comes first.
        let half = if running.boundary().is_none() { (self.times.measured_row(running.kind), 1) } else { (0.0, 0) };
        match seconds + half.0 < as_it_is.0 {
            true => (seconds + half.0, calls as usize + half.1, target.finish.min(running.finish)),
            false => as_it_is,
        }
    }

    /// What is left of a request whose running images may be re-planned down to rung `running`.
    fn rest<'a>(&self, now: Duration, run: &'a Run, running: Option<usize>) -> Rest<'a> {
        let mut rest = Rest::waiting(now, &run.ask, &run.menu, run.waiting(), &self.times);
        for image in &run.running {
            let (seconds, calls, finish) = self.left(&run.menu, image, running);
            rest.running += run.ask.rows;
            rest.coding += finish;
            rest.cost.seconds += seconds * run.ask.rows as f64;
            rest.cost.calls = rest.cost.calls.max(calls);
            rest.cost.kind = self.times.slower(rest.cost.kind, image.kind);
        }
        rest
    }

    /// What is left of all requests, `extra` among them, in the order of their deadlines.
    fn agenda<'a>(&'a self, now: Duration, running: Option<usize>, extra: Option<(&Ask, &'a Menu)>) -> Vec<Rest<'a>> {
        let mut agenda = Vec::with_capacity(self.runs.len() + 1);
        agenda.extend(self.runs.iter().map(|run| self.rest(now, run, running)));
        if let Some((ask, menu)) = extra {
            agenda.insert(self.runs.place(ask), Rest::waiting(now, ask, menu, ask.images, &self.times));
        }
        agenda
    }

    /// How late each request of the agenda is, in seconds (negative: how much time is to spare), if work is done in this
    /// order and images that wait run on rung `cap` at most.
    fn lateness(&self, now: Duration, agenda: &[Rest], cap: usize, safety: f64) -> impl Iterator<Item = f64> {
        self.lateness_in(&self.company, now, agenda, cap, safety)
    }

    /// The same in other company.
    fn lateness_in(
        &self,
        company: &Company,
        now: Duration,
        agenda: &[Rest],
        cap: usize,
        safety: f64,
    ) -> impl Iterator<Item = f64> {
        let scale = safety * self.slowness(company);
        let begun = (self.busy_until.saturating_sub(now) + company.wait).as_secs_f64();
        let (mut seconds, mut rows) = (0.0, 0);
        agenda.iter().map(move |rest| {
            let (Cost { mut calls, mut kind, .. }, mut coding) = (rest.cost, rest.coding);
            if rest.waiting > 0 {
                let cost = self.ladder.cost(rest.menu, cap);
                seconds += cost.seconds * rest.waiting as f64;
                coding += cost.finish * f64::from(rest.images);
                (calls, kind) = (calls.max(cost.calls), self.times.slower(kind, cost.kind));
            }
            seconds += rest.cost.seconds + coding;
            rows += rest.waiting + rest.running;
            // Its calls come one after the other, each with what is as urgent; others join only where there is time.
            let batch = self.times.efficient_batch(kind).min(rows).max(rest.image.min(self.max_batch));
            let alone = calls as f64 * self.times.measured(kind, batch) + coding;
            begun + scale * f64::max(seconds, alone) - rest.due
        })
    }

    /// The largest lateness of any request of the agenda.
    fn worst(&self, now: Duration, agenda: &[Rest], cap: usize, safety: f64) -> f64 {
        self.lateness(now, agenda, cap, safety).fold(f64::NEG_INFINITY, f64::max)
    }

    /// Whether all deadlines hold.
    fn holds(&self, now: Duration, agenda: &[Rest], cap: usize) -> bool {
        self.lateness(now, agenda, cap, PLANNING_SAFETY).all(|late| late <= 0.0)
    }

    /// The highest rung for which `holds`, which holds below any rung for which it holds; `None` if it never does.
    fn highest(&self, holds: impl Fn(usize) -> bool) -> Option<usize> {
        // Most of the time nobody is in a hurry.
        let top = self.ladder.top();
        if holds(top) {
            return Some(top);
        }
        let (mut low, mut high) = (0, top);
        while low < high {
            let middle = (low + high) / 2;
            if holds(middle) { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1)
    }

    /// The highest rung at which all deadlines hold; `None` where they do not hold even with the fastest plans.
    fn urgent_cap(&self, now: Duration, agenda: &[Rest]) -> Option<usize> {
        self.highest(|cap| self.holds(now, agenda, cap))
    }

    /// The horizon in which work shall be done, in seconds as they were measured; `None` before the first request.
    fn horizon(&self) -> Option<f64> {
        Some((HORIZON * self.demand.within()?).min(MAX_HORIZON_S) / self.times.scale())
    }

    /// How much of a request's work falls into the horizon: all of it, but where even the fastest plans that it accepts
    /// take longer at its pace.
    fn share(&self, ask: &Ask, menu: &Menu) -> f64 {
        let paced = PACE * self.idle(ask, self.ladder.cost(menu, 0));
        self.horizon().filter(|&horizon| horizon < paced).map_or(1.0, |horizon| horizon / paced)
    }

    /// The rung at which the work that waits and the work that will arrive is done within the horizon, and how much of
    /// the way to the next one there would be time for, from 0 to 1.
    fn fair_cap(&self, backlog: &Backlog) -> (usize, f64) {
        let Some(horizon) = self.horizon() else { return (self.ladder.top(), 0.0) };
        let total = |cap: usize| {
            let arrives = horizon * self.demand.at(cap, |rung, load| self.ladder.rungs()[rung].cost.of(load));
            backlog.seconds(&self.ladder, cap) + arrives
        };
        // What the others leave: at least what it gets whatever they do.
        let share = (1.0 - self.company.taken).max(1.0 / self.company.engines as f64);
        let time = UTILISATION * horizon * share;
        // The lowest rung need not be sustainable: there is no other.
        let cap = self.highest(|cap| cap == 0 || total(cap) <= time).unwrap_or(0);
        if cap == self.ladder.top() {
            return (cap, 0.0);
        }
        let (low, high) = (total(cap), total(cap + 1));
        (cap, ((time - low) / (high - low)).clamp(0.0, 1.0))
    }

    /// The rung under which the next image of a request begins.
    fn next_cap(&mut self, now: Duration, urgent: usize, backlog: &Backlog, place: usize) -> usize {
        let (fair, rest) = self.fair_cap(backlog);
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
        let Run { ask, menu, .. } = &self.runs[place];
        let rungs = menu.ladder(&self.ladder).rungs();
        let scale = PLANNING_SAFETY * self.slowness(&self.company);
        let one = Load::new(1.0, ask.rows);
        let more = scale * (rungs[urgent + 1].cost.of(one) - rungs[urgent].cost.of(one));
        let late = self.worst(now, &self.agenda(now, None, None), urgent, PLANNING_SAFETY);
        let calls = rungs[urgent + 1].calls.iter();
        let own: f64 = calls.map(|&(kind, count)| count as f64 * self.times.measured(kind, ask.rows)).sum();
        let own = own + self.coding(ask, rungs[urgent + 1].cost);
        let due = ask.deadline.saturating_sub(now).as_secs_f64();
        let wait = self.company.wait.as_secs_f64();
        if late + more <= 0.0 && wait + scale * own <= due { urgent + 1 } else { urgent }
    }

    /// Time of a request on an idle machine where each image has this cost, in seconds as they were measured.
    fn idle(&self, ask: &Ask, cost: Cost) -> f64 {
        let alone = cost.calls as f64 * self.times.measured(cost.kind, ask.rows);
        let images = f64::from(ask.images);
        alone.max(cost.seconds * ask.rows as f64 * images) + self.coding(ask, cost)
    }

    /// Time of encoding what the images of a request start from and of decoding them, where each has this cost, in seconds as it was
    /// measured.
    fn coding(&self, ask: &Ask, cost: Cost) -> f64 {
        self.times.encoding(ask.encodings) + cost.finish * f64::from(ask.images)
    }

    /// How long a request is here, as a multiple of the time that the best it accepts takes on an idle machine, or that it
    /// has if that is less.
    fn stretch(&self, now: Duration, run: &Run) -> f64 {
        let best = self.idle(&run.ask, self.ladder.cost(&run.menu, self.ladder.top()));
        let here = now.saturating_sub(run.ask.arrived).as_secs_f64();
        here / best.min(run.ask.within().as_secs_f64())
    }

    /// The places of the requests in the order in which they are served: the most stretched first if all deadlines hold
    /// under the cap `urgent` and would after any other call too, else the most urgent.
    fn turns(&self, now: Duration, agenda: &[Rest], urgent: Option<usize>) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.runs.len()).collect();
        let longest = (0..self.times.subnets().len()).map(|subnet| self.times.call(subnet, self.max_batch));
        let longest = PLANNING_SAFETY * self.company.engines as f64 * longest.fold(0.0, f64::max);
        let spares_one = |cap| self.lateness(now, agenda, cap, PLANNING_SAFETY).all(|late| late + longest <= 0.0);
        if urgent.is_some_and(spares_one) {
            let stretches: Vec<f64> = self.runs.iter().map(|run| self.stretch(now, run)).collect();
            places.sort_by(|&a, &b| stretches[b].total_cmp(&stretches[a]));
        }
        places
    }

    /// Shortens running images until deadlines hold, or as far as their clients accept.
    fn squeeze(&mut self, now: Duration) -> Vec<(Member, Arc<Plan>)> {
        let holds = |rung| self.holds(now, &self.agenda(now, Some(rung), None), 0);
        let rung = self.highest(holds).unwrap_or(0);
        let mut changes = Vec::new();
        for run in self.runs.iter() {
            for running in &run.running {
                let Some(step) = running.boundary() else { continue };
                let Some(target) = run.menu.rung(rung) else { continue };
                if self.left(&run.menu, running, Some(rung)).0 >= running.left {
                    continue;
                }
                let rest = self.ladder.rest(target, &running.plan, step);
                if let Some(mut plan) = running.plan.continued(step, &rest) {
                    let Rung { cost, plan: of_rung, .. } = &self.ladder.rungs()[target];
                    if cost.finish < running.finish {
                        plan.decode = of_rung.decode.clone();
                    }
                    changes.push((Member { request: run.ask.id, image: running.image }, Arc::new(plan)));
                }
            }
        }
        changes.iter().for_each(|(member, plan)| self.runs.replan(*member, plan.clone(), &self.times));
        changes
    }

    /// The batch for a leader: the most efficient one, or less where its time is too short for that.
    fn batch(&self, now: Duration, leader: &Run, running: &Running) -> usize {
        let slack = leader.ask.deadline.saturating_sub(now + self.company.wait).as_secs_f64();
        let safety = PLANNING_SAFETY * self.company.engines as f64;
        let mut batch = self.times.efficient_batch(running.kind).max(leader.ask.rows).min(self.max_batch);
        while batch > leader.ask.rows && running.calls as f64 * self.times.call(running.kind, batch) * safety > slack {
            batch /= 2;
        }
        batch
    }

    /// The plan by which an image under `cap` joins calls of `kind` that have so many rows: its own if that begins
    /// there, or else a better one that does and takes no longer in their company than its own would apart.
    fn joining(&self, Run { ask, menu, .. }: &Run, cap: usize, kind: Kind, rows: usize) -> Option<Arc<Plan>> {
        let own = self.ladder.plan(menu, cap);
        if self.times.kind(own, own.made().start, ask.is_guided) == Some(kind) {
            return Some(own.clone());
        }
        let Menu::Rungs { floor, top, .. } = *menu else { return None };
        let (rungs, low) = (menu.ladder(&self.ladder).rungs(), cap.clamp(floor, top));
        // What one more sample adds to the calls of a kind, given how many are there.
        let more = |kind: Kind, rows: usize| {
            let without = if rows == 0 { 0.0 } else { self.times.measured(kind, rows) };
            self.times.measured(kind, rows + 1) - without
        };
        let running = |kind: Kind| {
            let at = |run: &Run| run.ask.rows * run.running.iter().filter(|image| image.kind == kind).count();
            self.runs.iter().map(at).sum()
        };
        let apart: f64 = rungs[low].calls.iter().map(|&(kind, count)| count as f64 * more(kind, running(kind))).sum();
        // A picture is of all of an image's samples.
        let finish = |rung: &Rung| rung.cost.finish / ask.rows as f64;
        let apart = apart + finish(&rungs[low]);
        let together = |rung: &&Rung| match rung.calls[..] {
            [(only, count)] => only == kind && count as f64 * more(kind, rows) + finish(rung) <= apart,
            _ => false,
        };
        let better = rungs.get(low + 1..=top).unwrap_or_default();
        better.iter().find(together).map(|rung| rung.plan.clone())
    }

    /// What a request that arrives now is promised, or why it is not taken.
    fn offer(&self, ask: &Ask, menu: &Menu) -> Result<Planned, Refusal> {
        let takes = self.times.scale() * self.idle(ask, self.ladder.cost(menu, 0));
        if takes > ask.within().as_secs_f64() {
            let takes = Duration::from_secs_f64(takes);
            return Err(Refusal::Infeasible { fastest: self.ladder.plan(menu, 0).clone(), takes });
        }
        let squeezed = self.agenda(ask.arrived, Some(0), Some((ask, menu)));
        let late = self.worst(ask.arrived, &squeezed, 0, ADMISSION_SAFETY);
        // Nobody but itself is in its way on an idle device.
        if late > 0.0 && (!self.runs.is_empty() || self.company.engines > 1) {
            let retry_after = Duration::from_secs_f64(late).min(MAX_RETRY);
            return Err(Refusal::Overloaded { retry_after });
        }
        let agenda = self.agenda(ask.arrived, None, Some((ask, menu)));
        let urgent = self.urgent_cap(ask.arrived, &agenda).unwrap_or(0);
        let plan = self.ladder.plan(menu, urgent.min(self.fair_cap(&self.backlog()).0)).clone();
        Ok(Planned { quality: self.ladder.quality(&plan), plan })
    }

    /// What has been taken, each request with its share.
    fn backlog(&self) -> Backlog {
        let mut backlog = Backlog::new(self.ladder.rungs().len());
        for run in self.runs.iter() {
            let share = self.share(&run.ask, &run.menu);
            let rows = share * run.ask.rows as f64;
            backlog.fixed += rows * run.running.iter().map(|image| image.left).sum::<f64>();
            backlog.fixed += share * super::coding(&self.times, run);
            backlog.wait(&run.menu, Load::new(share * f64::from(run.waiting()), run.ask.rows));
        }
        backlog
    }

    /// Begins the next image of the request at `place` with `plan`.
    fn begin(&mut self, place: usize, plan: Arc<Plan>, backlog: &mut Backlog) -> (Member, Arc<Plan>) {
        let member = self.runs.begin(place, plan.clone(), &self.times);
        let run = &self.runs[place];
        let share = self.share(&run.ask, &run.menu);
        backlog.wait(&run.menu, Load::new(-share, run.ask.rows));
        let of = |image: &Running| run.ask.rows as f64 * image.left + image.finish;
        backlog.fixed += share * run.running.last().map_or(0.0, of);
        (member, plan)
    }
}

impl Policy for Elastic {
    fn meet(&mut self, company: Company) {
        self.company = company;
    }

    fn breach(&self, now: Duration, company: &Company) -> Option<Duration> {
        let agenda = self.agenda(now, Some(0), None);
        // Without safety: what is just in time alone is to stay so. The present company counts who only wants to come, too.
        let alone = self.lateness_in(&Company::ALONE, now, &agenda, 0, 1.0);
        let then = self.lateness_in(company, now, &agenda, 0, PLANNING_SAFETY);
        let broken = alone.zip(then).filter(|&(alone, then)| alone <= 0.0 && then > 0.0);
        broken.map(|(_, late)| Duration::from_secs_f64(late)).max()
    }

    fn quote(&self, ask: &Ask) -> Result<Planned, Refusal> {
        self.offer(ask, &self.ladder.menu(ask, &self.times))
    }

    fn admit(&mut self, ask: Ask) -> Result<Planned, Refusal> {
        // Before the demand knows of it: what a request gets depends on the others and on its own budget alone.
        let menu = self.ladder.menu(&ask, &self.times);
        let planned = self.offer(&ask, &menu);
        let (within, images) = (ask.within(), Load::new(ask.images.into(), ask.rows));
        let encoding = self.times.encoding(ask.encodings);
        match menu {
            Menu::Rungs { top, .. } => {
                // Of an image that starts from a picture: about the share of its steps that are made.
                let made = self.ladder.cost(&menu, top).seconds / self.ladder.rungs()[top].cost.seconds;
                let images = Load { rows: images.rows * made, ..images };
                self.demand.ask(ask.arrived, within, top, images, encoding);
            }
            Menu::Exact(_, cost) => {
                let seconds = self.share(&ask, &menu) * (cost.of(images) + encoding);
                self.demand.ask_exact(ask.arrived, within, seconds);
            }
        }
        planned.inspect(|_| self.runs.insert(ask, menu))
    }

    fn next(&mut self, now: Duration) -> Option<Turn> {
        let agenda = self.agenda(now, None, None);
        let urgent = self.urgent_cap(now, &agenda);
        let turns = self.turns(now, &agenda, urgent);
        let mut plans = if urgent.is_none() { self.squeeze(now) } else { Vec::new() };
        let (urgent, mut backlog) = (urgent.unwrap_or(0), self.backlog());
        // The first in turn leads; its next image begins where none of it runs.
        let &first = turns.first()?;
        if self.runs[first].running.is_empty() {
            let cap = self.next_cap(now, urgent, &backlog, first);
            let plan = self.ladder.plan(&self.runs[first].menu, cap).clone();
            plans.push(self.begin(first, plan, &mut backlog));
        }
        let leader = &self.runs[first];
        let image = leader.running.first()?;
        let (kind, batch, canvas) = (image.kind, self.batch(now, leader, image), leader.ask.canvas);
        // Others begin while there is room beside those that run already.
        let fill = |runs: &Runs| fill(turns.iter().map(|&place| &runs[place]), kind, canvas, batch);
        let mut members = fill(&self.runs);
        let could_join = |run: &Run| run.waiting() > 0 && run.ask.canvas == canvas;
        while let Some(&place) = turns.iter().find(|&&place| could_join(&self.runs[place])) {
            let company = rows(&self.runs, &members);
            if company + self.runs[place].ask.rows > batch {
                break;
            }
            let owed = self.owed;
            let cap = self.next_cap(now, urgent, &backlog, place);
            let Some(plan) = self.joining(&self.runs[place], cap, kind, company) else {
                self.owed = owed;
                break;
            };
            plans.push(self.begin(place, plan, &mut backlog));
            members = fill(&self.runs);
        }
        let takes = self.times.call(kind, rows(&self.runs, &members));
        self.busy_until = now + Duration::from_secs_f64(takes);
        Some(Turn { kind, members, plans })
    }

    fn ran(&mut self, turn: &Turn, took: Duration, now: Duration) {
        ran(&mut self.runs, &mut self.times, turn, took, now);
        self.busy_until = now;
    }

    fn leave(&mut self, request: RequestId) {
        self.runs.remove(request);
    }

    fn work(&self) -> Duration {
        let seconds = work(&self.runs, &self.times, |menu| self.ladder.cost(menu, 0));
        Duration::from_secs_f64(self.times.scale() * seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::policy::Wish;
    use crate::routing::ladder::tests::{ladder, times};
    use proptest::prelude::*;

    #[test]
    fn where_company_is_cheap_an_image_takes_the_width_that_runs() {
        let joins = |full_batch_ms: f64| {
            let row = |name: &str, ms: f64, batch: f64| (name.to_owned(), vec![(1, ms / 1e3), (8, batch / 1e3)]);
            let rows = [row("0.250", 1.0, 8.0), row("0.500", 2.0, 16.0), row("full", 4.0, full_batch_ms)];
            let times = StepTimes::new(rows, 8);
            let plans = [("dpmpp2m-4@0.250", 0.8), ("dpmpp2m-8@full", 0.96)];
            let ladder = Ladder::new(plans.map(|(plan, quality)| (plan.parse().unwrap(), quality)), &times).unwrap();
            let policy = Elastic::new(ladder, times, 8);
            let wish = Wish::Quality { floor: 0.0, target: 1.0 };
            let run = |top| Run {
                ask: Ask::new(1, Duration::ZERO, Duration::from_secs(1), wish.clone()),
                menu: Menu::Rungs { floor: 0, top, own: None },
                running: Vec::new(),
                begun: 0,
            };
            let plan = |top| policy.joining(&run(top), 0, 2, 2);
            assert_eq!(plan(0), None, "it may have no better one");
            plan(1).map(|plan| plan.to_string())
        };
        // Eight more samples in calls that run anyway, or four calls of its own of 4 ms together.
        assert_eq!(joins(7.0).as_deref(), Some("dpmpp2m-8@full"), "0.43 ms more a call");
        assert_eq!(joins(8.0), None, "0.57 ms more a call");
    }

    #[test]
    fn an_image_that_starts_from_a_picture_takes_its_encoding_and_the_steps_that_are_made() {
        let policy = Elastic::new(on(&decoding(), &[]), decoding(), 8);
        let ask = |within: f64, strength, encodings| {
            let wish = Wish::Quality { floor: 0.96, target: 0.96 };
            Ask { strength, encodings, ..Ask::new(1, Duration::ZERO, Duration::from_secs_f64(within), wish) }
        };
        // Eight steps of 4 ms and decoding; or four of them, and encoding too.
        for (strength, encodings, takes, plan) in [
            (1.0, 0, 0.052, "dpmpp2m-8@full"),
            (0.5, 1, 0.086, "dpmpp2m-8@full~strength=0.5"),
            (1.0, 1, 0.102, "dpmpp2m-8@full"),
        ] {
            let Err(Refusal::Infeasible { fastest, takes: said }) = policy.quote(&ask(0.001, strength, encodings))
            else {
                panic!("{plan} in no time");
            };
            assert_eq!(fastest.to_string(), plan);
            assert!((said.as_secs_f64() - takes).abs() < 1e-9, "{plan}: {said:?}");
            assert!(policy.quote(&ask(takes - 1e-6, strength, encodings)).is_err(), "{plan}");
            let planned = policy.quote(&ask(1.3 * takes, strength, encodings)).unwrap();
            assert_eq!((planned.plan.to_string().as_str(), planned.quality), (plan, Some(0.96)));
        }
    }

    #[test]
    fn a_narrower_guide_takes_its_own_time() {
        let plans = [("dpmpp2m-4@full^0.250", 0.8), ("dpmpp2m-8@full^auto:0.250", 1.0)];
        let plans = plans.map(|(plan, quality)| (plan.parse().unwrap(), quality));
        let policy = Elastic::new(Ladder::new(plans, &times()).unwrap(), times(), 8);
        // By floor and whether something leads the image: a full call is 4 ms a sample, a narrow one 1 ms.
        for (floor, is_guided, ms) in [(0.8, false, 16.0), (0.8, true, 20.0), (1.0, false, 40.0), (1.0, true, 40.0)] {
            let wish = Wish::Quality { floor, target: floor };
            let rows = if is_guided { 2 } else { 1 };
            let ask = Ask { is_guided, rows, ..Ask::new(1, Duration::ZERO, Duration::from_micros(10), wish) };
            let Err(Refusal::Infeasible { takes, .. }) = policy.quote(&ask) else { panic!("in no time") };
            assert!((takes.as_secs_f64() * 1e3 - ms).abs() < 1e-6, "{floor} {is_guided}: {takes:?}");
        }
    }

    #[test]
    fn what_is_left_of_a_request_counts_its_encoding_until_its_first_image_begins() {
        let mut policy = Elastic::new(on(&decoding(), &[]), decoding(), 8);
        let wish = Wish::Exact(Arc::new("dpmpp2m-8@full~strength=0.5".parse().unwrap()));
        let deadline = Duration::from_secs(60);
        policy
            .admit(Ask { images: 2, strength: 0.5, encodings: 1, ..Ask::new(1, Duration::ZERO, deadline, wish) })
            .unwrap();
        assert!((policy.work().as_secs_f64() - (0.05 + 2.0 * (0.016 + 0.02))).abs() < 1e-9);
        let turn = policy.next(Duration::ZERO).unwrap();
        assert_eq!(turn.members.len(), 1);
        policy.ran(&turn, Duration::from_millis(4), Duration::from_millis(4));
        let left = policy.work().as_secs_f64() / policy.times.scale();
        assert!((left - (0.012 + 0.02) - (0.016 + 0.02)).abs() < 1e-9, "{left}");
    }

    #[test]
    fn a_picture_takes_as_long_as_the_decoder_of_its_plan_does() {
        let (ladder, times) = latents();
        let policy = Elastic::new(ladder, times, 8);
        // By floor: two steps of 1 ms and a narrow decoder of 12 ms; eight of 4 ms and a full one of 20 ms.
        for (floor, ms) in [(0.6, 14.0), (0.96, 52.0)] {
            let wish = Wish::Quality { floor, target: floor };
            let ask = Ask::new(1, Duration::ZERO, Duration::from_micros(10), wish);
            let Err(Refusal::Infeasible { takes, .. }) = policy.quote(&ask) else { panic!("in no time") };
            assert!((takes.as_secs_f64() * 1e3 - ms).abs() < 1e-6, "{floor}: {takes:?}");
        }
    }

    #[test]
    fn an_image_that_is_shortened_is_decoded_by_what_it_is_shortened_to() {
        let (ladder, times) = latents();
        let mut policy = Elastic::new(ladder, times, 8);
        let wish = Wish::Quality { floor: 0.0, target: 1.0 };
        policy.admit(Ask::new(1, Duration::ZERO, Duration::from_millis(400), wish.clone())).unwrap();
        let turn = policy.next(Duration::ZERO).unwrap();
        assert_eq!(turn.plans[0].1.to_string(), "heun-18@full");
        policy.ran(&turn, Duration::from_millis(4), Duration::from_millis(4));
        let turn = policy.next(Duration::from_millis(4)).unwrap();
        // The machine stood still.
        let late = Duration::from_millis(375);
        policy.ran(&turn, Duration::from_millis(4), late);
        let turn = policy.next(late).unwrap();
        let changed = turn.plans.iter().map(|(_, plan)| plan.to_string()).collect::<Vec<_>>();
        assert!(changed.len() == 1 && changed[0].contains("~decode=0.500~respace="), "{changed:?}");
    }

    /// 50 ms to encode a picture, 20 ms to decode one.
    fn decoding() -> StepTimes {
        times().with_codec(0.05, vec![("full".to_owned(), 0.02)])
    }

    /// A frontier whose faster plans decode narrower, and its times.
    fn latents() -> (Ladder, StepTimes) {
        let times = times().with_codec(0.0, vec![("0.500".to_owned(), 0.012), ("full".to_owned(), 0.02)]);
        (on(&times, &["dpmpp2m-2@0.250~decode=0.5", "dpmpp2m-4@0.250~decode=0.5"]), times)
    }

    /// The usual frontier on a machine of these times, with these plans in place of its fastest.
    fn on(times: &StepTimes, fastest: &[&str]) -> Ladder {
        let usual = ladder();
        let plan = |(index, rung): (usize, &Rung)| {
            let plan = fastest.get(index).map_or_else(|| Plan::clone(&rung.plan), |text| text.parse().unwrap());
            (plan, rung.quality)
        };
        Ladder::new(usual.rungs().iter().enumerate().map(plan).collect::<Vec<_>>(), times).unwrap()
    }

    /// What the policy computes from what it keeps beside each request, computed from what the requests asked.
    mod plain {
        use super::super::*;
        use crate::engine::policy::Wish;
        use crate::routing::ladder;

        /// The seconds, calls and widest subnet of an image that waits, and the seconds of its picture.
        fn waiting(policy: &Elastic, ask: &Ask, cap: usize) -> (f64, usize, usize, f64) {
            let (ladder, times) = (&policy.ladder, &policy.times);
            let plan = match &ask.wish {
                Wish::Exact(plan) => Plan::clone(plan),
                Wish::Quality { floor, target } => {
                    let floor = ladder.at_least(*floor);
                    let rung = cap.clamp(floor, ladder.at_least(*target).max(floor));
                    ladder.rungs()[rung].plan.started(ask.strength)
                }
            };
            let calls = ladder::calls(&plan, 0, ask.is_guided, times).unwrap();
            let widest = calls.iter().map(|&(kind, _)| kind).max().unwrap();
            (ladder::seconds(&calls, times), plan.evaluations(), widest, times.finish(&plan).unwrap())
        }

        pub fn lateness(policy: &Elastic, now: Duration, cap: usize, extra: &Ask, safety: f64) -> f64 {
            let mut all: Vec<(&Ask, &[Running], u32)> =
                policy.runs.iter().map(|run| (&run.ask, &run.running[..], run.waiting())).collect();
            all.push((extra, &[], extra.images));
            all.sort_by_key(|(ask, ..)| (ask.deadline, ask.id));
            let begun = policy.busy_until.saturating_sub(now).as_secs_f64();
            let (mut before, mut rows, mut worst) = (0.0, 0, f64::NEG_INFINITY);
            for (ask, running, images) in all {
                let fresh = (images > 0).then(|| waiting(policy, ask, cap));
                let (mut calls, mut subnet) = fresh.map_or((0, 0), |(_, calls, subnet, _)| (calls, subnet));
                before += fresh.map_or(0.0, |(seconds, ..)| seconds * (ask.rows * images as usize) as f64);
                let mut pictures = fresh.map_or(0.0, |(.., finish)| finish * f64::from(images));
                for image in running {
                    pictures += policy.times.finish(&image.plan).unwrap();
                    before += image.left * ask.rows as f64;
                    (calls, subnet) = (calls.max(image.calls), subnet.max(image.kind));
                }
                rows += ask.rows * (images as usize + running.len());
                let batch = policy.times.efficient_batch(subnet).min(rows).max(ask.rows.min(policy.max_batch));
                before += pictures;
                let alone = calls as f64 * policy.times.measured(subnet, batch) + pictures;
                let due = ask.deadline.as_secs_f64() - now.as_secs_f64();
                worst = worst.max(begun + safety * policy.times.scale() * before.max(alone) - due);
            }
            worst
        }

        pub fn backlog(policy: &Elastic, cap: usize) -> f64 {
            let of = |run: &Run| {
                let (rows, images) = (run.ask.rows as f64, f64::from(run.ask.images));
                let finish = |image: &Running| policy.times.finish(&image.plan).unwrap();
                let running: f64 = run.running.iter().map(|image| rows * image.left + finish(image)).sum();
                let (seconds, .., finish) = waiting(policy, &run.ask, cap);
                let waits = f64::from(run.waiting()) * (rows * seconds + finish);
                let (seconds, calls, subnet, finish) = waiting(policy, &run.ask, 0);
                let alone = calls as f64 * policy.times.measured(subnet, run.ask.rows);
                let idle = (seconds * rows * images).max(alone) + images * finish;
                (policy.horizon().unwrap() / (PACE * idle)).min(1.0) * (running + waits)
            };
            policy.runs.iter().map(of).sum()
        }
    }

    type Asked = (f64, f64, u32, usize, Option<(f64, f64, f64)>);

    /// A request for an exact plan, or for qualities between a floor and a target, of images that start from a picture at a strength.
    fn ask(id: RequestId, now: f64, (_, within, images, rows, qualities): &Asked) -> Ask {
        let wish = match *qualities {
            None => Wish::Exact(Arc::new("heun-3@0.250*1,full*2".parse().unwrap())),
            Some((floor, target, _)) => Wish::Quality { floor, target },
        };
        let strength = qualities.map_or(1.0, |(.., strength)| strength);
        let (arrived, deadline) = (Duration::from_secs_f64(now), Duration::from_secs_f64(now + within));
        Ask { images: *images, rows: *rows, strength, ..Ask::new(id, arrived, deadline, wish) }
    }

    proptest! {
        #[test]
        fn what_is_kept_beside_requests_gives_the_same_decisions_as_what_they_asked(
            asked in prop::collection::vec(
                (0.0f64..0.1, 0.05f64..3.0, 1u32..5, 1usize..3, prop::option::of((0.0f64..1.0, 0.0f64..1.0, prop::sample::select(vec![1.0, 1.0, 0.5, 0.3])))), 2..20),
            turns in 0usize..30,
            decodes: bool,
        ) {
            let (ladder, times) = if decodes { latents() } else { (ladder(), times()) };
            let mut policy = Elastic::new(ladder, times.clone(), 8);
            let mut now = 0.0;
            let (extra, taken) = asked.split_last().unwrap();
            for (id, asked) in taken.iter().enumerate() {
                now += asked.0;
                let _ = policy.admit(ask(id as RequestId, now, asked));
            }
            for _ in 0..turns {
                let Some(turn) = policy.next(Duration::from_secs_f64(now)) else { break };
                let took = times.measured(turn.kind, super::rows(&policy.runs, &turn.members));
                now += took;
                policy.ran(&turn, Duration::from_secs_f64(took), Duration::from_secs_f64(now));
            }
            let (extra, now) = (ask(1000, now, extra), Duration::from_secs_f64(now));
            let menu = policy.ladder.menu(&extra, &policy.times);
            let agenda = policy.agenda(now, None, Some((&extra, &menu)));
            let top = policy.ladder.top();
            for cap in 0..=top {
                let (ours, plain) = (policy.worst(now, &agenda, cap, 1.2), plain::lateness(&policy, now, cap, &extra, 1.2));
                prop_assert!((ours - plain).abs() < 1e-9, "{cap}: {ours} {plain}");
                let (ours, plain) = (policy.backlog().seconds(&policy.ladder, cap), plain::backlog(&policy, cap));
                prop_assert!((ours - plain).abs() < 1e-9, "{cap}: {ours} {plain}");
            }
            let urgent = policy.highest(|cap| plain::lateness(&policy, now, cap, &extra, PLANNING_SAFETY) <= 0.0);
            prop_assert_eq!(policy.urgent_cap(now, &agenda), urgent);
        }

        #[test]
        fn work_that_begins_is_work_as_before(
            asked in prop::collection::vec(
                (0.0f64..0.1, 1.0f64..30.0, 1u32..5, 1usize..3, prop::option::of((0.0f64..1.0, 0.0f64..1.0, prop::sample::select(vec![1.0, 1.0, 0.5, 0.3])))), 1..20),
            cap in 0usize..5,
            decodes: bool,
        ) {
            let (ladder, times) = if decodes { latents() } else { (ladder(), times()) };
            let mut policy = Elastic::new(ladder, times, 8);
            (0..).zip(&asked).for_each(|(id, asked)| drop(policy.admit(ask(id, 0.0, asked))));
            let mut backlog = policy.backlog();
            while let Some(place) = policy.runs.iter().position(|run| run.waiting() > 0) {
                let plan = policy.ladder.plan(&policy.runs[place].menu, cap).clone();
                policy.begin(place, plan, &mut backlog);
                for cap in 0..5 {
                    let anew = policy.backlog().seconds(&policy.ladder, cap);
                    prop_assert!((backlog.seconds(&policy.ladder, cap) - anew).abs() < 1e-9);
                }
            }
        }
    }
}
