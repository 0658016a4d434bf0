//! The device thread: requests become slots, slots become step-level batches, plans become images. Knows no HTTP.

mod device;
mod fleet;
#[cfg(test)]
pub(crate) mod gaussian;
mod handle;
pub mod image;
mod job;
pub mod original;
mod place;
pub mod policy;
mod pool;
pub mod settings;
mod shared;
mod source;
mod stats;
#[cfg(test)]
mod tests;
pub mod turns;
mod worker;

pub use fleet::Fleet;
pub use handle::Engine;
pub use job::{EngineError, Finished, Job, Step, Ticket};
pub use original::Original;
pub use place::{Place, Queue};
pub use stats::{EngineStats, SubnetStats};
pub use turns::Turns;
