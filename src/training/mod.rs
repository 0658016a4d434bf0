//! Data, losses, subnet sampling and the one-shot training loop.

pub mod autoencoder;
pub mod batch;
pub mod classification;
pub mod config;
pub mod data;
pub mod decoder;
pub mod denoising;
mod finetune;
pub mod flow;
#[cfg(test)]
mod goldens;
pub mod importance;
pub mod learner;
pub mod optimizer;
pub mod progress;
pub mod sampling;
pub mod sitting;
pub mod state;
pub mod texts;
pub mod trainer;
