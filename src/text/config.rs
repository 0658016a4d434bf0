//! The size of a transformer of CLIP's, as `config.json` says it. What that leaves out is as in transformers, which does not write what
//! is as it always is.

use serde::{Deserialize, Serialize};

/// The encoder of texts, in the file's words.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Text {
    /// Channels of a token.
    pub hidden_size: usize,
    /// Neurons of an MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads of attention.
    pub num_attention_heads: usize,
    /// The activation of an MLP.
    pub hidden_act: Act,
    /// Added to the variance in every norm.
    pub layer_norm_eps: f64,
    /// Ids of tokens.
    pub vocab_size: usize,
    /// Tokens of a text.
    pub max_position_embeddings: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            hidden_act: Act::QuickGelu,
            layer_norm_eps: 1e-5,
            vocab_size: 49408,
            max_position_embeddings: 77,
        }
    }
}

/// An activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// `x Phi(x)`, with the normal distribution's Phi.
    Gelu,
}

/// The size of a transformer, which both encoders have.
#[derive(Clone, Copy, Debug)]
pub struct Layers {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub hidden_act: Act,
    pub layer_norm_eps: f64,
}

impl Layers {
    /// What does not fit.
    pub fn check(&self) -> std::result::Result<(), String> {
        let Self { hidden_size, num_attention_heads, .. } = *self;
        match num_attention_heads == 0 || hidden_size == 0 || hidden_size % num_attention_heads != 0 {
            true => Err(format!("hidden_size {hidden_size} does not split into {num_attention_heads} heads")),
            false => Ok(()),
        }
    }
}

impl Text {
    /// The size of its transformer.
    pub fn layers(&self) -> Layers {
        Layers {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        }
    }
}
