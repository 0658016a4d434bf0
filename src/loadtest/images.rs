//! The images that a load test asks for, and how good the served ones are.

use crate::evaluation::drawing::{Start, starts};
use crate::evaluation::prompted::EXAMPLES;
use crate::evaluation::realism::RealImages;
use crate::evaluation::to_reference::{REFERENCE, distance, unrelated};
use crate::evaluation::yardstick::{Metric, Rating};
use crate::loadtest::client::Call;
use crate::{Error, ImageShape, Result};
use image::ImageFormat;
use serde_json::json;

/// Far above those that the frontier was measured with: plans are not graded on the images that they were chosen by.
const FIRST_SEED: u64 = 1_000_000;

/// What is asked for: so many seeds, so many classes or prompts in turn.
pub fn asked(images: usize, kinds: usize) -> Vec<Start> {
    let mut starts = starts(images, kinds);
    starts.iter_mut().for_each(|start| start.seed += FIRST_SEED);
    starts
}

/// What a model is asked for in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// So many classes; 0 of an unconditional model.
    Classes(usize),
    /// The examples of prompts.
    Prompts,
}

impl Kinds {
    /// How many there are.
    pub fn count(self) -> usize {
        match self {
            Self::Classes(count) => count,
            Self::Prompts => EXAMPLES.len(),
        }
    }
}

/// The requests to a model for these images of some kinds, on this budget; to the usual model where none is named.
pub fn calls(starts: &[Start], kinds: Kinds, model: Option<&str>, budget: &str) -> Vec<Call> {
    let call = |&Start { seed, class }: &Start| {
        let mut body = match (kinds, class) {
            (Kinds::Prompts, kind) => json!({ "prompt": EXAMPLES[kind.unwrap_or(0)], "seed": seed }),
            (Kinds::Classes(_), class) => json!({ "class": class, "seed": seed }),
        };
        if let Some(model) = model {
            body["model"] = model.into();
        }
        Call::post(format!("/generate?budget={budget}"), body.to_string())
    };
    starts.iter().map(call).collect()
}

/// What says how good the images are that were served.
#[derive(Debug)]
pub enum Judge {
    /// Each by the reference plan's of its seed.
    Reference(References),
    /// All of them together by real ones.
    Features(Box<RealImages>),
}

/// An image that was served.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Its quality, where it has one of its own.
    pub quality: Option<f64>,
    shape: ImageShape,
    bytes: Vec<u8>,
}

impl Judge {
    /// What it judges by.
    pub fn metric(&self) -> Metric {
        match self {
            Self::Reference(_) => Metric::MseToReference,
            Self::Features(_) => Metric::Fd,
        }
    }

    /// The PNG file that was served for an image.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn look(&self, image: usize, file: &[u8]) -> std::result::Result<Seen, String> {
        let (shape, bytes) = decoded(file)?;
        let quality = match self {
            Self::Reference(references) => Some(references.quality(image, &values(&bytes))?),
            Self::Features(_) => None,
        };
        Ok(Seen { quality, shape, bytes })
    }

    /// How good all of these are together, where they are judged so.
    ///
    /// # Errors
    /// [`Error::Input`] for images of another size than the features take.
    pub fn together(&mut self, seen: &[Seen]) -> Result<Option<Rating>> {
        /// Fewer for each of the features say nothing of how these vary.
        const FEWEST: usize = 4;
        let Self::Features(real) = self else { return Ok(None) };
        if seen.len() < FEWEST * real.reference().gaussian.mean.len() {
            return Ok(None);
        }
        let mut features = Vec::new();
        for image in seen {
            features.extend(real.features(&image.bytes, image.shape)?);
        }
        real.rate(&features).map(Some)
    }
}

/// The images of [`REFERENCE`].
#[derive(Clone, Debug)]
pub struct References {
    images: Vec<Vec<f64>>,
    unrelated: f64,
}

impl References {
    /// From the PNG file of each of `starts`.
    ///
    /// # Errors
    /// One sentence when a file is no PNG, sizes differ, or the images do not depend on the seed.
    pub fn new(starts: &[Start], files: &[impl AsRef<[u8]>]) -> Result<Self> {
        let refused = |problem: &str| Error::input(format!("the images of {REFERENCE}"), problem);
        let images: std::result::Result<Vec<_>, _> =
            files.iter().map(|file| decoded(file.as_ref()).map(|(_, bytes)| values(&bytes))).collect();
        let images = images.map_err(|problem| refused(&problem))?;
        if images.iter().any(|image| image.len() != images[0].len()) {
            return Err(refused("differ in their size"));
        }
        let unrelated = unrelated(starts, &images);
        // Not a number where no class has two images.
        if unrelated > 0.0 { Ok(Self { images, unrelated }) } else { Err(refused("do not depend on the seed")) }
    }

    /// How many there are.
    pub fn images(&self) -> usize {
        self.images.len()
    }

    /// The mean squared distance of two images of one class and different seeds.
    pub fn unrelated(&self) -> f64 {
        self.unrelated
    }

    /// The quality of the values that were served for an image: as [`crate::evaluation::to_reference::ToReference::rate`] has
    /// that of this image alone.
    ///
    /// # Errors
    /// If there are more or fewer than in the reference's.
    fn quality(&self, image: usize, served: &[f64]) -> std::result::Result<f64, String> {
        let reference = &self.images[image];
        if served.len() != reference.len() {
            return Err(format!("the image has {} values in place of {}", served.len(), reference.len()));
        }
        Ok(1.0 - distance(served, reference) / self.unrelated)
    }
}

/// The pixels of a PNG file.
fn decoded(file: &[u8]) -> std::result::Result<(ImageShape, Vec<u8>), String> {
    let image = image::load_from_memory_with_format(file, ImageFormat::Png);
    let image = image.map_err(|error| format!("no PNG image: {error}"))?;
    let (height, width) = (image.height() as usize, image.width() as usize);
    let bytes = image.into_bytes();
    Ok((ImageShape { height, width, channels: bytes.len() / (height * width).max(1) }, bytes))
}

/// In [-1, 1].
fn values(bytes: &[u8]) -> Vec<f64> {
    bytes.iter().map(|&byte| f64::from(byte) / 127.5 - 1.0).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ImageShape;
    use crate::engine::image::{Format, Raster};

    /// A PNG of two pixels.
    pub fn png(bytes: [u8; 2]) -> Vec<u8> {
        let shape = ImageShape { height: 1, width: 2, channels: 1 };
        Raster { shape, bytes: bytes.to_vec() }.encode(Format::Png).unwrap()
    }

    #[test]
    fn requests_are_for_seeds_that_no_frontier_was_measured_with() {
        let prompts = calls(&asked(3, Kinds::Prompts.count()), Kinds::Prompts, Some("m"), "90ms");
        assert!(
            String::from_utf8_lossy(prompts[0].body.as_ref().unwrap())
                .contains("\"model\":\"m\",\"prompt\":\"a photo of a red bicycle")
        );
        let calls = calls(&asked(3, 2), Kinds::Classes(2), None, "90ms");
        assert!(calls.iter().all(|call| call.path == "/generate?budget=90ms"));
        let bodies: Vec<&[u8]> = calls.iter().map(|call| call.body.as_deref().unwrap()).collect();
        let body = |seed: u64| format!(r#"{{"class":0,"seed":{seed}}}"#).into_bytes();
        assert_eq!(bodies, [body(1_000_000), body(1_000_001), body(1_000_002)]);
    }

    #[test]
    fn quality_is_one_for_the_reference_itself_and_none_for_another_seed_s_image() {
        let references = References::new(&asked(2, 1), &[png([0, 255]), png([255, 0])]).unwrap();
        assert_eq!(references.unrelated(), 4.0);
        let judge = Judge::Reference(references);
        let quality = |image, file: &[u8]| judge.look(image, file).map(|seen| seen.quality.unwrap());
        assert_eq!(quality(0, &png([0, 255])), Ok(1.0));
        assert_eq!(quality(0, &png([255, 0])), Ok(0.0));
        // One of two pixels is off by about 1 of [-1, 1].
        let near = quality(1, &png([255, 127])).unwrap();
        assert!((near - (1.0 - (127.0_f64 / 127.5).powi(2) / 2.0 / 4.0)).abs() < 1e-12, "{near}");
        assert!(quality(0, b"GIF89a").unwrap_err().contains("no PNG image"));
    }

    #[test]
    fn references_that_compare_nothing_are_refused() {
        for (files, says) in [
            ([png([0, 9]), png([0, 9])], "do not depend on the seed"),
            ([png([0, 9]), b"GIF89a".to_vec()], "no PNG image"),
        ] {
            let message = References::new(&asked(2, 1), &files).unwrap_err().to_string();
            assert!(message.starts_with("the images of heun-18@full: ") && message.contains(says), "{message}");
        }
    }
}
