//! What a denoiser is called on.

use crate::ImageShape;
use crate::diffusion::Level;
use std::sync::Arc;

/// What an image is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Condition {
    /// Nothing: the unconditional call.
    #[default]
    None,
    /// The class of this index.
    Class(usize),
    /// A text: what its encoder makes of it, `[tokens, channels]`.
    Text(Arc<[f32]>),
}

impl Condition {
    /// The class, where it is one.
    pub fn class(&self) -> Option<usize> {
        match self {
            Self::Class(class) => Some(*class),
            Self::None | Self::Text(_) => None,
        }
    }
}

impl From<Option<usize>> for Condition {
    /// A class, or nothing.
    fn from(class: Option<usize>) -> Self {
        class.map_or(Self::None, Self::Class)
    }
}

/// The B samples of a call.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The size of each: the network's own, or with rows and columns that it takes as well.
    pub image: ImageShape,
    /// `[B, height, width, channels]` row-major.
    pub x: &'a [f32],
    /// What a network for inpainting is given beside it, `[B, height, width, C]`: a mask, 1 where the image is drawn anew, and the masked
    /// picture. Empty where all is drawn anew: ones, and a picture of zeros.
    pub beside: &'a [f32],
    /// The noise level of each.
    pub levels: &'a [Level],
    /// What each is of. A network of classes is told no text, and one that reads texts sees zeros where there is none.
    pub conditions: &'a [Condition],
}

impl Rows<'_> {
    /// B.
    pub fn count(&self) -> usize {
        self.levels.len()
    }

    /// The classes of all.
    pub fn classes(&self) -> Vec<Option<usize>> {
        self.conditions.iter().map(Condition::class).collect()
    }

    /// The texts of all, one after the other, `of` elements each.
    pub fn texts(&self, of: usize) -> Vec<f32> {
        let mut texts = vec![0.0; self.count() * of];
        if of > 0 {
            for (place, condition) in texts.chunks_exact_mut(of).zip(self.conditions) {
                if let Condition::Text(text) = condition {
                    place.copy_from_slice(text);
                }
            }
        }
        texts
    }
}

/// What a network for inpainting is given beside a pixel where all is drawn anew.
pub(super) fn drawn_anew(channel: usize) -> f32 {
    if channel == 0 { 1.0 } else { 0.0 }
}
