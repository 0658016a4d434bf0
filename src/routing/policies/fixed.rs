//! One plan for every request, first come first served: what a server of one network does.

use super::{fill, ran, work};
use crate::diffusion::plan::{Plan, Solver};
use crate::engine::policy::{Ask, Planned, Policy, Refusal, RequestId, Turn, Wish};
use crate::routing::StepTimes;
use crate::routing::ladder::Menu;
use crate::routing::runs::{Order, Runs};
use crate::supernet::Subnet;
use std::sync::Arc;
use std::time::Duration;

/// Runs one plan, but where a request names its own; batches by step, in the order of arrival; refuses nothing and knows
/// no deadlines. A short request waits for long ones before it, as it does in such a server.
#[derive(Clone, Debug)]
pub struct Fixed {
    plan: Arc<Plan>,
    quality: Option<f64>,
    times: StepTimes,
    max_batch: usize,
    runs: Runs,
}

impl Fixed {
    /// For jobs that all name their plans, on a machine of which nothing is known.
    pub fn unmeasured(subnets: &[Subnet], max_batch: usize) -> Self {
        // The work in seconds is then a count of calls; nobody asks for it.
        let times = StepTimes::new(subnets.iter().map(|subnet| (subnet.name.to_string(), vec![(1, 1.0)])), max_batch);
        let widest = times.subnets().last().map_or("full", String::as_str);
        let plan = Plan::constant(Solver::Heun, 18, widest).expect("a subnet's name is one of a plan");
        Self::new(Arc::new(plan), None, times, max_batch)
    }

    /// Runs `plan`, whose quality is `quality` where it is known.
    pub fn new(plan: Arc<Plan>, quality: Option<f64>, times: StepTimes, max_batch: usize) -> Self {
        Self { plan, quality, times, max_batch, runs: Runs::new(Order::Arrival) }
    }

    fn plan(&self, ask: &Ask) -> Arc<Plan> {
        match &ask.wish {
            Wish::Exact(plan) => plan.clone(),
            Wish::Quality { .. } if ask.strength < 1.0 => Arc::new(self.plan.started(ask.strength)),
            Wish::Quality { .. } => self.plan.clone(),
        }
    }
}

impl Policy for Fixed {
    fn quote(&self, ask: &Ask) -> Result<Planned, Refusal> {
        let plan = self.plan(ask);
        Ok(Planned { quality: self.quality.filter(|_| plan.started(1.0) == *self.plan), plan })
    }

    fn admit(&mut self, ask: Ask) -> Result<Planned, Refusal> {
        let planned = self.quote(&ask)?;
        let menu = Menu::exact(planned.plan.clone(), ask.is_guided, &self.times);
        self.runs.insert(ask, menu);
        Ok(planned)
    }

    fn next(&mut self, _now: Duration) -> Option<Turn> {
        let mut plans = Vec::new();
        let mut running: usize = self.runs.iter().map(|run| run.ask.rows * run.running.len()).sum();
        while running < self.max_batch {
            let Some(place) = self.runs.iter().position(|run| run.waiting() > 0) else { break };
            let run = self.runs.iter().nth(place)?;
            running += run.ask.rows;
            let plan = self.plan(&run.ask);
            plans.push((self.runs.begin(place, plan.clone(), &self.times), plan));
        }
        let first = self.runs.iter().find(|run| !run.running.is_empty())?;
        let (kind, canvas) = (first.running.first()?.kind, first.ask.canvas);
        Some(Turn { kind, members: fill(self.runs.iter(), kind, canvas, self.max_batch), plans })
    }

    fn ran(&mut self, turn: &Turn, took: Duration, now: Duration) {
        ran(&mut self.runs, &mut self.times, turn, took, now);
    }

    fn leave(&mut self, request: RequestId) {
        self.runs.remove(request);
    }

    fn work(&self) -> Duration {
        let image = |menu: &Menu| match menu {
            Menu::Exact(_, cost) => *cost,
            Menu::Rungs { .. } => unreachable!("every request has its plan"),
        };
        Duration::from_secs_f64(self.times.scale() * work(&self.runs, &self.times, image))
    }
}
