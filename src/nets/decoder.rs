//! From latents to pictures.

use super::host_runner::Threads;
use super::{Model, Runner};
use crate::ImageShape;
use crate::ops::cpu::fused::Layer;
use crate::ops::pixels::byte;
use crate::philox::Stream;
use crate::{Error, Result};
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

/// Rows and columns of the latent that previews are fitted on.
const FITTED: usize = 8;

/// The decoder of a model that draws latents, on the CPU, for all sizes of pictures.
#[derive(Debug)]
pub struct Decoder {
    runner: Runner,
    /// What latents are divided by.
    scale: f64,
    /// Rows and columns of a picture over those of its latent.
    factor: usize,
    /// About the colours of a pixel of a latent: by colour, the weight of each channel and at last what is added.
    preview: Vec<Vec<f64>>,
}

impl Decoder {
    /// That of a model; None where the model draws pictures itself.
    ///
    /// # Errors
    /// [`Error::Input`] if its weights are missing or do not fit; [`Error::Io`] if they cannot be read.
    pub fn of(model: &Model, threads: Threads) -> Result<Option<Self>> {
        let (Some(parts), Some(dir)) = (&model.card.text_to_image, model.parts()) else { return Ok(None) };
        let runner = parts.decoder(dir, threads)?;
        let vae = &parts.vae;
        let mut decoder = Self { runner, scale: vae.scaling_factor, factor: vae.factor(), preview: Vec::new() };
        decoder.preview = decoder.fitted(vae.latent_channels, vae.out_channels);
        Ok(Some(decoder))
    }

    /// Memory that its weights take.
    pub fn weight_bytes(&self) -> usize {
        self.runner.weight_bytes()
    }

    /// Memory in the buffers of activations.
    pub fn activation_bytes(&self) -> usize {
        self.runner.activation_bytes()
    }

    /// The picture of a latent of this size, `[height, width, channels]` in the units of the denoiser, as bytes.
    ///
    /// # Errors
    /// [`Error::Denoiser`] where it is not finite.
    pub fn pixels(&mut self, size: ImageShape, latent: &[f64]) -> Result<Vec<u8>> {
        let values: Vec<f32> = latent.iter().map(|value| (value / self.scale) as f32).collect();
        let picture = self.runner.run_sized(size, &values);
        match picture.iter().all(|value| value.is_finite()) {
            true => Ok(picture.iter().map(|&value| byte(f64::from(value))).collect()),
            false => Err(Error::Denoiser("the decoder made values that are not finite".to_owned())),
        }
    }

    /// What the layers of decoding a latent of this size take, in the order in which they run.
    pub fn layers(&mut self, size: ImageShape) -> Vec<Layer> {
        let latent = vec![0.5; size.elements()];
        self.runner.with_layers(|runner| runner.run_sized(size, &latent)).1
    }

    /// About what that picture looks like, for next to nothing: each pixel of the latent is a square of one colour, which is linear in
    /// its channels.
    pub fn preview(&self, size: ImageShape, latent: &[f32]) -> Vec<u8> {
        let ImageShape { height, width, channels } = size;
        let colours: Vec<u8> = latent
            .chunks_exact(channels)
            .flat_map(|pixel| {
                self.preview.iter().map(move |weights| {
                    let parts = pixel.iter().zip(weights).map(|(&value, weight)| f64::from(value) * weight);
                    byte(parts.sum::<f64>() + weights[channels])
                })
            })
            .collect();
        let of_pixel = self.preview.len();
        let square = |row: usize, column: usize| {
            let at = ((row / self.factor) * width + column / self.factor) * of_pixel;
            &colours[at..][..of_pixel]
        };
        let rows = 0..height * self.factor;
        rows.flat_map(|row| (0..width * self.factor).flat_map(move |column| square(row, column).iter().copied()))
            .collect()
    }

    /// The weights of [`Self::preview`]: those whose colours are nearest to the means of the squares that the decoder makes of noise.
    fn fitted(&mut self, channels: usize, colours: usize) -> Vec<Vec<f64>> {
        let size = ImageShape { height: FITTED, width: FITTED, channels };
        let mut latent = vec![0.0; size.elements()];
        Stream::new(0, 1, 0).fill_normals(&mut latent);
        let values: Vec<f32> = latent.iter().map(|value| (f64::from(*value) / self.scale) as f32).collect();
        let picture = self.runner.run_sized(size, &values);
        let (side, width) = (self.factor, FITTED * self.factor);
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
        (0..colours).map(of_colour).collect()
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
