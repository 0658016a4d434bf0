//! Pixels as CLIP's image encoder takes them.

use super::bicubic::Resize;
use super::config::Vision;
use crate::files::read_json;
use crate::{Error, ImageShape, Result};
use serde::Deserialize;
use std::path::Path;

/// Bicubic, in Pillow's numbers.
const BICUBIC: u8 = 3;

/// What is read of `preprocessor_config.json`.
#[derive(Debug, Default, Deserialize)]
struct Document {
    size: Option<Size>,
    crop_size: Option<Size>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
    resample: Option<u8>,
}

/// A number of pixels, as older and newer files have it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(usize),
    Shortest { shortest_edge: usize },
    Both { height: usize, width: usize },
}

impl Size {
    /// The side of a square, or the short side; None for a rectangle.
    fn side(&self) -> Option<usize> {
        match *self {
            Self::Side(side) | Self::Shortest { shortest_edge: side } => Some(side),
            Self::Both { height, width } => (height == width).then_some(height),
        }
    }
}

/// How images become the encoder's input.
#[derive(Debug)]
pub struct Preprocessor {
    /// To what the short side is resized.
    short: usize,
    /// The rows and columns that are cut out of the centre.
    side: usize,
    mean: [f64; 3],
    std: [f64; 3],
}

impl Preprocessor {
    /// What the file says, for an encoder of such images. Where the file is not there or does not say it, it is as OpenAI has
    /// it: no pixels are cut off the short side.
    ///
    /// # Errors
    /// One sentence with the file and the field that does not fit.
    pub fn open(path: &Path, vision: &Vision) -> Result<Self> {
        let document = if path.is_file() { read_json(path)? } else { Document::default() };
        let refuse = |field, problem| Err(Error::field(path, field, problem));
        let wanted = vision.image_size;
        let side = |size: &Option<Size>| size.as_ref().map_or(Some(wanted), Size::side);
        let [Some(short), Some(side)] = [side(&document.size), side(&document.crop_size)] else {
            return refuse("size", "is no square, but only squares are accepted".into());
        };
        if side != wanted {
            return refuse("crop_size", format!("is {side}, but the image encoder takes {wanted}"));
        }
        if short < side {
            return refuse("size", format!("is {short}, but {side} pixels are cut out of it"));
        }
        if document.resample.is_some_and(|filter| filter != BICUBIC) {
            return refuse("resample", format!("is another filter than {BICUBIC}, bicubic, which alone is accepted"));
        }
        let mean = document.image_mean.unwrap_or([0.48145466, 0.4578275, 0.40821073]);
        let std = document.image_std.unwrap_or([0.26862954, 0.26130258, 0.27577711]);
        if !std.iter().all(|&std| std > 0.0) {
            return refuse("image_std", format!("is {std:?}, but only positive numbers are accepted"));
        }
        Ok(Self { short, side, mean, std })
    }

    /// The rows and columns of what it makes.
    pub fn side(&self) -> usize {
        self.side
    }

    /// uint8 `[n, side, side, 3]` of images uint8 `[n, height, width, channels]`: resized, cut, grey ones three times.
    pub fn resized(&self, images: &[u8], shape: ImageShape) -> Vec<u8> {
        let resize = Resize::new(shape, self.short, self.side);
        let resized = images.chunks_exact(shape.elements()).flat_map(|image| resize.apply(image));
        let copies = 3 / shape.channels;
        resized.flat_map(|value| std::iter::repeat_n(value, copies)).collect()
    }

    /// `(value / 255 - mean) / std` of uint8 `[n, side, side, 3]`: `[n, 3, side, side]`.
    pub fn standardised(&self, pixels: &[u8]) -> Vec<f32> {
        let images = pixels.chunks_exact(self.side * self.side * 3);
        let planes = images.flat_map(|image| (0..3).map(move |channel| (image, channel)));
        let plane = |(image, channel): (&[u8], usize)| {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            let values = image[channel..].iter().step_by(3);
            values.map(|&value| ((f64::from(value) / 255.0 - mean) / std) as f32).collect::<Vec<f32>>()
        };
        planes.flat_map(plane).collect()
    }
}
