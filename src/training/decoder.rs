//! A decoder ranked, and trained at all of its widths.

pub mod importance;
mod latents;
mod reconstruction;
mod run;

pub use latents::Latents;
pub use reconstruction::{Batch, Reconstruction};
