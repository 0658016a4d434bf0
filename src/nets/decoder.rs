//! The decoder of a model's autoencoder at its widths, as importance has ordered its channels; the encoder has one width.

use super::host_runner::Threads;
use super::model::Model;
use super::program::Program;
use super::public;
use super::runner::Runner;
use super::subnet_table::SubnetTable;
use super::text_to_image::{DECODER, DECODER_SUBNETS, VAE, tensors};
use crate::files::sha256;
use crate::supernet::{Order, Subnet, Supernet, Widths, ranking};
use crate::{Error, Result};
use candle_core::DType;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A decoder from latents, divided by [`super::vae::Config::scaling_factor`], to pictures.
#[derive(Debug)]
pub struct Decoder {
    /// The network, of the size of the denoiser's own latents.
    pub program: Program,
    /// Its weights.
    pub supernet: Supernet,
    table: SubnetTable,
}

impl Decoder {
    /// That of a model: of its file where the model has one, or else the one of its autoencoder, in its original order; None where the
    /// model draws pictures itself.
    ///
    /// # Errors
    /// [`Error::Input`] with the tensor that is missing or does not fit; [`Error::Io`] if the file cannot be read.
    pub fn of(model: &Model) -> Result<Option<Self>> {
        let (Some(program), Some(dir)) = (model.card.decoder(), model.parts()) else { return Ok(None) };
        let Some(table) = model.decoder_table() else { return Self::original(model) };
        let supernet = Supernet::read(&program.spec, &dir.join(DECODER))?;
        Ok(Some(Self { program, supernet, table: table.clone() }))
    }

    /// That of a model's autoencoder, whether the model has another or not; None where the model draws pictures itself.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn original(model: &Model) -> Result<Option<Self>> {
        let (Some(program), Some(dir)) = (model.card.decoder(), model.parts()) else { return Ok(None) };
        let params = public::read_among(&program.spec, &tensors(&dir.join(VAE))?)?;
        let (supernet, table) = (Supernet::original(&program.spec, params), SubnetTable::unallocated(&program.spec));
        Ok(Some(Self { program, supernet, table }))
    }

    /// The same, or a refusal where there is none.
    ///
    /// # Errors
    /// As [`Self::of`], and [`Error::Input`] for a model that draws pictures itself.
    pub fn wanted(model: &Model) -> Result<Self> {
        Self::of(model)?.ok_or_else(|| {
            Error::input("--part", "decoder is of a model that draws latents; this one draws pictures itself")
        })
    }

    /// Its subnets, from the narrowest to the widest; the last is `full`.
    pub fn subnets(&self) -> &[Subnet] {
        &self.table.subnets
    }

    /// The widths of every subnet.
    pub fn widths(&self) -> Vec<Widths> {
        self.table.widths(&self.program.spec)
    }

    /// What runs it on the CPU at all of its widths.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    pub fn runner(self, threads: Threads) -> Result<Runner> {
        let widths = self.widths();
        Runner::of_subnets(Arc::new(self.program), &self.supernet, widths, threads)
    }

    /// The same with the channels of every pipe sorted by `scores`, which are in its current order; its only subnet is `full`.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    pub fn ranked(self, scores: &[Vec<f64>], order: Order) -> Result<Self> {
        let spec = &self.program.spec;
        let orders = ranking::order(spec, &self.supernet, scores, order);
        let supernet = self.supernet.permuted(spec, &orders, order)?;
        Ok(Self { supernet, table: SubnetTable::unallocated(spec), program: self.program })
    }

    /// The same with other subnets: `rows` sorted by cost, `full` added last.
    ///
    /// # Errors
    /// [`Error::Input`] with the row that does not fit.
    pub fn with_subnets(self, target: &str, rows: Vec<Subnet>) -> Result<Self> {
        let weights = self.table.weights.clone();
        let table = SubnetTable { weights, ..SubnetTable::new(&self.program.spec, target, rows) };
        table.check(&self.program.spec).map_err(|(place, problem)| Error::input(place, problem))?;
        Ok(Self { table, ..self })
    }

    /// The same subnets of other weights.
    pub fn with_weights(self, supernet: Supernet) -> Self {
        Self { supernet, ..self }
    }

    /// The values of its tensors by the names of diffusers, with the channels of every pipe in their original order.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    pub fn in_original_order(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        let spec = &self.program.spec;
        let orders: Vec<_> = self.supernet.permutations.iter().map(|origin| ranking::ascending(origin)).collect();
        let params = self.supernet.permuted(spec, &orders, Order::Original)?.params;
        public::values(spec, &params)
    }

    /// Writes its files into a model directory, weights in `dtype`; `model.toml` has to be written after them.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written, [`Error::NotFinite`] for weights that are not.
    pub fn write(&self, dir: &Path, dtype: DType) -> Result<()> {
        let path = dir.join(DECODER);
        self.supernet.write(&self.program.spec, &path, dtype)?;
        self.table.write(&dir.join(DECODER_SUBNETS), Some(&sha256(&path)?))
    }

    /// Writes its subnets alone, into the directory that it was read from.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn write_subnets(&self, dir: &Path) -> Result<()> {
        self.table.write(&dir.join(DECODER_SUBNETS), self.table.weights.as_ref())
    }
}
