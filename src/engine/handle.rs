//! The engine as its callers see it: submit a job, get a ticket.

use crate::diffusion::schedule::SigmaRange;
use crate::engine::pool::{Entry, Pool};
use crate::engine::{EngineError, EngineStats, Job, Ticket, worker};
use crate::nets::{Denoiser, ImageShape};
use crate::supernet::Subnet;
use crate::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// How long a client is told to wait at most.
const MAX_RETRY_AFTER_S: f64 = 300.0;

/// How much the engine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Samples in one call of the denoiser; an image under guidance is two, and runs alone where only one fits.
    pub max_batch: usize,
    /// Images that may wait for their first step.
    pub queue_images: usize,
}

/// A thread that owns a denoiser and draws images with it. Shared by reference: every method takes `&self`.
///
/// Dropping it closes it without waiting for the thread.
#[derive(Debug)]
pub struct Engine {
    /// `None` once closed. The only sender: closing it lets the thread run out of work and end.
    inbox: Mutex<Option<mpsc::Sender<Entry>>>,
    places: Arc<Semaphore>,
    capacity: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
    stats: Arc<EngineStats>,
    image: ImageShape,
    classes: Vec<String>,
    subnets: Vec<Subnet>,
    weight_bytes: usize,
}

impl Engine {
    /// Starts the thread `accordion-engine` on `denoiser`, whose noise levels are `range`.
    ///
    /// # Errors
    /// [`Error::Input`] for a limit of 0 or a denoiser without subnets; [`Error::Io`] when the system gives no thread.
    pub fn start(mut denoiser: Box<dyn Denoiser>, range: SigmaRange, limits: EngineLimits) -> Result<Self> {
        for (name, limit) in [("max_batch", limits.max_batch), ("queue_images", limits.queue_images)] {
            if limit == 0 || limit > Semaphore::MAX_PERMITS {
                return Err(Error::input(name, format!("{limit} is not accepted: it must be at least 1")));
            }
        }
        let (image, classes, subnets) = (denoiser.image(), denoiser.classes().to_vec(), denoiser.subnets().to_vec());
        if subnets.is_empty() {
            return Err(Error::input("subnets", "the model has none"));
        }
        let weight_bytes = denoiser.weight_bytes();
        let stats = Arc::new(EngineStats::new(subnets.iter().map(|subnet| subnet.name.clone())));
        let (inbox, arrivals) = mpsc::channel();
        let pool = Pool::new(range, image.elements(), limits.max_batch, stats.clone());
        let thread = std::thread::Builder::new()
            .name("accordion-engine".to_owned())
            .spawn({
                let stats = stats.clone();
                move || worker::run(&mut *denoiser, pool, &arrivals, &stats)
            })
            .map_err(Error::io("accordion-engine".as_ref()))?;
        Ok(Self {
            inbox: Mutex::new(Some(inbox)),
            places: Arc::new(Semaphore::new(limits.queue_images)),
            capacity: limits.queue_images,
            thread: Mutex::new(Some(thread)),
            stats,
            image,
            classes,
            subnets,
            weight_bytes,
        })
    }

    /// The size of the images that it draws.
    pub fn image(&self) -> ImageShape {
        self.image
    }

    /// Class names by index; empty for an unconditional model.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The model's subnets, from the narrowest to the widest.
    pub fn subnets(&self) -> &[Subnet] {
        &self.subnets
    }

    /// Memory that the weights of all subnets take together.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// What it has done and is doing.
    pub fn stats(&self) -> &Arc<EngineStats> {
        &self.stats
    }

    /// Images that wait for their first step.
    pub fn waiting(&self) -> usize {
        self.capacity - self.places.available_permits()
    }

    /// Puts a job in the queue. Returns at once.
    ///
    /// # Errors
    /// [`EngineError::Unfit`] for a job without images or with a class or a subnet that the model lacks,
    /// [`EngineError::QueueFull`], [`EngineError::Draining`] and [`EngineError::Dead`].
    pub fn submit(&self, job: Job) -> std::result::Result<Ticket, EngineError> {
        self.check(&job)?;
        if !self.is_alive() {
            return Err(EngineError::Dead);
        }
        let inbox = lock(&self.inbox);
        let inbox = inbox.as_ref().ok_or(EngineError::Draining)?;
        let places = self.places.clone().try_acquire_many_owned(job.images).map_err(|_| self.queue_full())?;
        let (answer, ticket) = oneshot::channel();
        let entry = Entry { job, answer, arrived: Instant::now(), places };
        inbox.send(entry).map_err(|_| EngineError::Dead)?;
        Ok(Ticket { answer: ticket })
    }

    /// Whether the thread runs, or has ended because it was told to.
    pub fn is_alive(&self) -> bool {
        !self.stats.died()
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

    fn check(&self, job: &Job) -> std::result::Result<(), EngineError> {
        let known = |name: &str| self.subnets.iter().any(|subnet| subnet.name == name);
        if let Some(run) = job.plan.widths.iter().find(|run| !known(&run.subnet)) {
            return Err(EngineError::Unfit(format!("the model has no subnet {}", run.subnet)));
        }
        if let Some(class) = job.class.filter(|&class| class >= self.classes.len()) {
            return Err(EngineError::Unfit(format!("class {class} is not one of the model's {}", self.classes.len())));
        }
        if job.images == 0 || job.images as usize > self.capacity {
            let capacity = self.capacity;
            return Err(EngineError::Unfit(format!(
                "{} images in one job: the queue holds 1 to {capacity}",
                job.images
            )));
        }
        Ok(())
    }

    fn queue_full(&self) -> EngineError {
        let waiting = self.waiting();
        let work = self.stats.seconds_per_image().unwrap_or(0.0) * (waiting + self.stats.active()) as f64;
        let retry_after = Duration::from_secs(work.ceil().clamp(1.0, MAX_RETRY_AFTER_S) as u64);
        EngineError::QueueFull { waiting, capacity: self.capacity, retry_after }
    }
}

/// What these mutexes guard is replaced whole, so it is sound even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
