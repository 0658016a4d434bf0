//! Translation between our parameters and the public checkpoints.

use super::Model;
use crate::checkpoint::StateDict;
use crate::files::{listed, write_tensors};
use crate::supernet::{Param, Spec};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// How the names of the constant buffers end that hold the filter of a resampling.
pub const RESAMPLE_FILTER: &str = ".resample_filter";

/// The names of the public tensors that `param` is made of.
fn names(param: &Param) -> impl Iterator<Item = &str> {
    let own = param.pieces.is_empty().then_some(param.name.as_str());
    own.into_iter().chain(param.pieces.iter().map(String::as_str))
}

/// The shape of each of those.
fn public_shape(param: &Param) -> Vec<usize> {
    param.public.0.iter().map(|axes| axes.iter().map(|&axis| param.shape[axis]).product()).collect()
}

/// The axis of `param` along which its pieces follow each other.
fn axis_of_pieces(param: &Param) -> usize {
    let order = param.public.0.concat();
    (0..param.shape.len()).find(|axis| !order.contains(axis)).expect("pieces follow each other along an axis")
}

/// Our axes in the order in which a public tensor runs over them; of a piece, which has one less, as it counts them.
fn order(param: &Param) -> Vec<usize> {
    let order = param.public.0.concat();
    if param.pieces.is_empty() {
        return order;
    }
    let pieces = axis_of_pieces(param);
    order.into_iter().map(|axis| axis - usize::from(axis > pieces)).collect()
}

/// Public tensors in our layout.
fn from_public(param: &Param, tensors: &[Tensor]) -> Result<Tensor> {
    let order = order(param);
    let split: Vec<usize> = param.public.0.concat().iter().map(|&axis| param.shape[axis]).collect();
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, &axis)| back[axis] = place);
    let piece = |tensor: &Tensor| tensor.reshape(split.as_slice())?.permute(back.as_slice())?.contiguous();
    let mut pieces = tensors.iter().map(piece).collect::<candle_core::Result<Vec<_>>>()?;
    match param.pieces.is_empty() {
        true => Ok(pieces.pop().expect("one tensor")),
        false => Ok(Tensor::stack(&pieces, axis_of_pieces(param))?.contiguous()?),
    }
}

/// Our tensor in the public layout, by name.
fn to_public<'a>(param: &'a Param, tensor: &Tensor) -> Result<Vec<(&'a str, Tensor)>> {
    let piece = |(index, name): (usize, &'a str)| {
        let piece = match param.pieces.is_empty() {
            true => tensor.clone(),
            false => tensor.get_on_dim(axis_of_pieces(param), index)?,
        };
        Ok((name, piece.permute(order(param))?.contiguous()?.reshape(public_shape(param))?))
    };
    names(param).enumerate().map(piece).collect()
}

/// How many of the parameters of `spec` are among `tensors`, by name.
pub fn matches(spec: &Spec, tensors: &StateDict) -> usize {
    spec.params.iter().filter(|param| names(param).all(|name| tensors.shape(name).is_some())).count()
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

/// The names of all public tensors of `spec`.
pub fn all_names(spec: &Spec) -> impl Iterator<Item = &str> {
    spec.params.iter().flat_map(names)
}

/// Whether [`read_among`] finds all tensors.
///
/// # Errors
/// As [`read`], of names and shapes.
pub fn check_among(spec: &Spec, tensors: &StateDict) -> Result<()> {
    check_shapes(spec, tensors, |_| true)
}

fn read_but(spec: &Spec, tensors: &StateDict, is_passed_over: impl Fn(&str) -> bool) -> Result<Vec<Tensor>> {
    check_shapes(spec, tensors, is_passed_over)?;
    let mut values = tensors.values(spec.params.iter().flat_map(names))?.into_iter();
    let mut read = |param: &Param| {
        let pieces = names(param).map(|_| values.next().expect("the values of every name"));
        let tensors = pieces.map(|values| Tensor::from_vec(values, public_shape(param), &Device::Cpu));
        from_public(param, &tensors.collect::<candle_core::Result<Vec<_>>>()?)
    };
    spec.params.iter().map(&mut read).collect()
}

/// Refuses tensors that are neither those of `spec` nor passed over.
fn check_shapes(spec: &Spec, tensors: &StateDict, is_passed_over: impl Fn(&str) -> bool) -> Result<()> {
    let full = |name: &str| format!("{}{name}", tensors.prefix());
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    for (param, name) in spec.params.iter().flat_map(|param| names(param).map(move |name| (param, name))) {
        let wanted = public_shape(param);
        match tensors.shape(name) {
            None => missing.push(full(name)),
            Some(shape) if shape != wanted => misshapen.push(format!("{} {shape:?}, not {wanted:?}", full(name))),
            Some(_) => {}
        }
    }
    let known: HashSet<&str> = spec.params.iter().flat_map(names).collect();
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

/// The values of [`named`] by name.
///
/// # Errors
/// As that.
pub fn values(spec: &Spec, params: &[Tensor]) -> Result<BTreeMap<String, Vec<f32>>> {
    let value = |(name, tensor): (String, Tensor)| Ok((name, tensor.flatten_all()?.to_vec1()?));
    named(spec, params)?.into_iter().map(value).collect()
}

/// Writes a model's weights under the public names, in f32, with the channels of every pipe in their original order. Public code
/// derives the resampling filters from its own config.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::NotFinite`] for weights that are not.
pub fn write(model: &Model, path: &Path) -> Result<()> {
    let prefix = model.card.backbone.arch().prefix();
    let tensors = named(model.network.spec(), &model.in_original_order()?)?.into_iter();
    let prefixed: Vec<_> = tensors.map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect();
    write_tensors(path, prefixed, None)
}

/// These parameters of `spec`, with the channels of every pipe in their original order, under their public names.
///
/// # Errors
/// [`Error::Tensor`] on a device fault.
pub fn named(spec: &Spec, params: &[Tensor]) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    for (param, tensor) in spec.params.iter().zip(params) {
        tensors.extend(to_public(param, tensor)?.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)));
    }
    Ok(tensors)
}
