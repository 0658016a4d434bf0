//! What real images look like in the features of a model: what the images of its plans are held against.

use super::frechet::Gaussian;
use crate::files::tensor;
use crate::supernet::checkpoint::read_f32;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use faer::Mat;
use safetensors::SafeTensors;
use std::path::Path;

/// The features of real images, and the two distances to them between which quality is a share.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Their mean and covariance.
    pub gaussian: Gaussian,
    /// How many images they are of.
    pub images: usize,
    /// The Fréchet distance to them of other real images, as [`super::frechet::Estimate::limit`]: plans are rated by theirs.
    pub real: f64,
    /// That of images that know nothing but their class: each is the mean of its class.
    pub blur: f64,
}

impl Reference {
    /// Its tensors in a file.
    pub const TENSORS: [&str; 2] = ["reference.mean", "reference.covariance"];

    /// The quality of images whose Fréchet distance to the reference is `distance`:
    /// `1 - (sqrt(distance) - sqrt(real)) / (sqrt(blur) - sqrt(real))`. So 1 is as near as other real images are and 0 as far as
    /// images that know nothing but their class. The square root is a metric, the 2-Wasserstein distance of the normal distributions
    /// (Dowson and Landau 1982): equal differences of quality are equal ways in the space of features.
    pub fn quality(&self, distance: f64) -> f64 {
        let root = |distance: f64| distance.max(0.0).sqrt();
        1.0 - (root(distance) - root(self.real)) / (root(self.blur) - root(self.real))
    }

    /// The [`Self::TENSORS`], f32.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    pub fn tensors(&self) -> Result<[(String, Tensor); 2]> {
        let Gaussian { mean, covariance } = &self.gaussian;
        let dim = mean.len();
        let rows: Vec<f64> = (0..dim * dim).map(|index| covariance[(index / dim, index % dim)]).collect();
        let [first, second] = Self::TENSORS.map(str::to_owned);
        let single =
            |values: &[f64], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu)?.to_dtype(DType::F32);
        Ok([(first, single(mean, &[dim])?), (second, single(&rows, &[dim, dim])?)])
    }

    /// Reads the [`Self::TENSORS`].
    ///
    /// # Errors
    /// One sentence with the file and the tensor that is missing or of another shape.
    pub fn read_gaussian(path: &Path, file: &SafeTensors, dim: usize) -> Result<Gaussian> {
        let read = |name: &str, shape: &[usize]| {
            let view = tensor(path, file, name)?;
            if view.shape() != shape {
                return Err(Error::field(path, name, format!("shape {:?} is not {shape:?}", view.shape())));
            }
            Ok(read_f32(path, name, &view)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?)
        };
        let [first, second] = Self::TENSORS;
        let (mean, rows) = (read(first, &[dim])?, read(second, &[dim, dim])?);
        let covariance = Mat::from_fn(dim, dim, |row, column| rows[row * dim + column]);
        Ok(Gaussian { mean, covariance })
    }
}
