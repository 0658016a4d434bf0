//! CLIP's two encoders, each with what is before and after its transformer. What they make has length 1.

use super::config::{Config, Vision};
use crate::Result as Checked;
use crate::text::TextEncoder;
use crate::text::transformer::Transformer;
use crate::text::weights::{Norm, Weights};
use candle_core::{D, Module, Result, Tensor};
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
    transformer: Transformer,
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
            transformer: Transformer::read(&model, config.vision.layers())?,
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
        let class = self.transformer.forward(&x, None)?.narrow(1, 0, 1)?.squeeze(1)?;
        normalised(&self.projection.forward(&self.after.forward(&class)?)?)
    }
}

/// The encoder of texts.
#[derive(Debug)]
pub struct TextTower {
    encoder: TextEncoder,
    projection: Linear,
}

impl TextTower {
    /// Reads the weights of a whole CLIP.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn read(weights: &Weights, config: &Config) -> Checked<Self> {
        Ok(Self {
            encoder: TextEncoder::read(&weights.part("text_model"), config.text)?,
            projection: weights.projection("text_projection", config.text.hidden_size, config.projection_dim)?,
        })
    }

    /// `[n, projection_dim]` of the ids of `n` texts, each of the full length: what is at the first `end`.
    pub fn forward(&self, ids: &[Vec<u32>], end: u32) -> Checked<Tensor> {
        let place = |ids: &Vec<u32>| ids.iter().position(|&id| id == end).expect("the tokenizer keeps the end");
        let places: Vec<usize> = ids.iter().map(place).collect();
        // No token is seen by one before it, so what follows the last end is left out.
        let length = places.iter().max().map_or(0, |last| last + 1);
        let ids: Vec<Vec<u32>> = ids.iter().map(|ids| ids[..length].to_vec()).collect();
        let hidden = self.encoder.hidden(&ids)?;
        let ends = places.iter().enumerate().map(|(text, &place)| hidden.get(text)?.get(place));
        let ends = ends.collect::<Result<Vec<_>>>()?;
        Ok(normalised(&self.projection.forward(&Tensor::stack(&ends, 0)?)?)?)
    }
}

/// Rows of length 1.
fn normalised(rows: &Tensor) -> Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}
