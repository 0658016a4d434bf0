//! `accordion bench`: how fast every subnet runs on this machine.

mod launches;
mod layers;
mod plot;
mod report;

use super::device::Device;
use crate::console::print;
use crate::evaluation::latency::{self, Pace, Setting};
use crate::evaluation::switching::switching;
use crate::files::{write_json, write_whole};
use crate::nets::{Canvas, Codec, Denoiser, HostRunner, Model, Opened, Placement, Threads};
use crate::{Error, Result};
use layers::LayerTable;
use report::{DecoderRow, DecoderSubnet, Report, Row, Switch};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// The measurement of switching may take so many times as long as another: it must see differences of a percent.
const SWITCHING: u32 = 10;

/// Measure how fast every subnet runs on this machine.
///
/// GFLOP/s count the multiply-adds of direct convolution, whatever is computed instead: Winograd's filtering does with a
/// quarter of them, so a share of the peak above 100 % is possible.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model directory.
    #[arg(long, env = "ACCORDION_MODEL", default_value = "models/fashion-mnist")]
    model: PathBuf,
    /// Subnets by name or ratio, separated by commas; all without it.
    #[arg(long, value_delimiter = ',')]
    subnets: Vec<String>,
    /// Samples of a call, several numbers separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,8", value_parser = super::batch)]
    batches: Vec<usize>,
    #[command(flatten)]
    device: Device,
    /// Tell what a denoising step on a GPU is made of, at --precision: launches, bytes, operations and the least time that they
    /// take. Needs no GPU; with --device cuda:0 steps are timed as well.
    #[arg(long)]
    launches: bool,
    /// Threads that compute, several numbers separated by commas; one for each core without it.
    #[arg(long, value_delimiter = ',', value_parser = super::threads)]
    threads: Vec<usize>,
    /// Bind each thread but the first to a core of its own.
    #[arg(long)]
    pin: bool,
    /// Seconds for each combination of subnet, batch and threads; the cost of switching may take ten times as long.
    #[arg(long, default_value = "0.5", value_parser = super::seconds)]
    seconds: Duration,
    /// Show the time of every layer, and the shares of the threads' time in the phases of each Winograd convolution.
    #[arg(long)]
    layers: bool,
    /// Write the results to this JSON file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the time of an image against the batch, with the most threads, into this SVG file.
    #[arg(long)]
    plot: Option<PathBuf>,
}

impl Args {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        let model = Model::open(&self.model)?;
        if self.launches || self.device.device != Placement::Cpu {
            return self.on_gpu(&model);
        }
        let mut runner = HostRunner::consuming(&model, model.supernet.clone(), Threads::ALL, self.device.limit())?;
        let settings = self.settings(&model, runner.threads())?;
        let timings = latency::measure(&mut runner, &settings, self.pin, Pace::thorough(self.seconds), &mut |_| {});
        let name = |subnet: usize| &*model.subnets()[subnet].name;

        // The settings are in order: threads, then subnets, then batches.
        let (narrow, wide) = (settings[0], settings[settings.len() - 1]);
        runner.set_threads(Threads { count: Some(wide.threads), pin: self.pin });
        let switching = (narrow.subnet != wide.subnet).then(|| {
            let subnets = [narrow.subnet, wide.subnet];
            let measured = switching(&mut runner, subnets, narrow.batch, SWITCHING * self.seconds);
            Switch::new(subnets.map(name), narrow.batch, wide.threads, &measured)
        });
        let layers = self.layers.then(|| {
            let table = |setting: &Setting| {
                runner.set_threads(Threads { count: Some(setting.threads), pin: self.pin });
                let layers = latency::layers(&mut runner, setting.subnet, setting.batch, self.seconds);
                LayerTable::new(name(setting.subnet), setting.batch, setting.threads, &layers)
            };
            settings.iter().map(table).collect()
        });
        let decoder = self.decoder(&model, wide.threads)?;
        let rows = settings.iter().zip(&timings.ms);
        let report = Report {
            model: model.card.name.clone(),
            weight_bytes: runner.about().weight_bytes,
            activation_bytes: runner.activation_bytes(),
            results: rows
                .map(|(setting, &ms)| {
                    let peak = timings.peak_gflops[&setting.threads];
                    Row::new(&model.subnets()[setting.subnet], setting, ms, peak)
                })
                .collect(),
            peak_gflops: timings.peak_gflops,
            switching,
            decoder,
            layers,
        };
        if let Some(path) = &self.json {
            write_json(path, &report)?;
        }
        if let Some(path) = &self.plot {
            write_whole(path, plot::svg(&report)?.as_bytes())?;
        }
        print(report)
    }

    /// How a model that draws latents makes pictures of them.
    fn decoder(&self, model: &Model, threads: usize) -> Result<Option<DecoderRow>> {
        let Some(mut decoder) = Codec::of(model, Threads { count: Some(threads), pin: self.pin })? else {
            return Ok(None);
        };
        let Canvas { picture, state } = model.canvases()[0];
        let decoders = model.decoders();
        let subnets = decoders.iter().enumerate().map(|(index, subnet)| {
            let layers = latency::layers_of_decoder(&mut decoder, index, state, self.seconds);
            let name = format!("decoder {}", subnet.name);
            DecoderSubnet {
                subnet: subnet.name.to_string(),
                ms: layers.iter().map(|layer| layer.time.as_secs_f64() * 1e3).sum(),
                layers: self.layers.then(|| LayerTable::new(&name, 1, threads, &layers)),
            }
        });
        Ok(Some(DecoderRow {
            width: picture.width,
            height: picture.height,
            threads,
            subnets: subnets.collect(),
            weight_bytes: decoder.decoder_weight_bytes(),
            activation_bytes: decoder.activation_bytes(),
        }))
    }

    /// The steps as launches, timed where there is a GPU.
    fn on_gpu(&self, model: &Model) -> Result<()> {
        let cpu_only =
            [("--layers", self.layers), ("--plot", self.plot.is_some()), ("--threads", !self.threads.is_empty())];
        if let Some((flag, _)) = cpu_only.into_iter().find(|(_, given)| *given) {
            return Err(Error::input(flag, "is accepted with --device cpu only, and without --launches"));
        }
        let settings: Vec<_> = self.settings(model, 1)?.iter().map(|setting| (setting.subnet, setting.batch)).collect();
        let most = self.batches.iter().copied().max().unwrap_or(1);
        let mut opened = match self.device.device {
            Placement::Cpu => None,
            Placement::Cuda(_) => Some(self.device.open(model, most, Threads::ALL)?),
        };
        let (precision, pace) = (self.device.precision, Pace::thorough(self.seconds));
        let opened = opened.as_mut().map(|opened| &mut **opened as &mut dyn Opened);
        let report = launches::Report::new(model, precision, &settings, opened, pace)?;
        if let Some(path) = &self.json {
            write_json(path, &report)?;
        }
        print(report)
    }

    /// What to measure, each combination once: by threads, then by subnet from narrow to wide, then by batch. `all` is a
    /// thread for each core.
    fn settings(&self, model: &Model, all: usize) -> Result<Vec<Setting>> {
        let mut subnets = self.subnets.iter().map(|name| model.subnet(name)).collect::<Result<BTreeSet<_>>>()?;
        if subnets.is_empty() {
            subnets.extend(0..model.subnets().len());
        }
        let mut threads: BTreeSet<usize> = self.threads.iter().copied().collect();
        if threads.is_empty() {
            threads.insert(all);
        }
        let batches: BTreeSet<usize> = self.batches.iter().copied().collect();
        let mut settings = Vec::new();
        for threads in threads {
            for &subnet in &subnets {
                settings.extend(batches.iter().map(|&batch| Setting { subnet, batch, threads }));
            }
        }
        Ok(settings)
    }
}
