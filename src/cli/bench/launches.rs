//! What a denoising step on a GPU is made of: launches, bytes, operations and the time that they take at least. No GPU is needed
//! to tell; where there is one, the steps are timed as well.

use crate::Result;
use crate::cli::table::{Align, Table};
use crate::evaluation::latency::{self, Pace};
use crate::evaluation::profile::Device;
use crate::nets::device_runner::{Blueprint, Memory};
use crate::nets::{Model, Opened};
use crate::ops::cuda::{Cost, Launch, Precision};
use crate::subnet_name::SubnetName;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The launches of steps.
#[derive(Debug, Serialize)]
pub struct Report {
    model: String,
    precision: Precision,
    /// The GPU that timed them.
    device: Option<String>,
    /// Samples of the largest call.
    most: usize,
    /// What a server for calls on so many samples allocates at its start.
    memory: Memory,
    /// By subnet from narrow to wide, then by batch; at last, of a model that draws latents, how a picture is made of one.
    steps: Vec<Step>,
}

/// A denoising step of one subnet on a batch, or a decoding.
#[derive(Debug, Serialize)]
struct Step {
    /// Its name; or `encoder`, or `decoder` with the name of one of its subnets.
    subnet: String,
    batch: usize,
    /// The median, where it was timed.
    ms: Option<f64>,
    /// By kernel.
    kernels: BTreeMap<&'static str, Sum>,
}

/// Launches together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Sum {
    launches: usize,
    /// The same as single operations of candle.
    op_by_op: usize,
    bytes: u64,
    operations: u64,
    /// What an H100 needs at least: each launch's own floor, in microseconds.
    floor_us: f64,
}

impl Sum {
    fn of<'a>(launches: impl IntoIterator<Item = &'a Launch>, precision: Precision) -> Self {
        let one = |launch: &Launch| {
            let (Cost { bytes, operations }, floor) = (launch.cost, launch.cost.h100_floor(precision));
            Self { launches: 1, op_by_op: launch.op_by_op, bytes, operations, floor_us: 1e6 * floor }
        };
        launches.into_iter().map(one).fold(Self::default(), Self::and)
    }

    fn and(self, more: Self) -> Self {
        Self {
            launches: self.launches + more.launches,
            op_by_op: self.op_by_op + more.op_by_op,
            bytes: self.bytes + more.bytes,
            operations: self.operations + more.operations,
            floor_us: self.floor_us + more.floor_us,
        }
    }

    fn cells(&self) -> [String; 5] {
        [
            self.launches.to_string(),
            self.op_by_op.to_string(),
            format!("{:.3}", self.bytes as f64 / 1e6),
            format!("{:.3}", self.operations as f64 / 1e9),
            format!("{:.2}", self.floor_us),
        ]
    }
}

impl Report {
    /// The steps of these subnets at these batches, timed on `opened` where there is one.
    ///
    /// # Errors
    /// For a model that the kernels do not take, and on a device fault.
    pub fn new(
        model: &Model,
        precision: Precision,
        settings: &[(usize, usize)],
        opened: Option<&mut dyn Opened>,
        pace: Pace,
    ) -> Result<Self> {
        let decoders = model.decoders();
        let (device, ms, encoding_ms, decoding_ms) = match opened {
            None => (None, vec![None; settings.len()], None, vec![None; decoders.len()]),
            Some(opened) => {
                let ms = latency::of_calls(opened, settings, pace, &mut |_| {})?;
                let (encoding_ms, decoding_ms) =
                    (latency::of_encoder(opened, pace)?, latency::of_decoders(opened, pace)?);
                let timed = |ms: Vec<f64>| ms.into_iter().map(Some).collect();
                (Some(Device::of(opened).processor), timed(ms), encoding_ms, timed(decoding_ms))
            }
        };
        let most = settings.iter().map(|&(_, batch)| batch).max().unwrap_or(1);
        let blueprint = Blueprint::new(model, model.supernet.clone(), precision, most)?;
        let step = |(&(subnet, batch), ms): (&(usize, usize), Option<f64>)| {
            let name = model.subnets()[subnet].name.to_string();
            Step::new(name, batch, ms, &blueprint.step(subnet, batch), precision)
        };
        let mut steps: Vec<Step> = settings.iter().zip(ms).map(step).collect();
        let encoding = blueprint.encoding();
        steps.extend(encoding.map(|launches| Step::new("encoder".to_owned(), 1, encoding_ms, &launches, precision)));
        for (index, (decoder, ms)) in decoders.iter().zip(decoding_ms).enumerate() {
            let launches = blueprint.decoding(index).unwrap_or_default();
            steps.push(Step::new(decoder_name(&decoder.name), 1, ms, &launches, precision));
        }
        let memory = blueprint.memory();
        Ok(Self { model: model.card.name.clone(), precision, device, most, memory, steps })
    }
}

/// What a step of a subnet of the decoder is called.
fn decoder_name(subnet: &SubnetName) -> String {
    if subnet.is_full() { "decoder".to_owned() } else { format!("decoder {subnet}") }
}

impl Step {
    fn new(subnet: String, batch: usize, ms: Option<f64>, launches: &[Launch], precision: Precision) -> Self {
        let mut kernels: BTreeMap<&'static str, Vec<&Launch>> = BTreeMap::new();
        for launch in launches {
            kernels.entry(launch.kernel).or_default().push(launch);
        }
        let kernels = kernels.into_iter().map(|(kernel, launches)| (kernel, Sum::of(launches, precision)));
        Self { subnet, batch, ms, kernels: kernels.collect() }
    }

    fn total(&self) -> Sum {
        self.kernels.values().copied().fold(Sum::default(), Sum::and)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timed = self.device.as_ref().map_or_else(|| "not timed".to_owned(), |device| format!("timed on {device}"));
        writeln!(f, "{}, {}: denoising steps as launches, {timed}", self.model, self.precision)?;
        writeln!(f, "Floors are of an H100 SXM by its data sheet: 3.35 TB/s, and its tensor cores' dense rate.")?;
        let Memory { weights, activations, texts, codec, .. } = self.memory;
        let [all, weights, activations, texts, codec] =
            [self.memory.total(), weights, activations, texts, codec].map(|bytes| format!("{:.1}", bytes as f64 / 1e6));
        write!(
            f,
            "Memory for calls on {} samples: {all} MB, of them weights {weights}, activations {activations}",
            self.most
        )?;
        match self.memory.codec {
            0 => writeln!(f)?,
            _ => writeln!(f, ", texts {texts}, encoder and decoder {codec}")?,
        }
        let mut table = Table::new([
            (Align::Left, "subnet"),
            (Align::Right, "batch"),
            (Align::Left, "kernel"),
            (Align::Right, "launches"),
            (Align::Right, "op by op"),
            (Align::Right, "MB"),
            (Align::Right, "GFLOP"),
            (Align::Right, "floor us"),
            (Align::Right, "ms"),
        ]);
        for step in &self.steps {
            let row = |kernel: &str, sum: &Sum, ms: String| {
                let head = [step.subnet.clone(), step.batch.to_string(), kernel.to_owned()];
                head.into_iter().chain(sum.cells()).chain([ms]).collect::<Vec<_>>()
            };
            for (kernel, sum) in &step.kernels {
                table.row(row(kernel, sum, String::new()));
            }
            table.row(row("all", &step.total(), step.ms.map_or_else(String::new, |ms| format!("{ms:.4}"))));
        }
        write!(f, "{table}")
    }
}
