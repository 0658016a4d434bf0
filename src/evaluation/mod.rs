//! How good the subnets of a model are, and how fast.

pub mod candidates;
pub mod drawing;
pub mod frontier;
pub mod kept_features;
pub mod latency;
pub mod loss;
pub mod profile;
pub mod prompted;
pub mod realism;
pub mod scores;
pub mod survey;
pub mod switching;
pub mod to_reference;
pub mod yardstick;
