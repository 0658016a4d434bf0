//! The weights of a layer, checked against the sizes that the config says.

use crate::checkpoint::StateDict;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use candle_nn::Linear;

/// The tensors under a name.
pub struct Weights(StateDict);

impl Weights {
    pub fn new(tensors: StateDict) -> Self {
        Self(tensors)
    }

    /// Those of the part `name`.
    pub fn part(&self, name: &str) -> Self {
        Self(self.0.under(&format!("{name}.")))
    }

    /// A tensor.
    ///
    /// # Errors
    /// [`Error::Input`] with the file and the full name if it is not there, not of this shape, or not of finite floats.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.0.shape(name) {
            Some(stored) if stored != shape => {
                let full = format!("{}{name}", self.0.prefix());
                Err(Error::field(self.0.path(), &full, format!("is {stored:?}, but of this config it is {shape:?}")))
            }
            _ => {
                let values = self.0.values([name])?.concat();
                Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
            }
        }
    }

    /// A linear layer without bias.
    pub fn projection(&self, name: &str, from: usize, to: usize) -> Result<Linear> {
        Ok(Linear::new(self.part(name).tensor("weight", &[to, from])?, None))
    }

    /// A linear layer.
    pub fn linear(&self, name: &str, from: usize, to: usize) -> Result<Linear> {
        let layer = self.part(name);
        Ok(Linear::new(layer.tensor("weight", &[to, from])?, Some(layer.tensor("bias", &[to])?)))
    }

    /// A layer norm.
    pub fn norm(&self, name: &str, width: usize, eps: f64) -> Result<Norm> {
        let layer = self.part(name);
        Ok(Norm { weight: layer.tensor("weight", &[width])?, bias: layer.tensor("bias", &[width])?, eps: eps as f32 })
    }
}

/// A layer norm over the last axis.
#[derive(Debug)]
pub struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Norm {
    /// Takes the variance about the mean, unlike `candle_nn::LayerNorm`, which takes the difference of two sums in f32.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::ops::layer_norm_slow(x, &self.weight, &self.bias, self.eps)
    }
}
