//! Files of tensors that a user hands in: public layout, checked, without what is not asked for.

use crate::ImageShape;
use crate::diffusion::Level;
use crate::diffusion::preconditioning::Preconditioning;
use crate::files::{parse_tensors, tensor};
use crate::nets::{Condition, Network};
use crate::supernet::checkpoint::read_f32;
use crate::training::importance::Samples;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A batch of noisy images.
pub struct Noisy {
    /// The size of each.
    pub image: ImageShape,
    /// `[B, H, W, C]`: `x0 + sigma * noise`.
    pub x: Vec<f32>,
    /// By sample.
    pub levels: Levels,
    /// By sample.
    pub conditions: Vec<Condition>,
}

/// Noise levels.
pub struct Levels {
    /// The levels.
    pub levels: Vec<Level>,
    /// Whether the file tells times of a variance preserving process.
    pub are_times: bool,
}

impl Levels {
    fn sigma(&self) -> Vec<f64> {
        self.levels.iter().map(|level| level.sigma).collect()
    }
}

/// The names of the tensors of noisy and clean images and of noise, for networks that read texts and for others.
const OF_TEXTS: [&str; 3] = ["latents_xt", "latents_x0", "noise"];
const CONTEXT: &str = "context";

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
    fn images_of(&self, name: &str, image: ImageShape, batch: usize) -> Result<Vec<f32>> {
        let (found, values) = self.images(name, image)?;
        match found == batch {
            true => Ok(values),
            false => Err(Error::field(&self.path, name, format!("has {found} images where the others have {batch}"))),
        }
    }

    /// A batch of noisy images: `x` and `sigma`, or `xt` and `t` of the variance preserving process, with its classes; of a network
    /// that reads texts `latents_xt` of any size that it takes, `t` and `context`.
    ///
    /// # Errors
    /// If a tensor is missing, of another shape or dtype, or not in its range.
    pub fn noisy(&self, network: &Network) -> Result<Noisy> {
        let of_texts = network.program().context_elements() > 0;
        let (name, image) = match of_texts {
            true => {
                let (own, name) = (network.image(), OF_TEXTS[0]);
                (name, self.size_of(name, own.channels, network.program().steps_of_size())?)
            }
            false => (if self.has("xt") { "xt" } else { "x" }, network.image()),
        };
        let (batch, mut x) = self.images(name, image)?;
        let levels = self.levels(network, batch)?;
        if levels.are_times {
            for (x, level) in x.chunks_exact_mut(image.elements()).zip(&levels.levels) {
                // `xt = alpha (x0 + sigma eps)`.
                let inverse = level.sigma.hypot(1.0);
                x.iter_mut().for_each(|x| *x = (f64::from(*x) * inverse) as f32);
            }
        }
        let conditions = match of_texts {
            true => self.contexts(CONTEXT, network, batch)?.into_iter().map(Condition::Text).collect(),
            false => self.classes(network, batch)?.into_iter().map(Condition::from).collect(),
        };
        Ok(Noisy { image, x, levels, conditions })
    }

    /// The size of the images of a tensor: of so many channels, with rows and columns that are multiples of `step`.
    ///
    /// # Errors
    /// If the tensor is missing or of another shape.
    pub fn size_of(&self, name: &str, channels: usize, step: usize) -> Result<ImageShape> {
        let tensor = self.tensor(name, |shape| match *shape {
            [_, c, h, w] if c == channels && [h, w].iter().all(|side| *side > 0 && side.is_multiple_of(step)) => Ok(()),
            _ => Err(format!("[B, {channels}, H, W] with H and W multiples of {step}")),
        })?;
        let (_, channels, height, width) = tensor.dims4()?;
        Ok(ImageShape { height, width, channels })
    }

    /// Token ids `[N, tokens]`, each below `ids`.
    ///
    /// # Errors
    /// If the tensor is missing, of another shape or dtype, or has others.
    pub fn token_ids(&self, name: &str, tokens: usize, ids: usize) -> Result<Vec<Vec<u32>>> {
        let file = self.parse()?;
        let view = tensor(&self.path, &file, name)?;
        let refuse = |problem: String| Error::field(&self.path, name, problem);
        let is_fit = view.dtype() == Dtype::I64 && view.shape().len() == 2 && view.shape()[1] == tokens;
        if !is_fit || view.shape()[0] == 0 {
            return Err(refuse(format!("{:?} {:?} is not I64 [N, {tokens}]", view.dtype(), view.shape())));
        }
        let id = |value: i64| match u32::try_from(value) {
            Ok(id) if (id as usize) < ids => Ok(id),
            _ => Err(refuse(format!("{value} is not an id from 0 to {}", ids - 1))),
        };
        let values = integers(&view).map(id).collect::<Result<Vec<u32>>>()?;
        Ok(values.chunks_exact(tokens).map(<[u32]>::to_vec).collect())
    }

    /// The contexts `[B, tokens, channels]` of a network that reads texts.
    pub fn contexts(&self, name: &str, network: &Network, batch: usize) -> Result<Vec<Arc<[f32]>>> {
        let [tokens, channels] = network.program().context().expect("a network that reads texts");
        let values: Vec<f32> = self.of_shape(name, &[batch, tokens, channels])?.flatten_all()?.to_vec1()?;
        Ok(values.chunks_exact(tokens * channels).map(Arc::from).collect())
    }

    /// A batch of clean images and noise for them: `x0`, `noise` and `sigma`, or `x0`, `eps` and `t`; of a network that reads texts
    /// `latents_x0`, `noise`, `t` and `context`.
    ///
    /// # Errors
    /// As [`Self::noisy`].
    pub fn samples(&self, network: &Network) -> Result<Samples> {
        let of_texts = network.program().context_elements() > 0;
        let (batch, x0) = self.images(if of_texts { OF_TEXTS[1] } else { "x0" }, network.image())?;
        let levels = self.levels(network, batch)?;
        let noise = if levels.are_times && !of_texts { "eps" } else { OF_TEXTS[2] };
        let noise = self.images_of(noise, network.image(), batch)?;
        let context = if of_texts { self.contexts(CONTEXT, network, batch)?.concat() } else { Vec::new() };
        Ok(Samples { x0, noise, sigma: levels.sigma(), classes: self.classes(network, batch)?, context })
    }

    /// Noise levels, told as such or, of a variance preserving network, as times.
    fn levels(&self, network: &Network, batch: usize) -> Result<Levels> {
        let preconditioning = network.preconditioning();
        if let Preconditioning::Ddpm { steps, .. } = preconditioning {
            let last = steps as f64 - 1.0;
            let times = self.floats("t", batch, |t| (0.0..=last).contains(&t), &format!("a time from 0 to {last}"))?;
            let level = |time: f64| {
                let sigma = preconditioning.level_at(time).expect("a time of the process");
                Level { sigma, time: Some(time) }
            };
            return Ok(Levels { levels: times.into_iter().map(level).collect(), are_times: true });
        }
        if !self.has("t") {
            let sigma = self.floats("sigma", batch, |sigma| sigma > 0.0, "a positive noise level")?;
            return Ok(Levels { levels: sigma.into_iter().map(Level::from).collect(), are_times: false });
        }
        if preconditioning != Preconditioning::Vp {
            let problem =
                "is a time of the variance preserving process, which this network is not trained on: give sigma";
            return Err(Error::field(&self.path, "t", problem));
        }
        let times = self.floats("t", batch, |t| t > 0.0 && t <= 1.0, "a time in (0, 1]")?;
        let level = |time: f64| Level::from(Preconditioning::vp_sigma(time));
        Ok(Levels { levels: times.into_iter().map(level).collect(), are_times: true })
    }

    /// The numbers of the tensor `name` [B], each of which `is_fit`.
    fn floats(&self, name: &str, batch: usize, is_fit: impl Fn(f64) -> bool, wanted: &str) -> Result<Vec<f64>> {
        let values: Vec<f64> = match self.parse()?.tensor(name) {
            // Not by way of f32, which would lose digits.
            Ok(view) if view.dtype() == Dtype::F64 && view.shape() == [batch] => {
                Tensor::from_raw_buffer(view.data(), DType::F64, view.shape(), &Device::Cpu)?.to_vec1()?
            }
            // Whole steps.
            Ok(view) if view.dtype() == Dtype::I64 && view.shape() == [batch] => {
                integers(&view).map(|value| value as f64).collect()
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
            let values = integers(&view);
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

/// The values of a tensor of I64.
fn integers<'a>(view: &TensorView<'a>) -> impl Iterator<Item = i64> + use<'a> {
    view.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes))
}
