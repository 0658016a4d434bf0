//! A small convolutional classifier of a model's own data, for data that no public network of features has seen: what it has
//! before its last layer are the features. `features.safetensors` of a model directory.

use super::{Features, Reference};
use crate::files::{parse_metadata, parse_tensors, refuse_surplus, write_tensors};
use crate::nets::builder::{Builder, Draw, Weight};
use crate::nets::program::{Channels, Product, Program, ValueId, View};
use crate::nets::{Runner, Threads};
use crate::ops::Act;
use crate::ops::cpu::conv::Places;
use crate::ops::pixels::to_unit;
use crate::supernet::Supernet;
use crate::supernet::checkpoint::read_params;
use crate::{Error, ImageShape, Result};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// Version of the file.
const FORMAT: &str = "1";
/// Maps are halved down to this side.
const LAST_SIDE: usize = 4;
/// Levels whose channels double.
const DOUBLINGS: usize = 2;
/// Channels that share a mean and a variance.
const GROUP: usize = 8;
/// Added to a variance.
const EPS: f32 = 1e-5;
/// Images in one call.
const BATCH: usize = 32;

/// The options of a classifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Rows and columns of an image, which are as many.
    pub side: usize,
    /// Channels of an image.
    pub image_channels: usize,
    /// Class names by label.
    pub classes: Vec<String>,
    /// Channels of the first level, a multiple of 8; those of the next two have twice and four times as many.
    pub channels: usize,
    /// Features of an image.
    pub features: usize,
}

/// How far a classifier's network goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// To the features.
    Features,
    /// To a number for each class, whose softmax is its probability.
    Logits,
}

impl Layout {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`Error::Input`] with the field and what it accepts.
    pub fn check(&self) -> Result<()> {
        if self.channels == 0 || !self.channels.is_multiple_of(GROUP) || self.channels > 1024 {
            let problem = format!("{} is not a multiple of {GROUP} from {GROUP} to 1024", self.channels);
            return Err(Error::input("channels", problem));
        }
        if !(1..=4096).contains(&self.features) {
            return Err(Error::input("features", format!("{} is not a number from 1 to 4096", self.features)));
        }
        if self.classes.len() < 2 {
            let problem = format!("{} is too few to tell apart: a classifier needs at least 2", self.classes.len());
            return Err(Error::input("classes", problem));
        }
        Ok(())
    }

    /// The size of its images.
    pub fn image(&self) -> ImageShape {
        ImageShape { height: self.side, width: self.side, channels: self.image_channels }
    }

    /// Its network: residual blocks of one convolution (He et al. 2016) and halvings by turns, down to a map of at most 4x4,
    /// which one product brings to the features. GroupNorm and SiLU before each convolution.
    pub fn program(&self, until: Until) -> Program {
        let image = self.image();
        let mut b = Builder::new(image, 0, BTreeMap::new());
        let fixed = Channels::Fixed;
        let draw = Draw::Kaiming(2f64.sqrt());
        let weight = |b: &mut Builder, name: &str, kernel, from, to, uses| {
            b.conv(name, [kernel; 2], fixed(from), fixed(to), Weight::new(draw).at(uses))
        };
        let active = |b: &mut Builder, name: String, x: ValueId| {
            let channels = b.stream(&[x]);
            View::from(x).norm(b.group_norm(&name, channels, channels / GROUP, EPS)).silu()
        };
        let (mut side, mut width, mut level) = (self.side, self.channels, 0);
        let first = weight(&mut b, "first", 3, image.channels, width, side * side);
        let mut x = b.product(Product::new(b.image(), first, [3; 2]));
        while side > LAST_SIDE {
            let view = active(&mut b, format!("{level}.norm0"), x);
            let conv = weight(&mut b, &format!("{level}.conv"), 3, width, width, side * side);
            let scale = std::f32::consts::FRAC_1_SQRT_2;
            x = b.product(Product { residual: Some(x), scale, ..Product::new(view, conv, [3; 2]) });
            let wider = if level < DOUBLINGS { 2 * width } else { width };
            side = side.div_ceil(2);
            let view = active(&mut b, format!("{level}.norm1"), x);
            let down = weight(&mut b, &format!("{level}.down"), 3, width, wider, side * side);
            x = b.product(Product { places: Places::square(3, 2, 1), ..Product::new(view, down, [3; 2]) });
            (width, level) = (wider, level + 1);
        }
        let view = active(&mut b, "norm".into(), x);
        let last = weight(&mut b, "features", side, width, self.features, 1);
        x = b.product(Product {
            places: Places::square(side, 1, 0),
            act: Some(Act::Silu),
            ..Product::new(view, last, [side; 2])
        });
        if until == Until::Logits {
            let head = weight(&mut b, "logits", 1, self.features, self.classes.len(), 1);
            b.product(Product::new(x, head, [1; 2]));
        }
        b.build()
    }
}

/// A classifier as it lies in a file: its weights, and what real images look like to it.
#[derive(Clone, Debug)]
pub struct File {
    /// The options.
    pub layout: Layout,
    /// Every parameter of its network, logits included.
    pub weights: Supernet,
    /// The share of held-out images that it knows.
    pub accuracy: f64,
    /// The features of real images.
    pub reference: Reference,
}

/// What the metadata of the file holds beside the layout.
#[derive(Serialize, Deserialize)]
struct Marks {
    accuracy: f64,
    images: usize,
    real: f64,
    blur: f64,
}

impl File {
    /// Writes the file whole or not at all, with weights in f16.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a value that is not; [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let spec = self.layout.program(Until::Logits).spec;
        let mut tensors = Vec::new();
        for (param, tensor) in spec.params.iter().zip(&self.weights.params) {
            tensors.push((param.name.clone(), tensor.contiguous()?.to_dtype(DType::F16)?));
        }
        tensors.extend(self.reference.tensors()?);
        let Reference { images, real, blur, .. } = self.reference;
        let marks = Marks { accuracy: self.accuracy, images, real, blur };
        let json = |value: serde_json::Result<String>| value.map_err(|error| Error::input(path.display(), error));
        let metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("layout".to_owned(), json(serde_json::to_string(&self.layout))?),
            ("marks".to_owned(), json(serde_json::to_string(&marks))?),
        ]);
        write_tensors(path, tensors, Some(metadata))
    }

    /// Reads a file that [`Self::write`] wrote.
    ///
    /// # Errors
    /// One sentence with the file and the tensor or field that is missing, damaged or of another version.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let (file, metadata) = (parse_tensors(path, &bytes)?, parse_metadata(path, &bytes)?);
        let field = |name: &str| metadata.get(name).ok_or_else(|| Error::field(path, name, "is missing"));
        let format = field("format")?;
        if format != FORMAT {
            return Err(Error::field(path, "format", format!("version {format} is not {FORMAT}")));
        }
        let layout: Layout =
            serde_json::from_str(field("layout")?).map_err(|error| Error::field(path, "layout", error))?;
        layout.check().map_err(|error| error.in_file(path))?;
        let marks: Marks = serde_json::from_str(field("marks")?).map_err(|error| Error::field(path, "marks", error))?;
        let spec = layout.program(Until::Logits).spec;
        let params = read_params(&spec, path, &file)?;
        let known =
            |name: &str| Reference::TENSORS.contains(&name) || spec.params.iter().any(|param| param.name == name);
        refuse_surplus(path, &file, known, "the classifier of its layout")?;
        let Marks { accuracy, images, real, blur } = marks;
        let gaussian = Reference::read_gaussian(path, &file, layout.features)?;
        let reference = Reference { gaussian, images, real, blur };
        Ok(Self { weights: Supernet::original(&spec, params), layout, accuracy, reference })
    }
}

/// Weights as they are after [`File::write`].
///
/// # Errors
/// [`Error::Tensor`] on a device fault.
pub fn rounded(weights: Supernet) -> Result<Supernet> {
    let round = |tensor: &Tensor| tensor.to_dtype(DType::F16)?.to_dtype(DType::F32);
    let params = weights.params.iter().map(round).collect::<candle_core::Result<_>>()?;
    Ok(Supernet { params, ..weights })
}

/// A classifier ready to run.
#[derive(Debug)]
pub struct Classifier {
    layout: Layout,
    runner: Runner,
    /// `[features, classes]`, and `[classes]`.
    head: (Vec<f32>, Vec<f32>),
}

impl Classifier {
    /// Packs the weights of a file.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    pub fn new(layout: &Layout, weights: &Supernet, threads: Threads) -> Result<Self> {
        let program = Arc::new(layout.program(Until::Features));
        // The head's parameters come last.
        let (body, head) = weights.params.split_at(program.spec.params.len());
        let vector = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let head = (vector(&head[0])?, vector(&head[1])?);
        let runner = Runner::new(program.clone(), &Supernet::original(&program.spec, body.to_vec()), threads)?;
        Ok(Self { layout: layout.clone(), runner, head })
    }

    /// The class of each of the images with these features, `[n, dim]`.
    pub fn classes(&self, features: &[f32]) -> Vec<usize> {
        let (weights, bias) = &self.head;
        let classes = bias.len();
        let class = |features: &[f32]| {
            let mut logits = bias.clone();
            for (feature, row) in features.iter().zip(weights.chunks_exact(classes)) {
                logits.iter_mut().zip(row).for_each(|(logit, weight)| *logit += feature * weight);
            }
            (0..classes).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("at least two classes")
        };
        features.chunks_exact(self.layout.features).map(class).collect()
    }
}

impl Features for Classifier {
    fn dim(&self) -> usize {
        self.layout.features
    }

    fn of(&mut self, images: &[u8], shape: ImageShape) -> Result<Vec<f32>> {
        if shape != self.layout.image() {
            let problem = format!("are {shape:?}, but the features are of {:?}", self.layout.image());
            return Err(Error::input("images", problem));
        }
        let mut features = Vec::with_capacity(images.len() / shape.elements() * self.dim());
        for images in images.chunks(BATCH * shape.elements()) {
            let images: Vec<f32> = images.iter().map(|&byte| to_unit(byte)).collect();
            features.extend(self.runner.run(&images));
        }
        Ok(features)
    }
}
