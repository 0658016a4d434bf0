//! Pictures with captions as latents: what a denoiser of latents learns from. Encoding takes its time, so they may be kept in a file.

use super::captioned::{Captioned, fitted};
use super::{Background, Examples, flip_horizontal};
use crate::files::{parse_metadata, parse_tensors, sha256_of, tensor, write_tensors};
use crate::nets::text_to_image::VAE;
use crate::nets::{Encoder, Model, Threads};
use crate::ops::pixels::to_unit;
use crate::philox::Stream;
use crate::text::Contexts;
use crate::training::progress::Progress;
use crate::{Error, ImageShape, Result};
use indicatif::HumanCount;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time between two writings of the file that latents are kept in.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// The field of the file's metadata that says what encoded them.
const ENCODER: &str = "encoder";

/// What is encoded, by whom and where it is kept.
pub struct Wanted<'a> {
    /// The folder of the pictures.
    pub path: &'a Path,
    /// What shows behind transparent pixels; without it white for RGB and black for grey.
    pub background: Option<Background>,
    /// The file that the latents are kept in, if they are.
    pub cache: Option<&'a Path>,
    /// Whether the mirrored pictures are encoded too.
    pub is_mirrored: bool,
}

/// The latents of pictures with captions.
pub struct Latents {
    /// The size of a latent.
    shape: ImageShape,
    /// By example: `[1 or 2, height, width, 2, channels]`, means and standard deviations, as it is and mirrored; and the index of its
    /// caption.
    examples: Vec<(Arc<[f32]>, usize)>,
    captions: Vec<String>,
    contexts: Contexts,
}

impl Latents {
    /// Encodes pictures of the usual size of `model`, or reads what was kept of them; None where `stop` was raised before all were.
    ///
    /// # Errors
    /// [`Error::Input`] for a model that draws no texts, for pictures and captions as [`Captioned::list`], and for a file of latents that is
    /// damaged.
    pub fn of(wanted: &Wanted, model: &Model, stop: &AtomicBool) -> Result<Option<Self>> {
        let (Some(contexts), Some(mut encoder)) = (model.contexts()?, Encoder::of(model, Threads::ALL)?) else {
            let problem = "captions teach a model that draws texts, which this one does not";
            return Err(Error::input("data.format", problem));
        };
        let Captioned { files, labels, captions } = Captioned::list(wanted.path)?;
        let canvas = model.canvases()[0];
        let by = format!(
            "{} of {:?} behind {:?}",
            model.card.sha256.get(VAE).map_or("", String::as_str),
            canvas.picture,
            wanted.background
        );
        let mut kept = wanted.cache.map(|path| Kept::read(path, &by)).transpose()?.unwrap_or_default();
        let mut progress = Progress::new("encode", "pictures", 0, files.len() as u64);
        let mut written = Instant::now();
        let write = |kept: &Kept| wanted.cache.map_or(Ok(()), |path| kept.write(path, &by));
        let variants = 1 + usize::from(wanted.is_mirrored);
        let elements = variants * 2 * canvas.state.elements();
        let (mut examples, mut is_new) = (Vec::with_capacity(files.len()), false);
        for (index, (file, label)) in files.iter().zip(labels).enumerate() {
            let bytes = std::fs::read(file).map_err(Error::io(file))?;
            // The same picture may have several captions, or have been encoded before.
            let hash = sha256_of(&bytes);
            let known = kept.0.get(&hash).filter(|known| known.len() >= elements).cloned();
            let is_known = known.is_some();
            let moments = match known {
                Some(known) => known,
                None => {
                    let picture = fitted(file, &bytes, canvas.picture, wanted.background)?;
                    let moments = moments(&mut encoder, canvas.picture, picture, variants);
                    let moments = moments.map_err(|error| Error::input(file.display(), error))?;
                    kept.0.entry(hash).insert_entry(moments.into()).get().clone()
                }
            };
            examples.push((moments, label));
            is_new |= !is_known;
            let is_stopped = !is_known && stop.load(Ordering::Relaxed);
            if is_new && (is_stopped || index + 1 == files.len() || written.elapsed() >= WRITE_EVERY) {
                write(&kept)?;
                (written, is_new) = (Instant::now(), false);
            }
            if is_stopped {
                progress.finish();
                return Ok(None);
            }
            progress.at(index as u64 + 1, "");
        }
        progress.finish();
        Ok(Some(Self { shape: canvas.state, examples, captions, contexts }))
    }
}

/// The moments of a picture, and of its mirror image where there are two variants.
fn moments(encoder: &mut Encoder, shape: ImageShape, picture: Vec<u8>, variants: usize) -> Result<Vec<f32>> {
    let mirrored = (variants > 1).then(|| flip_horizontal(&picture, shape));
    let mut all = Vec::new();
    for bytes in [Some(picture), mirrored].into_iter().flatten() {
        let values: Vec<f32> = bytes.into_iter().map(to_unit).collect();
        all.extend(encoder.moments(shape, &values)?);
    }
    Ok(all)
}

impl Examples for Latents {
    fn count(&self) -> usize {
        self.examples.len()
    }

    fn shape(&self) -> ImageShape {
        self.shape
    }

    /// A latent is drawn from the distribution that the encoder gives, as latent diffusion is trained (Rombach et al. 2022).
    fn write(&self, index: usize, is_mirrored: bool, chance: &Stream, x0: &mut [f32]) {
        let variant = usize::from(is_mirrored) * 2 * x0.len();
        let moments = &self.examples[index].0[variant..][..2 * x0.len()];
        chance.fill_normals(x0);
        let channels = self.shape.channels;
        for (pixel, moments) in x0.chunks_exact_mut(channels).zip(moments.chunks_exact(2 * channels)) {
            let (means, deviations) = moments.split_at(channels);
            pixel.iter_mut().zip(means).zip(deviations).for_each(|((x, mean), deviation)| *x = mean + deviation * *x);
        }
    }

    fn label(&self, index: usize) -> usize {
        self.examples[index].1
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn captions(&self) -> &[String] {
        &self.captions
    }

    fn contexts(&self, labels: &[Option<usize>]) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for label in labels {
            all.extend_from_slice(&self.contexts.of(label.map_or("", |label| &self.captions[label]))?.values);
        }
        Ok(all)
    }

    fn statistics(&self) -> (f64, f64) {
        let channels = self.shape.channels;
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        let pixels = self.examples.iter().flat_map(|(moments, _)| moments.chunks_exact(2 * channels));
        for value in pixels.flat_map(|pixel| &pixel[..channels]).map(|&mean| f64::from(mean)) {
            (count, sum, squares) = (count + 1.0, sum + value, squares + value * value);
        }
        let mean = sum / count;
        (mean, (squares / count - mean * mean).max(0.0).sqrt())
    }

    fn summary(&self) -> String {
        let ImageShape { height, width, channels } = self.shape;
        let (mean, std) = self.statistics();
        format!(
            "data: {} latents of {height}x{width}x{channels}, mean {mean:.3} and deviation {std:.3}; {} captions",
            HumanCount(self.examples.len() as u64),
            HumanCount(self.captions.len() as u64),
        )
    }
}

/// Moments by the SHA-256 of the file of their picture.
#[derive(Default)]
struct Kept(HashMap<String, Arc<[f32]>>);

impl Kept {
    /// What is in the file, if that is there and holds what the encoder `by` made.
    fn read(path: &Path, by: &str) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let (file, metadata) = (parse_tensors(path, &bytes)?, parse_metadata(path, &bytes)?);
        let Some(found) = metadata.get(ENCODER) else {
            return Err(Error::field(path, ENCODER, "is missing: this is no file of latents; give another data.cache"));
        };
        if found != by {
            tracing::warn!(
                "{}: its latents are of another autoencoder, size or background; pictures are encoded anew",
                path.display()
            );
            return Ok(Self::default());
        }
        let values = |name: &str| {
            let view = tensor(path, &file, name)?;
            match view.dtype() {
                Dtype::F32 => Ok(view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
                other => Err(Error::field(path, name, format!("is {other:?}, not F32"))),
            }
        };
        file.names().into_iter().map(|name| Ok((name.to_owned(), values(name)?))).collect::<Result<_>>().map(Self)
    }

    fn write(&self, path: &Path, by: &str) -> Result<()> {
        let bytes: Vec<(&String, Vec<u8>)> = self
            .0
            .iter()
            .map(|(name, values)| (name, values.iter().flat_map(|value| value.to_le_bytes()).collect()))
            .collect();
        let mut tensors = Vec::with_capacity(bytes.len());
        for (name, bytes) in &bytes {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes);
            tensors.push((name.as_str(), view.map_err(|error| Error::input(path.display(), error))?));
        }
        write_tensors(path, tensors, Some(HashMap::from([(ENCODER.to_owned(), by.to_owned())])))
    }
}
