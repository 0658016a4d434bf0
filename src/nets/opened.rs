//! From the name of a device to a model that runs on it.

use super::{Decoder, Denoiser, DeviceRunner, HostRunner, HostSampler, Model, Placement, Sampler, Threads};
use crate::ops::cuda::{Accelerator, Precision};
use crate::philox::NoiseKey;
use crate::supernet::Supernet;
use crate::{Error, Result};

/// A model on a device.
pub trait Opened: Send {
    /// What computes.
    fn processor(&self) -> Processor;

    /// What denoises on it.
    fn denoiser(&mut self) -> &mut dyn Denoiser;

    /// How an engine calls it.
    fn calls(&mut self) -> Calls<'_>;

    /// Makes the picture of a latent of zeros, of the usual size, where the model draws latents.
    ///
    /// # Errors
    /// On a device fault, and where the picture is not finite.
    fn decode(&mut self) -> Result<()>;

    /// What draws images on it.
    fn into_sampler(self: Box<Self>) -> Box<dyn Sampler>;
}

/// What an engine's calls run on, for whoever times them.
pub enum Calls<'a> {
    /// The processor, whose threads are pinned to its cores or not.
    Host(&'a mut HostRunner, bool),
    /// A device that holds the images itself.
    Device(&'a mut dyn Sampler),
}

/// What computes, as far as times depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Processor {
    /// So many threads of this machine's processor.
    Host(usize),
    /// A GPU of this name, on values of this type.
    Gpu(String, Precision),
}

/// Brings a model with its weights `supernet` onto a device, with room for calls on `most` samples. `threads` compute where it is
/// the CPU, always in f32; `precision` is the type of activations and weights on a GPU; `limit` the bytes that the packed weights shall
/// take on the CPU.
///
/// # Errors
/// [`Error::Input`] in one sentence where the device is not there, has not the memory, or does not take the model.
pub fn open(
    model: &Model,
    supernet: Supernet,
    placement: Placement,
    precision: Precision,
    most: usize,
    threads: Threads,
    limit: Option<usize>,
) -> Result<Box<dyn Opened>> {
    match placement {
        Placement::Cpu if precision != Precision::F32 => {
            Err(Error::input("precision", format!("{precision} is not accepted on a CPU, which computes in f32")))
        }
        Placement::Cpu => {
            let runner = HostRunner::consuming(model, supernet, threads, limit)?;
            let decoder = Decoder::of(model, threads)?;
            Ok(Box::new(Host { runner, decoder, pin: threads.pin }))
        }
        #[cfg(feature = "cuda")]
        Placement::Cuda(index) => {
            let gpu = crate::ops::cuda::gpu::Gpu::open(index)?;
            let blueprint = super::device_runner::Blueprint::new(model, supernet, precision, most);
            let runner = blueprint.and_then(|blueprint| DeviceRunner::build(gpu, blueprint));
            Ok(Box::new(runner.map_err(|error| error.within(&format!("{placement}: ")))?))
        }
        #[cfg(not(feature = "cuda"))]
        Placement::Cuda(_) => {
            let _ = (most, limit);
            Err(Error::input(placement, "this program was built without the feature cuda: it can use cpu"))
        }
    }
}

/// A limit of so many gigabytes, as people give it: 0 is none.
pub fn weight_limit(gigabytes: f64) -> Option<usize> {
    (gigabytes > 0.0).then_some((gigabytes * 1e9) as usize)
}

/// A model on the CPU.
struct Host {
    runner: HostRunner,
    /// What makes pictures of its latents.
    decoder: Option<Decoder>,
    pin: bool,
}

impl Opened for Host {
    fn processor(&self) -> Processor {
        Processor::Host(self.runner.threads())
    }

    fn denoiser(&mut self) -> &mut dyn Denoiser {
        &mut self.runner
    }

    fn calls(&mut self) -> Calls<'_> {
        Calls::Host(&mut self.runner, self.pin)
    }

    fn decode(&mut self) -> Result<()> {
        let size = self.runner.about().state();
        let picture = self.decoder.as_mut().map(|decoder| decoder.pixels(size, &vec![0.0; size.elements()]));
        picture.transpose().map(drop)
    }

    fn into_sampler(self: Box<Self>) -> Box<dyn Sampler> {
        Box::new(HostSampler::new(Box::new(self.runner)).with_decoder(self.decoder))
    }
}

impl<M: Accelerator + 'static> Opened for DeviceRunner<M> {
    fn processor(&self) -> Processor {
        Processor::Gpu(self.machine().name(), self.precision())
    }

    fn denoiser(&mut self) -> &mut dyn Denoiser {
        self
    }

    fn calls(&mut self) -> Calls<'_> {
        Calls::Device(self)
    }

    fn decode(&mut self) -> Result<()> {
        // Without noise.
        let slot = self.begin(NoiseKey { seed: 0, image: 0 }, Default::default(), 1.0, 0)?;
        let picture = self.pixels(slot);
        self.end(slot);
        picture.map(drop)
    }

    fn into_sampler(self: Box<Self>) -> Box<dyn Sampler> {
        self
    }
}
