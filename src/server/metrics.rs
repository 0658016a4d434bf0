//! Prometheus. Labels are closed sets: budgets, the models and their subnets, outcomes, formats, devices.

use crate::diffusion::Plan;
use crate::engine::image::Format;
use crate::engine::{Engine, Finished};
use crate::routing::{Budget, Budgets};
use crate::server::catalogue::Catalogue;
use crate::server::deficit::Deficit;
use crate::server::identity::Record;
use crate::server::{ApiError, Loaded};
use crate::supernet::bytes_as_copies;
use axum::extract::Request;
use axum::http::StatusCode;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
    Result, TextEncoder,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Edges of a histogram from a time to ten times of it: each is 1.097 times the one before. Whatever the latencies are, a
/// quantile that is read between two edges is therefore within 10 % of the true one.
const EDGES_A_DECADE: i32 = 25;
/// As many in the histograms of a request's parts: they say where time goes, not what clients see.
const EDGES_A_DECADE_OF_PARTS: i32 = 5;
/// The shortest time that is told so well.
const SHORTEST_S_LOG10: i32 = -3;

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
    /// The client went away before it had all of the answer.
    Cancelled,
    /// The same, and its images wait to be fetched.
    Kept,
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
            Self::Kept => "kept",
        }
    }
}

/// The server's metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    images: IntCounterVec,
    request: HistogramVec,
    queue: HistogramVec,
    denoise: HistogramVec,
    encode: HistogramVec,
    asked: Counter,
    served: Counter,
    deficit: Arc<Deficit>,
}

impl Metrics {
    /// Puts the server's and the engines' metrics into `registry`. No request is to take longer than `longest`.
    ///
    /// # Errors
    /// If it already holds metrics of these names.
    pub fn register(
        registry: Registry,
        catalogue: &Arc<Catalogue>,
        budgets: &Budgets,
        longest: Duration,
    ) -> Result<Self> {
        // The share of requests in time can be read exactly.
        let deadlines = budgets.named().map(|(_, budget)| budget.within_ms as f64 / 1e3);
        let seconds = |name: &str, help: &str, a_decade: i32| {
            let mut edges = edges_to(longest.as_secs_f64(), a_decade);
            edges.extend(deadlines);
            edges.sort_by(f64::total_cmp);
            edges.dedup();
            HistogramVec::new(HistogramOpts::new(name, help).buckets(edges), &["budget"])
        };
        let part = |name: &str, help: &str| seconds(name, help, EDGES_A_DECADE_OF_PARTS);
        let deficit = Arc::new(Deficit::default());
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("accordion_requests_total", "Requests for images, by how they ended."),
                &["budget", "subnet", "outcome"],
            )?,
            images: IntCounterVec::new(
                Opts::new("accordion_images_total", "Images drawn and encoded."),
                &["budget", "subnet", "format"],
            )?,
            request: seconds(
                "accordion_request_seconds",
                "Time from the arrival of a request that got its images to the last byte handed to the connection.",
                EDGES_A_DECADE,
            )?,
            queue: part("accordion_queue_seconds", "Time from a request's arrival to its first step.")?,
            denoise: part("accordion_denoise_seconds", "Time from a request's first step to its last.")?,
            encode: part("accordion_encode_seconds", "Time to lay out and encode the images of a request.")?,
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
        for histogram in [&metrics.request, &metrics.queue, &metrics.denoise, &metrics.encode] {
            metrics.registry.register(Box::new(histogram.clone()))?;
        }
        metrics.registry.register(Box::new(EngineCollector::new(catalogue.clone(), deficit)?))?;
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
    pub fn observe(self: &Arc<Self>, request: &Request) -> Observation {
        Observation {
            metrics: self.clone(),
            arrived: Instant::now(),
            record: Record::of(request),
            budget: "none",
            subnet: None,
            outcome: Outcome::Cancelled,
            drawn: Outcome::Ok,
        }
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

/// Edges from 1 ms to `longest_s`, so many a decade, the first below and the last above, of four digits.
fn edges_to(longest_s: f64, a_decade: i32) -> Vec<f64> {
    let edge = |step: i32| 10f64.powf(f64::from(step) / f64::from(a_decade));
    let first = SHORTEST_S_LOG10 * a_decade - 1;
    let below = (first..).map(edge).take_while(|&edge| edge < longest_s).count() as i32;
    let digits = |edge: f64| format!("{edge:.3e}").parse().unwrap_or(edge);
    (first..=first + below).map(edge).map(digits).collect()
}

/// Counts one request when it is dropped, also when its client went away.
pub(super) struct Observation {
    metrics: Arc<Metrics>,
    arrived: Instant,
    /// Ends with it.
    record: Option<Record>,
    budget: &'static str,
    subnet: Option<String>,
    outcome: Outcome,
    /// What the outcome is once the images are handed over.
    drawn: Outcome,
}

impl Observation {
    pub fn set_budget(&mut self, budget: &Budget) {
        self.budget = budget.as_str();
    }

    /// The label is the subnet of the plan, or `mixed`.
    pub fn set_plan(&mut self, plan: &Plan) {
        let subnet = match plan.widths.as_slice() {
            [only] => only.subnet.to_string(),
            _ => "mixed".to_owned(),
        };
        self.subnet = Some(subnet);
        self.say(|record| record.plan(plan.to_string()));
    }

    fn say(&self, what: impl FnOnce(&Record)) {
        if let Some(record) = &self.record {
            what(record);
        }
    }

    pub fn fail(&mut self, error: &ApiError) {
        self.outcome = Outcome::of(error);
    }

    /// The images are drawn and encoded: they may be handed over.
    pub fn succeed(&mut self, timings: &Timings, plans: String, images: usize, late: bool, format: Format) {
        self.drawn = if late { Outcome::Late } else { Outcome::Ok };
        self.say(|record| record.plan(plans));
        self.metrics.images.with_label_values(&[self.budget, self.subnet(), format.as_str()]).inc_by(images as u64);
        let metrics = &self.metrics;
        for (histogram, took) in
            [(&metrics.queue, timings.queue), (&metrics.denoise, timings.denoise), (&metrics.encode, timings.encode)]
        {
            histogram.with_label_values(&[self.budget]).observe(took.as_secs_f64());
        }
    }

    /// The client has them.
    pub fn handed_over(&mut self) {
        self.outcome = self.drawn;
        self.metrics.request.with_label_values(&[self.budget]).observe(self.arrived.elapsed().as_secs_f64());
    }

    /// The client has gone, and they are kept for it.
    pub fn kept(&mut self) {
        self.outcome = Outcome::Kept;
        self.say(Record::kept);
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

/// Reads the engines of the models that are served when it is scraped, so that no gauge is kept beside what it measures.
struct EngineCollector {
    catalogue: Arc<Catalogue>,
    deficit: Arc<Deficit>,
    descriptions: Vec<Desc>,
}

impl EngineCollector {
    fn new(catalogue: Arc<Catalogue>, deficit: Arc<Deficit>) -> Result<Self> {
        let gauges = read(&catalogue.all(), &deficit)?;
        let families = histograms(&catalogue.all()).into_iter().map(|family| {
            let labels = LABELS.map(str::to_owned).to_vec();
            Desc::new(family.name().to_owned(), family.help().to_owned(), labels, Default::default())
        });
        let mut descriptions: Vec<Desc> = gauges.iter().flat_map(|metric| metric.desc()).cloned().collect();
        for description in families {
            descriptions.push(description?);
        }
        Ok(Self { catalogue, deficit, descriptions })
    }
}

impl Collector for EngineCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The same names passed when the collector was made.
        let models = self.catalogue.all();
        let gauges = read(&models, &self.deficit).unwrap_or_default();
        let mut families: Vec<MetricFamily> = gauges.iter().flat_map(|metric| metric.collect()).collect();
        families.extend(histograms(&models));
        families
    }
}

/// What tells apart what one subnet has done; without the last, one engine.
const LABELS: [&str; 3] = ["device", "model", "subnet"];

/// The engines of all models, each with the values of its labels.
fn engines(models: &[Arc<Loaded>]) -> impl Iterator<Item = ([&str; 2], &Engine)> {
    models.iter().flat_map(|model| model.fleet.engines().map(|(device, engine)| ([device, model.name()], engine)))
}

/// The engines' histograms, which they keep without labels.
fn histograms(models: &[Arc<Loaded>]) -> Vec<MetricFamily> {
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
    for ([device, model], engine) in engines(models) {
        for (subnet, stats) in engine.stats().subnets() {
            for (family, histogram) in [(&mut call, stats.call_seconds()), (&mut batch, stats.batch())] {
                for mut read in histogram.collect() {
                    family.set_field_type(read.get_field_type());
                    for mut metric in read.take_metric() {
                        metric.set_label(
                            LABELS
                                .iter()
                                .zip([device, model, subnet])
                                .map(|(name, value)| label(name, value))
                                .collect(),
                        );
                        family.mut_metric().push(metric);
                    }
                }
            }
        }
    }
    vec![call, batch]
}

fn read(models: &[Arc<Loaded>], deficit: &Deficit) -> Result<Vec<Box<dyn Collector>>> {
    let count = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &LABELS[..2]);
    let waiting = count("accordion_queue_images", "Images that wait for their first step.")?;
    let active = count("accordion_active_images", "Images between their first step and their last.")?;
    let weights = count("accordion_weight_bytes", "Memory that the weights of all subnets take together.")?;
    let copies =
        count("accordion_weight_bytes_as_copies", "Memory that they would take with a network for each subnet.")?;
    let activations = count("accordion_activation_bytes", "Memory in the buffers of activations.")?;
    let up = count("accordion_engine_up", "1 while the engine's thread lives, 0 once it has died.")?;
    let work = GaugeVec::new(
        Opts::new("accordion_queue_work_seconds", "Work that was taken and is not done, as time of the device."),
        &LABELS[..2],
    )?;
    let labels = &LABELS;
    let calls = IntCounterVec::new(Opts::new("accordion_denoiser_calls_total", "Batches denoised."), labels)?;
    let samples = IntCounterVec::new(
        Opts::new("accordion_denoiser_samples_total", "Samples in all batches; an image under guidance counts twice."),
        labels,
    )?;
    let busy = CounterVec::new(Opts::new("accordion_denoiser_seconds_total", "Time spent in the denoiser."), labels)?;
    for ([device, model], engine) in engines(models) {
        let stats = engine.stats();
        let integer = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        for (gauge, value) in [
            (&waiting, engine.waiting()),
            (&active, stats.active()),
            (&weights, engine.about().weight_bytes),
            (&copies, bytes_as_copies(&engine.about().subnets, engine.about().weight_bytes)),
            (&activations, stats.activation_bytes()),
            (&up, usize::from(engine.is_alive())),
        ] {
            gauge.with_label_values(&[device, model]).set(integer(value));
        }
        work.with_label_values(&[device, model]).set(engine.work().as_secs_f64());
        for (name, subnet) in stats.subnets() {
            let labels = &[device, model, name.as_str()];
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

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Histogram;

    const TIMEOUT_S: f64 = 300.0;

    /// What Prometheus' `histogram_quantile` reads from a histogram of these latencies.
    fn read_quantile(latencies: &[f64], q: f64) -> f64 {
        let histogram =
            Histogram::with_opts(HistogramOpts::new("x", "x").buckets(edges_to(TIMEOUT_S, EDGES_A_DECADE))).unwrap();
        latencies.iter().for_each(|&latency| histogram.observe(latency));
        let family = histogram.collect();
        let buckets = family[0].get_metric()[0].get_histogram().get_bucket().to_vec();
        let rank = q * latencies.len() as f64;
        let index = buckets.iter().position(|bucket| bucket.cumulative_count() as f64 >= rank).unwrap();
        let below = index.checked_sub(1).map(|index| &buckets[index]);
        let (start, before) = below.map_or((0.0, 0), |bucket| (bucket.upper_bound(), bucket.cumulative_count()));
        let (end, count) = (buckets[index].upper_bound(), buckets[index].cumulative_count() - before);
        start + (end - start) * (rank - before as f64) / count as f64
    }

    /// The least latency that a share of `q` of all does not exceed.
    fn true_quantile(latencies: &[f64], q: f64) -> f64 {
        let mut sorted = latencies.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[((q * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1]
    }

    #[test]
    fn a_quantile_read_from_the_edges_is_within_a_tenth_of_the_true_one() {
        let steps = 4000;
        // From 1 ms to the time-out, and just beside every edge.
        let spread = (0..=steps).map(|step| 1e-3 * (TIMEOUT_S / 1e-3).powf(f64::from(step) / f64::from(steps)));
        let beside = edges_to(TIMEOUT_S, EDGES_A_DECADE)
            .into_iter()
            .flat_map(|edge| [edge, edge * (1.0 + 1e-9), edge * (1.0 - 1e-9)]);
        let latencies = spread.chain(beside).filter(|latency| (1e-3..=TIMEOUT_S).contains(latency));
        for latency in latencies {
            // One latency for all; a few stragglers above a fast rest; a tail that grows.
            let mixed = |slow: usize| [vec![1e-3; 100 - slow], vec![latency; slow]].concat();
            let tail: Vec<f64> =
                (1..=100).map(|rank| (latency * f64::from(rank) / 99.0).clamp(1e-3, TIMEOUT_S)).collect();
            for latencies in [mixed(100), mixed(2), mixed(1), tail] {
                for q in [0.5, 0.95, 0.99] {
                    let (read, is) = (read_quantile(&latencies, q), true_quantile(&latencies, q));
                    assert!((read / is - 1.0).abs() <= 0.1, "{latency} s, {q}: {read} is read for {is}");
                }
            }
        }
    }

    #[test]
    fn edges_reach_the_time_out_and_have_few_digits() {
        let edges = edges_to(TIMEOUT_S, EDGES_A_DECADE);
        assert!(
            edges[0] < 1e-3
                && edges[1] == 1e-3
                && edges[edges.len() - 2] < TIMEOUT_S
                && edges[edges.len() - 1] >= TIMEOUT_S
        );
        assert!(edges.windows(2).all(|pair| (1.09..1.1).contains(&(pair[1] / pair[0]))), "{edges:?}");
        assert!(edges.iter().all(|edge| edge.to_string().trim_start_matches(['0', '.']).len() <= 5), "{edges:?}");
    }
}
