//! Between pictures and latents, in a machine's memory.

use super::ALIGN;
use crate::nets::codec::means;
use crate::nets::on_gpu::{Addresses, CallLaunches, Compiled};
use crate::nets::preview::Preview;
use crate::nets::program::Program;
use crate::nets::vae;
use crate::nets::{Decoder, Model};
use crate::ops::cuda::sampler::{self, Row, sampler};
use crate::ops::cuda::{Accelerator, Fault, Launch, Map, Precision, pixels};
use crate::supernet::{Supernet, Widths};
use crate::{ImageShape, Result};
use bytemuck::{NoUninit, Zeroable};
use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::Arc;

/// The autoencoder of a model for a machine, and its weights.
#[derive(Debug)]
pub(super) struct CompiledCodec {
    decoder: Half,
    encoder: Half,
    vae: vae::Config,
}

/// A half of it.
#[derive(Debug)]
struct Half {
    compiled: Compiled,
    weights: Vec<u8>,
}

/// What a half is told, in the machine's memory.
#[repr(C)]
#[derive(Clone, Copy, NoUninit, Zeroable)]
struct Control {
    /// Of the decoder: from a latent to the network's input, and from its output to the picture.
    rows: [Row; 2],
    /// Where the network's input is.
    input: u64,
    faults: [u32; 2],
    /// Of the network's norms: zeros between calls.
    counters: [u32; 2],
}

impl Half {
    /// At these widths.
    fn new(program: Program, weights: Supernet, widths: &[Widths], precision: Precision) -> Result<Self> {
        let (compiled, weights) = Compiled::new(Arc::new(program), weights, precision, widths)?;
        Ok(Self { compiled, weights })
    }

    fn bytes(&self) -> usize {
        self.compiled.weight_bytes() + self.compiled.table_bytes()
    }
}

impl CompiledCodec {
    /// That of a model; None where the model draws pictures itself.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if its weights are missing or do not fit; [`crate::Error::Io`] if they cannot be read.
    pub fn of(model: &Model, precision: Precision) -> Result<Option<Self>> {
        let (Some(parts), Some(dir)) = (&model.card.text_to_image, model.parts()) else { return Ok(None) };
        let Some(decoder) = Decoder::of(model)? else { return Ok(None) };
        let widths = decoder.widths();
        let decoder = Half::new(decoder.program, decoder.supernet, &widths, precision)?;
        let (program, weights) = parts.encoder_network(dir)?;
        let full = [program.spec.full()];
        let encoder = Half::new(program, weights, &full, precision)?;
        Ok(Some(Self { decoder, encoder, vae: parts.vae.clone() }))
    }

    /// The subnet of the decoder's full width, its last.
    fn full(&self) -> usize {
        self.decoder.compiled.subnets() - 1
    }

    /// The size of the picture of a latent.
    fn picture(&self, latent: ImageShape) -> ImageShape {
        let side = self.vae.factor();
        ImageShape { height: latent.height * side, width: latent.width * side, channels: self.vae.out_channels }
    }

    /// The latents of these sizes and the one that previews are fitted on.
    fn with_fitted(&self, latents: &[ImageShape]) -> Vec<ImageShape> {
        [latents, &[Preview::fitted_on(&self.vae)]].concat()
    }

    /// The most that one of these latents, or the one that previews are fitted on, takes.
    fn most(&self, latents: &[ImageShape], bytes: impl Fn(ImageShape) -> usize) -> usize {
        self.with_fitted(latents).into_iter().map(bytes).max().unwrap_or(0)
    }

    /// Memory of the activations, for latents of these sizes.
    pub fn arena_bytes(&self, latents: &[ImageShape]) -> usize {
        let halves = |size| {
            let decoding = self.decoder.compiled.arena_bytes(size, 1);
            decoding.max(self.encoder.compiled.arena_bytes(self.picture(size), 1))
        };
        self.most(latents, halves)
    }

    /// Memory of the bytes of a picture.
    pub fn picture_bytes(&self, latents: &[ImageShape]) -> usize {
        self.most(latents, |size| pixels::bytes(self.picture(size)))
    }

    /// Where in [`Self::bytes`] the weights of the encoder, the control, the network's input and the picture begin, behind those of the
    /// decoder; then the end.
    fn places(&self, latents: &[ImageShape]) -> [usize; 5] {
        let precision = self.decoder.compiled.precision();
        let of_input = |size| sampler::input_bytes(precision, size, 0);
        let input = self.most(latents, |size| of_input(size).max(of_input(self.picture(size))));
        let picture = self.most(latents, |size| sampler::state_bytes(self.picture(size)));
        let mut end = 0;
        [self.decoder.bytes(), self.encoder.bytes(), size_of::<Control>(), input, picture].map(|bytes| {
            end = (end + bytes).next_multiple_of(ALIGN);
            end
        })
    }

    /// Memory of everything else.
    pub fn bytes(&self, latents: &[ImageShape]) -> usize {
        self.places(latents)[4]
    }

    /// By a subnet of the decoder, from a latent of this size, where a row says, to bytes at `staging`.
    pub fn decoding(&self, subnet: usize, latent: ImageShape, addresses: &Addresses, places: &Places) -> Vec<Launch> {
        let (precision, picture) = (self.decoder.compiled.precision(), self.picture(latent));
        let Places { control, picture: state, staging, .. } = *places;
        let [rows, faults] = [offset_of!(Control, rows), offset_of!(Control, faults)].map(|at| control + at as u64);
        let mut call = self.decoder.compiled.call(subnet, latent, 1, addresses);
        call.launches.insert(0, sampler(precision, latent, 0, rows, 1, None, faults).of("latents"));
        let second = (rows + size_of::<Row>() as u64, faults + 4);
        let output = Some(call.output.address);
        call.launches.push(sampler(precision, picture, 0, second.0, 1, output, second.1).of("picture"));
        call.launches.push(pixels::pixels(picture, state, staging).of("pixels"));
        call.launches
    }

    /// From a picture of this size, which is the network's input, to its output.
    pub fn encoding(&self, picture: ImageShape, addresses: &Addresses) -> Vec<Launch> {
        self.encoding_call(picture, addresses).launches
    }

    fn encoding_call(&self, picture: ImageShape, addresses: &Addresses) -> CallLaunches {
        self.encoder.compiled.call(0, picture, 1, addresses)
    }
}

/// Addresses of what is not the network's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    control: u64,
    input: u64,
    /// f32 `[pixels, colours]`.
    picture: u64,
    /// Its bytes.
    staging: u64,
}

/// An autoencoder in a machine's memory.
#[derive(Debug)]
pub(super) struct DeviceCodec<P> {
    /// Of the decoder, by its subnet and the size of the latent.
    decoding: HashMap<(usize, ImageShape), P>,
    /// Of the encoder, by the size of the picture, with the place of its output.
    encoding: HashMap<ImageShape, (P, Map)>,
    codec: CompiledCodec,
    of_decoder: Addresses,
    of_encoder: Addresses,
    places: Places,
    preview: Preview,
}

impl<P: Send> DeviceCodec<P> {
    /// Brings the autoencoder into [`CompiledCodec::bytes`] of zeros at `block`. It shares the memory `arena` of activations and
    /// `staging` of the bytes of a picture.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn new<M: Accelerator<Program = P>>(
        machine: &mut M,
        mut codec: CompiledCodec,
        latents: &[ImageShape],
        [block, arena, staging]: [u64; 3],
    ) -> Result<Self> {
        let [encoder, control, input, picture, _] = codec.places(latents).map(|place| block + place as u64);
        let places = Places { control, input, picture, staging };
        let of_decoder = Addresses {
            weights: block,
            arena,
            samples: control + offset_of!(Control, input) as u64,
            counters: control + offset_of!(Control, counters) as u64,
            ..Addresses::default()
        };
        let of_encoder = Addresses { weights: encoder, ..of_decoder };
        for (half, at) in [(&mut codec.decoder, block), (&mut codec.encoder, encoder)] {
            machine.upload(at, &std::mem::take(&mut half.weights))?;
        }
        let latent = Preview::fitted_on(&codec.vae);
        let (size, launches) = (codec.picture(latent), codec.decoding(codec.full(), latent, &of_decoder, &places));
        let preview = Preview::fit(&codec.vae, |values| {
            codec.give(machine, &places, latent.channels, values)?;
            launches.iter().try_for_each(|launch| machine.launch(launch))?;
            let mut picture = vec![0; size.elements() * 4];
            machine.download(places.picture, &mut picture)?;
            Ok(Precision::F32.read(&picture))
        })?;
        Ok(Self { decoding: HashMap::new(), encoding: HashMap::new(), codec, of_decoder, of_encoder, places, preview })
    }

    /// The bytes of the picture that a subnet of the decoder makes of a latent of this size, which is the state of a sampler at `state`; None where the picture is not
    /// finite.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn pixels<M: Accelerator<Program = P>>(
        &mut self,
        machine: &mut M,
        subnet: usize,
        latent: ImageShape,
        state: u64,
    ) -> std::result::Result<Option<Vec<u8>>, Fault> {
        if !self.decoding.contains_key(&(subnet, latent)) {
            let program = machine.prepare(self.codec.decoding(subnet, latent, &self.of_decoder, &self.places))?;
            self.decoding.insert((subnet, latent), program);
        }
        let Places { control, input, staging, .. } = self.places;
        // The latent stays as it is.
        let c_in = (1.0 / self.codec.vae.scaling_factor) as f32;
        let row = Row { x: state, a_x: 1.0, input, c_in, ..Row::default() };
        machine.upload(control, &bytemuck::bytes_of(&told(&self.places, row))[..offset_of!(Control, counters)])?;
        machine.run(&self.decoding[&(subnet, latent)])?;
        let mut faults = [0; 8];
        machine.download(control + offset_of!(Control, faults) as u64, &mut faults)?;
        if faults != [0; 8] {
            return Ok(None);
        }
        let mut bytes = vec![0; self.codec.picture(latent).elements()];
        machine.download(staging, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// What the encoder makes of a picture of this size, `[height, width, channels]` in [-1, 1]: means and logarithms of variances.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn encoded<M: Accelerator<Program = P>>(
        &mut self,
        machine: &mut M,
        size: ImageShape,
        picture: &[f32],
    ) -> std::result::Result<Vec<f32>, Fault> {
        if !self.encoding.contains_key(&size) {
            let CallLaunches { launches, output, .. } = self.codec.encoding_call(size, &self.of_encoder);
            self.encoding.insert(size, (machine.prepare(launches)?, output));
        }
        self.codec.give(machine, &self.places, size.channels, picture)?;
        let (program, output) = &self.encoding[&size];
        machine.run(program)?;
        let precision = self.codec.encoder.compiled.precision();
        let (pixels, pitch) = (output.height * output.width, output.channels.next_multiple_of(sampler::PITCH));
        let mut bytes = vec![0; pixels * pitch * precision.bytes()];
        machine.download(output.address, &mut bytes)?;
        Ok(precision.read(&bytes).chunks_exact(pitch).flat_map(|pixel| &pixel[..output.channels]).copied().collect())
    }

    /// The latent of what [`Self::encoded`] gives, in the units of the denoiser.
    ///
    /// # Errors
    /// [`crate::Error::Denoiser`] where it is not finite.
    pub fn latent(&self, output: &[f32]) -> Result<Vec<f32>> {
        let vae = &self.codec.vae;
        means(output, 2 * vae.latent_channels, vae.scaling_factor)
    }

    /// About what the picture of a latent looks like.
    pub fn preview(&self) -> &Preview {
        &self.preview
    }
}

impl CompiledCodec {
    /// Writes the input of a half, by pixel so many `channels`, and tells it that it is there: nothing is done to get it.
    fn give<M: Accelerator>(
        &self,
        machine: &mut M,
        places: &Places,
        channels: usize,
        values: &[f32],
    ) -> std::result::Result<(), Fault> {
        let mut bytes = Vec::new();
        let fill = [0.0; sampler::PITCH];
        let pixels = values.chunks_exact(channels);
        let padded = pixels.flat_map(|pixel| pixel.iter().chain(&fill).take(sampler::PITCH).copied());
        self.decoder.compiled.precision().write(padded, &mut bytes);
        machine.upload(places.input, &bytes)?;
        machine.upload(places.control, bytemuck::bytes_of(&told(places, Row::default())))
    }
}

/// What decoding is told of a latent that this row makes an input of.
fn told(places: &Places, latent: Row) -> Control {
    let picture = Row { x: places.picture, c_out: 1.0, a_d: 1.0, ..Row::default() };
    Control { rows: [latent, picture], input: places.input, ..Control::zeroed() }
}
