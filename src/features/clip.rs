//! CLIP (Radford et al. 2021): features of images, and of texts in the same space, for the CLIP score.

mod bicubic;
mod config;
mod preprocessor;
mod towers;

use super::Features;
use crate::checkpoint::{self, StateDict};
use crate::text::Tokenizer;
use crate::text::weights::Weights;
use crate::{Error, ImageShape, Result};
use candle_core::{Device, Tensor};
use config::Config;
use preprocessor::Preprocessor;
use std::path::{Path, PathBuf};
use towers::{ImageTower, TextTower};

/// Images or texts that are encoded at once, for the sake of memory.
const BATCH: usize = 16;

/// A CLIP with both of its encoders, on the CPU.
#[derive(Debug)]
pub struct Clip {
    tokenizer: Tokenizer,
    /// Tokens of a text.
    length: usize,
    preprocessor: Preprocessor,
    images: ImageTower,
    texts: TextTower,
    dim: usize,
}

impl Clip {
    /// Reads a directory as transformers writes it: `config.json`, `model.safetensors` or `pytorch_model.bin`, the tokenizer's
    /// files (see [`Tokenizer::open`]) and, where it is there, `preprocessor_config.json`.
    ///
    /// # Errors
    /// [`Error::Input`] with the file and the field or the weight that is missing or does not fit; [`Error::Io`] if a file
    /// cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let config = Config::open(&path)?;
        let tokenizer = Tokenizer::open(dir)?;
        let (ids, embedded) = (tokenizer.ids(), config.text.vocab_size);
        if ids > embedded {
            let problem = format!("is {embedded}, but the tokenizer has {ids} ids");
            return Err(Error::field(&path, "text_config.vocab_size", problem));
        }
        let preprocessor = Preprocessor::open(&dir.join("preprocessor_config.json"), &config.vision)?;
        let weights = Weights::new(tensors(dir)?);
        Ok(Self {
            tokenizer,
            length: config.text.max_position_embeddings,
            preprocessor,
            images: ImageTower::read(&weights, &config)?,
            texts: TextTower::read(&weights, &config)?,
            dim: config.projection_dim,
        })
    }

    /// Features of texts, `[n, dim]`, each of length 1. A text that is too long is cut.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; a device fault.
    pub fn text(&self, prompts: &[String]) -> Result<Vec<f32>> {
        let mut features = Vec::with_capacity(prompts.len() * self.dim);
        for prompts in prompts.chunks(BATCH) {
            let encode = |prompt: &String| self.tokenizer.encode(prompt, self.length);
            let ids = prompts.iter().map(encode).collect::<Result<Vec<_>>>()?;
            features.extend(self.texts.forward(&ids, self.tokenizer.end())?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(features)
    }

    /// What the encoder sees of images uint8 `[n, height, width, channels]`, before it is standardised: uint8
    /// `[n, side, side, 3]`, the central square after resizing as Pillow does it, to the bit.
    ///
    /// # Errors
    /// As [`Features::of`].
    pub fn resized(&self, images: &[u8], shape: ImageShape) -> Result<Vec<u8>> {
        Ok(batches(images, shape)?.flat_map(|images| self.preprocessor.resized(images, shape)).collect())
    }
}

impl Features for Clip {
    fn dim(&self) -> usize {
        self.dim
    }

    /// Each image's features have length 1.
    fn of(&mut self, images: &[u8], shape: ImageShape) -> Result<Vec<f32>> {
        let side = self.preprocessor.side();
        let mut features = Vec::new();
        for images in batches(images, shape)? {
            let pixels = self.preprocessor.standardised(&self.preprocessor.resized(images, shape));
            let pixels = Tensor::from_vec(pixels, (images.len() / shape.elements(), 3, side, side), &Device::Cpu)?;
            features.extend(self.images.forward(&pixels)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(features)
    }
}

/// Images `[n, height, width, channels]`, some at a time.
fn batches(images: &[u8], shape: ImageShape) -> Result<impl Iterator<Item = &[u8]>> {
    let ImageShape { height, width, channels } = shape;
    let is_size = height > 0 && width > 0 && matches!(channels, 1 | 3);
    match is_size && images.len().is_multiple_of(shape.elements()) {
        true => Ok(images.chunks(BATCH * shape.elements())),
        false => {
            let (bytes, size) = (images.len(), format!("{height}x{width}x{channels}"));
            Err(Error::input("images", format!("{bytes} bytes are not of images {size}, grey or RGB with some pixels")))
        }
    }
}

/// The file of a CLIP's weights in its directory.
///
/// # Errors
/// [`Error::Input`] if there is none.
pub fn weights(dir: &Path) -> Result<PathBuf> {
    let mut files = ["model.safetensors", "pytorch_model.bin"].map(|name| dir.join(name)).into_iter();
    let problem = "has neither model.safetensors nor pytorch_model.bin; one of them is wanted, in one piece";
    files.find(|file| file.is_file()).ok_or_else(|| Error::input(dir.display(), problem))
}

/// The tensors of the weights' file.
fn tensors(dir: &Path) -> Result<StateDict> {
    let file = weights(dir)?;
    let parts = checkpoint::open(&file)?.parts;
    let groups: Vec<StateDict> = parts.iter().flat_map(|part| part.tensors.unwrapped()).collect();
    let is_clip = |tensors: &&StateDict| tensors.names().any(|name| name.starts_with("vision_model."));
    let found = groups.iter().find(is_clip).cloned();
    found.ok_or_else(|| Error::input(file.display(), "has no tensor vision_model.*, so it is no CLIP"))
}

/// The cosine of two features, from -1 to 1.
pub fn cosine(image: &[f32], text: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(image, text) / (dot(image, image) * dot(text, text)).sqrt()
}

/// The CLIP score of an image for a text, from 0 to 100: `max(100 cos, 0)` of their features (Hessel et al. 2021, with 100
/// for 2.5).
pub fn score(image: &[f32], text: &[f32]) -> f64 {
    (100.0 * cosine(image, text)).max(0.0)
}
