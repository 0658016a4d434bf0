//! One stage of training: steps on a subnet or several, over shared weights.

use super::batch::{Batch, Batches, Draw};
use super::config::{Config, Sampling, Stage, Teacher};
use super::data::Examples;
use super::learner::Learner;
use super::optimizer::{Adam, Region};
use super::sampling;
use super::state::State;
use super::texts::TrainedTexts;
use crate::nets::Network;
use crate::nets::sliced::Sliced;
use crate::ops::Tape;
use crate::subnet_name::SubnetName;
use crate::supernet::spec::Init;
use crate::supernet::{Spec, Subnet, Supernet, Widths, widths_of};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::time::Instant;

/// A stage under way.
pub struct Trainer<'a> {
    network: &'a Network,
    config: &'a Config,
    stage: &'a Stage,
    examples: &'a dyn Examples,
    batches: Batches<'a>,
    /// The subnets that are trained, ascending; the last is the full network.
    ratios: Vec<f64>,
    widths: Vec<Widths>,
    /// The frozen teacher, where the config asks for one.
    teacher: Option<Sliced>,
    /// The encoder of texts, where it is trained along.
    texts: Option<TrainedTexts>,
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
    /// [`Error::Input`] if the examples, the levels of the loss or the stage do not fit the network.
    pub fn new(
        network: &'a Network,
        config: &'a Config,
        examples: &'a dyn Examples,
        subnets: &[Subnet],
        state: State,
        teacher: Option<&Supernet>,
    ) -> Result<Self> {
        config.check_data(examples, network)?;
        config.loss.check(network.preconditioning()).map_err(|error| error.in_file(&config.path))?;
        let spec = network.spec();
        let mut ratios = Vec::with_capacity(subnets.len());
        let mut widths = Vec::with_capacity(subnets.len());
        for subnet in subnets {
            ratios.push(subnet.ratio);
            widths.push(widths_of(spec, subnet).map_err(|problem| Error::input(&subnet.name, problem))?);
        }
        let stage = config.stage(state.position.stage)?;
        let sampling = &config.sampling;
        let wanted = sampling.distillation > 0.0 && sampling.teacher == Teacher::Frozen;
        let teacher = teacher.filter(|_| wanted).map(|teacher| Sliced::new(spec, teacher, &spec.full())).transpose()?;
        // Each stage has its own draws: the second must not repeat the noise of the first.
        let seed = config.seed.wrapping_mul(2).wrapping_add(state.position.stage as u64);
        let batches = Batches::new(examples, &config.loss, network, seed);
        let (adam, texts) = (Adam::default(), None);
        let mut trainer =
            Self { network, config, stage, examples, batches, ratios, widths, teacher, texts, adam, state };
        trainer.state.position.losses.resize(trainer.widths.len(), None);
        Ok(trainer)
    }

    /// The same, which trains this encoder of texts along.
    ///
    /// # Errors
    /// [`Error::Input`] where the state is of a run that trains something else.
    pub fn with_texts(self, texts: Option<TrainedTexts>) -> Result<Self> {
        let wanted = texts.as_ref().map_or_else(|| Ok(Vec::new()), TrainedTexts::initial)?;
        let wanted = wanted.iter().map(|weight| (&weight.name, &weight.shape));
        if !wanted.eq(self.state.beside.iter().map(|(name, shape)| (name, shape))) {
            let problem = "is not what the run was begun with: the encoder of texts is trained along from the start, or not at all";
            let field = format!("{}.text_encoder", self.state.position.stage.as_str());
            return Err(Error::field(&self.config.path, &field, problem));
        }
        Ok(Self { texts, ..self })
    }

    /// What is trained.
    pub fn network(&self) -> &Network {
        self.network
    }

    /// The encoder of texts, where it is trained along.
    pub fn texts(&self) -> Option<&TrainedTexts> {
        self.texts.as_ref()
    }

    /// The ratios of the subnets, ascending.
    pub fn ratios(&self) -> &[f64] {
        &self.ratios
    }

    fn sampling(&self) -> &Sampling {
        &self.config.sampling
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
        let told = self.told(&batch)?;
        let mut losses = Vec::with_capacity(chosen.len());
        let mut sum: Option<Gradients> = None;
        for &index in &chosen {
            let narrower = index + 1 < self.widths.len();
            let teacher = target.as_deref().filter(|_| narrower);
            let pass = self.pass(&supernet, &self.widths[index], &batch, &told.context, teacher)?;
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
        let mut gradients = sum.expect("a step trains at least one subnet");
        let spec = self.network.spec();
        if let (Some(texts), Some(hidden)) = (&self.texts, &told.hidden) {
            gradients.values.extend(texts.gradients(hidden, gradients.context.as_deref())?);
        }
        let beside = self.state.beside.iter().map(|(_, shape)| Region::whole(shape));
        let regions: Vec<Region> = spec
            .params
            .iter()
            .zip(&gradients.shapes)
            .map(|(param, kept)| Region { full: &param.shape, kept })
            .chain(beside)
            .collect();
        let norm = self.adam.step(&mut self.state.slots, &regions, &gradients.values, self.stage, seen);
        if !norm.is_finite() {
            return Err(self.not_finite(format!("the norm of the gradient is {norm}")));
        }
        self.state.position.advance(self.stage.batch, start.elapsed(), losses.iter().copied());
        Ok(Report { losses, gradient_norm: norm })
    }

    /// What a frozen teacher makes of the batch. It is told what the encoder of texts made of captions before that was trained.
    fn teach(&self, batch: &Batch) -> Result<Option<Vec<f32>>> {
        let Some(teacher) = &self.teacher else { return Ok(None) };
        let context = self.examples.contexts(&batch.labels)?;
        let call = self.network.call(&Tape::off(), teacher, &batch.x, &batch.sigma, &batch.labels, &context)?;
        Ok(Some(call.denoised))
    }

    /// What the network is told of the captions of a batch.
    pub(super) fn told(&self, batch: &Batch) -> Result<Told> {
        let hidden = self.texts.as_ref().map(|texts| texts.hidden(&batch.labels, self.state.beside())).transpose()?;
        let values = match &hidden {
            Some(hidden) => hidden.flatten_all()?.to_vec1::<f32>()?,
            None => self.examples.contexts(&batch.labels)?,
        };
        Ok(Told { context: self.network.context(batch.labels.len(), &values)?, hidden })
    }

    /// Forward and backward of one subnet. The loss is the mean over elements of `weight(sigma) |D - x0|^2` (Karras et al.
    /// 2022, eq. 8), mixed with the distance to the teacher's image where there is one.
    pub(super) fn pass(
        &self,
        supernet: &Supernet,
        widths: &Widths,
        batch: &Batch,
        context: &Tensor,
        teacher: Option<&[f32]>,
    ) -> Result<Pass> {
        let sliced = Sliced::new(self.network.spec(), supernet, widths)?;
        let trainable = self.network.spec().params.iter().zip(sliced.leaves());
        let trainable = trainable.filter(|(param, _)| param.trainable).map(|(_, leaf)| leaf);
        let tape = Tape::recording(trainable.chain(self.texts.as_ref().map(|_| context)));
        let call = self.network.call_on(&tape, &sliced, &batch.x, &batch.sigma, &batch.labels, context)?;
        let elements = self.network.image().elements();
        let distillation = if teacher.is_some() { self.sampling().distillation } else { 0.0 };
        let mut loss = 0.0;
        let mut gradient = vec![0.0; batch.x.len()];
        for (sample, c) in call.coefficients.iter().enumerate() {
            let weight = self.config.loss.weight(self.network.preconditioning(), batch.sigma[sample]);
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
        let gradients = Gradients { context: flat(grads.of(context))?, ..Gradients::of(&grads, &sliced)? };
        Ok(Pass { loss: loss / batch.x.len() as f64, denoised: call.denoised, gradients })
    }
}

impl Learner for Trainer<'_> {
    fn learn(&mut self) -> Result<()> {
        self.step().map(drop)
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn spec(&self) -> &Spec {
        self.network.spec()
    }

    fn stage(&self) -> &Stage {
        self.stage
    }

    fn names(&self) -> Vec<String> {
        self.ratios.iter().map(|&ratio| SubnetName::of(ratio).to_string()).collect()
    }
}

/// What the network is told of the captions of a batch.
pub(super) struct Told {
    /// As [`Network::call_on`] takes it.
    pub context: Tensor,
    /// Where it comes from, if the encoder of texts is trained along.
    pub hidden: Option<Tensor>,
}

/// A forward and backward pass of one subnet.
pub(super) struct Pass {
    pub loss: f64,
    denoised: Vec<f32>,
    pub gradients: Gradients,
}

/// Gradients of a subnet's parameters, each contiguous in its sliced shape.
pub(super) struct Gradients {
    /// By parameter; `None` where nothing flows.
    pub values: Vec<Option<Vec<f32>>>,
    shapes: Vec<Vec<usize>>,
    /// That of the context, where it is wanted.
    pub context: Option<Vec<f32>>,
}

/// The values of a gradient.
fn flat(gradient: Option<&Tensor>) -> Result<Option<Vec<f32>>> {
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
