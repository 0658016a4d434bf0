//! What a denoiser learns: clean images from noisy ones.

use super::batch::{Batch, Batches};
use super::config::{Config, Loss};
use super::data::Examples;
use super::optimizer::Slot;
use super::state::State;
use super::texts::TrainedTexts;
use super::trainer::{Gradients, Pass, Recipe, Task, Trainer, flat};
use crate::nets::Network;
use crate::nets::sliced::Sliced;
use crate::ops::Tape;
use crate::supernet::{Spec, Subnet, Supernet};
use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// A denoiser and what it is shown.
pub struct Denoising<'a> {
    network: &'a Network,
    config: &'a Config,
    examples: &'a dyn Examples,
    batches: Batches<'a>,
    /// The encoder of texts, where it is trained along.
    texts: Option<TrainedTexts>,
}

/// What a step sees.
pub struct Told {
    /// Noisy images.
    pub batch: Batch,
    /// What the network is told of their captions, as [`Network::call_on`] takes it.
    pub context: Tensor,
    /// Where that comes from, if the encoder of texts is trained along.
    pub hidden: Option<Tensor>,
}

impl<'a> Trainer<'a> {
    /// A stage of a denoiser over `subnets` (ascending, the last is the full network), from `state`. `teacher` are the weights of a frozen
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
        let stage = config.stage(state.position.stage)?;
        // Each stage has its own draws: the second must not repeat the noise of the first.
        let seed = config.seed.wrapping_mul(2).wrapping_add(state.position.stage as u64);
        let batches = Batches::new(examples, &config.loss, network, seed);
        let recipe = Recipe { stage, sampling: &config.sampling, seed: config.seed };
        Self::of(Denoising { network, config, examples, batches, texts: None }, recipe, subnets, state, teacher)
    }

    /// The same, which trains this encoder of texts along.
    ///
    /// # Errors
    /// [`Error::Input`] where the state is of a run that trains something else.
    pub fn with_texts(mut self, texts: Option<TrainedTexts>) -> Result<Self> {
        let wanted = texts.as_ref().map_or_else(|| Ok(Vec::new()), TrainedTexts::initial)?;
        let wanted = wanted.iter().map(|weight| (&weight.name, &weight.shape));
        if !wanted.eq(self.state.beside.iter().map(|(name, shape)| (name, shape))) {
            let problem = "is not what the run was begun with: the encoder of texts is trained along from the start, or not at all";
            let field = format!("{}.text_encoder", self.state.position.stage.as_str());
            return Err(Error::field(&self.task.config.path, &field, problem));
        }
        self.task.texts = texts;
        Ok(self)
    }

    /// What is trained.
    pub fn network(&self) -> &Network {
        self.task.network
    }

    /// The encoder of texts, where it is trained along.
    pub fn texts(&self) -> Option<&TrainedTexts> {
        self.task.texts.as_ref()
    }
}

impl Denoising<'_> {
    fn loss(&self) -> &Loss {
        &self.config.loss
    }

    /// A batch with what the network is told of its captions, by an encoder of texts of the weights `beside` where that is trained along.
    pub(super) fn told(&self, batch: Batch, beside: &[Slot]) -> Result<Told> {
        let hidden = self.texts.as_ref().map(|texts| texts.hidden(&batch.labels, beside)).transpose()?;
        let values = match &hidden {
            Some(hidden) => hidden.flatten_all()?.to_vec1::<f32>()?,
            None => self.examples.contexts(&batch.labels)?,
        };
        let context = self.network.context(batch.labels.len(), &values)?;
        Ok(Told { batch, context, hidden })
    }
}

impl Task for Denoising<'_> {
    type Batch = Told;

    const TEACHES_FULL: bool = false;

    fn spec(&self) -> &Spec {
        self.network.spec()
    }

    fn draw(&mut self, position: u64, size: usize, beside: &[Slot]) -> Result<Told> {
        let batch = self.batches.draw(position, size);
        self.told(batch, beside)
    }

    /// It is told what the encoder of texts made of captions before that was trained.
    fn taught(&self, teacher: &Sliced, Told { batch, .. }: &Told) -> Result<Vec<f32>> {
        let context = self.examples.contexts(&batch.labels)?;
        Ok(self.network.call(&Tape::off(), teacher, &batch.x, &batch.sigma, &batch.labels, &context)?.denoised)
    }

    /// The loss is the mean over elements of `weight(sigma) |D - x0|^2` (Karras et al. 2022, eq. 8), mixed with the distance to the
    /// teacher's image where there is one.
    fn pass(&self, subnet: &Sliced, told: &Told, teacher: Option<(&[f32], f64)>) -> Result<Pass> {
        let Told { batch, context, .. } = told;
        let trainable = self.spec().params.iter().zip(subnet.leaves());
        let trainable = trainable.filter(|(param, _)| param.trainable).map(|(_, leaf)| leaf);
        let tape = Tape::recording(trainable.chain(self.texts.as_ref().map(|_| context)));
        let call = self.network.call_on(&tape, subnet, &batch.x, &batch.sigma, &batch.labels, context)?;
        let elements = self.network.image().elements();
        let mut loss = 0.0;
        let mut gradient = vec![0.0; batch.x.len()];
        for (sample, c) in call.coefficients.iter().enumerate() {
            let weight = self.loss().weight(self.network.preconditioning(), batch.sigma[sample]);
            let slope = 2.0 * weight * c.c_out / batch.x.len() as f64;
            let range = sample * elements..(sample + 1) * elements;
            let teacher = teacher.map(|(teacher, share)| (&teacher[range.clone()], share));
            let mut squares = 0.0;
            for (offset, (got, want)) in call.denoised[range.clone()].iter().zip(&batch.x0[range.clone()]).enumerate() {
                let error = (got - want) as f64;
                squares += error * error;
                let pull = match teacher {
                    None => error,
                    Some((teacher, share)) => (1.0 - share) * error + share * (got - teacher[offset]) as f64,
                };
                gradient[range.start + offset] = (slope * pull) as f32;
            }
            loss += weight * squares;
        }
        let gradient = Tensor::from_vec(gradient, call.raw.shape(), &Device::Cpu)?;
        let grads = tape.backward(&call.raw, gradient)?;
        let mut gradients = Gradients::of(&grads, subnet)?;
        gradients.context = flat(grads.of(context))?;
        Ok(Pass { loss: loss / batch.x.len() as f64, made: call.denoised, gradients })
    }

    fn beside(&self, told: &Told, gradients: &Gradients) -> Result<Vec<Option<Vec<f32>>>> {
        match (&self.texts, &told.hidden) {
            (Some(texts), Some(hidden)) => texts.gradients(hidden, gradients.context.as_deref()),
            _ => Ok(Vec::new()),
        }
    }
}
