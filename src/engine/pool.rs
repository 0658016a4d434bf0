//! The requests that the engine holds, and how far their images are; the pixels are the sampler's. What runs next is
//! the policy's to say.

use crate::diffusion::plan::Plan;
use crate::diffusion::{Call, Course};
use crate::engine::device::Device;
use crate::engine::job::Step;
use crate::engine::place::Places;
use crate::engine::policy::{Member, RequestId, Turn};
use crate::engine::source::{restore, source};
use crate::engine::{EngineError, EngineStats, Finished, Job};
use crate::nets::{About, Begin, Guide, Move, Slot, Source};
use crate::philox::NoiseKey;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A job that was taken.
pub(super) struct Entry {
    pub id: RequestId,
    pub job: Job,
    pub answer: oneshot::Sender<Result<Finished, EngineError>>,
    /// Its places in the queue: an image gives back its own when it begins.
    pub places: Places,
}

/// An image that is being drawn.
struct Image {
    course: Course,
    slot: Slot,
}

/// A job and its images.
struct Request {
    entry: Entry,
    /// When its first image began.
    started: Option<Instant>,
    queued: Duration,
    /// What its images are made from, once the first has begun.
    source: Option<Source>,
    /// By their index.
    images: HashMap<u32, Image>,
    drawn: Vec<Option<(Vec<u8>, Arc<Plan>)>>,
}

impl Request {
    fn new(entry: Entry) -> Self {
        let drawn = vec![None; entry.job.images as usize];
        Self { entry, started: None, queued: Duration::ZERO, source: None, images: HashMap::new(), drawn }
    }

    /// Begins an image, which gives back its place in the queue.
    fn begin(&mut self, image: u32, plan: &Arc<Plan>, about: &About, device: &mut Device) -> Result<(), String> {
        if self.started.is_none() {
            self.started = Some(Instant::now());
            self.queued = self.entry.job.arrived.elapsed();
        }
        self.entry.places.give_back();
        let job = &self.entry.job;
        let source = match &mut self.source {
            Some(source) => source,
            none => none.insert(source(about, job, device)?),
        };
        let course = Course::new(plan.clone(), about.process);
        let key = NoiseKey { seed: job.seed, image };
        let slot = device.begin(&Begin { canvas: job.canvas, source, ..Begin::new(key, &course) })?;
        self.images.insert(image, Image { course, slot });
        Ok(())
    }

    /// Gives back what its images hold.
    fn end(&self, device: &mut Device) {
        self.images.values().for_each(|image| device.end(image.slot));
    }
}

/// One step of the sampler: what each of its members does.
pub(super) struct Batch {
    pub subnet: usize,
    pub members: Vec<Member>,
    pub moves: Vec<Move>,
}

pub(super) struct Pool {
    about: About,
    stats: Arc<EngineStats>,
    requests: HashMap<RequestId, Request>,
}

impl Pool {
    pub fn new(about: About, stats: Arc<EngineStats>) -> Self {
        Self { about, stats, requests: HashMap::new() }
    }

    pub fn push(&mut self, entry: Entry) {
        self.requests.insert(entry.id, Request::new(entry));
    }

    /// Forgets the requests whose client has gone, and says which.
    pub fn drop_cancelled(&mut self, device: &mut Device) -> Vec<RequestId> {
        let gone: Vec<_> = self.requests.extract_if(|_, request| request.entry.answer.is_closed()).collect();
        if !gone.is_empty() {
            gone.iter().for_each(|(_, request)| request.end(device));
            self.count_active();
        }
        gone.into_iter().map(|(id, _)| id).collect()
    }

    /// Begins images and changes plans as `turn` says. Requests of which an image cannot begin are answered and
    /// forgotten; says which.
    pub fn begin(&mut self, turn: &Turn, device: &mut Device) -> Vec<RequestId> {
        let mut failed = Vec::new();
        for (member, plan) in &turn.plans {
            let Some(request) = self.requests.get_mut(&member.request) else { continue };
            match request.images.get_mut(&member.image) {
                Some(image) => image.course.replan(plan.clone()),
                None => {
                    if let Err(problem) = request.begin(member.image, plan, &self.about, device) {
                        tracing::error!(request = member.request, %problem, "an image could not begin");
                        failed.extend(self.fail([member.request], &EngineError::Denoiser(problem), device));
                    }
                }
            }
        }
        self.count_active();
        failed
    }

    /// Moves the members of `turn` on by a call, and says what the sampler has to do for it.
    pub fn batch(&mut self, turn: &Turn) -> Batch {
        let mut batch = Batch { subnet: 0, members: Vec::new(), moves: Vec::new() };
        let index = |name: &str| {
            let index = self.about.subnets.iter().position(|subnet| subnet.name == name);
            index.expect("a plan that was checked")
        };
        for member in &turn.members {
            let Some(Request { entry, images, .. }) = self.requests.get_mut(&member.request) else { continue };
            let Some(Image { course, slot }) = images.get_mut(&member.image) else { continue };
            let Some(Call { level, subnet }) = course.next_call() else { continue };
            batch.subnet = index(subnet);
            let before = course.step();
            let job = &entry.job;
            let given = job.is_guided().then_some(job.guidance);
            let guide = course.plan().guide_at(before, given).map(|(subnet, scale)| Guide {
                scale,
                from: if given.is_some() { job.negative.clone() } else { job.condition.clone() },
                subnet: index(subnet),
            });
            let update = course.advance();
            batch.members.push(*member);
            batch.moves.push(Move {
                slot: *slot,
                level,
                condition: entry.job.condition.clone(),
                guide,
                update,
                next: course.next_call().map(|call| call.level),
                watched: entry.job.events.is_some() && course.step() > before,
            });
        }
        batch
    }

    /// Tells the steps of `batch`, which the sampler has made, and answers the requests that are complete. Requests
    /// whose pixels cannot be had are answered and forgotten; says which.
    pub fn advance(&mut self, batch: &Batch, device: &mut Device) -> Vec<RequestId> {
        let mut finished = 0;
        let (mut complete, mut failed) = (Vec::new(), Vec::new());
        for (member, made) in batch.members.iter().zip(&batch.moves) {
            let Some(Request { entry, images, drawn, .. }) = self.requests.get_mut(&member.request) else { continue };
            let Some(Image { course, slot }) = images.get(&member.image) else { continue };
            if made.watched {
                tell(entry, member.image, course, *slot, device);
            }
            if !course.is_finished() {
                continue;
            }
            let decoder = self.about.decoder(course.plan()).expect("a plan that was checked");
            match device.pixels(*slot, decoder) {
                Ok(mut pixels) => {
                    entry.job.original.iter().for_each(|original| restore(original, &mut pixels));
                    drawn[member.image as usize] = Some((pixels, course.plan().clone()));
                    device.end(*slot);
                    images.remove(&member.image);
                    finished += 1;
                    if drawn.iter().all(Option::is_some) {
                        complete.push(member.request);
                    }
                }
                Err(problem) => {
                    tracing::error!(request = member.request, %problem, "an image could not be read");
                    failed.extend(self.fail([member.request], &EngineError::Denoiser(problem), device));
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
        failed
    }

    /// Answers these requests with `error` and forgets them; says which they were.
    pub fn fail(
        &mut self,
        requests: impl IntoIterator<Item = RequestId>,
        error: &EngineError,
        device: &mut Device,
    ) -> Vec<RequestId> {
        let mut failed = Vec::new();
        for id in requests {
            if let Some(request) = self.requests.remove(&id) {
                request.end(device);
                let _ = request.entry.answer.send(Err(error.clone()));
                failed.push(id);
            }
        }
        self.count_active();
        failed
    }

    fn count_active(&self) {
        self.stats.set_active(self.requests.values().map(|request| request.images.len()).sum());
    }
}

/// Tells a listener of the step that an image has made. One that is full or gone misses it: the images are what was
/// asked for.
fn tell(entry: &Entry, image: u32, course: &Course, slot: Slot, device: &mut Device) {
    let Some(Ok(room)) = entry.job.events.as_ref().map(|events| events.try_reserve()) else { return };
    match device.estimate(slot) {
        Ok(estimate) => {
            let plan = course.plan().clone();
            room.send(Step { image, step: course.step() - plan.made().start, plan, estimate });
        }
        // What the device has lost shows when the image is read.
        Err(problem) => tracing::warn!(request = entry.id, %problem, "a step could not be told"),
    }
}
