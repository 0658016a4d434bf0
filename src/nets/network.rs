//! A backbone with its preconditioning: the denoiser as a function of its weights.

use super::backbone::Backbone;
use super::methods;
use super::on_cpu::Packed;
use super::on_gpu::Compiled;
use super::on_tape;
use super::program::{Inputs, Program};
use super::sliced::Sliced;
use crate::ImageShape;
use crate::Result;
use crate::diffusion::preconditioning::{Coefficients, Preconditioning};
use crate::ops::Tape;
use crate::ops::cuda::Precision;
use crate::supernet::{Spec, Supernet, Widths};
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// A backbone with its preconditioning. Clones share the program.
#[derive(Clone, Debug)]
pub struct Network {
    program: Arc<Program>,
    preconditioning: Preconditioning,
}

/// One call on a batch, kept until its gradient is known.
pub struct Call {
    /// The raw network's output F: `[B, H, W, C]`.
    pub raw: Tensor,
    /// The denoised images: `[B, H, W, C]`.
    pub denoised: Vec<f32>,
    /// The coefficients of each sample.
    pub coefficients: Vec<Coefficients>,
}

impl Network {
    /// Lays the network out.
    ///
    /// # Errors
    /// [`crate::Error::Input`] with the option that does not fit.
    pub fn new(backbone: &Backbone, preconditioning: Preconditioning) -> Result<Self> {
        Ok(Self { program: Arc::new(backbone.program()?), preconditioning })
    }

    /// A network that is laid out already.
    pub fn of(program: Arc<Program>, preconditioning: Preconditioning) -> Self {
        Self { program, preconditioning }
    }

    /// The network as data.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The network as a table.
    pub fn spec(&self) -> &Spec {
        &self.program.spec
    }

    /// The size of what it is given.
    pub fn image(&self) -> ImageShape {
        self.program.image
    }

    /// The size of what it denoises, which may be given more beside it.
    pub fn state(&self) -> ImageShape {
        ImageShape { channels: self.program.output_channels(), ..self.image() }
    }

    /// Channels that it is given beside what it denoises: those of a mask and a picture, of a network for inpainting; 0 of all others.
    pub fn beside(&self) -> usize {
        self.image().channels - self.state().channels
    }

    /// The bytes that its weights take on a CPU where nothing limits them.
    pub fn unlimited_bytes(&self) -> usize {
        methods::unlimited(&self.program)
    }

    /// The number of its classes; 0 if it is unconditional.
    pub fn classes(&self) -> usize {
        self.program.classes
    }

    /// Whether it is told what an image is of: a class or a text.
    pub fn is_told(&self) -> bool {
        self.classes() > 0 || self.program.context_elements() > 0
    }

    /// How it is wrapped.
    pub fn preconditioning(&self) -> Preconditioning {
        self.preconditioning
    }

    /// Whether what it makes is what it is given, less noise.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for one that is given more, as one for inpainting is.
    pub fn check_denoises(&self) -> Result<()> {
        if self.beside() == 0 {
            return Ok(());
        }
        let (given, made) = (self.image().channels, self.state().channels);
        let problem = format!(
            "{given} are more than the {made} that it makes: it is a network for inpainting, which is given a mask and a picture \
             beside the noise; it can be drawn with and ranked by magnitude, but not be run on samples alone"
        );
        Err(crate::Error::input("backbone.in_channels", problem))
    }

    /// `D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)` on a batch (Karras et al. 2022, eq. 7).
    ///
    /// `x` is `[B, H, W, C]`; `sigma` and `class` have B entries, class `None` is the unconditional call; `context` is as
    /// [`Inputs::context`].
    pub fn call(
        &self,
        tape: &Tape,
        w: &Sliced,
        x: &[f32],
        sigma: &[f64],
        class: &[Option<usize>],
        context: &[f32],
    ) -> Result<Call> {
        self.call_on(tape, w, x, sigma, class, &self.context(sigma.len(), context)?)
    }

    /// The context of so many samples, `[B, tokens, channels]`, as [`Self::call_on`] takes it.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] if it has another number of elements.
    pub fn context(&self, batch: usize, context: &[f32]) -> Result<Tensor> {
        on_tape::context(&self.program, batch, context)
    }

    /// As [`Self::call`] with a context that gradients may be wanted of.
    pub fn call_on(
        &self,
        tape: &Tape,
        w: &Sliced,
        x: &[f32],
        sigma: &[f64],
        class: &[Option<usize>],
        context: &Tensor,
    ) -> Result<Call> {
        let ImageShape { height, width, channels } = self.image();
        let elements = self.image().elements();
        let batch = sigma.len();
        let coefficients: Vec<_> = sigma.iter().map(|&sigma| self.preconditioning.coefficients(sigma)).collect();
        let mut input = Vec::with_capacity(x.len());
        for (x, c) in x.chunks_exact(elements).zip(&coefficients) {
            input.extend(x.iter().map(|&x| c.input(x)));
        }
        let input = Tensor::from_vec(input, (batch, height, width, channels), &Device::Cpu)?;
        let noise: Vec<f32> = coefficients.iter().map(|c| c.c_noise as f32).collect();
        let raw = on_tape::forward_on(
            &self.program,
            tape,
            w,
            &input,
            context,
            Inputs { noise: &noise, class, context: &[] },
        )?;
        let mut denoised = raw.flatten_all()?.to_vec1::<f32>()?;
        for ((raw, x), c) in denoised.chunks_exact_mut(elements).zip(x.chunks_exact(elements)).zip(&coefficients) {
            raw.iter_mut().zip(x).for_each(|(raw, &x)| *raw = c.denoised(x, *raw));
        }
        Ok(Call { raw, denoised, coefficients })
    }

    /// The weights as inference wants them; see [`Packed::consuming`].
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] on a device fault.
    pub fn pack(&self, supernet: Supernet, limit: Option<usize>) -> Result<Packed> {
        Packed::consuming(self.program.clone(), supernet, limit)
    }

    /// The network and these subnets for a GPU, and the block of bytes that belongs in its memory.
    ///
    /// # Errors
    /// As [`Compiled::new`].
    pub fn compile(&self, supernet: Supernet, precision: Precision, subnets: &[Widths]) -> Result<(Compiled, Vec<u8>)> {
        Compiled::new(self.program.clone(), supernet, precision, subnets)
    }
}
