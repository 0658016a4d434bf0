//! What there is to know of a network before it is run.

use super::model::Model;
use crate::ImageShape;
use crate::diffusion::Process;
use crate::supernet::Subnet;

/// What whoever draws with a network has to know of it.
#[derive(Clone, Debug)]
pub struct About {
    /// The size of its images.
    pub image: ImageShape,
    /// What it was trained to undo.
    pub process: Process,
    /// Class names by index; empty for an unconditional network.
    pub classes: Vec<String>,
    /// Its subnets, from the narrowest to the widest; the last is `full`.
    pub subnets: Vec<Subnet>,
    /// Memory that the weights of all subnets take together, tables of groups included.
    pub weight_bytes: usize,
}

impl About {
    /// Of a model whose weights take so much memory.
    pub fn of(model: &Model, weight_bytes: usize) -> Self {
        let (classes, subnets) = (model.card.classes.clone(), model.table.subnets.clone());
        Self { image: model.image(), process: model.card.process(), classes, subnets, weight_bytes }
    }
}
