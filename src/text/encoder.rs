//! CLIP's encoder of texts (Radford et al. 2021), whose hidden states Stable Diffusion reads.

use super::Tokenizer;
use super::config::Text;
use super::transformer::Transformer;
use super::weights::{Norm, Weights};
use crate::checkpoint;
use crate::files::read_json;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::path::Path;

/// What stood before every name until transformers 5.
const PREFIX: &str = "text_model";

/// An encoder of texts, without a tokenizer, on the CPU.
#[derive(Debug)]
pub struct TextEncoder {
    /// `[ids, width]`
    tokens: Tensor,
    /// `[length, width]`
    positions: Tensor,
    /// `[length, length]`: minus infinity where a key comes after the query.
    causal: Tensor,
    transformer: Transformer,
    after: Norm,
}

impl TextEncoder {
    /// Reads `config.json` and `model.safetensors` of the directory of a text encoder as transformers writes it.
    ///
    /// # Errors
    /// [`Error::Input`] with the file and the field or the weight that is missing or does not fit; [`Error::Io`] if a file cannot be
    /// read.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let config: Text = read_json(&path)?;
        config.layers().check().map_err(|problem| Error::input(path.display(), problem))?;
        let parts = checkpoint::open(&dir.join("model.safetensors"))?.parts;
        let whole = Weights::new(parts[0].tensors.under(""));
        let part = whole.part(PREFIX);
        Self::read(if part.is_empty() { &whole } else { &part }, config)
    }

    /// Reads the weights of the model of texts.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub(crate) fn read(weights: &Weights, config: Text) -> Result<Self> {
        let Text { hidden_size: width, vocab_size, max_position_embeddings: length, .. } = config;
        let embeddings = weights.part("embeddings");
        let tokens = embeddings.tensor("token_embedding.weight", &[vocab_size, width])?;
        let positions = embeddings.tensor("position_embedding.weight", &[length, width])?;
        let later = |query: usize| (0..length).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 });
        let causal: Vec<f32> = (0..length).flat_map(later).collect();
        Ok(Self {
            tokens,
            positions,
            causal: Tensor::from_vec(causal, (length, length), &Device::Cpu)?,
            transformer: Transformer::read(weights, config.layers())?,
            after: weights.norm("final_layer_norm", width, config.layer_norm_eps)?,
        })
    }

    /// Tokens of a text, at most.
    pub fn length(&self) -> usize {
        self.positions.dims()[0]
    }

    /// Ids that it knows.
    pub fn ids(&self) -> usize {
        self.tokens.dims()[0]
    }

    /// The last hidden states of the ids of texts, which have as many each: `[texts, tokens, width]`. No token sees one after it.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault, or for an id that it does not know.
    pub fn hidden(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let length = ids.first().map_or(0, Vec::len);
        let flat = Tensor::from_vec(ids.concat(), ids.len() * length, &Device::Cpu)?;
        let tokens = self.tokens.index_select(&flat, 0)?.reshape((ids.len(), length, ()))?;
        let tokens = tokens.broadcast_add(&self.positions.narrow(0, 0, length)?)?;
        let causal = self.causal.narrow(0, 0, length)?.narrow(1, 0, length)?;
        Ok(self.after.forward(&self.transformer.forward(&tokens, Some(&causal))?)?)
    }

    /// The last hidden states of prompts, each of the full length: `[prompts, length, width]`; and whether each had to be cut.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`] and [`Self::hidden`].
    pub fn contexts(&self, tokenizer: &Tokenizer, prompts: &[&str]) -> Result<(Tensor, Vec<bool>)> {
        let mut ids = Vec::with_capacity(prompts.len());
        let mut cut = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            // One more than it takes shows whether there are more.
            let mut more = tokenizer.encode(prompt, self.length() + 1)?;
            more.truncate(self.length());
            let last = more.last_mut().expect("a text has an end");
            cut.push(std::mem::replace(last, tokenizer.end()) != tokenizer.end());
            ids.push(more);
        }
        Ok((self.hidden(&ids)?, cut))
    }
}
