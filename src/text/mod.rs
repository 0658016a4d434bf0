//! Prompts, as the networks that read them take them.

pub(crate) mod config;
mod contexts;
mod encoder;
mod tokenizer;
pub(crate) mod transformer;
pub(crate) mod weights;

pub use config::Text as TextConfig;
pub use contexts::{Context, Contexts};
pub use encoder::{TextEncoder, named_as_today};
pub use tokenizer::Tokenizer;
