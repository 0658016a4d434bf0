//! The device thread: requests become slots, slots become step-level batches, plans become images. Knows no HTTP.

mod batch;
#[cfg(test)]
pub(crate) mod gaussian;
mod handle;
pub mod image;
mod job;
mod pool;
mod stats;
#[cfg(test)]
mod tests;
mod worker;

pub use handle::{Engine, EngineLimits};
pub use job::{EngineError, Finished, Job, Ticket};
pub use stats::{EngineStats, SubnetStats};
