//! Prometheus. Labels are closed sets: budgets, the model's subnets, outcomes, formats, devices.

use crate::diffusion::Plan;
use crate::engine::image::Format;
use crate::engine::{Finished, Fleet};
use crate::routing::{Budget, Budgets};
use crate::server::ApiError;
use crate::server::deficit::Deficit;
use crate::server::draw::Drawn;
use crate::supernet::bytes_as_copies;
use axum::http::StatusCode;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
    Result, TextEncoder,
};
use std::sync::Arc;
use std::time::Duration;

/// 1 ms to 2 minutes; the deadlines of the named budgets come in between.
const BUCKETS_S: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// How a request for images ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    /// Served after its deadline.
    Late,
    Invalid,
    /// No plan was fast enough for the budget, even on an idle machine.
    Infeasible,
    Overloaded,
    Draining,
    Timeout,
    Failed,
    /// The client went away before the answer.
    Cancelled,
}

impl Outcome {
    fn of(error: &ApiError) -> Self {
        match error.contract().0 {
            StatusCode::UNPROCESSABLE_ENTITY => Self::Infeasible,
            StatusCode::TOO_MANY_REQUESTS => Self::Overloaded,
            StatusCode::SERVICE_UNAVAILABLE => Self::Draining,
            StatusCode::GATEWAY_TIMEOUT => Self::Timeout,
            status if status.is_client_error() => Self::Invalid,
            _ => Self::Failed,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Late => "late",
            Self::Invalid => "invalid",
            Self::Infeasible => "infeasible",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The server's metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    images: IntCounterVec,
    queue: HistogramVec,
    denoise: HistogramVec,
    encode: HistogramVec,
    asked: Counter,
    served: Counter,
    deficit: Arc<Deficit>,
}

impl Metrics {
    /// Puts the server's and the engines' metrics into `registry`.
    ///
    /// # Errors
    /// If it already holds metrics of these names.
    pub fn register(registry: Registry, fleet: &Arc<Fleet>, budgets: &Budgets) -> Result<Self> {
        let deadlines = budgets.named().map(|(_, budget)| budget.within_ms as f64 / 1e3);
        let mut edges = [&BUCKETS_S[..], &deadlines].concat();
        edges.sort_by(f64::total_cmp);
        edges.dedup();
        let seconds = |name: &str, help: &str| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(edges.clone()), &["budget"])
        };
        let deficit = Arc::new(Deficit::default());
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("accordion_requests_total", "Requests for images, by how they ended."),
                &["budget", "subnet", "outcome"],
            )?,
            images: IntCounterVec::new(
                Opts::new("accordion_images_total", "Images served."),
                &["budget", "subnet", "format"],
            )?,
            queue: seconds("accordion_queue_seconds", "Time from a request's arrival to its first step.")?,
            denoise: seconds("accordion_denoise_seconds", "Time from a request's first step to its last.")?,
            encode: seconds("accordion_encode_seconds", "Time to lay out and encode the images of a request.")?,
            asked: Counter::new(
                "accordion_quality_asked_total",
                "Sum over images of the quality that an idle machine would have served for the same budget.",
            )?,
            served: Counter::new(
                "accordion_quality_served_total",
                "Sum over the same images of the quality that was served.",
            )?,
            deficit: deficit.clone(),
            registry,
        };
        metrics.registry.register(Box::new(metrics.requests.clone()))?;
        metrics.registry.register(Box::new(metrics.images.clone()))?;
        metrics.registry.register(Box::new(metrics.asked.clone()))?;
        metrics.registry.register(Box::new(metrics.served.clone()))?;
        for histogram in [&metrics.queue, &metrics.denoise, &metrics.encode] {
            metrics.registry.register(Box::new(histogram.clone()))?;
        }
        metrics.registry.register(Box::new(EngineCollector::new(fleet.clone(), deficit)?))?;
        Ok(metrics)
    }

    /// The page that Prometheus scrapes.
    ///
    /// # Errors
    /// If a metric cannot be written as text: a bug of ours.
    pub fn render(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Watches one request until it is dropped.
    pub fn observe(self: &Arc<Self>) -> Observation {
        Observation { metrics: self.clone(), budget: "none", subnet: None, outcome: Outcome::Cancelled }
    }

    /// Counts what was served against what an idle machine would have.
    pub fn compare(&self, asked: f64, served: f64, images: u32) {
        let images = f64::from(images);
        self.asked.inc_by(asked.max(0.0) * images);
        self.served.inc_by(served.max(0.0) * images);
        self.deficit.observe(asked, served, images);
    }

    /// How far below the asked quality the server is serving at present: 0 is not at all.
    pub fn quality_deficit(&self) -> f64 {
        self.deficit.now()
    }
}

/// Counts one request when it is dropped, also when its client went away.
pub(super) struct Observation {
    metrics: Arc<Metrics>,
    budget: &'static str,
    subnet: Option<String>,
    outcome: Outcome,
}

impl Observation {
    pub fn set_budget(&mut self, budget: &Budget) {
        self.budget = budget.as_str();
    }

    /// The label is the subnet of the plan, or `mixed`.
    pub fn set_plan(&mut self, plan: &Plan) {
        let subnet = match plan.widths.as_slice() {
            [only] => only.subnet.clone(),
            _ => "mixed".to_owned(),
        };
        self.subnet = Some(subnet);
    }

    pub fn fail(&mut self, error: &ApiError) {
        self.outcome = Outcome::of(error);
    }

    pub fn succeed(&mut self, timings: &Timings, drawn: &Drawn, format: Format) {
        self.outcome = if drawn.late { Outcome::Late } else { Outcome::Ok };
        let images = drawn.finished.images.len() as u64;
        self.metrics.images.with_label_values(&[self.budget, self.subnet(), format.as_str()]).inc_by(images);
        let metrics = &self.metrics;
        for (histogram, took) in
            [(&metrics.queue, timings.queue), (&metrics.denoise, timings.denoise), (&metrics.encode, timings.encode)]
        {
            histogram.with_label_values(&[self.budget]).observe(took.as_secs_f64());
        }
    }

    fn subnet(&self) -> &str {
        self.subnet.as_deref().unwrap_or("none")
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.outcome = Outcome::Failed;
        }
        self.metrics.requests.with_label_values(&[self.budget, self.subnet(), self.outcome.as_str()]).inc();
    }
}

/// Where a request's time went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timings {
    pub queue: Duration,
    pub denoise: Duration,
    pub encode: Duration,
}

impl Timings {
    pub fn new(finished: &Finished, encode: Duration) -> Self {
        Self { queue: finished.queued, denoise: finished.denoising, encode }
    }

    /// The value of a `Server-Timing` header, in milliseconds.
    pub fn header(&self) -> String {
        let ms = |took: Duration| took.as_secs_f64() * 1e3;
        format!(
            "queue;dur={:.3}, denoise;dur={:.3}, encode;dur={:.3}",
            ms(self.queue),
            ms(self.denoise),
            ms(self.encode)
        )
    }
}

/// Reads the engines when it is scraped, so that no gauge is kept beside what it measures.
struct EngineCollector {
    fleet: Arc<Fleet>,
    deficit: Arc<Deficit>,
    descriptions: Vec<Desc>,
}

impl EngineCollector {
    fn new(fleet: Arc<Fleet>, deficit: Arc<Deficit>) -> Result<Self> {
        let gauges = read(&fleet, &deficit)?;
        let families = histograms(&fleet).into_iter().map(|family| {
            let labels = vec!["device".to_owned(), "subnet".to_owned()];
            Desc::new(family.name().to_owned(), family.help().to_owned(), labels, Default::default())
        });
        let mut descriptions: Vec<Desc> = gauges.iter().flat_map(|metric| metric.desc()).cloned().collect();
        for description in families {
            descriptions.push(description?);
        }
        Ok(Self { fleet, deficit, descriptions })
    }
}

impl Collector for EngineCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The same names passed when the collector was made.
        let gauges = read(&self.fleet, &self.deficit).unwrap_or_default();
        let mut families: Vec<MetricFamily> = gauges.iter().flat_map(|metric| metric.collect()).collect();
        families.extend(histograms(&self.fleet));
        families
    }
}

/// The engines' histograms, which they keep without labels.
fn histograms(fleet: &Fleet) -> Vec<MetricFamily> {
    let label = |name: &str, value: &str| {
        let mut label = LabelPair::default();
        label.set_name(name.to_owned());
        label.set_value(value.to_owned());
        label
    };
    let mut call = MetricFamily::default();
    call.set_name("accordion_denoiser_call_seconds".to_owned());
    call.set_help("Time of a call of the denoiser.".to_owned());
    let mut batch = MetricFamily::default();
    batch.set_name("accordion_denoiser_batch_samples".to_owned());
    batch.set_help("Samples in a call of the denoiser.".to_owned());
    for (device, engine) in fleet.engines() {
        for (subnet, stats) in engine.stats().subnets() {
            for (family, histogram) in [(&mut call, stats.call_seconds()), (&mut batch, stats.batch())] {
                for mut read in histogram.collect() {
                    family.set_field_type(read.get_field_type());
                    for mut metric in read.take_metric() {
                        metric.set_label(vec![label("device", device), label("subnet", subnet)]);
                        family.mut_metric().push(metric);
                    }
                }
            }
        }
    }
    vec![call, batch]
}

fn read(fleet: &Fleet, deficit: &Deficit) -> Result<Vec<Box<dyn Collector>>> {
    let count = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["device"]);
    let waiting = count("accordion_queue_images", "Images that wait for their first step.")?;
    let active = count("accordion_active_images", "Images between their first step and their last.")?;
    let weights = count("accordion_weight_bytes", "Memory that the weights of all subnets take together.")?;
    let copies =
        count("accordion_weight_bytes_as_copies", "Memory that they would take with a network for each subnet.")?;
    let activations = count("accordion_activation_bytes", "Memory in the buffers of activations.")?;
    let up = count("accordion_engine_up", "1 while the engine's thread lives, 0 once it has died.")?;
    let work = GaugeVec::new(
        Opts::new("accordion_queue_work_seconds", "Work that was taken and is not done, as time of the device."),
        &["device"],
    )?;
    let labels = &["device", "subnet"];
    let calls = IntCounterVec::new(Opts::new("accordion_denoiser_calls_total", "Batches denoised."), labels)?;
    let samples = IntCounterVec::new(
        Opts::new("accordion_denoiser_samples_total", "Samples in all batches; an image under guidance counts twice."),
        labels,
    )?;
    let busy = CounterVec::new(Opts::new("accordion_denoiser_seconds_total", "Time spent in the denoiser."), labels)?;
    for (device, engine) in fleet.engines() {
        let stats = engine.stats();
        let integer = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        for (gauge, value) in [
            (&waiting, engine.waiting()),
            (&active, stats.active()),
            (&weights, engine.weight_bytes()),
            (&copies, bytes_as_copies(engine.subnets(), engine.weight_bytes())),
            (&activations, stats.activation_bytes()),
            (&up, usize::from(engine.is_alive())),
        ] {
            gauge.with_label_values(&[device]).set(integer(value));
        }
        work.with_label_values(&[device]).set(engine.work().as_secs_f64());
        for (name, subnet) in stats.subnets() {
            let labels = &[device, name.as_str()];
            calls.with_label_values(labels).inc_by(subnet.calls());
            samples.with_label_values(labels).inc_by(subnet.samples());
            busy.with_label_values(labels).inc_by(subnet.busy().as_secs_f64());
        }
    }
    let below = Gauge::new(
        "accordion_quality_deficit",
        "How far below the quality of an idle machine the images of about the last 30 s were: 0 is not at all, 1 wholly.",
    )?;
    below.set(deficit.now());
    Ok(vec![
        Box::new(waiting),
        Box::new(active),
        Box::new(weights),
        Box::new(copies),
        Box::new(activations),
        Box::new(up),
        Box::new(work),
        Box::new(calls),
        Box::new(samples),
        Box::new(busy),
        Box::new(below),
    ])
}
