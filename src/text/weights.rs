//! The weights of a layer, checked against the sizes that the config says.

use crate::checkpoint::StateDict;
use crate::{Error, Result};
use candle_core::{Device, Tensor, Var};
use candle_nn::Linear;
use std::cell::RefCell;
use std::rc::Rc;

/// Variables by name.
type Variables = Rc<RefCell<Vec<(String, Var)>>>;

/// The tensors under a name.
pub struct Weights {
    tensors: StateDict,
    /// Those that were read so far, where gradients are wanted of them.
    variables: Option<Variables>,
}

impl Weights {
    pub fn new(tensors: StateDict) -> Self {
        Self { tensors, variables: None }
    }

    /// What is read becomes variables.
    pub fn trainable(tensors: StateDict) -> Self {
        Self { tensors, variables: Some(Variables::default()) }
    }

    /// The variables that were read, by name.
    pub fn variables(&self) -> Vec<(String, Var)> {
        self.variables.as_ref().map_or_else(Vec::new, |variables| variables.borrow().clone())
    }

    /// Those of the part `name`.
    pub fn part(&self, name: &str) -> Self {
        Self { tensors: self.tensors.under(&format!("{name}.")), variables: self.variables.clone() }
    }

    /// A tensor.
    ///
    /// # Errors
    /// [`Error::Input`] with the file and the full name if it is not there, not of this shape, or not of finite floats.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let full = || format!("{}{name}", self.tensors.prefix());
        match self.tensors.shape(name) {
            Some(stored) if stored != shape => {
                let problem = format!("is {stored:?}, but of this config it is {shape:?}");
                return Err(Error::field(self.tensors.path(), &full(), problem));
            }
            _ => {}
        }
        let tensor = Tensor::from_vec(self.tensors.values([name])?.concat(), shape, &Device::Cpu)?;
        let Some(variables) = &self.variables else { return Ok(tensor) };
        let variable = Var::from_tensor(&tensor)?;
        variables.borrow_mut().push((full(), variable.clone()));
        Ok(variable.as_tensor().clone())
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
