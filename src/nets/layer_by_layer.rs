//! A network's weights for whoever packs them, a layer at a time: there are never two copies of more than those of one layer.

use super::program::{Layer, Op, ParamId, Program};
use crate::Result;
use crate::supernet::Supernet;
use candle_core::Tensor;
use std::collections::HashMap;

/// Shows `each` every layer with its index and the values of parameters by index: of the weights of products those of this layer alone,
/// the others are empty. Where nobody else holds the weights of `supernet`, a product's are gone after the last layer that reads them.
///
/// # Errors
/// [`crate::Error::Tensor`] on a device fault.
pub(super) fn layer_by_layer(
    program: &Program,
    supernet: Supernet,
    mut each: impl FnMut(usize, &Layer, &[Vec<f32>]),
) -> Result<()> {
    let product = |op: &Op| if let Op::Product(product) = op { Some(product.weight) } else { None };
    let last: HashMap<ParamId, usize> =
        program.layers.iter().enumerate().filter_map(|(index, layer)| Some((product(&layer.op)?, index))).collect();
    let mut params: Vec<Option<Tensor>> = supernet.params.into_iter().map(Some).collect();
    let values = |param: &Option<Tensor>| match param {
        Some(tensor) => tensor.flatten_all()?.to_vec1::<f32>(),
        None => Ok(Vec::new()),
    };
    let light = |(index, param): (ParamId, &Option<Tensor>)| match last.contains_key(&index) {
        true => Ok(Vec::new()),
        false => values(param),
    };
    let mut weights = params.iter().enumerate().map(light).collect::<candle_core::Result<Vec<_>>>()?;
    for (index, layer) in program.layers.iter().enumerate() {
        let weight = product(&layer.op);
        if let Some(weight) = weight {
            weights[weight] = values(&params[weight])?;
            params[weight].take_if(|_| last[&weight] == index);
        }
        each(index, layer, &weights);
        if let Some(weight) = weight {
            weights[weight] = Vec::new();
        }
    }
    Ok(())
}
