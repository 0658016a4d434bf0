//! From latents to pictures, in a machine's memory.

use super::ALIGN;
use crate::nets::Model;
use crate::nets::on_gpu::{Addresses, Compiled};
use crate::nets::preview::Preview;
use crate::nets::vae;
use crate::ops::cuda::sampler::{self, Row, sampler};
use crate::ops::cuda::{Accelerator, Fault, Launch, Precision, pixels};
use crate::{ImageShape, Result};
use bytemuck::{NoUninit, Zeroable};
use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::Arc;

/// The decoder of a model for a machine, and its weights.
#[derive(Debug)]
pub(super) struct CompiledDecoder {
    compiled: Compiled,
    weights: Vec<u8>,
    vae: vae::Config,
}

/// What decoding is told, in the machine's memory.
#[repr(C)]
#[derive(Clone, Copy, NoUninit, Zeroable)]
struct Control {
    /// From a latent to the network's input, and from its output to the picture.
    rows: [Row; 2],
    /// Where that input is.
    input: u64,
    faults: [u32; 2],
    /// Of the network's norms: zeros between calls.
    counters: [u32; 2],
}

impl CompiledDecoder {
    /// That of a model; None where the model draws pictures itself.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if its weights are missing or do not fit; [`crate::Error::Io`] if they cannot be read.
    pub fn of(model: &Model, precision: Precision) -> Result<Option<Self>> {
        let (Some(parts), Some(dir)) = (&model.card.text_to_image, model.parts()) else { return Ok(None) };
        let (program, weights) = parts.decoder_network(dir)?;
        let full = [program.spec.full()];
        let (compiled, weights) = Compiled::new(Arc::new(program), weights, precision, &full)?;
        Ok(Some(Self { compiled, weights, vae: parts.vae.clone() }))
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

    /// Memory of the activations, for latents of these sizes.
    pub fn arena_bytes(&self, latents: &[ImageShape]) -> usize {
        self.with_fitted(latents).into_iter().map(|size| self.compiled.arena_bytes(size, 1)).max().unwrap_or(0)
    }

    /// Memory of the bytes of a picture.
    pub fn picture_bytes(&self, latents: &[ImageShape]) -> usize {
        let bytes = |size| pixels::bytes(self.picture(size));
        self.with_fitted(latents).into_iter().map(bytes).max().unwrap_or(0)
    }

    /// Where in [`Self::bytes`] the control, the network's input and the picture begin, behind the weights; then the end.
    fn places(&self, latents: &[ImageShape]) -> [usize; 4] {
        let precision = self.compiled.precision();
        let sizes = self.with_fitted(latents);
        let most = |bytes: &dyn Fn(ImageShape) -> usize| sizes.iter().map(|&size| bytes(size)).max().unwrap_or(0);
        let input = most(&|size| sampler::input_bytes(precision, size));
        let picture = most(&|size| sampler::state_bytes(self.picture(size)));
        let mut end = 0;
        [self.weight_bytes(), size_of::<Control>(), input, picture].map(|bytes| {
            end = (end + bytes).next_multiple_of(ALIGN);
            end
        })
    }

    /// Memory of everything else.
    pub fn bytes(&self, latents: &[ImageShape]) -> usize {
        self.places(latents)[3]
    }

    /// Memory of the weights.
    pub fn weight_bytes(&self) -> usize {
        self.compiled.weight_bytes() + self.compiled.table_bytes()
    }

    /// From a latent of this size, where a row says, to bytes at `staging`.
    pub fn launches(&self, latent: ImageShape, addresses: &Addresses, places: &Places) -> Vec<Launch> {
        let (precision, picture) = (self.compiled.precision(), self.picture(latent));
        let Places { control, picture: state, staging, .. } = *places;
        let [rows, faults] = [offset_of!(Control, rows), offset_of!(Control, faults)].map(|at| control + at as u64);
        let mut call = self.compiled.call(0, latent, 1, addresses);
        call.launches.insert(0, sampler(precision, latent, rows, 1, None, faults).of("latents"));
        let second = (rows + size_of::<Row>() as u64, faults + 4);
        let output = Some(call.output.address);
        call.launches.push(sampler(precision, picture, second.0, 1, output, second.1).of("picture"));
        call.launches.push(pixels::pixels(picture, state, staging).of("pixels"));
        call.launches
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

/// A decoder in a machine's memory.
#[derive(Debug)]
pub(super) struct DeviceDecoder<P> {
    /// By the size of the latent.
    programs: HashMap<ImageShape, P>,
    decoder: CompiledDecoder,
    addresses: Addresses,
    places: Places,
    preview: Preview,
}

impl<P: Send> DeviceDecoder<P> {
    /// Brings the decoder into [`CompiledDecoder::bytes`] of zeros at `block`. It shares the memory `arena` of activations and
    /// `staging` of the bytes of a picture.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn new<M: Accelerator<Program = P>>(
        machine: &mut M,
        mut decoder: CompiledDecoder,
        latents: &[ImageShape],
        [block, arena, staging]: [u64; 3],
    ) -> Result<Self> {
        let [control, input, picture, _] = decoder.places(latents).map(|place| block + place as u64);
        let places = Places { control, input, picture, staging };
        let addresses = Addresses {
            weights: block,
            arena,
            samples: control + offset_of!(Control, input) as u64,
            counters: control + offset_of!(Control, counters) as u64,
            ..Addresses::default()
        };
        machine.upload(block, &std::mem::take(&mut decoder.weights))?;
        let latent = Preview::fitted_on(&decoder.vae);
        let (size, launches) = (decoder.picture(latent), decoder.launches(latent, &addresses, &places));
        let precision = decoder.compiled.precision();
        let preview = Preview::fit(&decoder.vae, |values| {
            let mut bytes = Vec::new();
            let fill = [0.0; sampler::PITCH];
            let pixels = values.chunks_exact(latent.channels);
            let padded = pixels.flat_map(|pixel| pixel.iter().chain(&fill).take(sampler::PITCH).copied());
            precision.write(padded, &mut bytes);
            machine.upload(input, &bytes)?;
            // The input is there: nothing is done to get it.
            machine.upload(control, bytemuck::bytes_of(&told(&places, Row::default())))?;
            launches.iter().try_for_each(|launch| machine.launch(launch))?;
            let mut picture = vec![0; size.elements() * 4];
            machine.download(places.picture, &mut picture)?;
            Ok(Precision::F32.read(&picture))
        })?;
        Ok(Self { programs: HashMap::new(), decoder, addresses, places, preview })
    }

    /// The bytes of the picture of a latent of this size, which is the state of a sampler at `state`; None where the picture is not
    /// finite.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn pixels<M: Accelerator<Program = P>>(
        &mut self,
        machine: &mut M,
        latent: ImageShape,
        state: u64,
    ) -> std::result::Result<Option<Vec<u8>>, Fault> {
        if !self.programs.contains_key(&latent) {
            let program = machine.prepare(self.decoder.launches(latent, &self.addresses, &self.places))?;
            self.programs.insert(latent, program);
        }
        let Places { control, input, staging, .. } = self.places;
        // The latent stays as it is.
        let c_in = (1.0 / self.decoder.vae.scaling_factor) as f32;
        let row = Row { x: state, a_x: 1.0, input, c_in, ..Row::default() };
        machine.upload(control, &bytemuck::bytes_of(&told(&self.places, row))[..offset_of!(Control, counters)])?;
        machine.run(&self.programs[&latent])?;
        let mut faults = [0; 8];
        machine.download(control + offset_of!(Control, faults) as u64, &mut faults)?;
        if faults != [0; 8] {
            return Ok(None);
        }
        let mut bytes = vec![0; self.decoder.picture(latent).elements()];
        machine.download(staging, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// About what the picture of a latent looks like.
    pub fn preview(&self) -> &Preview {
        &self.preview
    }
}

/// What decoding is told of a latent that this row makes an input of.
fn told(places: &Places, latent: Row) -> Control {
    let picture = Row { x: places.picture, c_out: 1.0, a_d: 1.0, ..Row::default() };
    Control { rows: [latent, picture], input: places.input, ..Control::zeroed() }
}
