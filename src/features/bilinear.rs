//! Images of any size as images of one size, bilinearly: with half-pixel centres and without a filter against aliasing,
//! also where an image shrinks, as PyTorch's `interpolate(mode="bilinear", align_corners=False)` does it.

use crate::ImageShape;

/// Between which two places of an axis a place of the output lies, and how near it is to the second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Between {
    first: usize,
    second: usize,
    share: f32,
}

/// Bytes of images of one size to values of another.
#[derive(Debug)]
pub(super) struct Bilinear {
    from: ImageShape,
    rows: Vec<Between>,
    columns: Vec<Between>,
}

impl Bilinear {
    /// From images of this size to images of `side` rows and columns.
    pub fn new(from: ImageShape, side: usize) -> Self {
        let axis = |length: usize| (0..side).map(|place| between(place, length, side)).collect();
        Self { from, rows: axis(from.height), columns: axis(from.width) }
    }

    /// The size of what it takes.
    pub fn from(&self) -> ImageShape {
        self.from
    }

    /// Row `row` of an image of the output: values in [-1, 1] of pixels that lie `pitch` elements apart and have three
    /// channels; one channel is repeated three times.
    pub fn row(&self, image: &[u8], row: usize, out: &mut [f32], pitch: usize) {
        let (ImageShape { width, channels, .. }, row) = (self.from, self.rows[row]);
        let of = |row: usize| &image[row * width * channels..][..width * channels];
        let pairs = of(row.first).iter().zip(of(row.second));
        let line: Vec<f32> =
            pairs.map(|(&first, &second)| mixed(f32::from(first), f32::from(second), row.share)).collect();
        for (pixel, column) in out.chunks_mut(pitch).zip(&self.columns) {
            let of = |column: usize, channel: usize| line[column * channels + channel % channels];
            for (channel, value) in pixel.iter_mut().take(3).enumerate() {
                let mixed = mixed(of(column.first, channel), of(column.second, channel), column.share);
                *value = mixed * (2.0 / 255.0) - 1.0;
            }
        }
    }
}

fn mixed(first: f32, second: f32, share: f32) -> f32 {
    first + (second - first) * share
}

/// Where `place` of `side` lies on an axis of `length` pixels, whose centres are half a pixel in.
fn between(place: usize, length: usize, side: usize) -> Between {
    let at = ((place as f64 + 0.5) * length as f64 / side as f64 - 0.5).max(0.0);
    let first = (at as usize).min(length - 1);
    Between { first, second: (first + 1).min(length - 1), share: (at - first as f64) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[track_caller]
    fn assert_close(got: &[f32], want: &[f64], tolerance: f64) {
        assert_eq!(got.len(), want.len());
        assert!(
            got.iter().zip(want).all(|(&got, want)| (f64::from(got) - want).abs() < tolerance),
            "{got:?}, not {want:?}"
        );
    }

    fn resized(from: ImageShape, side: usize, image: &[u8]) -> Vec<f32> {
        let (resize, mut out) = (Bilinear::new(from, side), vec![f32::NAN; side * side * 3]);
        out.chunks_exact_mut(side * 3).enumerate().for_each(|(row, out)| resize.row(image, row, out, 3));
        out
    }

    #[test]
    fn an_image_of_the_same_size_keeps_its_values() {
        let image: Vec<u8> = (0..12).map(|value| value * 23).collect();
        let shape = ImageShape { height: 2, width: 2, channels: 3 };
        let want: Vec<f32> = image.iter().map(|&byte| f32::from(byte) * (2.0 / 255.0) - 1.0).collect();
        assert_eq!(resized(shape, 2, &image), want);
    }

    #[test]
    fn pixels_lie_between_half_pixel_centres() {
        let shape = ImageShape { height: 1, width: 2, channels: 1 };
        // Twice as wide: the centres lie at -0.25, 0.25, 0.75 and 1.25 of the input's.
        let want = [-1.0, -0.5, 0.5, 1.0].map(|value| [value; 3]).concat();
        assert_close(&resized(shape, 4, &[0, 255])[..12], &want, 1e-6);
        // A third as wide takes every third pixel, without a mean.
        let shape = ImageShape { height: 3, width: 3, channels: 1 };
        assert_eq!(resized(shape, 1, &[9, 9, 9, 9, 255, 9, 9, 9, 9]), [1.0; 3]);
    }
    #[test]
    fn the_corner_of_an_image_is_pytorch_s() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/inception_formula.expected.safetensors");
        let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        for index in 0..3 {
            let image = &golden[&format!("image_{index}")];
            let (height, width, channels) = image.dims3().unwrap();
            let bytes: Vec<u8> = image.flatten_all().unwrap().to_vec1().unwrap();
            let values = resized(ImageShape { height, width, channels }, 299, &bytes);
            let corner = golden[&format!("corner_299_{index}")].permute((1, 2, 0)).unwrap().flatten_all().unwrap();
            let want: Vec<f64> = corner.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
            let got: Vec<f32> = (0..4).flat_map(|row| values[row * 299 * 3..][..12].to_vec()).collect();
            assert_close(&got, &want, 1e-6);
        }
    }
}
