//! How the convolutions of a network are computed where memory is short.

use super::program::{Extent, Op, Product, Program};
use crate::ops::cpu::fused::method::{Filtering, Method};

/// The method of each layer of a program, whose weights shall take at most `limit` bytes together; of a layer that is no convolution of a
/// map it means nothing.
///
/// Winograd's transformed weights take up to four times the bytes of those of the definition. What they save grows with the pixels of
/// the map, so the largest maps get them first, and a layer for which too little is left is computed by the definition. Without a limit
/// the shape of a layer alone decides; with one its network and the limit do, but never a batch, a subnet or a measured time.
pub fn methods(program: &Program, limit: Option<usize>) -> Vec<Method> {
    let wanted: Vec<Option<Method>> = program.layers.iter().map(|layer| wanted(program, &layer.op)).collect();
    let mut methods: Vec<Method> = wanted.iter().map(|method| method.unwrap_or(Method::Direct)).collect();
    let Some(limit) = limit else { return methods };
    let mut left = limit.saturating_sub(by_definition(program));
    let product = |index: usize| match &program.layers[index].op {
        Op::Product(product) => product,
        _ => unreachable!("a convolution is a product"),
    };
    let mut places: Vec<usize> =
        (0..methods.len()).filter(|&index| matches!(wanted[index], Some(Method::Winograd(_)))).collect();
    // A stable sort: of equal maps the first.
    places.sort_by_key(|&index| std::cmp::Reverse(program.extent(&product(index).x).pixels()));
    for index in places {
        let Method::Winograd(filtering) = methods[index] else { continue };
        let more = more(program, product(index), filtering);
        if more <= left {
            left -= more;
        } else {
            methods[index] = Method::Direct;
        }
    }
    methods
}

/// The bytes that the weights of a program take without a limit.
pub fn unlimited(program: &Program) -> usize {
    let more = program.layers.iter().map(|layer| match (wanted(program, &layer.op), &layer.op) {
        (Some(Method::Winograd(filtering)), Op::Product(product)) => more(program, product, filtering),
        _ => 0,
    });
    by_definition(program) + more.sum::<usize>()
}

/// How a layer is computed where memory is no matter; `None` for one that is no convolution of a map.
fn wanted(program: &Program, op: &Op) -> Option<Method> {
    match op {
        Op::Product(product) if matches!(program.extent(&product.x), Extent::Map { .. }) => {
            Some(chosen(program, product))
        }
        _ => None,
    }
}

/// Bytes of the weights as the definition has them.
fn by_definition(program: &Program) -> usize {
    (0..program.spec.params.len()).map(|param| weight_bytes(program, param)).sum()
}

fn weight_bytes(program: &Program, param: usize) -> usize {
    4 * program.spec.params[param].shape.iter().product::<usize>()
}

/// Bytes that transformed weights of a layer take beyond those of the definition.
fn more(program: &Program, product: &Product, filtering: Filtering) -> usize {
    let own = weight_bytes(program, product.weight);
    let taps = filtering.kernel().iter().product::<usize>();
    own / taps * filtering.matrices() - own
}

fn chosen(program: &Program, product: &Product) -> Method {
    Method::of(product.places, program.width(&product.x), program.extent(&product.x).height())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageShape;
    use crate::nets::builder::{Builder, Draw};
    use crate::ops::cpu::conv::Places;
    use std::collections::BTreeMap;

    /// Three convolutions of 16 channels: on 16x16, on 8x8 and on 16x16 pixels, with a strided one before the second and the third read
    /// from the first.
    fn program() -> Program {
        let mut b = Builder::new(ImageShape { height: 16, width: 16, channels: 16 }, 0, BTreeMap::new());
        let image = b.image();
        let first = b.whole_conv("first", image, 16, Places::same([3, 3]), Draw::PYTORCH);
        let half = b.whole_conv("half", first, 16, Places::square(3, 2, 1), Draw::PYTORCH);
        b.whole_conv("small", half, 16, Places::same([3, 3]), Draw::PYTORCH);
        b.whole_conv("last", first, 16, Places::same([3, 3]), Draw::PYTORCH);
        b.build()
    }

    #[test]
    fn the_largest_maps_get_winograd_s_weights_while_they_fit() {
        let program = program();
        let (f4, f2) = (Method::Winograd(Filtering::F4), Method::Winograd(Filtering::F2));
        let direct = Method::Direct;
        let weights = 4 * 4 * (9 * 16 * 16 + 16);
        let matrix = 4 * 16 * 16;
        for (limit, wanted) in [
            (None, [f4, direct, f2, f4]),
            (Some(0), [direct; 4]),
            (Some(weights + 7 * matrix - 1), [direct; 4]),
            (Some(weights + 7 * matrix), [direct, direct, f2, direct]),
            (Some(weights + 27 * matrix), [f4, direct, direct, direct]),
            (Some(weights + (27 + 7) * matrix), [f4, direct, f2, direct]),
            (Some(weights + 2 * 27 * matrix), [f4, direct, direct, f4]),
            (Some(usize::MAX), [f4, direct, f2, f4]),
        ] {
            assert_eq!(methods(&program, limit), wanted, "{limit:?}");
        }
        assert_eq!(unlimited(&program), weights + (2 * 27 + 7) * matrix);
        assert_eq!(methods(&program, Some(unlimited(&program))), methods(&program, None));
    }
}
