//! The state of a run on disk: everything that the next step depends on, so that resuming continues to the bit.

use super::optimizer::Slot;
use crate::files::{parse_metadata, parse_tensors, tensor, write_tensors};
use crate::supernet::{Order, Spec, Supernet};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// The stages of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum StageName {
    /// The full width from scratch.
    Full,
    /// All widths on shared weights.
    All,
    /// One subnet, as a network of its own.
    #[value(skip)]
    Finetune,
    /// The autoencoder.
    #[value(skip)]
    Vae,
    /// All widths of its decoder.
    #[value(skip)]
    Decoder,
}

impl StageName {
    /// The name used in files and flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::All => "all",
            Self::Finetune => "finetune",
            Self::Vae => "vae",
            Self::Decoder => "decoder",
        }
    }
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// The stage that is running.
    pub stage: StageName,
    /// Images that this stage has seen.
    pub seen: u64,
    /// Seconds that this stage has computed for, over all sittings.
    pub seconds: f64,
    /// Smoothed loss by subnet, for the progress line.
    pub losses: Vec<Option<f64>>,
}

impl Position {
    /// A step on so many more images has taken so long, with these losses by the index of their subnet.
    pub(super) fn advance(&mut self, images: usize, took: Duration, losses: impl IntoIterator<Item = (usize, f64)>) {
        self.seen += images as u64;
        self.seconds += took.as_secs_f64();
        for (index, loss) in losses {
            let smoothed = &mut self.losses[index];
            *smoothed = Some(smoothed.map_or(loss, |old| LOSS_SMOOTHING * old + (1.0 - LOSS_SMOOTHING) * loss));
        }
    }
}

/// A weight of what is trained beside a network.
pub struct Weight {
    /// Its name in the state.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values when training begins, row-major.
    pub values: Vec<f32>,
}

/// Parameters with their optimiser state, in the order of [`Spec::params`], and where the run stands.
pub struct State {
    /// Where the run stands.
    pub position: Position,
    /// Class names in the order of the labels that it was trained with; empty for an unconditional network.
    pub classes: Vec<String>,
    /// How channels are ordered.
    pub order: Order,
    /// By pipe: the original channel at each position.
    pub permutations: Vec<Vec<u32>>,
    /// What is trained beside the network: names and shapes.
    pub beside: Vec<(String, Vec<usize>)>,
    /// Every parameter of the network, and then of what is beside it.
    pub slots: Vec<Slot>,
}

/// Share of the old value in the smoothed losses of the progress line.
const LOSS_SMOOTHING: f64 = 0.99;
/// The f32 tensors of a slot, by the suffix that they have in the file.
const PARTS: [&str; 4] = ["value", "average", "m", "v"];

impl State {
    /// A stage that begins with the weights of `supernet`, whose labels are these classes.
    pub fn begin(stage: StageName, supernet: &Supernet, classes: &[String]) -> Result<Self> {
        let values = supernet.params.iter().map(|param| param.flatten_all()?.to_vec1::<f32>());
        let slots = values.map(|value| Ok(Slot::new(value?))).collect::<Result<_>>()?;
        let position = Position { stage, seen: 0, seconds: 0.0, losses: vec![] };
        let (classes, permutations) = (classes.to_vec(), supernet.permutations.clone());
        Ok(Self { position, classes, order: supernet.order, permutations, beside: Vec::new(), slots })
    }

    /// The same with more to train.
    pub fn with_beside(mut self, beside: Vec<Weight>) -> Self {
        for Weight { name, shape, values } in beside {
            self.beside.push((name, shape));
            self.slots.push(Slot::new(values));
        }
        self
    }

    /// What is trained beside the network, in the order of [`Self::beside`].
    pub fn beside(&self) -> &[Slot] {
        &self.slots[self.slots.len() - self.beside.len()..]
    }

    /// The weights as they are, or their average.
    pub fn supernet(&self, spec: &Spec, average: bool) -> Result<Supernet> {
        let mut params = Vec::with_capacity(spec.params.len());
        for (param, slot) in spec.params.iter().zip(&self.slots) {
            let values = if average { &slot.average } else { &slot.value };
            params.push(Tensor::from_slice(values, param.shape.as_slice(), &Device::Cpu)?);
        }
        Ok(Supernet { params, order: self.order, permutations: self.permutations.clone() })
    }

    /// Writes the file whole or not at all.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a value is not; the file that was there stays.
    pub fn write(&self, spec: &Spec, path: &Path) -> Result<()> {
        let refuse =
            |error: &dyn std::fmt::Display| Error::input(path.display(), format!("cannot be written: {error}"));
        let mut buffers = Vec::with_capacity(self.slots.len() * 5);
        for ((name, shape), slot) in named(spec, &self.beside).zip(&self.slots) {
            for (part, values) in PARTS.into_iter().zip([&slot.value, &slot.average, &slot.m, &slot.v]) {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                buffers.push((format!("{name}#{part}"), Dtype::F32, shape, bytes));
            }
            let bytes = slot.updates.iter().flat_map(|count| count.to_le_bytes()).collect();
            buffers.push((format!("{name}#updates"), Dtype::U32, shape, bytes));
        }
        let mut tensors = Vec::with_capacity(buffers.len());
        for (name, dtype, shape, bytes) in &buffers {
            tensors.push((name, TensorView::new(*dtype, shape.to_vec(), bytes).map_err(|error| refuse(&error))?));
        }
        let json = |value: serde_json::Result<String>| value.map_err(|error| refuse(&error));
        let metadata = HashMap::from([
            ("position".to_string(), json(serde_json::to_string(&self.position))?),
            ("classes".to_string(), json(serde_json::to_string(&self.classes))?),
            ("order".to_string(), json(serde_json::to_string(&self.order))?),
            ("beside".to_string(), json(serde_json::to_string(&self.beside))?),
            ("permutations".to_string(), json(serde_json::to_string(&self.permutations))?),
        ]);
        write_tensors(path, tensors, Some(metadata))
    }

    /// Reads a file that [`Self::write`] wrote for a network of this `spec`.
    ///
    /// # Errors
    /// One sentence with the file and the tensor or field that does not fit.
    pub fn read(spec: &Spec, path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let (file, metadata) = (parse_tensors(path, &bytes)?, parse_metadata(path, &bytes)?);
        fn field<T: serde::de::DeserializeOwned>(
            path: &Path,
            metadata: &HashMap<String, String>,
            name: &str,
        ) -> Result<T> {
            let text = metadata.get(name).ok_or_else(|| Error::field(path, name, "is missing"))?;
            serde_json::from_str(text).map_err(|error| Error::field(path, name, error))
        }
        let permutations: Vec<Vec<u32>> = field(path, &metadata, "permutations")?;
        if !permutations.iter().map(Vec::len).eq(spec.pipes.iter().map(|pipe| pipe.width)) {
            return Err(Error::field(path, "permutations", "do not fit the network of the config"));
        }
        let words = |name: &str, shape: &[usize], dtype: Dtype| {
            let view = tensor(path, &file, name)?;
            if view.shape() != shape || view.dtype() != dtype {
                let problem = format!("{:?} {:?} is not {dtype:?} {shape:?}", view.dtype(), view.shape());
                return Err(Error::field(path, name, problem));
            }
            let words =
                view.data().chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
            Ok(words.collect::<Vec<u32>>())
        };
        let beside: Vec<(String, Vec<usize>)> = field(path, &metadata, "beside")?;
        let mut slots = Vec::with_capacity(spec.params.len() + beside.len());
        for (name, shape) in named(spec, &beside) {
            let floats = |part: &str| -> Result<Vec<f32>> {
                let name = format!("{name}#{part}");
                let words = words(&name, shape, Dtype::F32)?;
                let values: Vec<f32> = words.into_iter().map(f32::from_bits).collect();
                match values.iter().all(|value| value.is_finite()) {
                    true => Ok(values),
                    false => {
                        Err(Error::field(path, &name, "has values that are not finite: the run diverged; begin anew"))
                    }
                }
            };
            slots.push(Slot {
                value: floats("value")?,
                average: floats("average")?,
                m: floats("m")?,
                v: floats("v")?,
                updates: words(&format!("{name}#updates"), shape, Dtype::U32)?,
            });
        }
        let (position, order) = (field(path, &metadata, "position")?, field(path, &metadata, "order")?);
        Ok(Self { position, classes: field(path, &metadata, "classes")?, order, permutations, beside, slots })
    }
}

/// The names and shapes of all that is trained, in the order of [`State::slots`].
fn named<'a>(spec: &'a Spec, beside: &'a [(String, Vec<usize>)]) -> impl Iterator<Item = (&'a str, &'a Vec<usize>)> {
    let of_network = spec.params.iter().map(|param| (param.name.as_str(), &param.shape));
    of_network.chain(beside.iter().map(|(name, shape)| (name.as_str(), shape)))
}
