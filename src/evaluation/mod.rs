//! How good the subnets of a model are, and how fast.

pub mod latency;
pub mod loss;
pub mod profile;
pub mod switching;
