//! Data, losses, subnet sampling and the one-shot training loop.

pub mod data;
pub mod importance;
