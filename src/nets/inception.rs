//! The InceptionV3 of the Frechet distance (Szegedy et al. 2015, Heusel et al. 2017): TensorFlow's network of
//! 2015-12-05, as pytorch-fid has it.
//!
//! It is not torchvision's InceptionV3: average pools inside the blocks do not count zeros around the map, and the last
//! block has a max pool in place of one.

use super::builder::{Builder, Draw, Weight};
use super::program::{Channels, Pool, Product, Program, ValueId, View};
use super::public;
use crate::checkpoint::StateDict;
use crate::ops::Act;
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::pool::Reduce;
use crate::supernet::spec::{Init, Param, Public};
use crate::supernet::{Spec, Supernet};
use crate::{ImageShape, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// Rows and columns of its input.
pub const SIDE: usize = 299;
/// Added to the variance by the batch norms.
const EPS: f64 = 1e-3;
/// What the names of a convolution's weight end with, which begin with the name of its layer.
const WEIGHT: &str = ".conv.weight";
/// The vectors beside that weight.
const VECTORS: [&str; 4] = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"];

/// Where features are taken: the means over the pixels of what a layer makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tap {
    /// The first max pool.
    Pool1,
    /// The second.
    Pool2,
    /// The last block of 17x17 pixels.
    Mixed6e,
    /// The last block: the features of the distance.
    Mixed7c,
}

impl Tap {
    /// How many features there are.
    pub fn dim(self) -> usize {
        match self {
            Self::Pool1 => 64,
            Self::Pool2 => 192,
            Self::Mixed6e => 768,
            Self::Mixed7c => 2048,
        }
    }
}

/// The network up to the features of `tap`: from images `[299, 299, 3]` in [-1, 1] to maps of one pixel. The batch norm
/// of each convolution is part of its weight and bias.
pub fn program(tap: Tap) -> Program {
    let image = ImageShape { height: SIDE, width: SIDE, channels: 3 };
    let mut net = Net(Builder::new(image, 0, BTreeMap::new()));
    let features = net.features(tap);
    net.pool("features", &features, Reduce::Mean, Places::new(net.size(&features), 1, [0, 0]));
    net.0.build()
}

/// The weights of a `program` of tensors under the names of pytorch-fid, which torchvision has too; those of others are
/// passed over.
///
/// # Errors
/// [`crate::Error::Input`] with the names of all tensors that are missing, of another shape, no floats or not finite.
pub fn weights(program: &Program, tensors: &StateDict) -> Result<Supernet> {
    let mut published = Spec::default();
    for param in program.spec.params.iter().filter(|param| param.name.ends_with(WEIGHT)) {
        let layer = param.name.trim_end_matches(WEIGHT);
        let vector = |name| Param {
            name: format!("{layer}.{name}"),
            shape: param.shape[3..].to_vec(),
            public: Public::vector(),
            init: Init::Constant(0.0),
            uses: 0,
            ..param.clone()
        };
        published.params.push(param.clone());
        published.params.extend(VECTORS.map(vector));
    }
    let mut params = Vec::new();
    for tensors in public::read_among(&published, tensors)?.chunks_exact(1 + VECTORS.len()) {
        params.extend(folded(tensors)?);
    }
    Ok(Supernet::original(&program.spec, params))
}

/// The weight and the bias of a convolution and of the batch norm on it: `(x * w - mean) / sqrt(var + eps) * scale +
/// shift`.
fn folded(tensors: &[Tensor]) -> Result<[Tensor; 2]> {
    let mut values = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        values.push(tensor.flatten_all()?.to_vec1::<f32>()?);
    }
    let at = |vector: usize, channel: usize| f64::from(values[vector][channel]);
    let channels = values[1].len();
    let factors: Vec<f64> = (0..channels).map(|channel| at(1, channel) / (at(4, channel) + EPS).sqrt()).collect();
    let scaled = values[0].iter().enumerate().map(|(i, &w)| (f64::from(w) * factors[i % channels]) as f32);
    let bias = factors.iter().enumerate().map(|(channel, factor)| (at(2, channel) - at(3, channel) * factor) as f32);
    let weight = Tensor::from_vec(scaled.collect::<Vec<_>>(), tensors[0].shape(), &Device::Cpu)?;
    Ok([weight, Tensor::from_vec(bias.collect::<Vec<_>>(), channels, &Device::Cpu)?])
}

/// The kernel of a pixel.
const PIXEL: Places = Places::square(1, 1, 0);
/// 3x3 kernels on every second pixel, without a border.
const HALF: Places = Places::square(3, 2, 0);

/// The network under way. What a block makes is values side by side.
struct Net(Builder);

impl Net {
    fn features(&mut self, tap: Tap) -> Vec<ValueId> {
        let image = [self.0.image()];
        let x = self.conv("Conv2d_1a_3x3", &image, 32, HALF);
        let x = self.conv("Conv2d_2a_3x3", &x, 32, Places::square(3, 1, 0));
        let x = self.conv("Conv2d_2b_3x3", &x, 64, Places::same([3, 3]));
        let x = self.pool("maxpool1", &x, Reduce::Max, HALF);
        if tap == Tap::Pool1 {
            return x;
        }
        let x = self.conv("Conv2d_3b_1x1", &x, 80, PIXEL);
        let x = self.conv("Conv2d_4a_3x3", &x, 192, Places::square(3, 1, 0));
        let x = self.pool("maxpool2", &x, Reduce::Max, HALF);
        if tap == Tap::Pool2 {
            return x;
        }
        let x = self.block_35("Mixed_5b", &x, 32);
        let x = self.block_35("Mixed_5c", &x, 64);
        let x = self.block_35("Mixed_5d", &x, 64);
        let x = self.block_35_to_17("Mixed_6a", &x);
        let x = self.block_17("Mixed_6b", &x, 128);
        let x = self.block_17("Mixed_6c", &x, 160);
        let x = self.block_17("Mixed_6d", &x, 160);
        let x = self.block_17("Mixed_6e", &x, 192);
        if tap == Tap::Mixed6e {
            return x;
        }
        let x = self.block_17_to_8("Mixed_7a", &x);
        let x = self.block_8("Mixed_7b", &x, Reduce::Mean);
        self.block_8("Mixed_7c", &x, Reduce::Max)
    }

    /// A block on 35x35 pixels.
    fn block_35(&mut self, name: &str, x: &[ValueId], pooled: usize) -> Vec<ValueId> {
        let n = |branch: &str| format!("{name}.{branch}");
        let one = self.conv(&n("branch1x1"), x, 64, PIXEL);
        let five = self.conv(&n("branch5x5_1"), x, 48, PIXEL);
        let five = self.conv(&n("branch5x5_2"), &five, 64, Places::same([5, 5]));
        let three = self.conv(&n("branch3x3dbl_1"), x, 64, PIXEL);
        let three = self.conv(&n("branch3x3dbl_2"), &three, 96, Places::same([3, 3]));
        let three = self.conv(&n("branch3x3dbl_3"), &three, 96, Places::same([3, 3]));
        let pool = self.pool(&n("pool"), x, Reduce::Mean, Places::same([3, 3]));
        let pool = self.conv(&n("branch_pool"), &pool, pooled, PIXEL);
        [one, five, three, pool].concat()
    }

    /// The block that leaves 17x17 pixels.
    fn block_35_to_17(&mut self, name: &str, x: &[ValueId]) -> Vec<ValueId> {
        let n = |branch: &str| format!("{name}.{branch}");
        let three = self.conv(&n("branch3x3"), x, 384, HALF);
        let twice = self.conv(&n("branch3x3dbl_1"), x, 64, PIXEL);
        let twice = self.conv(&n("branch3x3dbl_2"), &twice, 96, Places::same([3, 3]));
        let twice = self.conv(&n("branch3x3dbl_3"), &twice, 96, HALF);
        let pool = self.pool(&n("pool"), x, Reduce::Max, HALF);
        [three, twice, pool].concat()
    }

    /// A block on 17x17 pixels, with 7x7 kernels as a row and a column of so many channels.
    fn block_17(&mut self, name: &str, x: &[ValueId], inner: usize) -> Vec<ValueId> {
        let n = |branch: &str| format!("{name}.{branch}");
        let (row, column) = (Places::same([1, 7]), Places::same([7, 1]));
        let one = self.conv(&n("branch1x1"), x, 192, PIXEL);
        let seven = self.conv(&n("branch7x7_1"), x, inner, PIXEL);
        let seven = self.conv(&n("branch7x7_2"), &seven, inner, row);
        let seven = self.conv(&n("branch7x7_3"), &seven, 192, column);
        let twice = self.conv(&n("branch7x7dbl_1"), x, inner, PIXEL);
        let twice = self.conv(&n("branch7x7dbl_2"), &twice, inner, column);
        let twice = self.conv(&n("branch7x7dbl_3"), &twice, inner, row);
        let twice = self.conv(&n("branch7x7dbl_4"), &twice, inner, column);
        let twice = self.conv(&n("branch7x7dbl_5"), &twice, 192, row);
        let pool = self.pool(&n("pool"), x, Reduce::Mean, Places::same([3, 3]));
        let pool = self.conv(&n("branch_pool"), &pool, 192, PIXEL);
        [one, seven, twice, pool].concat()
    }

    /// The block that leaves 8x8 pixels.
    fn block_17_to_8(&mut self, name: &str, x: &[ValueId]) -> Vec<ValueId> {
        let n = |branch: &str| format!("{name}.{branch}");
        let three = self.conv(&n("branch3x3_1"), x, 192, PIXEL);
        let three = self.conv(&n("branch3x3_2"), &three, 320, HALF);
        let seven = self.conv(&n("branch7x7x3_1"), x, 192, PIXEL);
        let seven = self.conv(&n("branch7x7x3_2"), &seven, 192, Places::same([1, 7]));
        let seven = self.conv(&n("branch7x7x3_3"), &seven, 192, Places::same([7, 1]));
        let seven = self.conv(&n("branch7x7x3_4"), &seven, 192, HALF);
        let pool = self.pool(&n("pool"), x, Reduce::Max, HALF);
        [three, seven, pool].concat()
    }

    /// A block on 8x8 pixels.
    fn block_8(&mut self, name: &str, x: &[ValueId], reduce: Reduce) -> Vec<ValueId> {
        let n = |branch: &str| format!("{name}.{branch}");
        let (row, column) = (Places::same([1, 3]), Places::same([3, 1]));
        let one = self.conv(&n("branch1x1"), x, 320, PIXEL);
        let three = self.conv(&n("branch3x3_1"), x, 384, PIXEL);
        let three_a = self.conv(&n("branch3x3_2a"), &three, 384, row);
        let three_b = self.conv(&n("branch3x3_2b"), &three, 384, column);
        let twice = self.conv(&n("branch3x3dbl_1"), x, 448, PIXEL);
        let twice = self.conv(&n("branch3x3dbl_2"), &twice, 384, Places::same([3, 3]));
        let twice_a = self.conv(&n("branch3x3dbl_3a"), &twice, 384, row);
        let twice_b = self.conv(&n("branch3x3dbl_3b"), &twice, 384, column);
        let pool = self.pool(&n("pool"), x, reduce, Places::same([3, 3]));
        let pool = self.conv(&n("branch_pool"), &pool, 192, PIXEL);
        [one, three_a, three_b, twice_a, twice_b, pool].concat()
    }

    /// A convolution and ReLU.
    fn conv(&mut self, name: &str, x: &[ValueId], channels: usize, places: Places) -> Vec<ValueId> {
        let (view, from) = (View::of(x), Channels::Fixed(self.0.stream(x)));
        // It is not trained here.
        let weight = Weight::new(Draw::Kaiming(1.0)).at(self.0.extent(&view).at(places).pixels());
        let layer = self.0.conv(&format!("{name}.conv"), places.kernel, from, Channels::Fixed(channels), weight);
        let product = Product { places, act: Some(Act::Relu), ..Product::new(view, layer, places.kernel) };
        vec![self.0.product(product)]
    }

    fn pool(&mut self, name: &str, x: &[ValueId], reduce: Reduce, places: Places) -> Vec<ValueId> {
        vec![self.0.pool(name.into(), Pool { parts: x.to_vec(), reduce, places })]
    }

    /// Rows and columns.
    fn size(&self, x: &[ValueId]) -> [usize; 2] {
        let extent = self.0.extent(&View::of(x));
        [extent.height(), extent.pixels() / extent.height()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_sizes_and_the_cost_that_are_published() {
        for tap in [Tap::Pool1, Tap::Pool2, Tap::Mixed6e, Tap::Mixed7c] {
            let program = program(tap);
            let output = program.values.last().expect("the image is there");
            assert_eq!((output.extent.pixels(), output.channels), (1, Channels::Fixed(tap.dim())));
        }
        let spec = program(Tap::Mixed7c).spec;
        // torchvision's 27.16 M less the classifiers and half of the batch norms.
        assert_eq!(spec.parameters(&spec.full()), 21_768_352);
        assert_eq!(spec.macs(&spec.full()), 5_711_168_096);
    }
}
