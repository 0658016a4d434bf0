//! Who runs next: requests that wait, requests that run, and their images as slots.
//!
//! Subnets take turns, so no request starves behind a longer one at another width; within a subnet the older request
//! goes first. A request waits while a full batch wants the subnet that it starts with, so that what runs is finished
//! before more is begun.

use crate::diffusion::schedule::SigmaRange;
use crate::diffusion::solver::Trajectory;
use crate::engine::{EngineError, EngineStats, Finished, Job};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// A job that waits.
pub(super) struct Entry {
    pub job: Job,
    pub answer: oneshot::Sender<Result<Finished, EngineError>>,
    pub arrived: Instant,
    /// Its places in the queue, given back when it starts or leaves.
    pub places: OwnedSemaphorePermit,
}

/// A job that runs.
struct Request {
    job: Job,
    answer: oneshot::Sender<Result<Finished, EngineError>>,
    queued: Duration,
    started: Instant,
    images: Vec<Option<Vec<f64>>>,
}

/// One image of a running job.
pub(super) struct Slot {
    request: u64,
    image: usize,
    pub trajectory: Trajectory,
    pub class: Option<usize>,
    /// Scale of the classifier-free guidance, where it changes something.
    pub guidance: Option<f64>,
}

impl Slot {
    /// Samples that it adds to a batch.
    pub fn rows(&self) -> usize {
        if self.guidance.is_some() { 2 } else { 1 }
    }
}

pub(super) struct Pool {
    range: SigmaRange,
    elements: usize,
    /// Samples in one call.
    max_batch: usize,
    stats: Arc<EngineStats>,
    waiting: VecDeque<Entry>,
    requests: HashMap<u64, Request>,
    /// In the order of arrival.
    slots: Vec<Slot>,
    next_request: u64,
    /// The subnet whose turn is over.
    last_subnet: usize,
}

impl Pool {
    pub fn new(range: SigmaRange, elements: usize, max_batch: usize, stats: Arc<EngineStats>) -> Self {
        let last_subnet = stats.subnets().len() - 1;
        Self {
            range,
            elements,
            max_batch,
            stats,
            waiting: VecDeque::new(),
            requests: HashMap::new(),
            slots: Vec::new(),
            next_request: 0,
            last_subnet,
        }
    }

    pub fn push(&mut self, entry: Entry) {
        self.waiting.push_back(entry);
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.is_empty()
    }

    /// Forgets the requests whose client has gone.
    pub fn drop_cancelled(&mut self) {
        self.waiting.retain(|entry| !entry.answer.is_closed());
        self.requests.retain(|_, request| !request.answer.is_closed());
        self.slots.retain(|slot| self.requests.contains_key(&slot.request));
        self.stats.set_active(self.slots.len());
    }

    /// Starts the requests whose first subnet has room in its next batch, in the order of arrival.
    pub fn start_waiting(&mut self) {
        let mut rows = vec![0; self.stats.subnets().len()];
        for slot in &self.slots {
            if let Some(subnet) = self.wanted(slot) {
                rows[subnet] += slot.rows();
            }
        }
        for entry in std::mem::take(&mut self.waiting) {
            let first = self.subnet(entry.job.plan.subnet_at(0));
            if rows[first] < self.max_batch {
                rows[first] += self.start(entry);
            } else {
                self.waiting.push_back(entry);
            }
        }
        self.stats.set_active(self.slots.len());
    }

    /// Returns the rows that the request adds.
    fn start(&mut self, entry: Entry) -> usize {
        let Entry { job, answer, arrived, places } = entry;
        drop(places);
        let (request, started) = (self.next_request, Instant::now());
        self.next_request += 1;
        let guidance = (job.class.is_some() && job.guidance != 1.0).then_some(job.guidance);
        let mut rows = 0;
        for image in 0..job.images {
            let trajectory = Trajectory::new(job.plan.clone(), self.range, job.seed, image, self.elements);
            let slot = Slot { request, image: image as usize, trajectory, class: job.class, guidance };
            rows += slot.rows();
            self.slots.push(slot);
        }
        let images = vec![None; job.images as usize];
        self.requests.insert(request, Request { job, answer, queued: started - arrived, started, images });
        rows
    }

    /// The subnet whose turn it is and the slots of its batch, oldest first. At least one slot, however many rows it has.
    pub fn next_batch(&mut self) -> Option<(usize, Vec<usize>)> {
        let wanted: Vec<Option<usize>> = self.slots.iter().map(|slot| self.wanted(slot)).collect();
        let count = self.stats.subnets().len();
        let subnet = (1..=count).map(|turn| (self.last_subnet + turn) % count).find(|&s| wanted.contains(&Some(s)))?;
        self.last_subnet = subnet;
        let mut rows = 0;
        let mut members = Vec::new();
        for (index, slot) in self.slots.iter().enumerate().filter(|&(index, _)| wanted[index] == Some(subnet)) {
            rows += slot.rows();
            if rows > self.max_batch && !members.is_empty() {
                break;
            }
            members.push(index);
        }
        Some((subnet, members))
    }

    pub fn slot(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    pub fn slot_mut(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index]
    }

    /// Answers the requests that own these slots with `error` and forgets them.
    pub fn fail(&mut self, slots: &[usize], error: &EngineError) {
        for &index in slots {
            if let Some(request) = self.requests.remove(&self.slots[index].request) {
                // The client may have gone meanwhile: then nobody wants to know.
                let _ = request.answer.send(Err(error.clone()));
            }
        }
        self.slots.retain(|slot| self.requests.contains_key(&slot.request));
    }

    /// Takes the images that have made their last step out of their slots, and answers the requests that are complete.
    pub fn collect_finished(&mut self) {
        let (finished, running): (Vec<Slot>, Vec<Slot>) =
            std::mem::take(&mut self.slots).into_iter().partition(|slot| slot.trajectory.next_call().is_none());
        self.slots = running;
        // Before the answers: who has one may look at the gauges at once.
        self.stats.set_active(self.slots.len());
        self.stats.record_finished(finished.len());
        for slot in finished {
            if let Some(request) = self.requests.get_mut(&slot.request) {
                request.images[slot.image] = Some(slot.trajectory.image().to_vec());
            }
        }
        let complete = self.requests.extract_if(|_, request| request.images.iter().all(Option::is_some));
        for (_, request) in complete {
            let images = request.images.into_iter().flatten().collect();
            let finished = Finished { images, queued: request.queued, denoising: request.started.elapsed() };
            tracing::debug!(plan = %request.job.plan, seed = request.job.seed, "drew a request's images");
            let _ = request.answer.send(Ok(finished));
        }
    }

    /// The subnet of the slot's next call; `None` when it has none.
    fn wanted(&self, slot: &Slot) -> Option<usize> {
        slot.trajectory.next_call().map(|call| self.subnet(call.subnet))
    }

    fn subnet(&self, name: &str) -> usize {
        let index = self.stats.subnets().iter().position(|(known, _)| known == name);
        index.expect("a job's subnets are checked when it is submitted")
    }
}
