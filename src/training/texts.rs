//! An encoder of texts that is trained along with the denoiser that reads what it makes.

use super::optimizer::Slot;
use super::state::Weight;
use crate::nets::Model;
use crate::text::TextEncoder;
use crate::{Error, Result};
use candle_core::{Device, Tensor, Var};
use std::collections::BTreeMap;

/// What stands before the names of its weights in the state of a run.
const PREFIX: &str = "text_encoder.";

/// An encoder of texts on candle's graph, which knows the captions of a run. Its weights are those of slots ([`super::state::State::beside`]).
pub struct TrainedTexts {
    encoder: TextEncoder,
    /// By name, in the order of the slots.
    weights: Vec<(String, Var)>,
    /// The ids of the captions by label, and of the empty one.
    ids: Vec<Vec<u32>>,
    nothing: Vec<u32>,
}

impl TrainedTexts {
    /// That of a model, for these captions.
    ///
    /// # Errors
    /// [`Error::Input`] for a model that draws no texts; as [`Model::texts`] and [`TextEncoder::ids_of`].
    pub fn new(model: &Model, captions: &[String]) -> Result<Self> {
        let Some((encoder, weights, tokenizer)) = model.trainable_texts()? else {
            return Err(Error::input("text_encoder", "there is none to train: the model draws no texts"));
        };
        let ids = |caption: &str| Ok(encoder.ids_of(&tokenizer, caption)?.0);
        let nothing = ids("")?;
        let ids = captions.iter().map(|caption| ids(caption)).collect::<Result<_>>()?;
        Ok(Self { encoder, weights, ids, nothing })
    }

    /// Its weights as a state begins with them.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    pub fn initial(&self) -> Result<Vec<Weight>> {
        let weight = |(name, var): &(String, Var)| {
            let (name, shape) = (format!("{PREFIX}{name}"), var.dims().to_vec());
            Ok(Weight { name, shape, values: var.flatten_all()?.to_vec1::<f32>()? })
        };
        self.weights.iter().map(weight).collect()
    }

    /// The hidden states of the captions of these labels, `[B, tokens, channels]`, on the weights of `slots`.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    pub fn hidden(&self, labels: &[Option<usize>], slots: &[Slot]) -> Result<Tensor> {
        for ((_, var), slot) in self.weights.iter().zip(slots) {
            var.set(&Tensor::from_slice(&slot.value, var.dims(), &Device::Cpu)?)?;
        }
        let ids = |label: &Option<usize>| label.map_or(&self.nothing, |label| &self.ids[label]).clone();
        self.encoder.hidden(&labels.iter().map(ids).collect::<Vec<_>>())
    }

    /// The gradient of every weight, in the order of the slots, where that of what [`Self::hidden`] made is this.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    pub fn gradients(&self, hidden: &Tensor, of_hidden: Option<&[f32]>) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(of_hidden) = of_hidden else { return Ok(vec![None; self.weights.len()]) };
        // The gradient of the sum of products with constants are the constants.
        let constants = Tensor::from_slice(of_hidden, hidden.dims(), &Device::Cpu)?;
        let found = (hidden * constants)?.sum_all()?.backward()?;
        let gradient = |(_, var): &(String, Var)| {
            found.get(var.as_tensor()).map(|gradient| Ok(gradient.flatten_all()?.to_vec1::<f32>()?)).transpose()
        };
        self.weights.iter().map(gradient).collect()
    }

    /// The averages of `slots` by the names of the weights.
    pub fn averages(&self, slots: &[Slot]) -> BTreeMap<String, Vec<f32>> {
        self.weights.iter().zip(slots).map(|((name, _), slot)| (name.clone(), slot.average.clone())).collect()
    }
}
