//! Translation between our parameters and the public checkpoints (NVlabs/edm names and layouts).

use crate::files::{parse_tensors, refuse_surplus, tensor, write_tensors};
use crate::supernet::checkpoint::read_f32;
use crate::supernet::{Param, Spec};
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::HashSet;
use std::path::Path;

/// The prefix that EDM's preconditioning wrapper puts before every name.
const PREFIX: &str = "model.";

/// The shape of `param` in the public layout.
fn public_shape(param: &Param) -> Vec<usize> {
    param.public.0.iter().map(|axes| axes.iter().map(|&axis| param.shape[axis]).product()).collect()
}

/// A public tensor in our layout.
fn from_public(param: &Param, tensor: &Tensor) -> Result<Tensor> {
    let order: Vec<usize> = param.public.0.concat();
    let split: Vec<usize> = order.iter().map(|&axis| param.shape[axis]).collect();
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &axis)| back[axis] = place);
    Ok(tensor.reshape(split)?.permute(back)?.contiguous()?)
}

/// Our tensor in the public layout.
fn to_public(param: &Param, tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.permute(param.public.0.concat())?.contiguous()?.reshape(public_shape(param))?)
}

/// Reads a public checkpoint as the parameters of `spec`, whose names have `prefix` before them; without it, what
/// EDM's wrapper puts there, or nothing.
///
/// # Errors
/// One sentence with the file and the tensor that is missing, of another shape, there under both names where no `prefix`
/// says which is meant, or that the network does not have. The constant `resample_filter` buffers are passed over.
pub fn read(spec: &Spec, path: &Path, prefix: Option<&str>) -> Result<Vec<Tensor>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = parse_tensors(path, &bytes)?;
    let named = |prefix: &str, param: &Param| format!("{prefix}{}", param.name);
    let mut params = Vec::with_capacity(spec.params.len());
    for param in &spec.params {
        let (wrapped, bare) = (named(PREFIX, param), named("", param));
        let name = match (prefix, file.tensor(&wrapped).is_ok(), file.tensor(&bare).is_ok()) {
            (Some(prefix), ..) => named(prefix, param),
            (None, true, true) => {
                let problem = format!(
                    "is ambiguous: the file has {wrapped} too; say which with --prefix {PREFIX} or \
                                       --prefix ''"
                );
                return Err(Error::field(path, &bare, problem));
            }
            (None, false, true) => bare,
            (None, ..) => wrapped,
        };
        let view = tensor(path, &file, &name)?;
        if view.shape() != public_shape(param) {
            let problem = format!("shape {:?} is not {:?}", view.shape(), public_shape(param));
            return Err(Error::field(path, &name, problem));
        }
        params.push(from_public(param, &read_f32(path, &name, &view)?)?);
    }
    let known: HashSet<&str> = spec.params.iter().map(|param| param.name.as_str()).collect();
    let belongs = |name: &str| {
        let short = match prefix {
            // Who says which of two networks is meant knows of the other one.
            Some(prefix) if !name.starts_with(prefix) || prefix.is_empty() && name.starts_with(PREFIX) => return true,
            Some(prefix) => &name[prefix.len()..],
            None => name.strip_prefix(PREFIX).unwrap_or(name),
        };
        short.ends_with(".resample_filter") || known.contains(short)
    };
    refuse_surplus(path, &file, belongs, "the network of the config")?;
    Ok(params)
}

/// Writes `params` under the public names, in f32. Public code derives the resampling filters from its own config.
pub fn write(spec: &Spec, params: &[Tensor], path: &Path) -> Result<()> {
    let mut tensors = Vec::with_capacity(params.len());
    for (param, tensor) in spec.params.iter().zip(params) {
        tensors.push((format!("{PREFIX}{}", param.name), to_public(param, tensor)?));
    }
    write_tensors(path, tensors, None)
}
