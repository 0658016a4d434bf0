//! Prompts, as the networks that read them take them.

mod tokenizer;

pub use tokenizer::Tokenizer;
