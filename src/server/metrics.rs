//! Prometheus. Labels are closed sets: budgets, the model's subnets, outcomes, formats.

use crate::engine::image::Format;
use crate::engine::{Engine, Finished};
use crate::routing::Budget;
use crate::server::ApiError;
use axum::http::StatusCode;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, Gauge, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, Result, TextEncoder,
};
use std::sync::Arc;
use std::time::Duration;

/// 1 ms to 2 minutes.
const BUCKETS_S: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// How a request for images ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    Invalid,
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
            Self::Invalid => "invalid",
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
}

impl Metrics {
    /// Puts the server's and the engine's metrics into `registry`.
    ///
    /// # Errors
    /// If it already holds metrics of these names.
    pub fn register(registry: Registry, engine: &Arc<Engine>) -> Result<Self> {
        let seconds = |name: &str, help: &str| {
            HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS_S.to_vec()), &["budget"])
        };
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("accordion_requests_total", "Requests for images, by how they ended."),
                &["budget", "subnet", "outcome"],
            )?,
            images: IntCounterVec::new(
                Opts::new("accordion_images_total", "Images served."),
                &["budget", "subnet", "format"],
            )?,
            queue: seconds(
                "accordion_queue_seconds",
                "Time from a request's arrival in the engine to its first step.",
            )?,
            denoise: seconds("accordion_denoise_seconds", "Time from a request's first step to its last.")?,
            encode: seconds("accordion_encode_seconds", "Time to lay out and encode the images of a request.")?,
            registry,
        };
        metrics.registry.register(Box::new(metrics.requests.clone()))?;
        metrics.registry.register(Box::new(metrics.images.clone()))?;
        for histogram in [&metrics.queue, &metrics.denoise, &metrics.encode] {
            metrics.registry.register(Box::new(histogram.clone()))?;
        }
        metrics.registry.register(Box::new(EngineCollector::new(engine.clone())?))?;
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
    pub fn observe(&self) -> Observation<'_> {
        Observation { metrics: self, budget: "none", subnet: "none".to_owned(), outcome: Outcome::Cancelled }
    }
}

/// Counts one request when it is dropped, also when its client went away.
pub(super) struct Observation<'a> {
    metrics: &'a Metrics,
    budget: &'static str,
    subnet: String,
    outcome: Outcome,
}

impl Observation<'_> {
    pub fn set_budget(&mut self, budget: &Budget) {
        self.budget = budget.as_str();
    }

    /// `subnet` is one of the model's, or `mixed`.
    pub fn set_subnet(&mut self, subnet: &str) {
        subnet.clone_into(&mut self.subnet);
    }

    pub fn fail(&mut self, error: &ApiError) {
        self.outcome = Outcome::of(error);
    }

    pub fn succeed(&mut self, finished: &Timings, images: u32, format: Format) {
        self.outcome = Outcome::Ok;
        let metrics = self.metrics;
        metrics.images.with_label_values(&[self.budget, &self.subnet, format.as_str()]).inc_by(u64::from(images));
        for (histogram, took) in
            [(&metrics.queue, finished.queue), (&metrics.denoise, finished.denoise), (&metrics.encode, finished.encode)]
        {
            histogram.with_label_values(&[self.budget]).observe(took.as_secs_f64());
        }
    }
}

impl Drop for Observation<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.outcome = Outcome::Failed;
        }
        self.metrics.requests.with_label_values(&[self.budget, &self.subnet, self.outcome.as_str()]).inc();
    }
}

/// Where a request's time went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timings {
    queue: Duration,
    denoise: Duration,
    encode: Duration,
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

/// Reads the engine when it is scraped, so that no gauge is kept beside what it measures.
struct EngineCollector {
    engine: Arc<Engine>,
    descriptions: Vec<Desc>,
}

impl EngineCollector {
    fn new(engine: Arc<Engine>) -> Result<Self> {
        let descriptions = read(&engine)?.iter().flat_map(|metric| metric.desc()).cloned().collect();
        Ok(Self { engine, descriptions })
    }
}

impl Collector for EngineCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The same names passed when the collector was made.
        read(&self.engine).unwrap_or_default().iter().flat_map(|metric| metric.collect()).collect()
    }
}

fn read(engine: &Engine) -> Result<Vec<Box<dyn Collector>>> {
    let gauge = |name: &str, help: &str, value: usize| {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        Result::Ok(gauge)
    };
    let stats = engine.stats();
    let waiting = gauge("accordion_queue_images", "Images that wait for their first step.", engine.waiting())?;
    let active = gauge("accordion_active_images", "Images between their first step and their last.", stats.active())?;
    let weights = gauge(
        "accordion_weight_bytes",
        "Memory that the weights of all subnets take together.",
        engine.weight_bytes(),
    )?;
    let up = Gauge::new("accordion_engine_up", "1 while the engine's thread lives, 0 once it has died.")?;
    up.set(if engine.is_alive() { 1.0 } else { 0.0 });

    let calls = IntCounterVec::new(Opts::new("accordion_denoiser_calls_total", "Batches denoised."), &["subnet"])?;
    let samples = IntCounterVec::new(
        Opts::new("accordion_denoiser_samples_total", "Samples in all batches; an image under guidance counts twice."),
        &["subnet"],
    )?;
    let busy =
        CounterVec::new(Opts::new("accordion_denoiser_seconds_total", "Time spent in the denoiser."), &["subnet"])?;
    for (name, subnet) in stats.subnets() {
        calls.with_label_values(&[name]).inc_by(subnet.calls());
        samples.with_label_values(&[name]).inc_by(subnet.samples());
        busy.with_label_values(&[name]).inc_by(subnet.busy().as_secs_f64());
    }
    Ok(vec![
        Box::new(waiting),
        Box::new(active),
        Box::new(weights),
        Box::new(up),
        Box::new(calls),
        Box::new(samples),
        Box::new(busy),
    ])
}
