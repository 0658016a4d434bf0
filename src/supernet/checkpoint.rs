//! The supernet's weights in memory and on disk.

use crate::files::{parse_metadata, parse_tensors, refuse_surplus, tensor, write_tensors};
use crate::supernet::{Param, Pipe, Spec};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Version of the checkpoint format, in the file's metadata.
const FORMAT: &str = "1";

/// How the channels of each pipe are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As imported or initialised: what a ranking starts from, not one to ask for.
    #[value(skip)]
    Original,
    /// By importance, whatever their GroupNorm group (the paper's); groups are re-formed over the kept channels.
    Global,
    /// By importance inside each GroupNorm group, one of every group in turn; membership never changes.
    WithinGroup,
}

impl Order {
    /// The name used in files and flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Global => "global",
            Self::WithinGroup => "within-group",
        }
    }
}

/// Full-width weights with the channels of each pipe in order, and where each channel came from.
#[derive(Clone, Debug)]
pub struct Supernet {
    /// f32 tensors in the order and shapes of [`Spec::params`].
    pub params: Vec<Tensor>,
    /// How the channels are ordered.
    pub order: Order,
    /// By pipe: the original channel at each position.
    pub permutations: Vec<Vec<u32>>,
}

impl Supernet {
    /// Weights in their original order.
    pub fn original(spec: &Spec, params: Vec<Tensor>) -> Self {
        let permutations = spec.pipes.iter().map(|pipe| (0..pipe.width as u32).collect()).collect();
        Self { params, order: Order::Original, permutations }
    }

    /// The elements of every parameter, row-major.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] on a device fault.
    pub fn values(&self) -> Result<Vec<Vec<f32>>> {
        let values = self.params.iter().map(|param| param.flatten_all()?.to_vec1());
        Ok(values.collect::<candle_core::Result<_>>()?)
    }

    /// The same network with the channels of pipe p reordered: position i takes what stands at `orders[p][i]` now.
    pub fn permuted(&self, spec: &Spec, orders: &[Vec<u32>], order: Order) -> Result<Self> {
        let mut params = Vec::with_capacity(self.params.len());
        for (param, tensor) in spec.params.iter().zip(&self.params) {
            let mut tensor = tensor.clone();
            for slice in &param.slices {
                let index = Tensor::new(orders[slice.pipe].as_slice(), &Device::Cpu)?;
                tensor = tensor.contiguous()?.index_select(&index, slice.axis)?;
            }
            params.push(tensor);
        }
        let permutations = self.permutations.iter().zip(orders);
        let permutations = permutations.map(|(old, new)| new.iter().map(|&i| old[i as usize]).collect()).collect();
        Ok(Self { params, order, permutations })
    }

    /// Writes the file whole or not at all, with weights in `dtype` (f32, f16 or bf16).
    pub fn write(&self, spec: &Spec, path: &Path, dtype: DType) -> Result<()> {
        let mut tensors = Vec::with_capacity(self.params.len());
        for (param, tensor) in spec.params.iter().zip(&self.params) {
            tensors.push((param.name.clone(), tensor.contiguous()?.to_dtype(dtype)?));
        }
        let mut metadata = HashMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("order".to_string(), self.order.as_str().to_string()),
        ]);
        for (pipe, permutation) in spec.pipes.iter().zip(&self.permutations) {
            let text = permutation.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            metadata.insert(format!("permutation.{}", pipe.name), text);
        }
        write_tensors(path, tensors, Some(metadata))
    }

    /// Reads a file that [`Self::write`] wrote for a network of this `spec`.
    ///
    /// # Errors
    /// One sentence with the file and the tensor or field that is missing, foreign, of another shape or damaged.
    pub fn read(spec: &Spec, path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let (file, metadata) = (parse_tensors(path, &bytes)?, parse_metadata(path, &bytes)?);
        match metadata.get("format").map(String::as_str) {
            Some(FORMAT) => {}
            Some(other) => return Err(Error::field(path, "format", format!("version {other} is not {FORMAT}"))),
            None => return Err(Error::field(path, "format", "is missing: not a supernet checkpoint")),
        }
        let order = match metadata.get("order").map(String::as_str) {
            Some("original") => Order::Original,
            Some("global") => Order::Global,
            Some("within-group") => Order::WithinGroup,
            other => {
                let problem = format!("{other:?} is none of original, global, within-group");
                return Err(Error::field(path, "order", problem));
            }
        };
        let permutations =
            spec.pipes.iter().map(|pipe| read_permutation(path, &metadata, pipe)).collect::<Result<_>>()?;
        let params = read_params(spec, path, &file)?;
        let known: std::collections::HashSet<&str> = spec.params.iter().map(|param| param.name.as_str()).collect();
        refuse_surplus(path, &file, |name| known.contains(name), "the network of model.toml")?;
        Ok(Self { params, order, permutations })
    }
}

fn read_permutation(path: &Path, metadata: &HashMap<String, String>, pipe: &Pipe) -> Result<Vec<u32>> {
    let field = format!("permutation.{}", pipe.name);
    let text = metadata.get(&field).ok_or_else(|| Error::field(path, &field, "is missing"))?;
    let order: Vec<u32> = text.split(',').filter_map(|part| part.parse().ok()).collect();
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..pipe.width as u32) {
        return Err(Error::field(path, &field, format!("is not a permutation of 0..{}", pipe.width)));
    }
    Ok(order)
}

/// The parameters of a network of this `spec`, in its order, as f32 on the CPU.
///
/// # Errors
/// One sentence with the file and the tensor that is missing, of another shape or not finite.
pub fn read_params(spec: &Spec, path: &Path, file: &SafeTensors) -> Result<Vec<Tensor>> {
    let read = |param: &Param| {
        let view = tensor(path, file, &param.name)?;
        if view.shape() != param.shape {
            let problem = format!("shape {:?} is not {:?}", view.shape(), param.shape);
            return Err(Error::field(path, &param.name, problem));
        }
        read_f32(path, &param.name, &view)
    };
    spec.params.iter().map(read).collect()
}

/// The tensor of a file as f32 on the CPU; finite, or refused.
pub fn read_f32(path: &Path, name: &str, view: &safetensors::tensor::TensorView) -> Result<Tensor> {
    use safetensors::Dtype;
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F64 => DType::F64,
        other => return Err(Error::field(path, name, format!("dtype {other:?} is none of F64, F32, F16, BF16"))),
    };
    let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?.to_dtype(DType::F32)?;
    // After the conversion: a value of f64 may be too large for f32.
    if tensor.flatten_all()?.to_vec1::<f32>()?.iter().any(|value| !value.is_finite()) {
        return Err(Error::field(path, name, "has values that are not finite"));
    }
    Ok(tensor)
}
