//! CLIP's encoder of texts (Radford et al. 2021), whose hidden states Stable Diffusion reads.

use super::Tokenizer;
use super::config::Text as TextConfig;
use super::transformer::Transformer;
use super::weights::{Norm, Weights};
use crate::checkpoint::StateDict;
use crate::{Error, Result};
use candle_core::{Device, Tensor, Var};

/// What stood before every name until transformers 5.
const PREFIX: &str = "text_model.";

/// The tensors of an encoder of texts under the names of transformers 5: without a prefix, and without the numbers of the positions.
pub fn named_as_today(tensors: &StateDict) -> StateDict {
    let older = tensors.under(PREFIX);
    let named = if older.is_empty() { tensors.clone() } else { older };
    named.without(|name| name == "embeddings.position_ids")
}

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
    /// Reads the encoder of this size from tensors with the names of transformers, of 5 or before.
    ///
    /// # Errors
    /// [`Error::Input`] with the file and the weight that is missing or does not fit, or with the field of `config` that does not fit
    /// the others.
    pub fn new(tensors: &StateDict, config: TextConfig) -> Result<Self> {
        config.layers().check().map_err(|problem| Error::input("text_encoder", problem))?;
        Self::read(&Weights::new(named_as_today(tensors)), config)
    }

    /// The same on weights that gradients are wanted of; and those, by name.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn trainable(tensors: &StateDict, config: TextConfig) -> Result<(Self, Vec<(String, Var)>)> {
        config.layers().check().map_err(|problem| Error::input("text_encoder", problem))?;
        let weights = Weights::trainable(named_as_today(tensors));
        let encoder = Self::read(&weights, config)?;
        Ok((encoder, weights.variables()))
    }

    /// Checks that the ids of this tokenizer are those of the encoder.
    ///
    /// # Errors
    /// [`Error::Input`] with the tokenizer's file.
    pub fn check_reads(&self, tokenizer: &Tokenizer) -> Result<()> {
        let (has, wanted) = (tokenizer.ids(), self.ids());
        if has == wanted {
            return Ok(());
        }
        let problem = format!("is of another vocabulary than the encoder of texts: it has {has} ids, not {wanted}");
        Err(Error::input(tokenizer.path().display(), problem))
    }

    /// Reads the weights of the model of texts.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub(crate) fn read(weights: &Weights, config: TextConfig) -> Result<Self> {
        let TextConfig { hidden_size: width, vocab_size, max_position_embeddings: length, .. } = config;
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
        let ids: Vec<(Vec<u32>, bool)> =
            prompts.iter().map(|prompt| self.ids_of(tokenizer, prompt)).collect::<Result<_>>()?;
        let (ids, cut): (Vec<_>, Vec<_>) = ids.into_iter().unzip();
        Ok((self.hidden(&ids)?, cut))
    }

    /// The ids of a prompt, of the full length; and whether it had to be cut.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn ids_of(&self, tokenizer: &Tokenizer, prompt: &str) -> Result<(Vec<u32>, bool)> {
        // One more than it takes shows whether there are more.
        let mut ids = tokenizer.encode(prompt, self.length() + 1)?;
        ids.truncate(self.length());
        let last = ids.last_mut().expect("a text has an end");
        let is_cut = std::mem::replace(last, tokenizer.end()) != tokenizer.end();
        Ok((ids, is_cut))
    }
}
