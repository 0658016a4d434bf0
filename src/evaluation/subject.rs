//! A model on a device, as it is measured and then served.

use super::latency::{self, Input, Pace, Setting};
use super::profile::Device;
use crate::diffusion::{Noise, NoiseKey, Update};
use crate::nets::{Denoiser, DeviceRunner, HostSampler, Model, Move, Placement, Runner, Sampler, Threads};
use crate::ops::cuda::{Element, Machine};
use crate::{Error, Result};

/// A model on a device.
pub trait Subject: Send {
    /// The device, as far as times depend on it.
    fn device(&self) -> Device;

    /// What denoises on it.
    fn denoiser(&mut self) -> &mut dyn Denoiser;

    /// The median times of an engine's calls, in milliseconds: `settings` are subnets and samples. `progress` is told how
    /// many rounds are over.
    ///
    /// # Errors
    /// On a device fault.
    fn time(&mut self, settings: &[(usize, usize)], pace: Pace, progress: &mut dyn FnMut(u32)) -> Result<Vec<f64>>;

    /// What draws images on it.
    fn into_sampler(self: Box<Self>) -> Box<dyn Sampler>;
}

/// Brings a model onto a device, with room for calls on `most` samples. `threads` compute where it is the CPU, always in f32;
/// `element` is the type of activations and weights on a GPU.
///
/// # Errors
/// [`Error::Input`] in one sentence where the device is not there, has not the memory, or does not take the model.
pub fn open(
    model: &Model,
    placement: Placement,
    element: Element,
    most: usize,
    threads: Threads,
) -> Result<Box<dyn Subject>> {
    match placement {
        Placement::Cpu if element != Element::F32 => {
            Err(Error::input("precision", format!("{element} is not accepted on a CPU, which computes in f32")))
        }
        Placement::Cpu => Ok(Box::new(Host { runner: Runner::new(model, threads)?, pin: threads.pin })),
        #[cfg(feature = "cuda")]
        Placement::Cuda(index) => {
            let gpu = crate::ops::cuda::gpu::Gpu::open(index)?;
            let runner = DeviceRunner::new(gpu, model, element, most).map_err(|error| match error {
                Error::Input { place, problem } => Error::input(format!("{placement}: {place}"), problem),
                other => other,
            })?;
            Ok(Box::new(runner))
        }
        #[cfg(not(feature = "cuda"))]
        Placement::Cuda(_) => {
            let _ = most;
            Err(Error::input(placement, "this program was built without the feature cuda: it can use cpu"))
        }
    }
}

/// A model on the CPU.
struct Host {
    runner: Runner,
    pin: bool,
}

impl Subject for Host {
    fn device(&self) -> Device {
        Device::here(self.runner.threads())
    }

    fn denoiser(&mut self) -> &mut dyn Denoiser {
        &mut self.runner
    }

    fn time(&mut self, settings: &[(usize, usize)], pace: Pace, progress: &mut dyn FnMut(u32)) -> Result<Vec<f64>> {
        let threads = self.runner.threads();
        let settings: Vec<_> = settings.iter().map(|&(subnet, batch)| Setting { subnet, batch, threads }).collect();
        Ok(latency::measure(&mut self.runner, &settings, self.pin, pace, progress).ms)
    }

    fn into_sampler(self: Box<Self>) -> Box<dyn Sampler> {
        Box::new(HostSampler::new(Box::new(self.runner)))
    }
}

impl<M: Machine + 'static> Subject for DeviceRunner<M> {
    fn device(&self) -> Device {
        Device {
            processor: self.machine().name(),
            // The engine's.
            threads: 1,
            instruction_set: format!("cuda {}", self.element()),
        }
    }

    fn denoiser(&mut self) -> &mut dyn Denoiser {
        self
    }

    fn time(&mut self, settings: &[(usize, usize)], pace: Pace, progress: &mut dyn FnMut(u32)) -> Result<Vec<f64>> {
        let most = settings.iter().map(|&(_, batch)| batch).max().unwrap_or(0);
        let sigmas = Input::levels(most);
        let mut moves = Vec::with_capacity(most);
        for (image, &sigma) in sigmas.iter().enumerate() {
            let noise = [Noise { scale: sigma, draw: NoiseKey::INITIAL }, Noise::default()];
            let slot = self.begin(NoiseKey { seed: 0, image: image as u32 }, noise, sigma)?;
            let class = image.checked_rem(Denoiser::about(self).classes.len());
            // Each image stays where it is: calls are alike.
            let update = Update { a_x: 1.0, ..Update::default() };
            moves.push(Move { slot, sigma, class, guidance: None, update, next_sigma: Some(sigma), watched: false });
        }
        let ms = latency::rounds(settings.len(), pace, progress, |index| {
            let (subnet, batch) = settings[index];
            self.step(subnet, &moves[..batch])
        });
        moves.iter().for_each(|step| self.end(step.slot));
        ms
    }

    fn into_sampler(self: Box<Self>) -> Box<dyn Sampler> {
        self
    }
}
