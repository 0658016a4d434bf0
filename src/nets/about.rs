//! What there is to know of a network before it is run.

use super::model::{Model, WEIGHTS};
use super::text_to_image;
use crate::ImageShape;
use crate::diffusion::{Plan, Process};
use crate::supernet::Subnet;

/// A size of pictures, and of what is denoised for them: the pictures themselves, or latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canvas {
    /// The size of a picture.
    pub picture: ImageShape,
    /// The size of what is denoised.
    pub state: ImageShape,
}

impl From<ImageShape> for Canvas {
    /// Of pictures that are denoised themselves.
    fn from(picture: ImageShape) -> Self {
        Self { picture, state: picture }
    }
}

/// What whoever draws with a network has to know of it.
#[derive(Clone, Debug)]
pub struct About {
    /// The sizes of its pictures, the usual one first; never empty.
    pub canvases: Vec<Canvas>,
    /// What it was trained to undo.
    pub process: Process,
    /// Class names by index; empty for a network that knows none.
    pub classes: Vec<String>,
    /// Whether it draws texts.
    pub reads_texts: bool,
    /// Whether it is a network for inpainting, which is given a mask and the masked picture beside what it denoises.
    pub inpaints: bool,
    /// Its subnets, from the narrowest to the widest; the last is `full`.
    pub subnets: Vec<Subnet>,
    /// Those of its decoder in the same order, where it draws latents; else none.
    pub decoders: Vec<Subnet>,
    /// The SHA-256 of the file of its weights, where it is known.
    pub weights: Option<String>,
    /// Memory that the weights of all subnets take together, tables of groups included.
    pub weight_bytes: usize,
}

impl About {
    /// Of a model whose weights take so much memory.
    pub fn of(model: &Model, weight_bytes: usize) -> Self {
        Self {
            canvases: model.canvases(),
            process: model.card.process(),
            classes: model.card.classes.clone(),
            reads_texts: model.card.text_to_image.is_some(),
            inpaints: model.network.beside() > 0,
            subnets: model.table.subnets.clone(),
            decoders: model.decoders(),
            weights: model.card.sha256.get(WEIGHTS).cloned(),
            weight_bytes,
        }
    }

    /// The scale of guidance where nothing else is said: 1, which is off, but for models that draw texts.
    pub fn usual_guidance(&self) -> f64 {
        if self.reads_texts { text_to_image::GUIDANCE } else { 1.0 }
    }

    /// The index of a plan's decoder, which is 0 where pictures are drawn themselves; None for one that there is not.
    pub fn decoder(&self, plan: &Plan) -> Option<usize> {
        match &*self.decoders {
            [] => plan.decode.is_full().then_some(0),
            decoders => decoders.iter().position(|decoder| decoder.name == plan.decode),
        }
    }

    /// The usual size of a picture.
    pub fn picture(&self) -> ImageShape {
        self.canvases[0].picture
    }

    /// The size of what is denoised for it.
    pub fn state(&self) -> ImageShape {
        self.canvases[0].state
    }
}
