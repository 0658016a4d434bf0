//! Several engines behind one door: one a device, all with the same model.

use crate::engine::{Engine, EngineError, Job, Ticket};
use std::time::Duration;

/// The engines of a server, each with the name of its device. Never empty.
#[derive(Debug)]
pub struct Fleet {
    engines: Vec<(String, Engine)>,
}

impl Fleet {
    /// The door to these engines.
    ///
    /// # Panics
    /// Without an engine.
    pub fn new(engines: Vec<(String, Engine)>) -> Self {
        assert!(!engines.is_empty(), "a fleet has an engine");
        Self { engines }
    }

    /// The engines with the names of their devices.
    pub fn engines(&self) -> impl Iterator<Item = (&str, &Engine)> {
        self.engines.iter().map(|(device, engine)| (device.as_str(), engine))
    }

    /// One of them, to ask what is true of all: image, classes, subnets.
    pub fn any(&self) -> &Engine {
        &self.engines[0].1
    }

    /// Images that wait for their first step.
    pub fn waiting(&self) -> usize {
        self.engines().map(|(_, engine)| engine.waiting()).sum()
    }

    /// The work that was taken and is not done, as time of the busiest device.
    pub fn work(&self) -> Duration {
        self.engines().map(|(_, engine)| engine.work()).max().unwrap_or_default()
    }

    /// Puts a job in the queue of the engine that promises the best image, the one with the least to do among equals.
    ///
    /// # Errors
    /// As [`Engine::submit`]: where all refuse, the refusal of the engine with the least to do.
    pub fn submit(&self, job: Job) -> Result<Ticket, EngineError> {
        if let [(_, only)] = self.engines.as_slice() {
            return only.submit(job);
        }
        let mut offers: Vec<(f64, Duration, &Engine)> = self
            .engines()
            .filter(|(_, engine)| engine.is_alive())
            .map(|(_, engine)| {
                let quality = engine.quote(&job).map_or(-1.0, |planned| planned.quality.unwrap_or(0.0));
                (quality, engine.work_of_device(), engine)
            })
            .collect();
        offers.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut refusal = EngineError::Dead;
        for (index, (_, _, engine)) in offers.into_iter().enumerate() {
            match engine.submit(job.clone()) {
                Ok(ticket) => return Ok(ticket),
                Err(error) if index == 0 => refusal = error,
                Err(_) => {}
            }
        }
        Err(refusal)
    }

    /// Whether every engine's thread runs, or has ended because it was told to.
    pub fn is_alive(&self) -> bool {
        self.engines().all(|(_, engine)| engine.is_alive())
    }

    /// Takes no more jobs; those taken are finished.
    pub fn close(&self) {
        self.engines().for_each(|(_, engine)| engine.close());
    }

    /// Closes, and waits until the jobs taken are finished and the threads have ended.
    ///
    /// # Errors
    /// [`EngineError::Dead`] if a thread panicked.
    pub fn join(&self) -> Result<(), EngineError> {
        self.close();
        self.engines().map(|(_, engine)| engine.join()).fold(Ok(()), Result::and)
    }
}
