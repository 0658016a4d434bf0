//! Prompts, as the networks that read them take them.

pub(crate) mod config;
mod encoder;
mod tokenizer;
pub(crate) mod transformer;
pub(crate) mod weights;

pub use encoder::TextEncoder;
pub use tokenizer::Tokenizer;
