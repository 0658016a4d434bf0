//! Inference: layers that take their input, and leave their output, in one pass each.
//!
//! A layer reads its maps through a [`Source`] (normalisation, SiLU and concatenation happen on the way in), computes on
//! weights that were packed once for all subnets, and adds bias and residual on the way out. Loops are shared out to a
//! [`Team`]; buffers come from an [`Arena`]. No buffer is allocated once every subnet has run the largest batch.

pub mod activate;
pub mod attention;
pub mod conv;
mod direct;
pub mod epilogue;
pub mod gate;
pub mod group_norm;
pub mod layer_norm;
pub mod linear;
pub mod map;
pub mod method;
pub mod panels;
pub mod pool;
pub mod record;
pub mod resample;
pub mod rows;
mod scratch;
mod softmax;
pub mod source;
pub mod team;
#[cfg(test)]
mod tests;
pub mod tokens;
pub mod winograd;

pub use map::{Arena, Map};
pub use record::{Kind, Layer, Recorder};
pub use source::{Affine, Source};
pub use team::Team;

/// What every layer needs beside its weights.
#[derive(Debug)]
pub struct Workspace {
    /// Who computes.
    pub team: Team,
    /// Where buffers come from.
    pub arena: Arena,
    /// Who times the layers, if anybody.
    pub recorder: Option<Recorder>,
}

impl Workspace {
    /// What layers need.
    pub fn new(team: Team) -> Self {
        Self { team, arena: Arena::default(), recorder: None }
    }

    /// Ends the layer `name`, where layers are timed: see [`Recorder::layer`].
    pub fn ended(&mut self, name: std::fmt::Arguments, kind: Kind, shape: [usize; 4], macs: u64) {
        if let Some(recorder) = &mut self.recorder {
            recorder.layer(name, kind, shape, macs);
        }
    }
}
