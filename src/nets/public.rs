//! Translation between our parameters and the public checkpoints (NVlabs/edm names and layouts).

use crate::files::{parse_tensors, write_tensors};
use crate::supernet::checkpoint::read_f32;
use crate::supernet::{Param, Spec, spec::PublicLayout};
use crate::{Error, Result};
use candle_core::Tensor;
use std::path::Path;

/// The prefix that EDM's preconditioning wrapper puts before every name.
const PREFIX: &str = "model.";

/// The shape of `param` in the public layout.
fn public_shape(param: &Param) -> Vec<usize> {
    let s = &param.shape;
    match param.public {
        PublicLayout::Vector => s.clone(),
        PublicLayout::Linear => vec![s[1], s[0]],
        PublicLayout::Conv => vec![s[3], s[2], s[0], s[1]],
        PublicLayout::Qkv => vec![s[1] * s[2] * s[3], s[0], 1, 1],
        PublicLayout::QkvBias => vec![s.iter().product()],
        PublicLayout::AttnOut => vec![s[2], s[0] * s[1], 1, 1],
    }
}

/// A public tensor in our layout.
fn from_public(param: &Param, tensor: &Tensor) -> Result<Tensor> {
    let s = &param.shape;
    let ours = match param.public {
        PublicLayout::Vector => tensor.clone(),
        PublicLayout::Linear => tensor.t()?,
        PublicLayout::Conv => tensor.permute((2, 3, 1, 0))?,
        PublicLayout::Qkv => tensor.reshape((s[2], s[3], s[1], s[0]))?.permute((3, 2, 0, 1))?,
        PublicLayout::QkvBias => tensor.reshape((s[1], s[2], s[0]))?.permute((2, 0, 1))?,
        PublicLayout::AttnOut => tensor.reshape((s[2], s[0], s[1]))?.permute((1, 2, 0))?,
    };
    Ok(ours.contiguous()?)
}

/// Our tensor in the public layout.
fn to_public(param: &Param, tensor: &Tensor) -> Result<Tensor> {
    let public = match param.public {
        PublicLayout::Vector => tensor.clone(),
        PublicLayout::Linear => tensor.t()?,
        PublicLayout::Conv => tensor.permute((3, 2, 0, 1))?,
        PublicLayout::Qkv => tensor.permute((2, 3, 1, 0))?,
        PublicLayout::QkvBias => tensor.permute((1, 2, 0))?,
        PublicLayout::AttnOut => tensor.permute((2, 0, 1))?,
    };
    Ok(public.contiguous()?.reshape(public_shape(param))?)
}

/// Reads a public checkpoint as the parameters of `spec`.
///
/// # Errors
/// One sentence with the file and the tensor that is missing, of another shape, or that the network does not have. The
/// constant `resample_filter` buffers are passed over.
pub fn read(spec: &Spec, path: &Path) -> Result<Vec<Tensor>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = parse_tensors(path, &bytes)?;
    let mut params = Vec::with_capacity(spec.params.len());
    for param in &spec.params {
        let name = format!("{PREFIX}{}", param.name);
        let view = file.tensor(&name).or_else(|_| file.tensor(&param.name));
        let view = view.map_err(|_| Error::field(path, &name, "tensor is missing"))?;
        if view.shape() != public_shape(param) {
            let problem = format!("shape {:?} is not {:?}", view.shape(), public_shape(param));
            return Err(Error::field(path, &name, problem));
        }
        params.push(from_public(param, &read_f32(path, &name, &view)?)?);
    }
    let foreign = file.names().into_iter().find(|name| {
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        !short.ends_with(".resample_filter") && !spec.params.iter().any(|param| param.name == short)
    });
    match foreign {
        Some(name) => Err(Error::field(path, name, "tensor does not belong to the network of the config")),
        None => Ok(params),
    }
}

/// Writes `params` under the public names, in f32. Public code derives the resampling filters from its own config.
pub fn write(spec: &Spec, params: &[Tensor], path: &Path) -> Result<()> {
    let mut tensors = Vec::with_capacity(params.len());
    for (param, tensor) in spec.params.iter().zip(params) {
        tensors.push((format!("{PREFIX}{}", param.name), to_public(param, tensor)?));
    }
    write_tensors(path, tensors, None)
}
