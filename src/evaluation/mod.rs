//! How good the subnets of a model are.

pub mod loss;
