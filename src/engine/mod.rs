//! The device thread: requests become slots, slots become step-level batches, plans become images. Knows no HTTP.

mod device;
mod fleet;
#[cfg(test)]
pub(crate) mod gaussian;
mod handle;
pub mod image;
mod job;
pub mod original;
pub mod policy;
mod pool;
pub mod settings;
mod shared;
mod source;
mod stats;
#[cfg(test)]
mod tests;
mod worker;

pub use fleet::Fleet;
pub use handle::{Engine, EngineLimits};
pub use job::{EngineError, Finished, Job, Step, Ticket};
pub use original::Original;
pub use stats::{EngineStats, SubnetStats};
