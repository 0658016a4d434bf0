//! How good the subnets of a model are, and how fast.

mod candidates;
pub mod frontier;
pub mod latency;
pub mod loss;
pub mod profile;
pub mod quality;
pub mod survey;
pub mod switching;
