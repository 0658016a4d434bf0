//! Images from disk: of classes in IDX files, class folders and CIFAR-10's binary format; with captions in folders.

mod captioned;
mod cifar;
mod examples;
mod folder;
mod idx;
mod latents;
mod pixels;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use indicatif::HumanCount;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::ImageShape;
use crate::classes;
use crate::nets::Model;
use crate::ops::pixels::to_unit;
use crate::philox::Stream;
use crate::{Error, Result};

pub use crate::picture::{Background, Colour};
pub use examples::Examples;
pub use latents::Latents;
pub use pixels::{flip_horizontal, shift};

/// Classes that a summary names.
const SUMMARISED: usize = 20;

/// N labelled images of one size, in memory as bytes. [`Source::load`] makes it with at least one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The size of each image.
    pub shape: ImageShape,
    /// Class names by label, as [`classes::checked`] writes them.
    pub classes: Vec<String>,
    /// `[N, height, width, channels]`, row-major.
    pub images: Vec<u8>,
    /// `[N]`, each below `classes.len()`. Two bytes, because a folder may hold more than 256 classes.
    pub labels: Vec<u16>,
}

impl Dataset {
    /// The same images for a model of these classes: labels are the model's, whatever order the data has them in. For a model
    /// without classes they have none.
    ///
    /// # Errors
    /// [`Error::Input`] about `data`, with both lists, if the names are not the same.
    pub fn for_classes(mut self, classes: &[String]) -> Result<Self> {
        if classes.is_empty() {
            return Ok(Self { labels: vec![0; self.len()], classes: Vec::new(), ..self });
        }
        let places = classes::matched(&self.classes, classes).map_err(|problem| Error::input("data", problem))?;
        // Both have as many classes, so a place fits wherever a label does.
        self.labels.iter_mut().for_each(|label| *label = places[usize::from(*label)] as u16);
        self.classes = classes.to_vec();
        Ok(self)
    }

    /// How many images there are of each class; without classes, of all.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len().max(1)];
        self.labels.iter().for_each(|&label| counts[usize::from(label)] += 1);
        counts
    }

    /// As [`Examples::summary`], with the statistics and how many there are of each class.
    pub fn summary(&self) -> String {
        let ImageShape { height, width, channels } = self.shape;
        let (mean, std) = self.statistics();
        let counts = self.counts();
        let named = self.classes.iter().zip(&counts).take(SUMMARISED);
        let named: Vec<String> =
            named.map(|(class, count)| format!("{class} ({})", HumanCount(*count as u64))).collect();
        let classes = match self.classes.len() {
            0 => "no classes".to_owned(),
            count @ ..=SUMMARISED => format!("{count} classes: {}", named.join(", ")),
            count => format!("{count} classes: {} and {} more", named.join(", "), count - SUMMARISED),
        };
        format!(
            "data: {} images of {height}x{width}x{channels}, mean {mean:.3} and deviation {std:.3} in [-1, 1]; {classes}",
            HumanCount(self.len() as u64),
        )
    }

    /// The number of images, N.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Image `i < len()`: `[height, width, channels]`, row-major.
    pub fn image(&self, i: usize) -> &[u8] {
        let elements = self.shape.elements();
        &self.images[i * elements..][..elements]
    }

    /// The class of image `i < len()`: an index into `classes`.
    pub fn label(&self, i: usize) -> usize {
        usize::from(self.labels[i])
    }

    /// Mean and (population) standard deviation over the values of all images in [-1, 1]; NaN if there is no image.
    pub fn statistics(&self) -> (f64, f64) {
        // A byte has 256 values: sums over their counts are integers, so the result does not depend on the order.
        let mut counts = [0u64; 256];
        for &byte in &self.images {
            counts[usize::from(byte)] += 1;
        }
        let average = |value: &dyn Fn(f64) -> f64| {
            let sum: f64 = counts.iter().enumerate().map(|(byte, &n)| n as f64 * value(byte as f64)).sum();
            sum / self.images.len() as f64
        };
        let mean = average(&|byte| byte);
        let variance = average(&|byte| (byte - mean).powi(2));
        (mean / 127.5 - 1.0, variance.sqrt() / 127.5)
    }
}

impl Examples for Dataset {
    fn count(&self) -> usize {
        self.len()
    }

    fn shape(&self) -> ImageShape {
        self.shape
    }

    fn write(&self, index: usize, is_mirrored: bool, _: &Stream, x0: &mut [f32]) {
        let image = self.image(index);
        let mirrored = is_mirrored.then(|| flip_horizontal(image, self.shape));
        let bytes = mirrored.as_deref().unwrap_or(image);
        x0.iter_mut().zip(bytes).for_each(|(value, &byte)| *value = to_unit(byte));
    }

    fn label(&self, index: usize) -> usize {
        usize::from(self.labels[index])
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn captions(&self) -> &[String] {
        &[]
    }

    fn contexts(&self, _: &[Option<usize>]) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }

    fn statistics(&self) -> (f64, f64) {
        Self::statistics(self)
    }

    fn summary(&self) -> String {
        Self::summary(self)
    }
}

/// Where the training images come from: the `[data]` table of a training configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// A pair of IDX files of unsigned bytes, as MNIST and Fashion-MNIST come, gzipped or plain.
    Idx {
        /// Grey images `[N, height, width]`.
        images: PathBuf,
        /// Labels `[N]`.
        labels: PathBuf,
        /// Class names by label.
        classes: Vec<String>,
    },
    /// A folder of class folders of PNG, JPEG or WebP images. Classes are the class folders, sorted by name (in NFC) byte by
    /// byte.
    Folder {
        /// The folder that holds the class folders.
        path: PathBuf,
        /// Rows and columns that each image must have; without it, the size of the first image.
        image_size: Option<usize>,
        /// What the images are converted to.
        channels: Colour,
        /// What shows behind transparent pixels; without it white for RGB and black for grey.
        background: Option<Background>,
    },
    /// The five training batches of CIFAR-10's binary version.
    Cifar10 {
        /// The folder that holds `data_batch_1.bin` to `data_batch_5.bin`.
        path: PathBuf,
    },
    /// A folder of PNG, JPEG or WebP images with captions, for a model that draws texts: `metadata.jsonl` with `file_name` and `text`, or a
    /// `.txt` beside each image. Images are scaled and cut to the usual size of the model.
    Captioned {
        /// The folder.
        path: PathBuf,
        /// What shows behind transparent pixels; without it white for RGB and black for grey.
        background: Option<Background>,
        /// The file that the latents of the images are kept in; without it they are encoded at each start.
        cache: Option<PathBuf>,
    },
}

impl Source {
    /// Whether its images have captions in place of classes.
    pub fn has_captions(&self) -> bool {
        matches!(self, Self::Captioned { .. })
    }

    /// What a denoiser learns from: images, with the classes of a model of these where they are given, or the latents of images with
    /// captions as `model` encodes them, mirrored ones too where it is so. None where `stop` was raised before all were encoded.
    ///
    /// # Errors
    /// As [`Self::load`], [`Dataset::for_classes`] and [`Latents::of`], with `config` where a field of that file is wrong; [`Error::Input`]
    /// for classes that a model of texts shall learn from.
    pub fn examples(
        &self,
        config: &Path,
        model: Option<&Model>,
        classes: Option<&[String]>,
        is_mirrored: bool,
        stop: &AtomicBool,
    ) -> Result<Option<Box<dyn Examples>>> {
        let draws_texts = model.is_some_and(|model| model.card.text_to_image.is_some());
        match self {
            Self::Captioned { path, background, cache } => {
                let Some(model) = model.filter(|_| draws_texts) else {
                    let problem =
                        "`captioned` teaches a model that draws texts, whose directory --model or --init names";
                    return Err(Error::field(config, "data.format", problem));
                };
                let wanted = latents::Wanted { path, background: *background, cache: cache.as_deref(), is_mirrored };
                Ok(Latents::of(&wanted, model, stop)?.map(|latents| Box::new(latents) as Box<dyn Examples>))
            }
            _ if draws_texts => {
                let problem = "a model that draws texts learns from images with captions: accepted is `captioned`";
                Err(Error::field(config, "data.format", problem))
            }
            _ => {
                let dataset = self.load()?;
                Ok(Some(Box::new(match classes {
                    Some(classes) => dataset.for_classes(classes).map_err(|error| error.in_file(config))?,
                    None => dataset,
                })))
            }
        }
    }

    /// The images alone: what teaches an autoencoder. Those with captions are scaled and cut to this size, others have the one that they
    /// have.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn pictures(&self, shape: ImageShape) -> Result<Dataset> {
        let Self::Captioned { path, background, .. } = self else { return self.load()?.for_classes(&[]) };
        let files = captioned::Captioned::list(path)?.files;
        let read = |file: &PathBuf| {
            captioned::fitted(file, &std::fs::read(file).map_err(Error::io(file))?, shape, *background)
        };
        let images = files.par_iter().map(read).collect::<Result<Vec<_>>>()?.concat();
        Ok(Dataset { shape, classes: Vec::new(), images, labels: vec![0; files.len()] })
    }

    /// Reads all images, of classes, into memory.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if a file cannot be read; [`Error::Input`](crate::Error::Input), naming the
    /// file, if it is damaged, truncated, or disagrees with the configuration or with the other files, and for images with captions.
    pub fn load(&self) -> Result<Dataset> {
        let (mut dataset, named_by) = match self {
            Self::Idx { images, labels, classes } => (idx::load(images, labels, classes)?, "data.classes".to_owned()),
            Self::Folder { path, image_size, channels, background } => {
                let background = background.unwrap_or(Background::of(*channels));
                (folder::load(path, *image_size, *channels, background)?, path.display().to_string())
            }
            Self::Cifar10 { path } => (cifar::load(path)?, path.join(cifar::NAMES).display().to_string()),
            Self::Captioned { .. } => {
                let problem = "`captioned` images have no classes, but here they are wanted: accepted are idx, folder and cifar10";
                return Err(Error::input("data.format", problem));
            }
        };
        dataset.classes = classes::checked(&dataset.classes).map_err(|problem| Error::input(named_by, problem))?;
        Ok(dataset)
    }

    /// The same source with its relative paths taken from `folder`.
    pub fn within(self, folder: &Path) -> Self {
        match self {
            Self::Idx { images, labels, classes } => {
                Self::Idx { images: folder.join(images), labels: folder.join(labels), classes }
            }
            Self::Folder { path, image_size, channels, background } => {
                Self::Folder { path: folder.join(path), image_size, channels, background }
            }
            Self::Cifar10 { path } => Self::Cifar10 { path: folder.join(path) },
            Self::Captioned { path, background, cache } => {
                Self::Captioned { path: folder.join(path), background, cache: cache.map(|cache| folder.join(cache)) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_table_names_its_format() {
        let idx: Source =
            toml::from_str("format = 'idx'\nimages = 'i.gz'\nlabels = 'l.gz'\nclasses = ['a', 'b']").unwrap();
        assert_eq!(
            idx,
            Source::Idx { images: "i.gz".into(), labels: "l.gz".into(), classes: vec!["a".into(), "b".into()] }
        );
        let folder: Source = toml::from_str("format = 'folder'\npath = 'birds'\nchannels = 3").unwrap();
        assert_eq!(
            folder,
            Source::Folder { path: "birds".into(), image_size: None, channels: Colour::Rgb, background: None }
        );
        let cifar: Source = toml::from_str("format = 'cifar10'\npath = 'cifar-10-batches-bin'").unwrap();
        assert_eq!(cifar, Source::Cifar10 { path: "cifar-10-batches-bin".into() });
        for source in [idx, folder, cifar] {
            assert_eq!(toml::from_str::<Source>(&toml::to_string(&source).unwrap()).unwrap(), source);
        }
    }

    #[test]
    fn a_data_table_with_a_mistake_is_refused() {
        for (table, message) in [
            ("format = 'cifar10'\npath = 'p'\nsize = 32", "unknown field `size`"),
            ("format = 'hdf5'\npath = 'p'", "expected one of `idx`, `folder`, `cifar10`, `captioned`"),
            ("path = 'p'", "missing field `format`"),
            ("format = 'folder'\npath = 'p'", "missing field `channels`"),
            (
                "format = 'folder'\npath = 'p'\nchannels = 4",
                "channels is 4, but only 1 (grey) and 3 (RGB) are accepted",
            ),
            (
                "format = 'folder'\npath = 'p'\nchannels = 3\nbackground = 'grey'",
                "background is `grey`, but only white, black and #rrggbb are accepted",
            ),
        ] {
            let error = toml::from_str::<Source>(table).unwrap_err().to_string();
            assert!(error.contains(message), "{table}: {error}");
        }
    }

    #[test]
    fn a_summary_says_what_was_loaded() {
        let shape = ImageShape { height: 1, width: 2, channels: 1 };
        let classes = vec!["crow".to_owned(), "wren".to_owned()];
        let data =
            Dataset { shape, classes, images: [0, 255].repeat(1_001), labels: [vec![1; 1_000], vec![0]].concat() };
        assert_eq!(
            data.summary(),
            "data: 1,001 images of 1x2x1, mean 0.000 and deviation 1.000 in [-1, 1]; 2 classes: crow (1), wren (1,000)"
        );
        let classes = (0..22).map(|class| class.to_string()).collect();
        let many = Dataset { classes, ..data.clone() }.summary();
        assert!(many.contains("; 22 classes: 0 (1), ") && many.ends_with("18 (0), 19 (0) and 2 more"), "{many}");
        assert!(data.for_classes(&[]).unwrap().summary().ends_with("; no classes"));
    }

    #[test]
    fn labels_follow_the_names_of_a_model_with_the_same_classes_in_another_order() {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<String>>();
        let shape = ImageShape { height: 1, width: 1, channels: 1 };
        let classes = owned(&["bag", "coat", "dress"]);
        let data = Dataset { shape, classes, images: vec![1, 2, 3, 4], labels: vec![0, 1, 2, 0] };
        assert_eq!(data.counts(), [2, 1, 1]);
        let model = owned(&["dress", "bag", "coat"]);
        let matched = data.clone().for_classes(&model).unwrap();
        assert_eq!((&matched.classes, &matched.labels), (&model, &vec![1, 2, 0, 1]));
        assert_eq!(matched.counts(), [1, 2, 1]);
        let without = data.clone().for_classes(&[]).unwrap();
        assert_eq!((without.classes.len(), &without.images), (0, &data.images), "for a model without classes");
        let refusal = data.for_classes(&owned(&["dress", "bag", "shirt"])).unwrap_err().to_string();
        assert_eq!(refusal, "data: has the classes bag, coat, dress, but the model's are dress, bag, shirt");
    }

    #[test]
    fn empty_and_equal_class_names_are_refused_wherever_they_come_from() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |source: Source| source.load().unwrap_err().to_string();
        let [images, labels] = ["images", "labels"].map(|name| dir.path().join(name));
        std::fs::write(&images, [0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 7]).unwrap();
        std::fs::write(&labels, [0, 0, 8, 1, 0, 0, 0, 1, 0]).unwrap();
        let classes = vec!["caf\u{e9}".to_owned(), " cafe\u{301}".to_owned()];
        let said = refusal(Source::Idx { images, labels, classes });
        assert!(said.starts_with("data.classes: classes 0 and 1 are both `caf\u{e9}`"), "{said}");
        for name in ["caf\u{e9}", "cafe\u{301}"] {
            let folder = dir.path().join("folder").join(name);
            std::fs::create_dir_all(&folder).unwrap();
            image::GrayImage::new(1, 1).save(folder.join("a.png")).unwrap();
        }
        let path = dir.path().join("folder");
        let source = Source::Folder { path, image_size: None, channels: Colour::Grey, background: None };
        let said = refusal(source);
        assert!(said.contains("folder: classes 0 and 1 are both `caf\u{e9}`"), "{said}");
    }

    #[test]
    fn images_and_labels_are_found_by_index() {
        let shape = ImageShape { height: 1, width: 2, channels: 3 };
        let data =
            Dataset { shape, classes: vec!["a".into(), "b".into()], images: (0..12).collect(), labels: vec![1, 0] };
        assert_eq!((data.len(), data.is_empty()), (2, false));
        assert_eq!((data.image(0), data.label(0)), (&[0, 1, 2, 3, 4, 5][..], 1));
        assert_eq!((data.image(1), data.label(1)), (&[6, 7, 8, 9, 10, 11][..], 0));
    }

    #[test]
    fn statistics_are_those_of_the_values_in_unit_range() {
        let shape = ImageShape { height: 1, width: 2, channels: 1 };
        let images = vec![0, 255, 51, 204];
        let values: Vec<f64> = images.iter().map(|&byte| f64::from(to_unit(byte))).collect();
        let mean = values.iter().sum::<f64>() / 4.0;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 4.0).sqrt();
        let data = Dataset { shape, classes: vec!["a".into()], images, labels: vec![0, 0] };
        let (found_mean, found_std) = data.statistics();
        assert!((found_mean - mean).abs() < 1e-7 && (found_std - std).abs() < 1e-7, "{found_mean} {found_std}");
        assert!((found_std - (0.5f64 * (1.0 + 0.36)).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn images_of_another_size_or_with_other_classes_than_the_network_are_refused() {
        let shape = ImageShape { height: 1, width: 2, channels: 1 };
        let classes = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let data = Dataset { shape, classes, images: vec![0, 1], labels: vec![2] };
        assert!(data.check(shape, 3).is_ok() && data.check(shape, 0).is_ok());
        let refusal = data.check(shape, 2).unwrap_err().to_string();
        assert_eq!(refusal, "data: has 3 classes, but the network has 2");
        let larger = ImageShape { width: 3, ..shape };
        assert!(data.check(larger, 3).unwrap_err().to_string().starts_with("data: images are "));
    }
}
