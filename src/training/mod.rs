//! Data, losses, subnet sampling and the one-shot training loop.

pub mod autoencoder;
pub mod batch;
pub mod classification;
pub mod config;
pub mod data;
mod finetune;
pub mod flow;
#[cfg(test)]
mod goldens;
pub mod importance;
pub mod learner;
pub mod optimizer;
pub mod progress;
pub mod sampling;
pub mod state;
pub mod texts;
pub mod trainer;
