//! The engine as its callers see it: submit a job, get a ticket.

use crate::engine::device::Device;
use crate::engine::job::whole_seconds;
use crate::engine::place::{Place, Queue};
use crate::engine::policy::{Ask, Planned, Policy, RequestId, Wish};
use crate::engine::pool::{Entry, Pool};
use crate::engine::shared::{Shared, lock};
use crate::engine::source::encodings;
use crate::engine::turns::Seat;
use crate::engine::{EngineError, EngineStats, Job, Ticket, worker};
use crate::nets::{About, Sampler};
use crate::{Error, Result};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a client is told to wait at most.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A thread that owns a sampler and draws images with it. Shared by reference: every method takes `&self`.
///
/// Dropping it closes it without waiting for the thread.
pub struct Engine {
    /// `None` once closed. The only sender: closing it lets the thread run out of work and end.
    inbox: Mutex<Option<mpsc::Sender<Entry>>>,
    shared: Arc<Shared>,
    next: AtomicU64,
    queue: Queue,
    /// Images of its own that wait in the queue.
    waiting: Arc<AtomicUsize>,
    thread: Mutex<Option<JoinHandle<()>>>,
    about: About,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("queue", &self.queue)
            .field("image", &self.about.picture())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the thread `accordion-engine` on `sampler`, at this place; `policy` decides what it runs.
    ///
    /// # Errors
    /// [`Error::Input`] for a sampler without subnets; [`Error::Io`] when the system gives no thread.
    pub fn start(sampler: Box<dyn Sampler>, place: Place, policy: Box<dyn Policy>) -> Result<Self> {
        let about = sampler.about().clone();
        if about.subnets.is_empty() {
            return Err(Error::input("subnets", "the model has none"));
        }
        let stats = Arc::new(EngineStats::new(about.subnets.iter().map(|subnet| subnet.name.to_string())));
        let (inbox, arrivals) = mpsc::channel();
        let Place { queue, turns } = place;
        let seat = Seat::at(&turns);
        let shared = Arc::new(Shared::new(policy, stats.clone(), turns, seat.id()));
        seat.is_of(&shared);
        let (pool, mut device) = (Pool::new(about.clone(), stats.clone()), Device::new(sampler, stats, seat));
        let thread = std::thread::Builder::new()
            .name("accordion-engine".to_owned())
            .spawn({
                let shared = shared.clone();
                move || worker::run(&mut device, pool, &arrivals, &shared)
            })
            .map_err(Error::io("accordion-engine".as_ref()))?;
        Ok(Self {
            inbox: Mutex::new(Some(inbox)),
            shared,
            next: AtomicU64::new(0),
            queue,
            waiting: Arc::default(),
            thread: Mutex::new(Some(thread)),
            about,
        })
    }

    /// What there is to know of its network.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// What it has done and is doing.
    pub fn stats(&self) -> &Arc<EngineStats> {
        self.shared.stats()
    }

    /// Images that wait for their first step.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// The work that was taken and is not done, as time of the device.
    pub fn work(&self) -> Duration {
        lock(&self.shared.policy).work()
    }

    /// The same of all engines that share the device.
    pub(super) fn work_of_device(&self) -> Duration {
        self.shared.turns.work()
    }

    /// What [`Self::submit`] would promise the job now.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn quote(&self, job: &Job) -> std::result::Result<Planned, EngineError> {
        self.check(job)?;
        Ok(self.shared.policy().quote(&self.ask(job, RequestId::MAX))?)
    }

    /// Puts a job in the queue. Returns at once.
    ///
    /// # Errors
    /// [`EngineError::Unfit`] for a job without images or with a class or a subnet that the model lacks,
    /// [`EngineError::Infeasible`] and [`EngineError::Overloaded`] where the policy refuses it, or promises of another engine of the
    /// device would break,
    /// [`EngineError::QueueFull`], [`EngineError::Draining`] and [`EngineError::Dead`].
    pub fn submit(&self, job: Job) -> std::result::Result<Ticket, EngineError> {
        self.check(&job)?;
        if !self.is_alive() {
            return Err(EngineError::Dead);
        }
        let inbox = lock(&self.inbox);
        let inbox = inbox.as_ref().ok_or(EngineError::Draining)?;
        let places = self.queue.take(job.images, &self.waiting).ok_or_else(|| self.queue_full())?;
        let id = self.next.fetch_add(1, Relaxed);
        let Shared { turns, seat, .. } = &*self.shared;
        let _admission = turns.admission();
        // The thread asks the policy, then looks into the inbox: under this lock it finds there what it is told of.
        let mut policy = self.shared.policy();
        let planned = policy.admit(self.ask(&job, id))?;
        if let Some(late) = turns.work_begins(*seat) {
            policy.leave(id);
            let retry_after = whole_seconds(late.min(MAX_RETRY_AFTER));
            return Err(EngineError::Overloaded { retry_after });
        }
        let (answer, ticket) = oneshot::channel();
        if inbox.send(Entry { id, job, answer, places }).is_err() {
            policy.leave(id);
            return Err(EngineError::Dead);
        }
        Ok(Ticket { planned, answer: ticket })
    }

    /// Whether the thread runs, or has ended because it was told to.
    pub fn is_alive(&self) -> bool {
        !self.shared.stats().died()
    }

    /// Takes no more jobs; those taken are finished.
    pub fn close(&self) {
        lock(&self.inbox).take();
    }

    /// Closes, and waits until the jobs taken are finished and the thread has ended.
    ///
    /// # Errors
    /// [`EngineError::Dead`] if the thread panicked.
    pub fn join(&self) -> std::result::Result<(), EngineError> {
        self.close();
        let thread = lock(&self.thread).take();
        thread.map_or(Ok(()), |thread| thread.join().map_err(|_| EngineError::Dead))
    }

    /// How many times as much work as one of the usual size a picture of this one is, at least.
    fn share(&self, canvas: usize) -> usize {
        let pixels = |canvas: usize| self.about.canvases[canvas].state.elements();
        pixels(canvas).div_ceil(pixels(0))
    }

    fn ask(&self, job: &Job, id: RequestId) -> Ask {
        let came = self.shared.at(job.arrived);
        Ask {
            id,
            arrived: self.shared.now(),
            deadline: came.saturating_add(job.within),
            images: job.images,
            rows: (if job.is_guided() { 2 } else { 1 }) * self.share(job.canvas),
            is_guided: job.is_guided(),
            canvas: job.canvas,
            wish: job.wish.clone(),
            strength: job.strength,
            encodings: encodings(&self.about, job),
        }
    }

    fn check(&self, job: &Job) -> std::result::Result<(), EngineError> {
        let known = |name: &str| self.about.subnets.iter().any(|subnet| subnet.name == name);
        if let Some(original) = &job.original {
            let picture = self.about.canvases.get(job.canvas).map(|canvas| canvas.picture);
            let fits = picture.is_some_and(|picture| {
                let pixels = picture.height * picture.width;
                original.bytes.len() == picture.elements()
                    && original.mask.as_ref().is_none_or(|mask| mask.len() == pixels)
            });
            if !fits {
                return Err(EngineError::Unfit(
                    "the picture to start from is of another size than the images".to_owned(),
                ));
            }
        }
        let strength = if let Wish::Exact(plan) = &job.wish { plan.strength } else { job.strength };
        if strength != job.strength || (strength < 1.0 && job.original.is_none()) {
            let problem = format!("a strength of {strength} needs a picture to start from, and to be the job's own");
            return Err(EngineError::Unfit(problem));
        }
        if let Wish::Exact(plan) = &job.wish {
            if let Some(subnet) = plan.subnets().find(|subnet| !known(subnet)) {
                return Err(EngineError::Unfit(format!("the model has no subnet {subnet}")));
            }
            if self.about.decoder(plan).is_none() {
                return Err(EngineError::Unfit(format!("the model's decoder has no subnet {}", plan.decode)));
            }
            plan.check_for(&self.about.process).map_err(|problem| EngineError::Unfit(format!("{plan}: {problem}")))?;
        }
        if let Some(class) = job.condition.class().filter(|&class| class >= self.about.classes.len()) {
            return Err(EngineError::Unfit(format!(
                "class {class} is not one of the model's {}",
                self.about.classes.len()
            )));
        }
        if job.canvas >= self.about.canvases.len() {
            return Err(EngineError::Unfit(format!("size {} is none of {}", job.canvas, self.about.canvases.len())));
        }
        let capacity = self.queue.capacity();
        if job.images == 0 || job.images as usize > capacity {
            let images = job.images;
            return Err(EngineError::Unfit(format!("{images} images in one job: the queue holds 1 to {capacity}")));
        }
        Ok(())
    }

    fn queue_full(&self) -> EngineError {
        let retry_after = whole_seconds(self.work_of_device().min(MAX_RETRY_AFTER));
        EngineError::QueueFull { waiting: self.queue.waiting(), capacity: self.queue.capacity(), retry_after }
    }
}
