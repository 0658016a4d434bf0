//! One stage of training: steps on a subnet or several, over shared weights.

use super::batch::Draw;
use super::config::{Sampling, Stage, Teacher};
use super::denoising::Denoising;
use super::learner::Learner;
use super::optimizer::{Adam, Region, Slot};
use super::sampling;
use super::state::State;
use crate::nets::sliced::Sliced;
use crate::ops::Tape;
use crate::subnet_name::SubnetName;
use crate::supernet::spec::Init;
use crate::supernet::{Spec, Subnet, Supernet, Widths, widths_of};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::time::Instant;

/// What a stage trains, and what it is shown.
pub trait Task {
    /// What a step sees.
    type Batch;

    /// Whether a frozen teacher teaches the full width too: where that is to stay what it was.
    const TEACHES_FULL: bool;

    /// The network as a table.
    fn spec(&self) -> &Spec;

    /// What a step sees: `size` images from the one at `position` of the run; `beside` is trained beside the network.
    ///
    /// # Errors
    /// If an image cannot be had.
    fn draw(&mut self, position: u64, size: usize, beside: &[Slot]) -> Result<Self::Batch>;

    /// What a teacher makes of a batch.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    fn taught(&self, teacher: &Sliced, batch: &Self::Batch) -> Result<Vec<f32>>;

    /// Forward and backward of a subnet, whose loss has this share of the distance to what a teacher made, where there is one.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    fn pass(&self, subnet: &Sliced, batch: &Self::Batch, teacher: Option<(&[f32], f64)>) -> Result<Pass>;

    /// The gradients of what is trained beside the network, from those of all subnets of a step together.
    ///
    /// # Errors
    /// [`Error::Tensor`] on a device fault.
    fn beside(&self, _batch: &Self::Batch, _gradients: &Gradients) -> Result<Vec<Option<Vec<f32>>>> {
        Ok(Vec::new())
    }
}

/// How a stage goes.
#[derive(Clone, Copy)]
pub struct Recipe<'a> {
    /// How long and how fast.
    pub stage: &'a Stage,
    /// Which subnets a step trains.
    pub sampling: &'a Sampling,
    /// What the subnets are drawn from.
    pub seed: u64,
}

/// A stage under way.
pub struct Trainer<'a, T = Denoising<'a>> {
    pub(super) task: T,
    recipe: Recipe<'a>,
    /// The subnets that are trained, ascending; the last is the full network.
    ratios: Vec<f64>,
    widths: Vec<Widths>,
    /// The frozen teacher, where the config asks for one.
    teacher: Option<Sliced>,
    adam: Adam,
    /// What is written to disk.
    pub state: State,
}

/// What a step says of itself.
pub struct Report {
    /// Index of each subnet that was trained and its loss.
    pub losses: Vec<(usize, f64)>,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
}

/// Draws the initial weights of a network.
pub fn initial(spec: &Spec, seed: u64) -> Result<Supernet> {
    let mut params = Vec::with_capacity(spec.params.len());
    for (index, param) in spec.params.iter().enumerate() {
        let stream = Draw::Init.at(seed, index as u64);
        let len = param.shape.iter().product::<usize>() as u64;
        let uniform = |bound: f64| (0..len).map(|i| (bound * (2.0 * stream.uniform(i) - 1.0)) as f32).collect();
        let values: Vec<f32> = match param.init {
            Init::Constant(value) => vec![value; len as usize],
            Init::Normal(std) => (0..len).map(|i| (std * stream.normal(i)) as f32).collect(),
            Init::Xavier { fan_in, fan_out, gain } => uniform(gain * (6.0 / (fan_in + fan_out) as f64).sqrt()),
            Init::Kaiming { fan_in, gain } => uniform(gain * (3.0 / fan_in as f64).sqrt()),
        };
        params.push(Tensor::from_vec(values, param.shape.as_slice(), &Device::Cpu)?);
    }
    Ok(Supernet::original(spec, params))
}

impl<'a, T: Task> Trainer<'a, T> {
    /// A stage of a task over `subnets` (ascending, the last is the full network), from `state`. `teacher` are the weights of a frozen
    /// teacher: used where the recipe asks for one.
    ///
    /// # Errors
    /// [`Error::Input`] with the subnet that is not of the network.
    pub fn of(
        task: T,
        recipe: Recipe<'a>,
        subnets: &[Subnet],
        state: State,
        teacher: Option<&Supernet>,
    ) -> Result<Self> {
        let spec = task.spec();
        let mut ratios = Vec::with_capacity(subnets.len());
        let mut widths = Vec::with_capacity(subnets.len());
        for subnet in subnets {
            ratios.push(subnet.ratio);
            widths.push(widths_of(spec, subnet).map_err(|problem| Error::input(&subnet.name, problem))?);
        }
        let sampling = recipe.sampling;
        let wanted = sampling.distillation > 0.0 && sampling.teacher == Teacher::Frozen;
        let teacher = teacher.filter(|_| wanted).map(|teacher| Sliced::new(spec, teacher, &spec.full())).transpose()?;
        let mut trainer = Self { task, recipe, ratios, widths, teacher, adam: Adam::default(), state };
        trainer.state.position.losses.resize(trainer.widths.len(), None);
        Ok(trainer)
    }

    /// The ratios of the subnets, ascending.
    pub fn ratios(&self) -> &[f64] {
        &self.ratios
    }

    /// One step of the optimiser.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the loss or the gradient is not; the state is then that before the step.
    pub fn step(&mut self) -> Result<Report> {
        let start = Instant::now();
        let seen = self.state.position.seen;
        let Recipe { stage, sampling, seed } = self.recipe;
        let batch = self.task.draw(seen, stage.batch, self.state.beside())?;
        let chosen = sampling::choose(sampling, &self.ratios, Draw::Subnet.at(seed, seen));
        let supernet = self.state.supernet(self.task.spec(), false)?;
        let teacher = self.teacher.as_ref();
        let mut target = teacher.map(|teacher| self.task.taught(teacher, &batch)).transpose()?;
        let mut losses = Vec::with_capacity(chosen.len());
        let mut sum: Option<Gradients> = None;
        for &index in &chosen {
            let narrower = index + 1 < self.widths.len();
            let subnet = Sliced::new(self.task.spec(), &supernet, &self.widths[index])?;
            let target_of = target.as_deref().filter(|_| narrower || T::TEACHES_FULL);
            let pass = self.task.pass(&subnet, &batch, target_of.map(|target| (target, sampling.distillation)))?;
            if !pass.loss.is_finite() {
                return Err(self.not_finite(format!("the loss at ratio {:.3} is {}", self.ratios[index], pass.loss)));
            }
            losses.push((index, pass.loss));
            match &mut sum {
                None => sum = Some(pass.gradients),
                // The first is the widest: every other is a prefix of it.
                Some(sum) => sum.add(&pass.gradients),
            }
            if !narrower && target.is_none() && sampling.distillation > 0.0 {
                target = Some(pass.made);
            }
        }
        let mut gradients = sum.expect("a step trains at least one subnet");
        gradients.values.extend(self.task.beside(&batch, &gradients)?);
        let params = self.task.spec().params.iter();
        let of_subnet = params.zip(&gradients.shapes).map(|(param, kept)| Region { full: &param.shape, kept });
        let beside = self.state.beside.iter().map(|(_, shape)| Region::whole(shape));
        let regions: Vec<Region> = of_subnet.chain(beside).collect();
        let norm = self.adam.step(&mut self.state.slots, &regions, &gradients.values, stage, seen);
        if !norm.is_finite() {
            return Err(self.not_finite(format!("the norm of the gradient is {norm}")));
        }
        self.state.position.advance(stage.batch, start.elapsed(), losses.iter().copied());
        Ok(Report { losses, gradient_norm: norm })
    }
}

impl<T: Task> Learner for Trainer<'_, T> {
    fn learn(&mut self) -> Result<()> {
        self.step().map(drop)
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn spec(&self) -> &Spec {
        self.task.spec()
    }

    fn stage(&self) -> &Stage {
        self.recipe.stage
    }

    fn names(&self) -> Vec<String> {
        self.ratios.iter().map(|&ratio| SubnetName::of(ratio).to_string()).collect()
    }
}

/// A tape that records what depends on the parameters of a subnet that are trained.
pub(super) fn tape(spec: &Spec, subnet: &Sliced) -> Tape {
    let trainable = spec.params.iter().zip(subnet.leaves());
    Tape::recording(trainable.filter(|(param, _)| param.trainable).map(|(_, leaf)| leaf))
}

/// A forward and backward pass of one subnet.
pub struct Pass {
    /// The loss.
    pub loss: f64,
    /// What the subnet made.
    pub made: Vec<f32>,
    /// The gradients of its parameters.
    pub gradients: Gradients,
}

/// Gradients of a subnet's parameters, each contiguous in its sliced shape.
pub struct Gradients {
    /// By parameter; `None` where nothing flows.
    pub values: Vec<Option<Vec<f32>>>,
    shapes: Vec<Vec<usize>>,
    /// That of the context, where it is wanted.
    pub context: Option<Vec<f32>>,
}

/// The values of a gradient.
pub(super) fn flat(gradient: Option<&Tensor>) -> Result<Option<Vec<f32>>> {
    Ok(gradient.map(|gradient| gradient.flatten_all()?.to_vec1::<f32>()).transpose()?)
}

impl Gradients {
    /// Those of the leaves of `sliced`.
    pub fn of(found: &crate::ops::Gradients, sliced: &Sliced) -> Result<Self> {
        let mut values = Vec::with_capacity(sliced.leaves().len());
        let mut shapes = Vec::with_capacity(sliced.leaves().len());
        for leaf in sliced.leaves() {
            values.push(flat(found.of(leaf))?);
            shapes.push(leaf.dims().to_vec());
        }
        Ok(Self { values, shapes, context: None })
    }

    /// Adds those of a narrower subnet.
    fn add(&mut self, narrower: &Self) {
        for (index, value) in narrower.values.iter().enumerate() {
            let (Some(sum), Some(value)) = (&mut self.values[index], value) else { continue };
            Region { full: &self.shapes[index], kept: &narrower.shapes[index] }.add(sum, value);
        }
        if let (Some(sum), Some(value)) = (&mut self.context, &narrower.context) {
            sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += value);
        }
    }
}
