//! From the name of a device to a model that runs on it.

use super::{About, Codec, Denoiser, DeviceRunner, HostRunner, HostSampler, Model, Placement, Rows, Sampler, Threads};
use crate::ops::cuda::{Accelerator, Precision};
use crate::ops::pixels::to_unit;
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

    /// Makes the latent of a grey picture of the usual size, where the model draws latents.
    ///
    /// # Errors
    /// On a device fault, and where the latent is not finite.
    fn encode(&mut self) -> Result<()>;

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
            let codec = Codec::of(model, threads)?;
            Ok(Box::new(Host { runner, codec, pin: threads.pin }))
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
    /// Between pictures and its latents.
    codec: Option<Codec>,
    pin: bool,
}

impl Denoiser for Host {
    fn about(&self) -> &About {
        self.runner.about()
    }

    fn activation_bytes(&self) -> usize {
        self.runner.activation_bytes() + self.codec.as_ref().map_or(0, Codec::activation_bytes)
    }

    fn denoise(&mut self, subnet: usize, rows: &Rows) -> Result<Vec<f32>> {
        self.runner.denoise(subnet, rows)
    }

    fn picture(&mut self, decoder: usize, image: &[f64]) -> Result<Vec<f64>> {
        let size = self.runner.about().state();
        match &mut self.codec {
            Some(codec) => Ok(of_bytes(codec.pixels(decoder, size, image)?)),
            None => Ok(image.to_vec()),
        }
    }
}

/// A picture in [-1, 1].
pub(super) fn of_bytes(bytes: Vec<u8>) -> Vec<f64> {
    bytes.into_iter().map(|byte| f64::from(to_unit(byte))).collect()
}

impl Opened for Host {
    fn processor(&self) -> Processor {
        Processor::Host(self.runner.threads())
    }

    fn denoiser(&mut self) -> &mut dyn Denoiser {
        self
    }

    fn calls(&mut self) -> Calls<'_> {
        Calls::Host(&mut self.runner, self.pin)
    }

    fn encode(&mut self) -> Result<()> {
        let size = self.runner.about().picture();
        let latent = self.codec.as_mut().map(|codec| codec.latent(size, &vec![0.0; size.elements()]));
        latent.transpose().map(drop)
    }

    fn into_sampler(self: Box<Self>) -> Box<dyn Sampler> {
        Box::new(HostSampler::new(Box::new(self.runner)).with_codec(self.codec))
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

    fn encode(&mut self) -> Result<()> {
        let elements = Denoiser::about(self).picture().elements();
        Sampler::encode(self, 0, &vec![0.0; elements]).map(drop)
    }

    fn into_sampler(self: Box<Self>) -> Box<dyn Sampler> {
        self
    }
}
