//! Features that are taken bit by bit, perhaps in several sittings.

use super::drawing::{BATCH, Recipe, Start, bytes, draw};
use crate::features::Features;
use crate::files::continues;
use crate::nets::Denoiser;
use crate::training::data::Dataset;
use crate::{Error, Result};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Images whose features are taken and kept at a time.
const PART: usize = 8 * BATCH;

/// Features of images `[n, dim]`, of which there are more and more: in memory, and in a file where they shall outlive the process.
#[derive(Debug)]
pub struct KeptFeatures {
    dim: usize,
    values: Vec<f32>,
    file: Option<(PathBuf, File)>,
}

impl KeptFeatures {
    /// None yet, of so many dimensions, in memory alone.
    pub fn in_memory(dim: usize) -> Self {
        Self { dim, values: Vec::new(), file: None }
    }

    /// Those that lie in `dir` under this name, of what `record` says.
    ///
    /// # Errors
    /// [`Error::Input`] if what lies there is of another record; [`Error::Io`].
    pub fn open(dir: &Path, name: &str, dim: usize, record: &impl Serialize) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let path = dir.join(format!("{name}.f32"));
        continues(&dir.join(format!("{name}.toml")), record)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let (words, _) = bytes.as_chunks::<4>();
        // An image's that were cut off are taken again.
        let whole = words.len() / dim * dim;
        file.set_len(4 * whole as u64).map_err(Error::io(&path))?;
        let values = words[..whole].iter().map(|word| f32::from_le_bytes(*word)).collect();
        Ok(Self { dim, values, file: Some((path, file)) })
    }

    /// How many images they are of.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Adds those of the next images, `[n, dim]`.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub fn push(&mut self, features: &[f32]) -> Result<()> {
        self.values.extend_from_slice(features);
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let bytes: Vec<u8> = features.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all(&bytes).map_err(Error::io(path))
    }

    /// Draws the images of `starts` that it has no features of yet, the next of them, and keeps theirs. `progress` hears how many
    /// there are.
    ///
    /// # Errors
    /// As [`draw`] and [`Features::of`]; [`Error::Io`].
    pub fn draw(
        &mut self,
        denoiser: &mut dyn Denoiser,
        starts: &[Start],
        recipe: &Recipe,
        features: &mut dyn Features,
        mut progress: impl FnMut(usize),
    ) -> Result<()> {
        let shape = denoiser.about().picture();
        while self.len() < starts.len() {
            let part = &starts[self.len()..starts.len().min(self.len() + PART)];
            let images = draw(denoiser, part, recipe)?;
            self.push(&features.of(&bytes(&images), shape)?)?;
            progress(self.len());
        }
        Ok(())
    }

    /// Takes the features of the images of `dataset` that it has none of yet, up to `images` of them, as [`Self::draw`] does.
    ///
    /// # Errors
    /// As [`Features::of`]; [`Error::Io`].
    pub fn take(
        &mut self,
        dataset: &Dataset,
        images: usize,
        features: &mut dyn Features,
        mut progress: impl FnMut(usize),
    ) -> Result<()> {
        let elements = dataset.shape.elements();
        while self.len() < images {
            let last = images.min(self.len() + PART);
            let part = &dataset.images[self.len() * elements..last * elements];
            self.push(&features.of(part, dataset.shape)?)?;
            progress(last);
        }
        Ok(())
    }

    /// Those of the first `images`, `[images, dim]`; of all where there are fewer.
    pub fn first(&self, images: usize) -> &[f32] {
        &self.values[..self.values.len().min(images * self.dim)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_was_kept_is_there_again_but_for_an_image_that_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let record = BTreeMap::from([("plan", "euler-1@full")]);
        let open = || KeptFeatures::open(dir.path(), "plan", 2, &record).unwrap();
        let mut kept = open();
        assert!(kept.is_empty());
        kept.push(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        kept.push(&[5.0]).unwrap();
        drop(kept);
        let mut kept = open();
        assert_eq!((kept.len(), kept.first(1), kept.first(9)), (2, &[1.0, 2.0][..], &[1.0, 2.0, 3.0, 4.0][..]));
        kept.push(&[6.0, 7.0]).unwrap();
        assert_eq!(open().first(3), [1.0, 2.0, 3.0, 4.0, 6.0, 7.0]);
        let other = BTreeMap::from([("plan", "euler-2@full")]);
        let error = KeptFeatures::open(dir.path(), "plan", 2, &other).unwrap_err().to_string();
        assert!(error.contains("plan.toml: plan: is not what is asked for now"), "{error}");
    }
}
