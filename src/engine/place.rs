//! Where an engine works: the queue in front of it and the device under it, which it may share with others.

use crate::engine::turns::Turns;
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What an engine shares with the others of its server. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Place {
    pub(super) queue: Queue,
    pub(super) turns: Arc<Turns>,
}

impl Place {
    /// One of those whose images wait in `queue`, and whose calls take turns on one device.
    pub fn new(queue: &Queue, turns: &Arc<Turns>) -> Self {
        Self { queue: queue.clone(), turns: turns.clone() }
    }

    /// One for an engine alone, before which so many images may wait.
    ///
    /// # Errors
    /// As [`Queue::new`].
    pub fn alone(queue_images: usize) -> Result<Self> {
        Ok(Self { queue: Queue::new(queue_images)?, turns: Arc::default() })
    }
}

/// Room for images that wait for their first step, of all engines together. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct Queue {
    places: Arc<Semaphore>,
    capacity: usize,
}

impl Queue {
    /// Room for so many.
    ///
    /// # Errors
    /// [`Error::Input`] for none, or more than can be counted.
    pub fn new(capacity: usize) -> Result<Self> {
        if capacity == 0 || capacity > Semaphore::MAX_PERMITS {
            return Err(Error::input("queue_images", format!("{capacity} is not accepted: it must be at least 1")));
        }
        Ok(Self { places: Arc::new(Semaphore::new(capacity)), capacity })
    }

    /// Images that may wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Images that wait.
    pub fn waiting(&self) -> usize {
        self.capacity - self.places.available_permits()
    }

    /// Places for so many images of an engine, which counts those of its own in `waiting`; `None` where there are not as many.
    pub(super) fn take(&self, images: u32, waiting: &Arc<AtomicUsize>) -> Option<Places> {
        let permit = self.places.clone().try_acquire_many_owned(images).ok()?;
        waiting.fetch_add(images as usize, Relaxed);
        Some(Places { permit, waiting: waiting.clone() })
    }
}

/// Places in a queue, which are given back when they are dropped.
#[derive(Debug)]
pub(super) struct Places {
    permit: OwnedSemaphorePermit,
    waiting: Arc<AtomicUsize>,
}

impl Places {
    /// Gives one back: its image has begun.
    pub fn give_back(&mut self) {
        if self.permit.split(1).is_some() {
            self.waiting.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.permit.num_permits(), Relaxed);
    }
}
