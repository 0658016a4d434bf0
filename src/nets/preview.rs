//! About what the picture of a latent looks like, for next to nothing.

use super::vae;
use crate::ops::pixels::byte;
use crate::philox::Stream;
use crate::{ImageShape, Result};
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

/// Rows and columns of the latent that previews are fitted on.
const FITTED: usize = 8;

/// A linear map from the channels of a latent's pixel to the one colour of a square of the picture.
#[derive(Debug)]
pub struct Preview {
    /// Rows and columns of a picture over those of its latent.
    factor: usize,
    /// By colour, the weight of each channel and at last what is added.
    weights: Vec<Vec<f64>>,
}

impl Preview {
    /// The size of the latent that previews are fitted on.
    pub fn fitted_on(vae: &vae::Config) -> ImageShape {
        ImageShape { height: FITTED, width: FITTED, channels: vae.latent_channels }
    }

    /// The map whose colours are nearest to the means of the squares that a decoder makes of noise. `decode` is told a latent of
    /// [`Self::fitted_on`], divided by the scale of latents, and makes a picture `[height, width, colours]` in [-1, 1].
    ///
    /// # Errors
    /// That of `decode`.
    pub fn fit(vae: &vae::Config, decode: impl FnOnce(&[f32]) -> Result<Vec<f32>>) -> Result<Self> {
        let (channels, colours) = (vae.latent_channels, vae.out_channels);
        let mut latent = vec![0.0; Self::fitted_on(vae).elements()];
        Stream::new(0, 1, 0).fill_normals(&mut latent);
        let values: Vec<f32> = latent.iter().map(|value| (f64::from(*value) / vae.scaling_factor) as f32).collect();
        let picture = decode(&values)?;
        let (side, width) = (vae.factor(), FITTED * vae.factor());
        let mean = |pixel: usize, colour: usize| {
            let (top, left) = (pixel / FITTED * side, pixel % FITTED * side);
            let of = |index: usize| ((top + index / side) * width + left + index % side) * colours + colour;
            (0..side * side).map(|index| f64::from(picture[of(index)])).sum::<f64>() / (side * side) as f64
        };
        let value = |pixel: usize, channel: usize| match channel {
            channel if channel < channels => f64::from(latent[pixel * channels + channel]),
            _ => 1.0,
        };
        let rows = Mat::from_fn(FITTED * FITTED, channels + 1, value);
        let of_colour = |colour| {
            let wanted: Vec<f64> = (0..rows.nrows()).map(|pixel| mean(pixel, colour)).collect();
            least_squares(&rows, &wanted)
        };
        Ok(Self { factor: side, weights: (0..colours).map(of_colour).collect() })
    }

    /// The preview of a latent of this size, as bytes.
    pub fn picture(&self, size: ImageShape, latent: &[f32]) -> Vec<u8> {
        let ImageShape { height, width, channels } = size;
        let colours: Vec<u8> = latent
            .chunks_exact(channels)
            .flat_map(|pixel| {
                self.weights.iter().map(move |weights| {
                    let parts = pixel.iter().zip(weights).map(|(&value, weight)| f64::from(value) * weight);
                    byte(parts.sum::<f64>() + weights[channels])
                })
            })
            .collect();
        let of_pixel = self.weights.len();
        let square = |row: usize, column: usize| {
            let at = ((row / self.factor) * width + column / self.factor) * of_pixel;
            &colours[at..][..of_pixel]
        };
        let rows = 0..height * self.factor;
        rows.flat_map(|row| (0..width * self.factor).flat_map(move |column| square(row, column).iter().copied()))
            .collect()
    }
}

/// The weights for which the sums of weighted `rows` are nearest to what is `wanted`, by the normal equations, slightly regularised.
fn least_squares(rows: &Mat<f64>, wanted: &[f64]) -> Vec<f64> {
    const RIDGE: f64 = 1e-6;
    let unknowns = rows.ncols();
    let system = rows.transpose() * rows + RIDGE * Mat::<f64>::identity(unknowns, unknowns);
    let wanted = rows.transpose() * Mat::from_fn(wanted.len(), 1, |row, _| wanted[row]);
    // Positive definite, since it is regularised.
    let weights = system.llt(Side::Lower).expect("rows are finite").solve(&wanted);
    (0..unknowns).map(|index| weights[(index, 0)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_a_linear_map_are_found_again() {
        let stream = Stream::new(3, 1, 0);
        let rows = Mat::from_fn(20, 3, |row, column| stream.normal((3 * row + column) as u64));
        let weights = [0.5, -2.0, 3.0];
        let wanted: Vec<f64> = (0..20).map(|row| (0..3).map(|i| rows[(row, i)] * weights[i]).sum()).collect();
        for (found, weight) in least_squares(&rows, &wanted).iter().zip(weights) {
            assert!((found - weight).abs() < 1e-5, "{found} {weight}");
        }
    }
}
