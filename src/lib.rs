//! Accordion compresses a diffusion model once and serves it at every width.
//!
//! Rooms, and who may call whom: `server -> routing -> engine -> nets -> ops`; `diffusion` and `supernet` are tables and
//! pure functions that all of them know. See `docs/architecture.md`.

pub mod checkpoint;
pub mod classes;
pub mod cli;
pub mod console;
pub mod diffusion;
mod digits;
pub mod engine;
pub mod error;
pub mod evaluation;
pub mod features;
pub mod files;
mod image_shape;
mod labels;
pub mod loadtest;
pub mod nets;
pub mod ops;
pub mod philox;
pub mod picture;
pub mod routing;
pub mod server;
pub mod subnet_name;
pub mod supernet;
pub mod text;
pub mod training;

pub use error::{Error, Result};
pub use image_shape::{ImageShape, Size};
