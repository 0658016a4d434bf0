//! One stage of training: steps on a subnet or several, over shared weights.

use super::batch::{Batch, Batches, Draw};
use super::config::{Config, Sampling, Stage, Teacher};
use super::data::Dataset;
use super::optimizer::{Adam, Region};
use super::sampling;
use super::state::{Position, StageName, State};
use crate::nets::Network;
use crate::nets::sliced::Sliced;
use crate::ops::Tape;
use crate::supernet::spec::Init;
use crate::supernet::{Spec, Subnet, Supernet, Widths, widths_of};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::time::Instant;

/// Share of the old value in the smoothed losses of the progress line.
const LOSS_SMOOTHING: f64 = 0.99;

/// A stage under way.
pub struct Trainer<'a> {
    network: &'a Network,
    config: &'a Config,
    stage: &'a Stage,
    batches: Batches<'a>,
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
    /// Index of each subnet that was trained and its loss: the mean over elements of weight(sigma) (D - x0)^2.
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

impl<'a> Trainer<'a> {
    /// A stage over `subnets` (ascending, the last is the full network), from `state`. `teacher` are the weights of a frozen
    /// teacher: used where the config asks for one.
    ///
    /// # Errors
    /// [`Error::Input`] if the data does not fit the network.
    pub fn new(
        network: &'a Network,
        config: &'a Config,
        dataset: &'a Dataset,
        subnets: &[Subnet],
        state: State,
        teacher: Option<&Supernet>,
    ) -> Result<Self> {
        config.check_data(dataset)?;
        let spec = network.spec();
        let mut ratios = Vec::with_capacity(subnets.len());
        let mut widths = Vec::with_capacity(subnets.len());
        for subnet in subnets {
            ratios.push(subnet.ratio);
            widths.push(widths_of(spec, subnet).map_err(|problem| Error::input(&subnet.name, problem))?);
        }
        let stage = match state.position.stage {
            StageName::Full => &config.full,
            StageName::All => &config.all,
            StageName::Finetune => config.finetune.as_ref().expect("whoever begins this stage has looked"),
        };
        let sampling = &config.sampling;
        let wanted = sampling.distillation > 0.0 && sampling.teacher == Teacher::Frozen;
        let teacher = teacher.filter(|_| wanted).map(|teacher| Sliced::new(spec, teacher, &spec.full())).transpose()?;
        // Each stage has its own draws: the second must not repeat the noise of the first.
        let seed = config.seed.wrapping_mul(2).wrapping_add(state.position.stage as u64);
        let batches = Batches::new(dataset, &config.loss, network.classes(), seed);
        let mut trainer =
            Self { network, config, stage, batches, ratios, widths, teacher, adam: Adam::default(), state };
        trainer.state.position.losses.resize(trainer.widths.len(), None);
        Ok(trainer)
    }

    /// Whether the stage has seen all its images.
    pub fn is_finished(&self) -> bool {
        self.state.position.seen >= self.stage.images
    }

    /// Images that the stage is to see.
    pub fn images(&self) -> u64 {
        self.stage.images
    }

    /// The ratios of the subnets, ascending.
    pub fn ratios(&self) -> &[f64] {
        &self.ratios
    }

    /// Images a step.
    pub fn batch(&self) -> usize {
        self.stage.batch
    }

    fn sampling(&self) -> &Sampling {
        &self.config.sampling
    }

    /// An error about the step that comes next or, for a state that cannot be written, the one before it.
    pub fn not_finite(&self, what: impl std::fmt::Display) -> Error {
        let Position { stage, seen, .. } = &self.state.position;
        let (stage, step) = (stage.as_str(), seen / self.stage.batch as u64);
        Error::NotFinite {
            place: format!("{stage}, after step {step} ({seen} images)"),
            problem: format!(
                "{what}; the last checkpoint is left as it was; a lower {stage}.learning_rate than {} may help",
                self.stage.learning_rate
            ),
        }
    }

    /// One step of the optimiser.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the loss or the gradient is not; the state is then that before the step.
    pub fn step(&mut self) -> Result<Report> {
        let start = Instant::now();
        let seen = self.state.position.seen;
        let batch = self.batches.draw(seen, self.stage.batch);
        let stream = Draw::Subnet.at(self.config.seed, seen);
        let chosen = sampling::choose(self.sampling(), &self.ratios, stream);
        let supernet = self.state.supernet(self.network.spec(), false)?;
        let mut target = self.teach(&batch)?;
        let mut losses = Vec::with_capacity(chosen.len());
        let mut sum: Option<Gradients> = None;
        for &index in &chosen {
            let narrower = index + 1 < self.widths.len();
            let pass = self.pass(&supernet, &self.widths[index], &batch, target.as_deref().filter(|_| narrower))?;
            if !pass.loss.is_finite() {
                return Err(self.not_finite(format!("the loss at ratio {:.3} is {}", self.ratios[index], pass.loss)));
            }
            losses.push((index, pass.loss));
            match &mut sum {
                None => sum = Some(pass.gradients),
                // The first is the widest: every other is a prefix of it.
                Some(sum) => sum.add(&pass.gradients),
            }
            if !narrower && target.is_none() && self.sampling().distillation > 0.0 {
                target = Some(pass.denoised);
            }
        }
        let gradients = sum.expect("a step trains at least one subnet");
        let spec = self.network.spec();
        let regions: Vec<Region> = spec
            .params
            .iter()
            .zip(&gradients.shapes)
            .map(|(param, kept)| Region { full: &param.shape, kept })
            .collect();
        let norm = self.adam.step(&mut self.state.slots, &regions, &gradients.values, self.stage, seen);
        if !norm.is_finite() {
            return Err(self.not_finite(format!("the norm of the gradient is {norm}")));
        }
        let position = &mut self.state.position;
        position.seen += self.stage.batch as u64;
        position.seconds += start.elapsed().as_secs_f64();
        for &(index, loss) in &losses {
            let smoothed = &mut position.losses[index];
            *smoothed = Some(smoothed.map_or(loss, |old| LOSS_SMOOTHING * old + (1.0 - LOSS_SMOOTHING) * loss));
        }
        Ok(Report { losses, gradient_norm: norm })
    }

    /// What a frozen teacher makes of the batch.
    fn teach(&self, batch: &Batch) -> Result<Option<Vec<f32>>> {
        match &self.teacher {
            None => Ok(None),
            Some(teacher) => {
                let call = self.network.call(&Tape::off(), teacher, &batch.x, &batch.sigma, &batch.classes, &[])?;
                Ok(Some(call.denoised))
            }
        }
    }

    /// Forward and backward of one subnet. The loss is the mean over elements of `weight(sigma) |D - x0|^2` (Karras et al.
    /// 2022, eq. 8), mixed with the distance to the teacher's image where there is one.
    fn pass(&self, supernet: &Supernet, widths: &Widths, batch: &Batch, teacher: Option<&[f32]>) -> Result<Pass> {
        let sliced = Sliced::new(self.network.spec(), supernet, widths)?;
        let trainable = self.network.spec().params.iter().zip(sliced.leaves());
        let tape = Tape::recording(trainable.filter(|(param, _)| param.trainable).map(|(_, leaf)| leaf));
        let call = self.network.call(&tape, &sliced, &batch.x, &batch.sigma, &batch.classes, &[])?;
        let elements = self.network.image().elements();
        let distillation = if teacher.is_some() { self.sampling().distillation } else { 0.0 };
        let mut loss = 0.0;
        let mut gradient = vec![0.0; batch.x.len()];
        for (sample, c) in call.coefficients.iter().enumerate() {
            let weight = self.network.preconditioning().loss_weight(batch.sigma[sample]);
            let slope = 2.0 * weight * c.c_out / batch.x.len() as f64;
            let range = sample * elements..(sample + 1) * elements;
            let teacher = teacher.map(|teacher| &teacher[range.clone()]);
            let mut squares = 0.0;
            for (offset, (got, want)) in call.denoised[range.clone()].iter().zip(&batch.x0[range.clone()]).enumerate() {
                let error = (got - want) as f64;
                squares += error * error;
                let pull = match teacher {
                    None => error,
                    Some(teacher) => (1.0 - distillation) * error + distillation * (got - teacher[offset]) as f64,
                };
                gradient[range.start + offset] = (slope * pull) as f32;
            }
            loss += weight * squares;
        }
        let gradient = Tensor::from_vec(gradient, call.raw.shape(), &Device::Cpu)?;
        let grads = tape.backward(&call.raw, gradient)?;
        let gradients = Gradients::of(&grads, &sliced)?;
        Ok(Pass { loss: loss / batch.x.len() as f64, denoised: call.denoised, gradients })
    }
}

/// A forward and backward pass of one subnet.
struct Pass {
    loss: f64,
    denoised: Vec<f32>,
    gradients: Gradients,
}

/// Gradients of a subnet's parameters, each contiguous in its sliced shape.
pub(super) struct Gradients {
    /// By parameter; `None` where nothing flows.
    pub values: Vec<Option<Vec<f32>>>,
    shapes: Vec<Vec<usize>>,
}

impl Gradients {
    /// Those of the leaves of `sliced`.
    pub fn of(found: &crate::ops::Gradients, sliced: &Sliced) -> Result<Self> {
        let mut values = Vec::with_capacity(sliced.leaves().len());
        let mut shapes = Vec::with_capacity(sliced.leaves().len());
        for leaf in sliced.leaves() {
            values.push(found.of(leaf).map(|gradient| gradient.flatten_all()?.to_vec1::<f32>()).transpose()?);
            shapes.push(leaf.dims().to_vec());
        }
        Ok(Self { values, shapes })
    }

    /// Adds those of a narrower subnet.
    fn add(&mut self, narrower: &Self) {
        for (index, value) in narrower.values.iter().enumerate() {
            let (Some(sum), Some(value)) = (&mut self.values[index], value) else { continue };
            Region { full: &self.shapes[index], kept: &narrower.shapes[index] }.add(sum, value);
        }
    }
}
