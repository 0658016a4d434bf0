//! Translation between our parameters and the public checkpoints.

use super::Model;
use crate::checkpoint::StateDict;
use crate::files::{listed, write_tensors};
use crate::supernet::{Param, Spec};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::HashSet;
use std::path::Path;

/// How the names of the constant buffers end that hold the filter of a resampling.
pub const RESAMPLE_FILTER: &str = ".resample_filter";

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

/// How many of the parameters of `spec` are among `tensors`, by name.
pub fn matches(spec: &Spec, tensors: &StateDict) -> usize {
    spec.params.iter().filter(|param| tensors.shape(&param.name).is_some()).count()
}

/// The parameters of `spec` of these tensors, which have the public names without what wraps them.
///
/// # Errors
/// One sentence with the file and all tensors that are missing, of another shape, or that the network does not have; or with
/// those that are no floats or not finite. The constant `resample_filter` buffers are passed over.
pub fn read(spec: &Spec, tensors: &StateDict) -> Result<Vec<Tensor>> {
    read_but(spec, tensors, |name| name.ends_with(RESAMPLE_FILTER))
}

/// As [`read`], but all tensors that the network does not have are passed over.
///
/// # Errors
/// As [`read`].
pub fn read_among(spec: &Spec, tensors: &StateDict) -> Result<Vec<Tensor>> {
    read_but(spec, tensors, |_| true)
}

fn read_but(spec: &Spec, tensors: &StateDict, is_passed_over: impl Fn(&str) -> bool) -> Result<Vec<Tensor>> {
    check_shapes(spec, tensors, is_passed_over)?;
    let values = tensors.values(spec.params.iter().map(|param| param.name.as_str()))?;
    let read = |(param, values): (&Param, _)| {
        from_public(param, &Tensor::from_vec(values, public_shape(param), &Device::Cpu)?)
    };
    spec.params.iter().zip(values).map(read).collect()
}

/// Refuses tensors that are neither those of `spec` nor passed over.
fn check_shapes(spec: &Spec, tensors: &StateDict, is_passed_over: impl Fn(&str) -> bool) -> Result<()> {
    let full = |name: &str| format!("{}{name}", tensors.prefix());
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    for param in &spec.params {
        let wanted = public_shape(param);
        match tensors.shape(&param.name) {
            None => missing.push(full(&param.name)),
            Some(shape) if shape != wanted => {
                misshapen.push(format!("{} {shape:?}, not {wanted:?}", full(&param.name)))
            }
            Some(_) => {}
        }
    }
    let known: HashSet<&str> = spec.params.iter().map(|param| param.name.as_str()).collect();
    let is_surplus = |name: &&str| !known.contains(name) && !is_passed_over(name);
    let surplus: Vec<String> = tensors.names().filter(is_surplus).map(full).collect();
    let kinds = [
        ("lacks {} of the network", missing),
        ("has {} of another shape", misshapen),
        ("has {} that the network does not have", surplus),
    ];
    let says = |(what, names): (&str, Vec<String>)| {
        let count = if names.len() == 1 { "1 tensor".to_owned() } else { format!("{} tensors", names.len()) };
        (!names.is_empty()).then(|| format!("{}: {}", what.replace("{}", &count), listed(&names)))
    };
    let problems: Vec<String> = kinds.into_iter().filter_map(says).collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::input(tensors.path().display(), problems.join("; "))) }
}

/// Writes a model's weights under the public names, in f32, with the channels of every pipe in their original order. Public code
/// derives the resampling filters from its own config.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::NotFinite`] for weights that are not.
pub fn write(model: &Model, path: &Path) -> Result<()> {
    let prefix = model.card.backbone.arch().prefix();
    let params = model.network.spec().params.iter().zip(model.in_original_order()?);
    let tensors = params.map(|(param, tensor)| Ok((format!("{prefix}{}", param.name), to_public(param, &tensor)?)));
    write_tensors(path, tensors.collect::<Result<Vec<_>>>()?, None)
}
