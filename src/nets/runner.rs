//! A [`Program`] as a plain function of an image, on the CPU.

use super::host_runner::Threads;
use super::on_cpu::{Packed, SubnetView};
use super::program::{Inputs, Program};
use crate::ImageShape;
use crate::Result;
use crate::ops::cpu::fused::rows::{Row, fill_rows};
use crate::ops::cpu::fused::{Layer, Recorder, Workspace};
use crate::supernet::{Supernet, Widths};
use std::sync::Arc;

/// A network without noise levels and classes, at some of its widths, with its threads and buffers.
#[derive(Debug)]
pub struct Runner {
    program: Arc<Program>,
    packed: Packed,
    /// By subnet; the last is the one that is run where nothing else is said.
    views: Vec<SubnetView>,
    workspace: Workspace,
}

impl Runner {
    /// Packs the weights, for the full width alone. What they come from is not needed afterwards.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] on a device fault.
    pub fn new(program: Arc<Program>, weights: &Supernet, threads: Threads) -> Result<Self> {
        let full = program.spec.full();
        Self::of_subnets(program, weights, vec![full], threads)
    }

    /// The same for subnets of these widths, at least one.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_subnets(
        program: Arc<Program>,
        weights: &Supernet,
        subnets: Vec<Widths>,
        threads: Threads,
    ) -> Result<Self> {
        let views = subnets.into_iter().map(|widths| SubnetView::new(&program.spec, weights, widths)).collect();
        let packed = Packed::new(program.clone(), weights)?;
        Ok(Self { packed, views, workspace: Workspace::new(threads.team()), program })
    }

    /// The network.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Memory that the weights take.
    pub fn weight_bytes(&self) -> usize {
        self.packed.bytes() + self.views.iter().map(SubnetView::bytes).sum::<usize>()
    }

    /// Memory in the buffers of activations.
    pub fn activation_bytes(&self) -> usize {
        self.workspace.arena.bytes()
    }

    /// As [`Self::run_rows`], with its layers.
    pub fn recorded(&mut self, batch: usize, fill: impl Fn(Row) + Sync) -> (Vec<f32>, Vec<Layer>) {
        self.with_layers(|runner| runner.run_rows(batch, fill))
    }

    /// What `run` returns, and the layers that it ran.
    pub fn with_layers<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> (T, Vec<Layer>) {
        self.workspace.recorder = Some(Recorder::new());
        let output = run(self);
        (output, self.workspace.recorder.take().map_or_else(Vec::new, Recorder::layers))
    }

    /// The network's output for images `[n, height, width, channels]` of its size: `[n, height', width', channels']`.
    pub fn run(&mut self, images: &[f32]) -> Vec<f32> {
        self.run_sized(self.program.image, images)
    }

    /// The same for images of another size that the network takes.
    pub fn run_sized(&mut self, shape: ImageShape, images: &[f32]) -> Vec<f32> {
        self.run_subnet(self.views.len() - 1, shape, images)
    }

    /// The same of the subnet of this index.
    pub fn run_subnet(&mut self, subnet: usize, shape: ImageShape, images: &[f32]) -> Vec<f32> {
        let width = shape.width * shape.channels;
        self.run_rows_of(subnet, shape, images.len() / shape.elements(), |Row { sample, row, pixels, pitch }| {
            let line = &images[(sample * shape.height + row) * width..][..width];
            for (pixel, values) in pixels.chunks_mut(pitch).zip(line.chunks_exact(shape.channels)) {
                pixel[..shape.channels].copy_from_slice(values);
            }
        })
    }

    /// The network's output for so many images of its size whose rows `fill` makes, on the threads that compute.
    pub fn run_rows(&mut self, batch: usize, fill: impl Fn(Row) + Sync) -> Vec<f32> {
        self.run_rows_of(self.views.len() - 1, self.program.image, batch, fill)
    }

    fn run_rows_of(&mut self, subnet: usize, shape: ImageShape, batch: usize, fill: impl Fn(Row) + Sync) -> Vec<f32> {
        if batch == 0 {
            return Vec::new();
        }
        let mut input = self.workspace.arena.map([batch, shape.height, shape.width, shape.channels]);
        fill_rows(&mut self.workspace.team, &mut input, fill);
        let inputs = Inputs { noise: &vec![0.0; batch], class: &vec![None; batch], context: &[] };
        let made = self.packed.forward(&mut self.workspace, &self.views[subnet], &input, inputs);
        // Pixels lie on whole panels.
        let pixels = made.data().chunks_exact(made.pitch());
        let output = pixels.flat_map(|pixel| &pixel[..made.channels]).copied().collect();
        self.workspace.arena.put(input);
        self.workspace.arena.put(made);
        output
    }
}
