//! CLIP's two encoders, each with what is before and after its transformer. What they make has length 1.

use super::config::{Config, Text, Vision};
use super::encoder::Encoder;
use super::weights::{Norm, Weights};
use crate::Result as Checked;
use candle_core::{D, Device, Module, Result, Tensor};
use candle_nn::Linear;

/// The encoder of images.
#[derive(Debug)]
pub struct ImageTower {
    /// `[width, 3, patch, patch]`
    patches: Tensor,
    /// `[1, 1, width]`
    class: Tensor,
    /// `[1 + patches, width]`
    positions: Tensor,
    before: Norm,
    encoder: Encoder,
    after: Norm,
    projection: Linear,
}

impl ImageTower {
    /// Reads the weights of a whole CLIP.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn read(weights: &Weights, config: &Config) -> Checked<Self> {
        let Vision { hidden_size: width, layer_norm_eps: eps, patch_size: patch, image_size, .. } = config.vision;
        let model = weights.part("vision_model");
        let embeddings = model.part("embeddings");
        let count = 1 + (image_size / patch).pow(2);
        Ok(Self {
            patches: embeddings.tensor("patch_embedding.weight", &[width, 3, patch, patch])?,
            class: embeddings.tensor("class_embedding", &[width])?.reshape((1, 1, width))?,
            positions: embeddings.tensor("position_embedding.weight", &[count, width])?,
            // As it is spelled.
            before: model.norm("pre_layrnorm", width, eps)?,
            encoder: Encoder::read(&model, config.vision.layers())?,
            after: model.norm("post_layernorm", width, eps)?,
            projection: weights.projection("visual_projection", width, config.projection_dim)?,
        })
    }

    /// `[n, projection_dim]` of pixels `[n, 3, image_size, image_size]`.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let patches = pixels.conv2d(&self.patches, 0, self.patches.dim(3)?, 1, 1)?.flatten_from(2)?.transpose(1, 2)?;
        let (batch, _, width) = patches.dims3()?;
        let tokens = Tensor::cat(&[&self.class.expand((batch, 1, width))?, &patches], 1)?;
        let x = self.before.forward(&tokens.broadcast_add(&self.positions)?)?;
        let class = self.encoder.forward(&x, None)?.narrow(1, 0, 1)?.squeeze(1)?;
        normalised(&self.projection.forward(&self.after.forward(&class)?)?)
    }
}

/// The encoder of texts.
#[derive(Debug)]
pub struct TextTower {
    /// `[ids, width]`
    tokens: Tensor,
    /// `[length, width]`
    positions: Tensor,
    /// `[length, length]`: minus infinity where a key comes after the query.
    causal: Tensor,
    encoder: Encoder,
    after: Norm,
    projection: Linear,
}

impl TextTower {
    /// Reads the weights of a whole CLIP.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn read(weights: &Weights, config: &Config) -> Checked<Self> {
        let Text { hidden_size: width, vocab_size, max_position_embeddings: length, .. } = config.text;
        let model = weights.part("text_model");
        let embeddings = model.part("embeddings");
        let tokens = embeddings.tensor("token_embedding.weight", &[vocab_size, width])?;
        let positions = embeddings.tensor("position_embedding.weight", &[length, width])?;
        let later = |query: usize| (0..length).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 });
        let causal: Vec<f32> = (0..length).flat_map(later).collect();
        Ok(Self {
            tokens,
            positions,
            causal: Tensor::from_vec(causal, (length, length), &Device::Cpu)?,
            encoder: Encoder::read(&model, config.text.layers())?,
            after: model.norm("final_layer_norm", width, config.text.layer_norm_eps)?,
            projection: weights.projection("text_projection", width, config.projection_dim)?,
        })
    }

    /// `[n, projection_dim]` of the ids of `n` texts, each of the full length: what is at the first `end`.
    pub fn forward(&self, ids: &[Vec<u32>], end: u32) -> Result<Tensor> {
        let place = |ids: &Vec<u32>| ids.iter().position(|&id| id == end).expect("the tokenizer keeps the end");
        let places: Vec<usize> = ids.iter().map(place).collect();
        // No token is seen by one before it, so what follows the last end is left out.
        let length = places.iter().max().map_or(0, |last| last + 1);
        let flat: Vec<u32> = ids.iter().flat_map(|ids| &ids[..length]).copied().collect();
        let flat = Tensor::from_vec(flat, ids.len() * length, &Device::Cpu)?;
        let tokens = self.tokens.index_select(&flat, 0)?.reshape((ids.len(), length, ()))?;
        let tokens = tokens.broadcast_add(&self.positions.narrow(0, 0, length)?)?;
        let causal = self.causal.narrow(0, 0, length)?.narrow(1, 0, length)?;
        let x = self.encoder.forward(&tokens, Some(&causal))?;
        let ends =
            places.iter().enumerate().map(|(text, &place)| x.get(text)?.get(place)).collect::<Result<Vec<_>>>()?;
        normalised(&self.projection.forward(&self.after.forward(&Tensor::stack(&ends, 0)?)?)?)
    }
}

/// Rows of length 1.
fn normalised(rows: &Tensor) -> Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}
