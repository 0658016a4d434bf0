//! Proof under load: requests at times fixed beforehand against servers that differ in their policy alone.
//!
//! The clock of a request starts when it should have been sent, whatever kept it; whatever is no image in time is a miss.

mod arrivals;
pub mod client;
mod experiment;
mod images;
mod overhead;
pub mod plot;
mod policy;
pub mod report;
mod target;
mod traffic;

pub use arrivals::{Process, Schedule};
pub use experiment::{Arrivals, Deadline, Experiment};
pub use overhead::Overhead;
pub use policy::{Contestant, plan};
pub use report::{Report, Row};
