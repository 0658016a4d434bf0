//! Files of tensors that a user hands in: public layout, checked, without what is not asked for.

use crate::ImageShape;
use crate::diffusion::preconditioning::Preconditioning;
use crate::files::{parse_tensors, tensor};
use crate::nets::Network;
use crate::supernet::checkpoint::read_f32;
use crate::training::importance::Samples;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

/// A batch of noisy images.
pub struct Noisy {
    /// `[B, H, W, C]`: `x0 + sigma * noise`.
    pub x: Vec<f32>,
    /// By sample.
    pub levels: Levels,
    /// By sample.
    pub classes: Vec<Option<usize>>,
}

/// Noise levels.
pub struct Levels {
    /// The levels.
    pub sigma: Vec<f64>,
    /// Whether the file tells times of the variance preserving process.
    pub are_times: bool,
}

/// A safetensors file in memory.
pub struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl TensorFile {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read or is not a whole safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Self { path: path.to_path_buf(), bytes: std::fs::read(path).map_err(Error::io(path))? };
        file.parse()?;
        Ok(file)
    }

    /// Images `[B, C, H, W]`, as B and their values channels last.
    ///
    /// # Errors
    /// If the tensor is missing, of another shape or dtype, or not finite.
    fn images(&self, name: &str, image: ImageShape) -> Result<(usize, Vec<f32>)> {
        let ImageShape { height, width, channels } = image;
        let tensor = self.tensor(name, |shape| match shape {
            [batch, c, h, w] if *batch > 0 && (*c, *h, *w) == (channels, height, width) => Ok(()),
            _ => Err(format!("[B, {channels}, {height}, {width}]")),
        })?;
        Ok((tensor.dim(0)?, tensor.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1()?))
    }

    /// As [`Self::images`], of a known B.
    fn images_of(&self, name: &str, image: ImageShape, batch: usize) -> Result<Vec<f32>> {
        let (found, values) = self.images(name, image)?;
        match found == batch {
            true => Ok(values),
            false => Err(Error::field(&self.path, name, format!("has {found} images where the others have {batch}"))),
        }
    }

    /// A batch of noisy images: `x` and `sigma`, or `xt` and `t` of the variance preserving process, with its classes.
    ///
    /// # Errors
    /// If a tensor is missing, of another shape or dtype, or not in its range.
    pub fn noisy(&self, network: &Network) -> Result<Noisy> {
        let name = if self.has("xt") { "xt" } else { "x" };
        let (batch, mut x) = self.images(name, network.image())?;
        let levels = self.levels(network, batch)?;
        if levels.are_times {
            let elements = network.image().elements();
            for (x, sigma) in x.chunks_exact_mut(elements).zip(&levels.sigma) {
                // `xt = alpha (x0 + sigma eps)`.
                let inverse = (1.0 + sigma * sigma).sqrt();
                x.iter_mut().for_each(|x| *x = (f64::from(*x) * inverse) as f32);
            }
        }
        Ok(Noisy { x, levels, classes: self.classes(network, batch)? })
    }

    /// A batch of clean images and noise for them: `x0`, `noise` and `sigma`, or `x0`, `eps` and `t`.
    ///
    /// # Errors
    /// As [`Self::noisy`].
    pub fn samples(&self, network: &Network) -> Result<Samples> {
        let (batch, x0) = self.images("x0", network.image())?;
        let levels = self.levels(network, batch)?;
        let noise = self.images_of(if levels.are_times { "eps" } else { "noise" }, network.image(), batch)?;
        Ok(Samples { x0, noise, sigma: levels.sigma, classes: self.classes(network, batch)?, context: Vec::new() })
    }

    /// Noise levels, told as such or, of a variance preserving network, as times.
    fn levels(&self, network: &Network, batch: usize) -> Result<Levels> {
        if !self.has("t") {
            return Ok(Levels {
                sigma: self.floats("sigma", batch, |sigma| sigma > 0.0, "a positive noise level")?,
                are_times: false,
            });
        }
        if network.preconditioning() != Preconditioning::Vp {
            let problem =
                "is a time of the variance preserving process, which this network is not trained on: give sigma";
            return Err(Error::field(&self.path, "t", problem));
        }
        let times = self.floats("t", batch, |t| t > 0.0 && t <= 1.0, "a time in (0, 1]")?;
        Ok(Levels { sigma: times.into_iter().map(Preconditioning::vp_sigma).collect(), are_times: true })
    }

    /// The numbers of the tensor `name` [B], each of which `is_fit`.
    fn floats(&self, name: &str, batch: usize, is_fit: impl Fn(f64) -> bool, wanted: &str) -> Result<Vec<f64>> {
        let values: Vec<f64> = match self.parse()?.tensor(name) {
            // Not by way of f32, which would lose digits.
            Ok(view) if view.dtype() == Dtype::F64 && view.shape() == [batch] => {
                Tensor::from_raw_buffer(view.data(), DType::F64, view.shape(), &Device::Cpu)?.to_vec1()?
            }
            _ => self.of_shape(name, &[batch])?.to_dtype(DType::F64)?.to_vec1()?,
        };
        match values.iter().find(|&&value| !(value.is_finite() && is_fit(value))) {
            Some(value) => Err(Error::field(&self.path, name, format!("{value} is not {wanted}"))),
            None => Ok(values),
        }
    }

    /// The classes `class_index` [B], in which their number is none, or of the one-hot rows `class_labels` [B, classes]; a row of
    /// zeros is none, and so are all of a file without.
    fn classes(&self, network: &Network, batch: usize) -> Result<Vec<Option<usize>>> {
        const ROWS: &str = "class_labels";
        const INDEX: &str = "class_index";
        let classes = network.classes();
        if classes > 0 && self.has(INDEX) {
            let file = self.parse()?;
            let view = tensor(&self.path, &file, INDEX)?;
            let refuse = |problem: String| Error::field(&self.path, INDEX, problem);
            if view.shape() != [batch] || view.dtype() != Dtype::I64 {
                return Err(refuse(format!("{:?} {:?} is not I64 [{batch}]", view.dtype(), view.shape())));
            }
            let values =
                view.data().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes")));
            let class = |value: i64| match usize::try_from(value) {
                Ok(class) if class < classes => Ok(Some(class)),
                Ok(none) if none == classes => Ok(None),
                _ => Err(refuse(format!("{value} is not a class from 0 to {}, nor {classes} for none", classes - 1))),
            };
            return values.map(class).collect();
        }
        if classes == 0 || !self.has(ROWS) {
            return Ok(vec![None; batch]);
        }
        let rows: Vec<f32> = self.of_shape(ROWS, &[batch, classes])?.flatten_all()?.to_vec1()?;
        let class = |(index, row): (usize, &[f32])| {
            let told: Vec<usize> = (0..classes).filter(|&class| row[class] != 0.0).collect();
            match told[..] {
                [] => Ok(None),
                [class] if row[class] == 1.0 => Ok(Some(class)),
                _ => Err(Error::field(&self.path, ROWS, format!("row {index} is neither one-hot nor zeros"))),
            }
        };
        rows.chunks_exact(classes).enumerate().map(class).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.parse().is_ok_and(|file| file.tensor(name).is_ok())
    }

    fn of_shape(&self, name: &str, wanted: &[usize]) -> Result<Tensor> {
        self.tensor(name, |shape| if shape == wanted { Ok(()) } else { Err(format!("{wanted:?}")) })
    }

    /// The tensor of this name as f32; `check` says what shape is wanted, if it is another.
    fn tensor(&self, name: &str, check: impl FnOnce(&[usize]) -> std::result::Result<(), String>) -> Result<Tensor> {
        let file = self.parse()?;
        let view = tensor(&self.path, &file, name)?;
        check(view.shape())
            .map_err(|wanted| Error::field(&self.path, name, format!("shape {:?} is not {wanted}", view.shape())))?;
        read_f32(&self.path, name, &view)
    }

    fn parse(&self) -> Result<SafeTensors<'_>> {
        parse_tensors(&self.path, &self.bytes)
    }
}
