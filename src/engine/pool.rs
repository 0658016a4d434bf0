//! The requests that the engine holds, and their images as slots. What runs next is the policy's to say.

use crate::diffusion::plan::Plan;
use crate::diffusion::schedule::SigmaRange;
use crate::diffusion::solver::{Trajectory, guide};
use crate::engine::job::Step;
use crate::engine::policy::{Member, RequestId, Turn};
use crate::engine::{EngineError, EngineStats, Finished, Job};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// A job that was taken.
pub(super) struct Entry {
    pub id: RequestId,
    pub job: Job,
    pub answer: oneshot::Sender<Result<Finished, EngineError>>,
    /// Its places in the queue: an image gives back its own when it begins.
    pub places: OwnedSemaphorePermit,
}

/// A job and its images.
struct Request {
    entry: Entry,
    /// When its first image began.
    started: Option<Instant>,
    queued: Duration,
    slots: HashMap<u32, Trajectory>,
    drawn: Vec<Option<(Vec<f64>, Arc<Plan>)>>,
}

impl Request {
    fn new(entry: Entry) -> Self {
        let drawn = vec![None; entry.job.images as usize];
        Self { entry, started: None, queued: Duration::ZERO, slots: HashMap::new(), drawn }
    }

    /// Samples that an image adds to a call.
    fn rows(&self) -> usize {
        if self.entry.job.is_guided() { 2 } else { 1 }
    }
}

/// The arguments of one call of the denoiser. An image under guidance has two rows: with its class, then without.
#[derive(Default)]
pub(super) struct Batch {
    pub subnet: usize,
    pub members: Vec<Member>,
    pub x: Vec<f32>,
    pub sigma: Vec<f64>,
    pub class: Vec<Option<usize>>,
}

pub(super) struct Pool {
    range: SigmaRange,
    elements: usize,
    stats: Arc<EngineStats>,
    requests: HashMap<RequestId, Request>,
}

impl Pool {
    pub fn new(range: SigmaRange, elements: usize, stats: Arc<EngineStats>) -> Self {
        Self { range, elements, stats, requests: HashMap::new() }
    }

    pub fn push(&mut self, entry: Entry) {
        self.requests.insert(entry.id, Request::new(entry));
    }

    /// Forgets the requests whose client has gone, and says which.
    pub fn drop_cancelled(&mut self) -> Vec<RequestId> {
        let gone: Vec<_> = self.requests.extract_if(|_, request| request.entry.answer.is_closed()).collect();
        if !gone.is_empty() {
            self.count_active();
        }
        gone.into_iter().map(|(id, _)| id).collect()
    }

    /// Begins images and changes plans as `turn` says, and gathers the arguments of its call.
    pub fn batch(&mut self, turn: &Turn) -> Batch {
        for (member, plan) in &turn.plans {
            let Some(request) = self.requests.get_mut(&member.request) else { continue };
            match request.slots.get_mut(&member.image) {
                Some(trajectory) => trajectory.replan(plan.clone()),
                None => {
                    if request.started.is_none() {
                        request.started = Some(Instant::now());
                        request.queued = request.entry.job.arrived.elapsed();
                    }
                    drop(request.entry.places.split(1));
                    let seed = request.entry.job.seed;
                    let trajectory = Trajectory::new(plan.clone(), self.range, seed, member.image, self.elements);
                    request.slots.insert(member.image, trajectory);
                }
            }
        }
        self.count_active();
        let mut batch = Batch { subnet: turn.subnet, ..Batch::default() };
        for member in &turn.members {
            let Some(request) = self.requests.get(&member.request) else { continue };
            let Some(trajectory) = request.slots.get(&member.image) else { continue };
            let Some(call) = trajectory.next_call() else { continue };
            batch.members.push(*member);
            for class in [request.entry.job.class, None].into_iter().take(request.rows()) {
                batch.x.extend(trajectory.input().iter().map(|&value| value as f32));
                batch.sigma.push(call.sigma);
                batch.class.push(class);
            }
        }
        batch
    }

    /// Steps every member with its rows of `denoised`, which has the layout of `batch.x`, and answers the requests that
    /// are complete.
    pub fn advance(&mut self, batch: &Batch, denoised: &[f32]) {
        let mut rows = denoised.chunks_exact(self.elements);
        let mut finished = 0;
        let mut complete = Vec::new();
        for member in &batch.members {
            let Some(request) = self.requests.get_mut(&member.request) else { continue };
            let mut row = || rows.next().expect("the batch has the rows of its members");
            let conditional = row();
            let guided;
            let estimate = if request.entry.job.is_guided() {
                guided = guide(conditional, row(), request.entry.job.guidance);
                &guided
            } else {
                conditional
            };
            let Some(trajectory) = request.slots.get_mut(&member.image) else { continue };
            let before = trajectory.step();
            trajectory.advance(estimate);
            let step = trajectory.step();
            if let Some(events) = request.entry.job.events.as_ref().filter(|_| step > before) {
                let plan = trajectory.plan().clone();
                // A listener that is full or gone misses a step: the images are what was asked for.
                let _ = events.try_send(Step { image: member.image, step, plan, estimate: estimate.to_vec() });
            }
            if trajectory.is_finished() {
                let drawn = (trajectory.image().to_vec(), trajectory.plan().clone());
                request.slots.remove(&member.image);
                request.drawn[member.image as usize] = Some(drawn);
                finished += 1;
                if request.drawn.iter().all(Option::is_some) {
                    complete.push(member.request);
                }
            }
        }
        // Before the answers: who has one may look at the gauges at once.
        self.count_active();
        self.stats.record_finished(finished);
        for Request { entry, started, queued, drawn, .. } in complete.iter().filter_map(|id| self.requests.remove(id)) {
            let (images, plans) = drawn.into_iter().flatten().unzip();
            let denoising = started.map_or(Duration::ZERO, |started| started.elapsed());
            tracing::debug!(request = entry.id, seed = entry.job.seed, "drew a request's images");
            // The client may have gone meanwhile: then nobody wants to know.
            let _ = entry.answer.send(Ok(Finished { images, plans, queued, denoising }));
        }
    }

    /// Answers the requests of these members with `error` and forgets them; says which they were.
    pub fn fail(&mut self, members: &[Member], error: &EngineError) -> Vec<RequestId> {
        let mut failed = Vec::new();
        for member in members {
            if let Some(request) = self.requests.remove(&member.request) {
                let _ = request.entry.answer.send(Err(error.clone()));
                failed.push(member.request);
            }
        }
        self.count_active();
        failed
    }

    fn count_active(&self) {
        self.stats.set_active(self.requests.values().map(|request| request.slots.len()).sum());
    }
}
