//! Files of tensors that a user hands in: public layout, checked, without what is not asked for.

use crate::files::{parse_tensors, tensor};
use crate::nets::{ImageShape, Network};
use crate::supernet::checkpoint::read_f32;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

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
    pub fn images(&self, name: &str, image: ImageShape) -> Result<(usize, Vec<f32>)> {
        let ImageShape { height, width, channels } = image;
        let tensor = self.tensor(name, |shape| match shape {
            [batch, c, h, w] if *batch > 0 && (*c, *h, *w) == (channels, height, width) => Ok(()),
            _ => Err(format!("[B, {channels}, {height}, {width}]")),
        })?;
        Ok((tensor.dim(0)?, tensor.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1()?))
    }

    /// As [`Self::images`], of a known B.
    pub fn images_of(&self, name: &str, image: ImageShape, batch: usize) -> Result<Vec<f32>> {
        let (found, values) = self.images(name, image)?;
        match found == batch {
            true => Ok(values),
            false => Err(Error::field(&self.path, name, format!("has {found} images where the others have {batch}"))),
        }
    }

    /// The noise levels, `sigma` [B]: positive.
    ///
    /// # Errors
    /// If the tensor is missing, of another shape or dtype, or not positive and finite.
    pub fn sigma(&self, batch: usize) -> Result<Vec<f64>> {
        let sigma: Vec<f64> = match self.parse()?.tensor("sigma") {
            // Not by way of f32, which would lose digits.
            Ok(view) if view.dtype() == Dtype::F64 && view.shape() == [batch] => {
                Tensor::from_raw_buffer(view.data(), DType::F64, view.shape(), &Device::Cpu)?.to_vec1()?
            }
            _ => self.of_shape("sigma", &[batch])?.to_dtype(DType::F64)?.to_vec1()?,
        };
        match sigma.iter().find(|sigma| !(sigma.is_finite() && **sigma > 0.0)) {
            Some(sigma) => Err(Error::field(&self.path, "sigma", format!("{sigma} is not a positive noise level"))),
            None => Ok(sigma),
        }
    }

    /// The classes of the one-hot rows `class_labels` [B, classes]; a row of zeros is none, and so are all of a file without.
    ///
    /// # Errors
    /// If the tensor is of another shape or dtype, or has a row that is neither.
    pub fn classes(&self, network: &Network, batch: usize) -> Result<Vec<Option<usize>>> {
        const NAME: &str = "class_labels";
        let classes = network.classes();
        if classes == 0 || self.parse()?.tensor(NAME).is_err() {
            return Ok(vec![None; batch]);
        }
        let rows: Vec<f32> = self.of_shape(NAME, &[batch, classes])?.flatten_all()?.to_vec1()?;
        let class = |(index, row): (usize, &[f32])| {
            let told: Vec<usize> = (0..classes).filter(|&class| row[class] != 0.0).collect();
            match told[..] {
                [] => Ok(None),
                [class] if row[class] == 1.0 => Ok(Some(class)),
                _ => Err(Error::field(&self.path, NAME, format!("row {index} is neither one-hot nor zeros"))),
            }
        };
        rows.chunks_exact(classes).enumerate().map(class).collect()
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
