//! The transformer of both of CLIP's encoders, of texts and of images (Radford et al. 2021).

use super::config::{Act, Layers};
use super::weights::{Norm, Weights};
use crate::Result as Checked;
use candle_core::{D, Module, Result, Tensor};
use candle_nn::Linear;
use candle_nn::ops::{sigmoid, softmax};

/// Blocks of attention and an MLP, with the norms before each.
#[derive(Debug)]
pub struct Transformer {
    blocks: Vec<Block>,
    heads: usize,
    act: Act,
}

#[derive(Debug)]
struct Block {
    norm1: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl Transformer {
    /// Reads the weights.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn read(weights: &Weights, layers: Layers) -> Checked<Self> {
        let weights = weights.part("encoder.layers");
        let block = |index: usize| Block::read(&weights.part(&index.to_string()), layers);
        let blocks = (0..layers.num_hidden_layers).map(block).collect::<Checked<_>>()?;
        Ok(Self { blocks, heads: layers.num_attention_heads, act: layers.hidden_act })
    }

    /// `[n, tokens, width]` of the same. `mask` `[tokens, tokens]`, where there is one, is added to the scores of each query
    /// (rows) with each key (columns).
    pub fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let mut x = x.clone();
        for block in &self.blocks {
            x = (&x + block.attention(&block.norm1.forward(&x)?, self.heads, mask)?)?;
            x = (&x + block.mlp(&block.norm2.forward(&x)?, self.act)?)?;
        }
        Ok(x)
    }
}

impl Block {
    fn read(weights: &Weights, layers: Layers) -> Checked<Self> {
        let Layers { hidden_size: width, intermediate_size: inner, layer_norm_eps: eps, .. } = layers;
        let square = |name: &str| weights.part("self_attn").linear(name, width, width);
        let mlp = weights.part("mlp");
        Ok(Self {
            norm1: weights.norm("layer_norm1", width, eps)?,
            query: square("q_proj")?,
            key: square("k_proj")?,
            value: square("v_proj")?,
            output: square("out_proj")?,
            norm2: weights.norm("layer_norm2", width, eps)?,
            fc1: mlp.linear("fc1", width, inner)?,
            fc2: mlp.linear("fc2", inner, width)?,
        })
    }

    fn attention(&self, x: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let split = |layer: &Linear| {
            layer.forward(x)?.reshape((batch, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous()
        };
        let (query, key, value) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        let scale = ((width / heads) as f64).sqrt().recip();
        let scores = (query.matmul(&key.transpose(D::Minus2, D::Minus1)?)? * scale)?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        // Not `softmax_last_dim`, which has no gradient.
        let mixed = softmax(&scores, D::Minus1)?.matmul(&value)?;
        self.output.forward(&mixed.transpose(1, 2)?.reshape((batch, tokens, width))?)
    }

    fn mlp(&self, x: &Tensor, act: Act) -> Result<Tensor> {
        self.fc2.forward(&act.of(&self.fc1.forward(x)?)?)
    }
}

impl Act {
    fn of(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::QuickGelu => x * sigmoid(&(x * 1.702)?)?,
            Self::Gelu => x.gelu_erf(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn both_activations_are_as_defined() {
        let x = [-6f32, -1.5, -0.1, 0.0, 0.4, 1.0, 7.0];
        let gelu = |x: f64| x * 0.5 * (1.0 + libm::erf(x / 2f64.sqrt()));
        let quick = |x: f64| x / (1.0 + (-1.702 * x).exp());
        let of = |act: Act| act.of(&Tensor::new(&x, &Device::Cpu).unwrap()).unwrap().to_vec1::<f32>().unwrap();
        for ((&x, is_gelu), is_quick) in x.iter().zip(of(Act::Gelu)).zip(of(Act::QuickGelu)) {
            let x = f64::from(x);
            let error = [f64::from(is_gelu) - gelu(x), f64::from(is_quick) - quick(x)];
            assert!(error.iter().all(|error| error.abs() < 1e-6), "{x}: {error:?}");
        }
    }
}
