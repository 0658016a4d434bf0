//! A model in a machine's memory: the weights of all subnets once, the images that are being drawn, and a program for each
//! size of call.

use super::network::Network;
use super::on_gpu::{Addresses, Compiled};
use super::{About, Denoiser, Model, Move, Rows, Sampler, Slot};
use crate::ImageShape;
use crate::diffusion::preconditioning::Coefficients;
use crate::diffusion::{Level, Noise};
use crate::ops::cuda::sampler::{self, Row};
use crate::ops::cuda::{Accelerator, Fault, Launch, Precision, pixels};
use crate::philox::NoiseKey;
use crate::supernet::Supernet;
use crate::{Error, Result};
use std::collections::HashMap;

/// Places start at multiples of this.
const ALIGN: usize = 256;
/// The most samples of a call: an edge of a grid of blocks.
const MOST: usize = 65_535;
/// Images that memory is allocated for at once.
const PAGE: usize = 16;

/// A network of a model directory on a machine, at all of its widths.
///
/// Its weights and the activations of the largest call are allocated when it is made. Images that are being drawn take memory
/// in pages of 16, which are kept.
#[derive(Debug)]
pub struct DeviceRunner<M: Accelerator> {
    /// By subnet and samples. Before the machine, so that they are dropped while it is there.
    programs: HashMap<(usize, usize), M::Program>,
    machine: M,
    network: Network,
    compiled: Compiled,
    about: About,
    /// Samples of one call: lowered where the machine has not the memory for so many.
    most: usize,
    addresses: Addresses,
    control: Control,
    /// Where pixels are made.
    staging: u64,
    slots: Slots,
    /// Rows of images that have begun: the first noise of each, then the churn of those that have some. They are run with
    /// the next step, all at once.
    begun: [Vec<Row>; 2],
    bytes: usize,
    /// Whether the machine has failed.
    lost: bool,
}

/// What a call is told, in the machine's memory: one block, written at once.
#[derive(Clone, Copy, Debug)]
struct Control {
    address: u64,
    /// Samples that it has room for.
    most: usize,
}

impl Control {
    /// Where c_noise, classes, inputs, rows and faults begin, then the counters of `group_norm`, then the end.
    fn places(most: usize) -> [usize; 7] {
        let mut places = [0; 7];
        for (index, each) in [4, 4, 8, size_of::<Row>(), 4, 4].into_iter().enumerate() {
            places[index + 1] = (places[index] + most * each).next_multiple_of(ALIGN);
        }
        places
    }

    fn at(&self, index: usize) -> u64 {
        self.address + Self::places(self.most)[index] as u64
    }
}

/// The memory of an image that is being drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    x: u64,
    memory: u64,
    estimate: u64,
    input: u64,
    /// Whose image it is.
    key: NoiseKey,
}

/// By the number of the slot.
#[derive(Debug, Default)]
struct Slots {
    places: Vec<Place>,
    free: Vec<usize>,
}

/// One image's part of a call.
#[derive(Clone, Copy, Debug)]
struct Part {
    slot: usize,
    level: Level,
    class: Option<usize>,
    /// The scale of guidance, where there is a second row without the class.
    guidance: Option<f64>,
    /// What is done with the result; the rest is filled in.
    row: Row,
}

impl Part {
    fn samples(&self) -> usize {
        if self.guidance.is_some() { 2 } else { 1 }
    }
}

impl<M: Accelerator> DeviceRunner<M> {
    /// Brings the model into the machine's memory, with room for calls on `most` samples, at least on two.
    ///
    /// # Errors
    /// [`Error::Input`] for a network that the kernels do not take, or a machine without enough memory: then nothing was
    /// allocated. [`Error::Tensor`] on a device fault.
    pub fn new(machine: M, model: &Model, precision: Precision, most: usize) -> Result<Self> {
        Self::with_weights(machine, model, &model.supernet, precision, most)
    }

    /// The same of a model whose weights are these.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_weights(
        mut machine: M,
        model: &Model,
        supernet: &Supernet,
        precision: Precision,
        most: usize,
    ) -> Result<Self> {
        // An image under guidance is two.
        let most = most.max(2);
        if most > MOST {
            return Err(Error::input(
                "max_batch",
                format!("{most} is not accepted on a GPU: it must be at most {MOST}"),
            ));
        }
        let network = model.network.clone();
        let widths: Vec<_> = (0..model.table.subnets.len()).map(|subnet| model.widths(subnet)).collect();
        let (compiled, bytes) = network.compile(supernet, precision, &widths)?;
        let about = About::of(model, compiled.weight_bytes() + compiled.table_bytes());
        let image = network.image();
        let sizes = [
            bytes.len(),
            compiled.arena_bytes(most),
            Control::places(most)[6],
            pixels::bytes(image),
            PAGE * slot_bytes(precision, image),
        ];
        let (needed, free) = (sizes.iter().sum(), machine.free()?);
        if needed > free {
            return Err(Fault::OutOfMemory { needed: Some(needed), free }.into());
        }
        let mut places = [0; 5];
        for (place, size) in places.iter_mut().zip(sizes) {
            *place = machine.allocate(size)?;
        }
        let [weights, arena, control, staging, page] = places;
        machine.upload(weights, &bytes)?;
        let control = Control { address: control, most };
        let [noise, classes, samples, counters] = [0, 1, 2, 5].map(|index| control.at(index));
        let mut runner = Self {
            machine,
            network,
            compiled,
            about,
            most,
            addresses: Addresses { weights, arena, noise, classes, samples, counters },
            control,
            staging,
            programs: HashMap::new(),
            slots: Slots::default(),
            begun: Default::default(),
            bytes: needed,
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
        let (precision, image) = (self.precision(), self.network.image());
        let state = sampler::state_bytes(image).next_multiple_of(ALIGN) as u64;
        for index in 0..PAGE as u64 {
            let x = page + index * slot_bytes(precision, image) as u64;
            let key = NoiseKey { seed: 0, image: 0 };
            let place = Place { x, memory: x + state, estimate: x + 2 * state, input: x + 3 * state, key };
            self.slots.free.push(self.slots.places.len());
            self.slots.places.push(place);
        }
    }

    /// A slot that nobody has. What is in it is of no meaning.
    fn take(&mut self) -> std::result::Result<usize, Fault> {
        if self.slots.free.is_empty() {
            let bytes = PAGE * slot_bytes(self.precision(), self.network.image());
            let page = self.machine.allocate(bytes)?;
            self.bytes += bytes;
            self.add_page(page);
        }
        Ok(self.slots.free.pop().expect("a page has slots"))
    }

    /// Runs the subnet on these parts and does what their rows say; gives the faults of each. Where the machine has not the
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
        let image = self.network.image();
        let samples: usize = parts.iter().map(Part::samples).sum();
        let no_class = self.network.classes() as u32;
        let [noise, classes, inputs, rows, faults, end, _] = Control::places(self.control.most);
        let mut control = vec![0; end];
        let mut sample = 0;
        for (index, part) in parts.iter().enumerate() {
            let c = self.coefficients(part.level);
            let place = self.slots.places[part.slot];
            let row = Row {
                conditional: sample as u32,
                unconditional: (sample + part.samples() - 1) as u32,
                guidance: part.guidance.unwrap_or(1.0) as f32,
                c_skip: c.c_skip as f32,
                c_out: c.c_out as f32,
                ..part.row
            };
            put(&mut control, rows + index * size_of::<Row>(), bytemuck::bytes_of(&row));
            for class in [part.class, None].into_iter().take(part.samples()) {
                put(&mut control, noise + sample * 4, &(c.c_noise as f32).to_le_bytes());
                put(&mut control, classes + sample * 4, &class.map_or(no_class, |class| class as u32).to_le_bytes());
                put(&mut control, inputs + sample * 8, &place.input.to_le_bytes());
                sample += 1;
            }
        }
        if !self.programs.contains_key(&(subnet, samples)) {
            let control = [3, 4].map(|index| self.control.at(index));
            let launches = step(&self.compiled, image, subnet, samples, &self.addresses, control);
            let program = self.machine.prepare(launches)?;
            self.programs.insert((subnet, samples), program);
        }
        self.machine.upload(self.control.address, &control)?;
        self.machine.run(&self.programs[&(subnet, samples)])?;
        let mut flags = vec![0; parts.len() * 4];
        self.machine.download(self.control.address + faults as u64, &mut flags)?;
        Ok(flags.chunks_exact(4).map(|flag| flag != [0; 4]).collect())
    }

    /// Does what these rows say, without a call of the network.
    fn run_rows(&mut self, rows: &[Row]) -> std::result::Result<(), Fault> {
        for rows in rows.chunks(self.control.most) {
            let [at, faults] = [3, 4].map(|index| self.control.at(index));
            self.machine.upload(at, bytemuck::cast_slice(rows))?;
            let launch = sampler::sampler(self.precision(), self.network.image(), at, rows.len(), None, faults);
            self.machine.launch(&launch.of("noise"))?;
        }
        Ok(())
    }

    /// The row of an image in this slot that does nothing yet.
    fn row(&self, slot: usize) -> Row {
        let Place { x, memory, input, key, .. } = self.slots.places[slot];
        Row { x, memory, input, seed: key.seed, image: key.image, ..Row::default() }
    }

    /// Makes the first noise of the images that have begun since the last step.
    fn make_begun(&mut self) -> std::result::Result<(), Fault> {
        for turn in 0..self.begun.len() {
            let rows = std::mem::take(&mut self.begun[turn]);
            self.run_rows(&rows)?;
        }
        Ok(())
    }

    /// The bytes of the image at an address of its state.
    fn bytes_of(&mut self, state: u64) -> Result<Vec<u8>> {
        let image = self.network.image();
        let mut bytes = vec![0; image.elements()];
        let outcome = self.make_begun();
        let outcome = outcome.and_then(|()| self.machine.launch(&pixels::pixels(image, state, self.staging)));
        let outcome = outcome.and_then(|()| self.machine.download(self.staging, &mut bytes));
        self.noted(outcome)?;
        Ok(bytes)
    }

    /// Notes a fault that the machine does not recover from.
    fn noted<T>(&mut self, outcome: std::result::Result<T, Fault>) -> Result<T> {
        self.lost |= matches!(outcome, Err(Fault::Device(_)));
        Ok(outcome?)
    }
}

/// What a call of a subnet is made of, without a machine: for reports.
///
/// # Errors
/// As [`Network::compile`].
pub fn launches(model: &Model, precision: Precision, samples: usize) -> Result<Vec<Vec<Launch>>> {
    let network = model.network.clone();
    let widths: Vec<_> = (0..model.table.subnets.len()).map(|subnet| model.widths(subnet)).collect();
    let (compiled, _) = network.compile(&model.supernet, precision, &widths)?;
    let step = |subnet| step(&compiled, network.image(), subnet, samples, &Addresses::default(), [0; 2]);
    Ok((0..widths.len()).map(step).collect())
}

/// A call of the network and then a sampler step on as many rows as there are samples, at these addresses of rows and faults.
fn step(
    compiled: &Compiled,
    image: ImageShape,
    subnet: usize,
    samples: usize,
    addresses: &Addresses,
    [rows, faults]: [u64; 2],
) -> Vec<Launch> {
    let mut call = compiled.call(subnet, samples, addresses);
    let step = sampler::sampler(compiled.precision(), image, rows, samples, Some(call.output.address), faults);
    call.launches.push(step.of("sampler step"));
    call.launches
}

/// Memory of one image that is being drawn.
fn slot_bytes(precision: Precision, image: ImageShape) -> usize {
    let [state, input] = [sampler::state_bytes(image), sampler::input_bytes(precision, image)];
    3 * state.next_multiple_of(ALIGN) + input.next_multiple_of(ALIGN)
}

fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

impl<M: Accelerator> Denoiser for DeviceRunner<M> {
    fn about(&self) -> &About {
        &self.about
    }

    fn activation_bytes(&self) -> usize {
        self.bytes - self.about.weight_bytes
    }

    fn denoise(&mut self, subnet: usize, rows: &Rows) -> Result<Vec<f32>> {
        assert_eq!(rows.image, self.network.image(), "size of the images");
        let mut denoised = Vec::with_capacity(rows.x.len());
        let mut slots = Vec::new();
        let outcome = self.denoise_in(&mut slots, subnet, rows, &mut denoised);
        self.slots.free.append(&mut slots);
        self.noted(outcome)?;
        Ok(denoised)
    }
}

impl<M: Accelerator> DeviceRunner<M> {
    /// As [`Denoiser::denoise`], in slots that are added to `slots`.
    fn denoise_in(
        &mut self,
        slots: &mut Vec<usize>,
        subnet: usize,
        rows: &Rows,
        denoised: &mut Vec<f32>,
    ) -> std::result::Result<(), Fault> {
        let elements = rows.image.elements();
        let (mut inputs, mut parts) = (Vec::new(), Vec::new());
        for ((x, &level), class) in rows.x.chunks_exact(elements).zip(rows.levels).zip(rows.classes()) {
            let slot = self.take()?;
            slots.push(slot);
            self.machine.upload(self.slots.places[slot].x, bytemuck::cast_slice(x))?;
            let keep = Row { a_x: 1.0, ..self.row(slot) };
            inputs.push(Row { c_in: self.coefficients(level).c_in as f32, ..keep });
            let row = Row { estimate: self.slots.places[slot].estimate, ..keep };
            parts.push(Part { slot, level, class, guidance: None, row });
        }
        self.run_rows(&inputs)?;
        self.call(subnet, &parts)?;
        let mut estimate = vec![0; elements * 4];
        for &slot in slots.iter() {
            self.machine.download(self.slots.places[slot].estimate, &mut estimate)?;
            denoised
                .extend(estimate.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])));
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

    fn begin(&mut self, key: NoiseKey, noise: [Noise; 2], sigma: f64, canvas: usize) -> Result<Slot> {
        assert_eq!(canvas, 0, "a device draws pictures of one size");
        let slot = self.take();
        let slot = self.noted(slot)?;
        self.slots.places[slot].key = key;
        let c_in = self.coefficients(sigma.into()).c_in as f32;
        let row = |noise: Noise| Row { noise: noise.scale as f32, draw: noise.draw, c_in, ..self.row(slot) };
        let [first, churn] = noise.map(row);
        self.begun[0].push(first);
        if churn.noise != 0.0 {
            self.begun[1].push(Row { a_x: 1.0, ..churn });
        }
        Ok(Slot(slot))
    }

    fn step(&mut self, subnet: usize, moves: &[Move]) -> Result<()> {
        let outcome = self.make_begun();
        self.noted(outcome)?;
        let part = |step: &Move| {
            let (slot, update) = (step.slot.0, step.update);
            // Solvers with more memory are of networks that read texts, which `compile` refuses.
            assert!(update.older == [0.0; 2] && update.b_m == 0.0, "the kernel remembers one array");
            let row = Row {
                estimate: if step.watched { self.slots.places[slot].estimate } else { 0 },
                a_x: update.a_x as f32,
                a_d: update.a_d as f32,
                a_m: update.a_m as f32,
                b_x: update.b_x as f32,
                b_d: update.b_d as f32,
                noise: update.noise.scale as f32,
                draw: update.noise.draw,
                c_in: step.next.map_or(0.0, |level| self.coefficients(level).c_in as f32),
                ..self.row(slot)
            };
            let guidance = step.guide.as_ref().map(|guide| guide.scale);
            Part { slot, level: step.level, class: step.condition.class(), guidance, row }
        };
        let parts: Vec<Part> = moves.iter().map(part).collect();
        let outcome = self.call(subnet, &parts);
        if self.noted(outcome)?.contains(&true) {
            return Err(Error::Denoiser("it returned values that are not finite".to_owned()));
        }
        Ok(())
    }

    fn pixels(&mut self, slot: Slot) -> Result<Vec<u8>> {
        self.bytes_of(self.slots.places[slot.0].x)
    }

    fn estimate(&mut self, slot: Slot) -> Result<Vec<u8>> {
        self.bytes_of(self.slots.places[slot.0].estimate)
    }

    fn end(&mut self, slot: Slot) {
        let x = self.slots.places[slot.0].x;
        self.begun.iter_mut().for_each(|rows| rows.retain(|row| row.x != x));
        self.slots.free.push(slot.0);
    }

    fn is_lost(&self) -> bool {
        self.lost
    }
}
