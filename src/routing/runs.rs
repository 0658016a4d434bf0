//! The requests that a policy has taken, and how far each of their images is.

use crate::diffusion::plan::Plan;
use crate::engine::policy::{Ask, Member, RequestId, Turn};
use crate::routing::StepTimes;
use crate::routing::ladder::{self, Menu};
use crate::routing::times::Kind;
use std::sync::Arc;

/// In which order requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they came.
    Arrival,
    /// The most urgent first.
    Deadline,
}

/// An image that has begun and is not drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// Its index in the request.
    pub image: u32,
    /// Its plan.
    pub plan: Arc<Plan>,
    /// Denoiser calls that are done.
    pub done: usize,
    /// The kind of its next calls.
    pub kind: Kind,
    /// Time of what is left in efficient batches, in seconds as they were measured.
    pub left: f64,
    /// Denoiser calls that are left.
    pub calls: usize,
    /// Time that its picture takes after them, in seconds as it was measured.
    pub finish: f64,
    /// Whether something leads it.
    is_guided: bool,
}

impl Running {
    fn new(image: u32, plan: Arc<Plan>, done: usize, is_guided: bool, times: &StepTimes) -> Self {
        let (step, at_boundary) = plan.position(done);
        let mut rest = ladder::calls(&plan, step, is_guided, times).unwrap_or_default();
        let kind = rest.first().map_or(0, |&(kind, _)| kind);
        if let Some((_, count)) = rest.first_mut().filter(|_| !at_boundary) {
            *count -= 1;
        }
        let calls = rest.iter().map(|&(_, count)| count).sum();
        let finish = times.finish(&plan).unwrap_or(0.0);
        Self { image, done, kind, left: ladder::seconds(&rest, times), calls, finish, plan, is_guided }
    }

    fn advance(&mut self, times: &StepTimes) {
        self.left = (self.left - times.measured_row(self.kind)).max(0.0);
        self.calls -= 1;
        self.done += 1;
        if self.calls > 0 {
            let (step, _) = self.plan.position(self.done);
            self.kind = times.kind(&self.plan, step, self.is_guided).unwrap_or(self.kind);
        }
    }

    /// The steps that are done, where its next call begins a step: its plan may change there.
    pub fn boundary(&self) -> Option<usize> {
        let (step, at_boundary) = self.plan.position(self.done);
        at_boundary.then_some(step)
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// What was asked.
    pub ask: Ask,
    /// What its images may run by.
    pub menu: Menu,
    /// Its images that run, in the order of their indices.
    pub running: Vec<Running>,
    /// How many of its images have begun; the others wait.
    pub begun: u32,
}

impl Run {
    /// Its images that have not begun.
    pub fn waiting(&self) -> u32 {
        self.ask.images - self.begun
    }

    /// Pictures that are encoded before its first image begins, where none has.
    pub fn encodings(&self) -> usize {
        if self.begun == 0 { self.ask.encodings } else { 0 }
    }
}

/// The requests of one engine in the order in which they are served.
#[derive(Clone, Debug)]
pub struct Runs {
    order: Order,
    runs: Vec<Run>,
}

impl Runs {
    /// None yet.
    pub fn new(order: Order) -> Self {
        Self { order, runs: Vec::new() }
    }

    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Run> {
        self.runs.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many requests stand before `ask`.
    pub fn place(&self, ask: &Ask) -> usize {
        let key = |ask: &Ask| match self.order {
            Order::Arrival => (ask.arrived, ask.id),
            Order::Deadline => (ask.deadline, ask.id),
        };
        self.runs.partition_point(|run| key(&run.ask) < key(ask))
    }

    /// Takes a request, whose images run by `menu`.
    pub fn insert(&mut self, ask: Ask, menu: Menu) {
        let place = self.place(&ask);
        self.runs.insert(place, Run { ask, menu, running: Vec::new(), begun: 0 });
    }

    /// Forgets a request.
    pub fn remove(&mut self, request: RequestId) {
        self.runs.retain(|run| run.ask.id != request);
    }

    /// Begins the next image of the request at `place` with `plan`.
    pub fn begin(&mut self, place: usize, plan: Arc<Plan>, times: &StepTimes) -> Member {
        let run = &mut self.runs[place];
        let image = run.begun;
        run.begun += 1;
        run.running.push(Running::new(image, plan, 0, run.ask.is_guided, times));
        Member { request: run.ask.id, image }
    }

    /// Lets an image go on by another plan, whose steps so far are those that it has done.
    pub fn replan(&mut self, member: Member, plan: Arc<Plan>, times: &StepTimes) {
        let run = self.runs.iter_mut().find(|run| run.ask.id == member.request);
        let image = run.and_then(|run| run.running.iter_mut().find(|running| running.image == member.image));
        if let Some(running) = image {
            *running = Running::new(running.image, plan, running.done, running.is_guided, times);
        }
    }

    /// The members of `turn` are a call further; images that are drawn leave, and so do requests without images.
    pub fn advance(&mut self, turn: &Turn, times: &StepTimes) {
        for member in &turn.members {
            let Some(place) = self.runs.iter().position(|run| run.ask.id == member.request) else { continue };
            let run = &mut self.runs[place];
            run.running.retain_mut(|running| {
                if running.image == member.image {
                    running.advance(times);
                }
                running.calls > 0
            });
            if run.running.is_empty() && run.waiting() == 0 {
                self.runs.remove(place);
            }
        }
    }
}

impl std::ops::Index<usize> for Runs {
    type Output = Run;

    /// The request at `place` in the order.
    fn index(&self, place: usize) -> &Run {
        &self.runs[place]
    }
}
