//! What the encoder of texts makes of prompts, kept for those that come again.

use super::{TextEncoder, Tokenizer};
use crate::Result;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Prompts that are kept; each takes some hundred kilobytes.
const KEPT: usize = 256;

/// What an encoder makes of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Context {
    /// `[tokens, channels]`.
    pub values: Arc<[f32]>,
    /// Whether the prompt was longer than what the encoder reads, which is then its beginning.
    pub is_cut: bool,
}

/// An encoder of prompts with a memory. Prompts are never logged.
pub struct Contexts {
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    kept: Mutex<Kept>,
}

/// The contexts of the prompts that were asked for last, each with the time of that.
#[derive(Default)]
struct Kept {
    time: u64,
    contexts: HashMap<String, (u64, Context)>,
}

impl std::fmt::Debug for Contexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contexts").finish_non_exhaustive()
    }
}

impl Contexts {
    /// With an empty memory.
    pub fn new(encoder: TextEncoder, tokenizer: Tokenizer) -> Self {
        Self { encoder, tokenizer, kept: Mutex::default() }
    }

    /// Encodes a prompt, which takes its time where it is new.
    ///
    /// # Errors
    /// As [`TextEncoder::contexts`].
    pub fn of(&self, prompt: &str) -> Result<Context> {
        if let Some(context) = self.kept().recall(prompt) {
            return Ok(context);
        }
        let (hidden, cut) = self.encoder.contexts(&self.tokenizer, &[prompt])?;
        let context = Context { values: hidden.flatten_all()?.to_vec1::<f32>()?.into(), is_cut: cut[0] };
        self.kept().keep(prompt, context.clone());
        Ok(context)
    }

    /// What is kept is replaced whole, so it is sound even if a holder panicked.
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn recall(&mut self, prompt: &str) -> Option<Context> {
        self.time += 1;
        let (time, context) = self.contexts.get_mut(prompt)?;
        *time = self.time;
        Some(context.clone())
    }

    fn keep(&mut self, prompt: &str, context: Context) {
        if self.contexts.len() >= KEPT {
            let oldest = self.contexts.iter().min_by_key(|(_, (time, _))| *time).map(|(prompt, _)| prompt.clone());
            oldest.map(|prompt| self.contexts.remove(&prompt));
        }
        self.contexts.insert(prompt.to_owned(), (self.time, context));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_that_was_asked_for_longest_ago_is_forgotten_first() {
        let mut kept = Kept::default();
        let context = |value: usize| Context { values: [value as f32].into(), is_cut: false };
        for prompt in 0..KEPT {
            assert_eq!(kept.recall(&prompt.to_string()), None);
            kept.keep(&prompt.to_string(), context(prompt));
        }
        assert_eq!(kept.recall("0"), Some(context(0)));
        kept.keep("new", context(7));
        assert_eq!(kept.contexts.len(), KEPT);
        assert_eq!(
            (kept.recall("1"), kept.recall("0"), kept.recall("new")),
            (None, Some(context(0)), Some(context(7)))
        );
    }
}
