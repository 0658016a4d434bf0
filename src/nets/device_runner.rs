//! A model in a machine's memory: the weights of all subnets once, the images that are being drawn, and a program for each
//! size of call.

mod blueprint;
mod codec;
mod control;
mod texts;

pub use blueprint::{Blueprint, Memory};

use super::codec::not_finite;
use super::network::Network;
use super::on_gpu::{Addresses, Compiled};
use super::opened::of_bytes;
use super::rows::drawn_anew;
use super::{About, Begin, Condition, Denoiser, Guide, Known, Model, Move, Rows, Sampler, Slot, Source};
use crate::ImageShape;
use crate::diffusion::preconditioning::Coefficients;
use crate::diffusion::{Level, Noise};
use crate::ops::cuda::sampler::{self, Row};
use crate::ops::cuda::{Accelerator, Fault, Launch, Precision, pixels};
use crate::philox::NoiseKey;
use crate::{Error, Result};
use blueprint::{Arrays, page_bytes};
use codec::DeviceCodec;
use control::Control;
use std::collections::{BTreeSet, HashMap};
use texts::Texts;

/// Places start at multiples of this.
const ALIGN: usize = 256;
/// The most samples of a call: an edge of a grid of blocks.
const MOST: usize = 65_535;
/// Images that memory is allocated for at once.
const PAGE: usize = 16;

/// A network of a model directory on a machine, at all of its widths.
///
/// Its weights, the activations of the largest call, the texts of calls and the autoencoder of latents are allocated when it is made. Images
/// that are being drawn take memory in pages of 16, which are kept.
#[derive(Debug)]
pub struct DeviceRunner<M: Accelerator> {
    /// By subnet, canvas and samples. Before the machine, as the autoencoder is, so that they are dropped while it is there.
    programs: HashMap<(usize, usize, usize), M::Program>,
    /// Between pictures and latents.
    codec: Option<DeviceCodec<M::Program>>,
    machine: M,
    network: Network,
    compiled: Compiled,
    about: About,
    /// Samples of one call: lowered where the machine has not the memory for so many.
    most: usize,
    addresses: Addresses,
    control: Control,
    /// Samples that the control has room for.
    room: usize,
    /// Of a network that reads texts.
    texts: Option<Texts>,
    /// Where pixels are made.
    staging: u64,
    /// The sizes of what is denoised, by canvas.
    states: Vec<ImageShape>,
    slots: Slots,
    /// Rows of images that have begun, with their canvases: the first noise of each, then the churn of those that have some. They are
    /// run with the next step, all at once.
    begun: [Vec<(usize, Row)>; 2],
    /// Memory beside the weights.
    activation_bytes: usize,
    /// Whether the machine has failed.
    lost: bool,
}

/// The memory of an image that is being drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    x: u64,
    /// What its solver remembers, the newest first.
    memory: [u64; 3],
    estimate: u64,
    /// What a guide of another subnet made of it.
    led: u64,
    input: u64,
    /// A picture of which a part is known, and which.
    known: u64,
    mask: u64,
    /// Whether that is put back.
    restores: bool,
    /// What a network for inpainting is given beside the image.
    beside: u64,
    /// Whose image it is.
    key: NoiseKey,
    /// The index of its size.
    canvas: usize,
}

/// By the number of the slot.
#[derive(Debug, Default)]
struct Slots {
    places: Vec<Place>,
    free: Vec<usize>,
}

/// One image's part of a call.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    slot: usize,
    level: Level,
    condition: &'a Condition,
    /// What leads it, where there is a second row.
    guide: Option<&'a Guide>,
    /// What is done with the result; the rest is filled in.
    row: Row,
}

impl Part<'_> {
    fn samples(&self) -> usize {
        if self.guide.is_some() { 2 } else { 1 }
    }
}

impl<M: Accelerator> DeviceRunner<M> {
    /// Brings the model into the machine's memory, with room for calls on `most` samples, at least on two.
    ///
    /// # Errors
    /// [`Error::Input`] for a network that the kernels do not take, or a machine without enough memory: then nothing was
    /// allocated. [`Error::Tensor`] on a device fault.
    pub fn new(machine: M, model: &Model, precision: Precision, most: usize) -> Result<Self> {
        Self::build(machine, Blueprint::new(model, model.supernet.clone(), precision, most)?)
    }

    /// Brings what a blueprint is of into the machine's memory.
    ///
    /// # Errors
    /// [`Error::Input`] for a machine without enough memory: then nothing was allocated. [`Error::Denoiser`] on a device fault.
    pub fn build(mut machine: M, blueprint: Blueprint) -> Result<Self> {
        let memory = blueprint.memory();
        let (needed, free) = (memory.total(), machine.free()?);
        if needed > free {
            return Err(Fault::OutOfMemory { needed: Some(needed), free }.into());
        }
        let Blueprint { network, compiled, weights, codec, text, about, most, states } = blueprint;
        let precision = compiled.precision();
        let Memory { activations, control, picture, images, texts, codec: coding, .. } = memory;
        let mut places = [0; 7];
        let sizes = [memory.weights, activations, control, picture, images, texts, coding];
        for (place, size) in places.iter_mut().zip(sizes).filter(|(_, size)| *size > 0) {
            *place = machine.allocate(size)?;
        }
        let [at_weights, arena, control, staging, page, texts, coding] = places;
        machine.upload(at_weights, &weights)?;
        drop(weights);
        let places = [coding, arena, staging];
        let codec = codec.map(|codec| DeviceCodec::new(&mut machine, codec, &states, places)).transpose()?;
        let control = Control::new(control, most);
        let Control { noise, classes, samples, texts: of_texts, counters, .. } = control;
        let mut runner = Self {
            machine,
            network,
            compiled,
            most,
            addresses: Addresses { weights: at_weights, arena, noise, classes, samples, texts: of_texts, counters },
            control,
            room: most,
            texts: text.map(|shape| Texts::new(shape, precision, most, texts)),
            staging,
            codec,
            programs: HashMap::new(),
            states,
            slots: Slots::default(),
            begun: Default::default(),
            activation_bytes: needed - about.weight_bytes,
            about,
            lost: false,
        };
        runner.add_page(page);
        Ok(runner)
    }

    /// Samples that one call takes at most.
    pub fn most(&self) -> usize {
        self.most
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The type of activations and weights.
    pub fn precision(&self) -> Precision {
        self.compiled.precision()
    }

    fn coefficients(&self, level: Level) -> Coefficients {
        self.network.preconditioning().at(level)
    }

    /// Makes slots of a page's memory.
    fn add_page(&mut self, page: u64) {
        let slot = Arrays::of(self.precision(), &self.states, self.network.beside());
        for index in 0..PAGE {
            let mut end = page + (index * slot.bytes()) as u64;
            let mut place = |bytes: usize| {
                end += bytes as u64;
                end - bytes as u64
            };
            let [x, first, second, third, estimate, known, led] = [slot.state; 7].map(&mut place);
            let [mask, beside, input] = [slot.mask, slot.beside, slot.input].map(&mut place);
            let (memory, key) = ([first, second, third], NoiseKey { seed: 0, image: 0 });
            let place = Place { x, memory, estimate, led, input, known, mask, restores: false, beside, key, canvas: 0 };
            self.slots.free.push(self.slots.places.len());
            self.slots.places.push(place);
        }
    }

    /// Brings what a network for inpainting is given beside a slot's image into its memory: nothing is an image that is all drawn anew.
    fn upload_beside(&mut self, slot: usize, beside: Option<&[f32]>) -> std::result::Result<(), Fault> {
        let Place { beside: at, canvas, .. } = self.slots.places[slot];
        let channels = self.network.beside();
        if channels == 0 {
            return Ok(());
        }
        let pixels = self.states[canvas].height * self.states[canvas].width;
        let anew = || (0..pixels).flat_map(|_| (0..channels).map(drawn_anew)).collect();
        let beside = beside.map_or_else(anew, <[f32]>::to_vec);
        self.machine.upload(at, bytemuck::cast_slice(&beside))
    }

    /// A slot that nobody has. What is in it is of no meaning.
    fn take(&mut self) -> std::result::Result<usize, Fault> {
        if self.slots.free.is_empty() {
            let bytes = page_bytes(self.precision(), &self.states, self.network.beside());
            let page = self.machine.allocate(bytes)?;
            self.activation_bytes += bytes;
            self.add_page(page);
        }
        Ok(self.slots.free.pop().expect("a page has slots"))
    }

    /// Runs the subnet on these parts, all of one canvas, and does what their rows say; gives the faults of each. Where the machine has not the
    /// memory for so many samples, in pieces, and from then on.
    fn call(&mut self, subnet: usize, parts: &[Part]) -> std::result::Result<Vec<bool>, Fault> {
        let mut faults = Vec::with_capacity(parts.len());
        let mut rest = parts;
        while !rest.is_empty() {
            let mut samples = 0;
            let fits = |part: &&Part| {
                samples += part.samples();
                samples <= self.most
            };
            // An image under guidance is a call of two samples at least.
            let count = rest.iter().take_while(fits).count().max(1);
            match self.piece(subnet, &rest[..count]) {
                Ok(more) => faults.extend(more),
                Err(fault @ Fault::OutOfMemory { .. }) if count > 1 => {
                    let fewer: usize = rest[..count].iter().map(Part::samples).sum::<usize>() / 2;
                    tracing::warn!(%fault, most = fewer, "calls are of fewer samples from now on");
                    self.most = fewer;
                    continue;
                }
                Err(fault) => return Err(fault),
            }
            rest = &rest[count..];
        }
        Ok(faults)
    }

    fn piece(&mut self, subnet: usize, parts: &[Part]) -> std::result::Result<Vec<bool>, Fault> {
        let canvas = self.slots.places[parts[0].slot].canvas;
        let samples: usize = parts.iter().map(Part::samples).sum();
        let no_class = self.network.classes() as u32;
        let to = self.control;
        let mut control = vec![0; (to.counters - to.noise) as usize];
        let mut put = |address: u64, index: usize, bytes: &[u8]| {
            control[(address - to.noise) as usize + index * bytes.len()..][..bytes.len()].copy_from_slice(bytes);
        };
        let mut sample = 0;
        for (index, part) in parts.iter().enumerate() {
            let c = self.coefficients(part.level);
            let place = self.slots.places[part.slot];
            assert_eq!(place.canvas, canvas, "the canvas of all images of a call");
            let row = Row {
                conditional: sample as u32,
                unconditional: (sample + part.samples() - 1) as u32,
                guidance: part.guide.map_or(part.row.guidance, |guide| guide.scale as f32),
                c_skip: c.c_skip as f32,
                c_out: c.c_out as f32,
                ..part.row
            };
            put(to.rows, index, bytemuck::bytes_of(&row));
            for condition in [Some(part.condition), part.guide.map(|guide| &guide.from)].into_iter().flatten() {
                let class = condition.class().map_or(no_class, |class| class as u32);
                put(to.noise, sample, &(c.c_noise as f32).to_le_bytes());
                put(to.classes, sample, &class.to_le_bytes());
                put(to.samples, sample, &place.input.to_le_bytes());
                if let Some(texts) = &mut self.texts {
                    put(to.texts, sample, &texts.place(&mut self.machine, condition)?.to_le_bytes());
                }
                sample += 1;
            }
        }
        if !self.programs.contains_key(&(subnet, canvas, samples)) {
            let to = [to.rows, to.faults];
            let size = (self.states[canvas], self.network.beside());
            let launches = step(&self.compiled, size, subnet, samples, &self.addresses, to);
            let program = self.machine.prepare(launches)?;
            self.programs.insert((subnet, canvas, samples), program);
        }
        self.machine.upload(to.noise, &control)?;
        self.machine.run(&self.programs[&(subnet, canvas, samples)])?;
        let mut flags = vec![0; parts.len() * 4];
        self.machine.download(to.faults, &mut flags)?;
        Ok(flags.chunks_exact(4).map(|flag| flag != [0; 4]).collect())
    }

    /// Does what these rows of a canvas say, without a call of the network.
    fn run_rows(&mut self, canvas: usize, rows: &[Row]) -> std::result::Result<(), Fault> {
        for rows in rows.chunks(self.room) {
            let Control { rows: at, faults, .. } = self.control;
            self.machine.upload(at, bytemuck::cast_slice(rows))?;
            let (size, beside) = (self.states[canvas], self.network.beside());
            let launch = sampler::sampler(self.precision(), size, beside, at, rows.len(), None, faults);
            self.machine.launch(&launch.of("noise"))?;
        }
        Ok(())
    }

    /// The row of an image in this slot that does nothing yet.
    fn row(&self, slot: usize) -> Row {
        let Place { x, memory, input, beside, key, .. } = self.slots.places[slot];
        Row { x, memory, input, beside, seed: key.seed, image: key.image, ..Row::default() }
    }

    /// Makes the first noise of the images that have begun since the last step.
    fn make_begun(&mut self) -> std::result::Result<(), Fault> {
        for turn in 0..self.begun.len() {
            let mut rows = std::mem::take(&mut self.begun[turn]);
            rows.sort_by_key(|(canvas, _)| *canvas);
            for rows in rows.chunk_by(|(one, _), (other, _)| one == other) {
                let of_canvas: Vec<Row> = rows.iter().map(|(_, row)| *row).collect();
                self.run_rows(rows[0].0, &of_canvas)?;
            }
        }
        Ok(())
    }

    /// The picture of this state of a slot by the decoder's subnet of this index, as bytes; None where it is decoded and not finite.
    fn bytes_of(&mut self, slot: Slot, decoder: usize) -> std::result::Result<Option<Vec<u8>>, Fault> {
        self.make_begun()?;
        let Place { x, canvas, .. } = self.slots.places[slot.0];
        let size = self.states[canvas];
        match &mut self.codec {
            Some(codec) => codec.pixels(&mut self.machine, decoder, size, x),
            None => self.bytes_at(size, x).map(Some),
        }
    }

    /// The bytes of the image that is a state at this address.
    fn bytes_at(&mut self, size: ImageShape, state: u64) -> std::result::Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; size.elements()];
        self.machine.launch(&pixels::pixels(size, state, self.staging))?;
        self.machine.download(self.staging, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of a slot's estimate, where it is a latent a preview.
    fn estimate_of(&mut self, slot: Slot) -> std::result::Result<Vec<u8>, Fault> {
        let Place { estimate, canvas, .. } = self.slots.places[slot.0];
        let size = self.states[canvas];
        let Some(codec) = &self.codec else { return self.bytes_at(size, estimate) };
        let mut latent = vec![0; size.elements() * 4];
        self.machine.download(estimate, &mut latent)?;
        Ok(codec.preview().picture(size, &Precision::F32.read(&latent)))
    }

    /// Notes a fault that the machine does not recover from.
    fn noted<T>(&mut self, outcome: std::result::Result<T, Fault>) -> Result<T> {
        self.lost |= matches!(outcome, Err(Fault::Device(_)));
        Ok(outcome?)
    }
}

/// # Errors
/// Where one of these faults is set.
fn check_finite(faults: &[bool]) -> Result<()> {
    match faults.contains(&true) {
        true => Err(Error::Denoiser("it returned values that are not finite".to_owned())),
        false => Ok(()),
    }
}

/// A call of the network, which is given so many channels beside what it denoises, and then a sampler step on as many rows as there are
/// samples, at these addresses of rows and faults.
fn step(
    compiled: &Compiled,
    (size, beside): (ImageShape, usize),
    subnet: usize,
    samples: usize,
    addresses: &Addresses,
    [rows, faults]: [u64; 2],
) -> Vec<Launch> {
    let mut call = compiled.call(subnet, size, samples, addresses);
    let output = Some(call.output.address);
    let step = sampler::sampler(compiled.precision(), size, beside, rows, samples, output, faults);
    call.launches.push(step.of("sampler step"));
    call.launches
}

impl<M: Accelerator> Denoiser for DeviceRunner<M> {
    fn about(&self) -> &About {
        &self.about
    }

    fn activation_bytes(&self) -> usize {
        self.activation_bytes
    }

    fn denoise(&mut self, subnet: usize, rows: &Rows) -> Result<Vec<f32>> {
        let canvas = self.states.iter().position(|&size| size == rows.image);
        let canvas = canvas.expect("a size that the model draws");
        let mut denoised = Vec::with_capacity(rows.x.len());
        let mut slots = Vec::new();
        let outcome = self.denoise_in(&mut slots, canvas, subnet, rows, &mut denoised);
        self.slots.free.append(&mut slots);
        self.noted(outcome)?;
        Ok(denoised)
    }

    fn picture(&mut self, decoder: usize, image: &[f64]) -> Result<Vec<f64>> {
        if self.codec.is_none() {
            return Ok(image.to_vec());
        }
        // It starts from the latent, without noise.
        let start = Some(image.iter().map(|&value| value as f32).collect());
        let (key, source) = (NoiseKey { seed: 0, image: 0 }, Source { start, ..Source::default() });
        let slot = self.begin(&Begin { key, noise: Default::default(), sigma: 1.0, canvas: 0, source: &source })?;
        let picture = self.pixels(slot, decoder);
        self.end(slot);
        Ok(of_bytes(picture?))
    }
}

impl<M: Accelerator> DeviceRunner<M> {
    /// Brings what an image is made from into the memory of its slot.
    fn bring(&mut self, slot: usize, source: &Source) -> std::result::Result<(), Fault> {
        let Place { x, known: at_known, mask: at_mask, .. } = self.slots.places[slot];
        if let Some(picture) = &source.start {
            self.machine.upload(x, bytemuck::cast_slice(picture))?;
        }
        if let Some(Known { picture, mask }) = &source.known {
            let mask: Vec<u32> = mask.iter().map(|&is_new| u32::from(is_new)).collect();
            self.machine.upload(at_known, bytemuck::cast_slice(picture))?;
            self.machine.upload(at_mask, bytemuck::cast_slice(&mask))?;
        }
        self.upload_beside(slot, source.beside.as_deref())
    }

    /// As [`Denoiser::denoise`], in slots that are added to `slots`.
    fn denoise_in(
        &mut self,
        slots: &mut Vec<usize>,
        canvas: usize,
        subnet: usize,
        rows: &Rows,
        denoised: &mut Vec<f32>,
    ) -> std::result::Result<(), Fault> {
        let elements = rows.image.elements();
        let (mut inputs, mut parts) = (Vec::new(), Vec::new());
        let mut beside =
            rows.beside.chunks_exact((rows.image.height * rows.image.width * self.network.beside()).max(1));
        for ((x, &level), condition) in rows.x.chunks_exact(elements).zip(rows.levels).zip(rows.conditions) {
            let slot = self.take()?;
            slots.push(slot);
            self.slots.places[slot].canvas = canvas;
            self.upload_beside(slot, beside.next())?;
            self.machine.upload(self.slots.places[slot].x, bytemuck::cast_slice(x))?;
            let keep = Row { a_x: 1.0, ..self.row(slot) };
            inputs.push(Row { c_in: self.coefficients(level).c_in as f32, ..keep });
            let row = Row { estimate: self.slots.places[slot].estimate, ..keep };
            parts.push(Part { slot, level, condition, guide: None, row });
        }
        self.run_rows(canvas, &inputs)?;
        self.call(subnet, &parts)?;
        let mut estimate = vec![0; elements * 4];
        for &slot in slots.iter() {
            self.machine.download(self.slots.places[slot].estimate, &mut estimate)?;
            denoised.extend(Precision::F32.read(&estimate));
        }
        Ok(())
    }
}

impl<M: Accelerator> Sampler for DeviceRunner<M> {
    fn about(&self) -> &About {
        &self.about
    }

    fn activation_bytes(&self) -> usize {
        Denoiser::activation_bytes(self)
    }

    fn encode(&mut self, canvas: usize, picture: &[f32]) -> Result<Vec<f32>> {
        let size = self.about.canvases[canvas].picture;
        let Some(codec) = &mut self.codec else { return Ok(picture.to_vec()) };
        let output = codec.encoded(&mut self.machine, size, picture);
        let output = self.noted(output)?;
        self.codec.as_ref().expect("it is there").latent(&output)
    }

    fn begin(&mut self, begin: &Begin) -> Result<Slot> {
        let &Begin { key, noise, sigma, canvas, source } = begin;
        let slot = self.take();
        let slot = self.noted(slot)?;
        let restores = source.known.is_some();
        let place = &mut self.slots.places[slot];
        (place.key, place.canvas, place.restores) = (key, canvas, restores);
        let brought = self.bring(slot, source);
        if brought.is_err() {
            self.slots.free.push(slot);
        }
        self.noted(brought)?;
        let c_in = self.coefficients(sigma.into()).c_in as f32;
        let row = |noise: Noise| Row { noise: noise.scale as f32, draw: noise.draw, c_in, ..self.row(slot) };
        let [first, churn] = noise.map(row);
        // What it starts from is there, and nothing is remembered yet.
        let a_x = if source.start.is_some() { 1.0 } else { 0.0 };
        self.begun[0].push((canvas, Row { newest: first.memory[0], a_x, ..first }));
        if churn.noise != 0.0 {
            self.begun[1].push((canvas, Row { a_x: 1.0, ..churn }));
        }
        Ok(Slot(slot))
    }

    fn step(&mut self, subnet: usize, moves: &[Move]) -> Result<()> {
        let outcome = self.make_begun();
        self.noted(outcome)?;
        let guides =
            || moves.iter().filter_map(|step| Some((step, step.guide.as_ref().filter(|by| by.subnet != subnet)?)));
        let others: BTreeSet<usize> = guides().map(|(_, by)| by.subnet).collect();
        for other in others {
            let mut parts = Vec::new();
            for (step, by) in guides().filter(|(_, by)| by.subnet == other) {
                let (slot, estimate) = (step.slot.0, self.slots.places[step.slot.0].led);
                // The image stays, and its input.
                let row = Row { a_x: 1.0, estimate, input: 0, ..self.row(slot) };
                parts.push(Part { slot, level: step.level, condition: &by.from, guide: None, row });
            }
            let outcome = self.call(other, &parts);
            check_finite(&self.noted(outcome)?)?;
        }
        let mut parts = Vec::with_capacity(moves.len());
        for step in moves {
            let (slot, update) = (step.slot.0, step.update);
            let Place { memory: [_, _, oldest], known, mask, restores, .. } = self.slots.places[slot];
            let row = Row {
                newest: if update.keeps_memory() { 0 } else { oldest },
                estimate: if step.watched { self.slots.places[slot].estimate } else { 0 },
                a_x: update.a_x as f32,
                a_d: update.a_d as f32,
                a_m: [update.a_m, update.older[0], update.older[1]].map(|weight| weight as f32),
                b_x: update.b_x as f32,
                b_d: update.b_d as f32,
                b_m: update.b_m as f32,
                noise: update.noise.scale as f32,
                draw: update.noise.draw,
                c_in: step.next.map_or(0.0, |level| self.coefficients(level).c_in as f32),
                known: if restores { known } else { 0 },
                mask,
                level: step.next.map_or(0.0, |level| level.sigma as f32),
                ..self.row(slot)
            };
            if !update.keeps_memory() {
                // What is new takes the place of what is oldest.
                self.slots.places[slot].memory.rotate_right(1);
            }
            let guide = step.guide.as_ref();
            let row = match guide.filter(|by| by.subnet != subnet) {
                Some(by) => Row { led: self.slots.places[slot].led, guidance: by.scale as f32, ..row },
                None => row,
            };
            let guide = guide.filter(|by| by.subnet == subnet);
            parts.push(Part { slot, level: step.level, condition: &step.condition, guide, row });
        }
        let outcome = self.call(subnet, &parts);
        check_finite(&self.noted(outcome)?)
    }

    fn pixels(&mut self, slot: Slot, decoder: usize) -> Result<Vec<u8>> {
        let outcome = self.bytes_of(slot, decoder);
        let bytes = self.noted(outcome)?;
        bytes.ok_or_else(not_finite)
    }

    fn estimate(&mut self, slot: Slot) -> Result<Vec<u8>> {
        let outcome = self.estimate_of(slot);
        self.noted(outcome)
    }

    fn end(&mut self, slot: Slot) {
        let x = self.slots.places[slot.0].x;
        self.begun.iter_mut().for_each(|rows| rows.retain(|(_, row)| row.x != x));
        self.slots.free.push(slot.0);
    }

    fn is_lost(&self) -> bool {
        self.lost
    }
}
