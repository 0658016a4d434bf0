//! What a load test found, a row for each policy and load.

use crate::Result;
use crate::evaluation::profile::Device;
use crate::evaluation::yardstick::Metric;
use crate::loadtest::images::{Judge, Seen};
use crate::loadtest::traffic::Sample;
use crate::server::ServeConfig;
use axum::http::StatusCode;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// A run whose generator was late by more than this share of the deadline at the 99th percentile says nothing.
const MOST_LATENESS: f64 = 0.1;

/// Everything that was measured and under what conditions.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was measured on.
    pub machine: Machine,
    /// The model's name.
    pub model: String,
    /// What was asked for.
    pub settings: Settings,
    /// Images a second of the widest subnet's fixed plan in a saturated server: load 1.
    pub capacity_per_s: f64,
    /// The same after all runs: how much the machine itself changed meanwhile. `None` where the test ended before.
    pub capacity_after_per_s: Option<f64>,
    /// Median latency of that plan in an idle server.
    pub unloaded_ms: f64,
    /// A later answer is a miss.
    pub deadline_ms: f64,
    /// What quality means here.
    pub quality: Scale,
    /// In the order of their runs.
    pub rows: Vec<Row>,
}

/// A machine, and how the generator shares it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor.
    pub cpu: String,
    /// The instruction set of the kernels.
    pub instruction_set: String,
    /// Logical cores.
    pub cores: usize,
    /// Threads that denoise, 0 for one a core; `None` when another process serves.
    pub server_threads: Option<usize>,
    /// Where the requests come from: it takes its time from the server.
    pub generator: &'static str,
}

impl Machine {
    /// This machine, with a server of `config`.
    pub fn here(config: Option<&ServeConfig>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let Device { processor, instruction_set, .. } = Device::here(cores);
        let server_threads = config.map(|config| config.threads);
        Self { cpu: processor, instruction_set, cores, server_threads, generator: "one thread on the server's cores" }
    }
}

/// What a load test was told.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Solver and steps of the fixed policies.
    pub fixed_plan: String,
    /// The arrival process, or the trace.
    pub arrivals: String,
    /// Seed of the arrivals.
    pub seed: u64,
    /// Length of a run.
    pub seconds: f64,
    /// What comes before it and is not counted.
    pub warmup_s: f64,
    /// From the intended time of a request until the client gives it up.
    pub patience_ms: f64,
    /// Samples in one call of the denoiser; `None` when another process serves.
    pub max_batch: Option<usize>,
    /// Images that may wait; `None` when another process serves.
    pub queue_images: Option<usize>,
}

/// What quality means.
#[derive(Clone, Debug, Serialize)]
pub struct Scale {
    /// The metric.
    pub metric: Metric,
    /// [`Metric::definition`].
    pub definition: &'static str,
    /// Images that those served were compared with.
    pub images: usize,
    /// The distance that has quality 1.
    pub one: f64,
    /// The distance that has quality 0.
    pub zero: f64,
}

impl Scale {
    /// By this judge.
    pub fn of(judge: &Judge) -> Self {
        let (images, one, zero) = match judge {
            Judge::Reference(references) => (references.images(), 0.0, references.unrelated()),
            Judge::Features(real) => {
                let reference = real.reference();
                (reference.images, reference.real, reference.blur)
            }
        };
        Self { metric: judge.metric(), definition: judge.metric().definition(), images, one, zero }
    }
}

/// One policy under one load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The policy's name.
    pub policy: String,
    /// Mean rate of arrivals over the capacity.
    pub load: f64,
    /// Requests after the warm-up. Each is one of the five kinds that follow.
    pub sent: usize,
    /// Images within the deadline of the intended send time.
    pub in_time: usize,
    /// Images after it.
    pub late: usize,
    /// Requests that the server turned away: 422, 429 and 503.
    pub refused: usize,
    /// Given up by the client, or by the server (504).
    pub timed_out: usize,
    /// Everything else, such as broken connections.
    pub errors: usize,
    /// What refusals and errors said, by code.
    pub problems: BTreeMap<String, usize>,
    /// `in_time` over `sent`.
    pub attainment: f64,
    /// Answers with an image a second within the run, in time or not.
    pub throughput_per_s: f64,
    /// Images in time over the length of the run.
    pub goodput_per_s: f64,
    /// From the intended send time to the last byte, over all requests: a request without an image takes for ever, and
    /// infinity is `null`.
    pub latency_ms: Percentiles,
    /// Of the images themselves.
    pub quality: Quality,
    /// Plans and the share of the images that they drew.
    pub plans: BTreeMap<String, f64>,
    /// Share of the images whose plan is not the one that admission planned.
    pub replanned: f64,
    /// From the intended to the actual send time.
    pub lateness_ms: Percentiles,
    /// Whether the generator was so late that the row says nothing.
    pub void: bool,
}

/// Quality of served images.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Quality {
    /// Of the images in time: the mean of each one's, or that of all together. `None` where there was none, or too few.
    pub in_time: Option<f64>,
    /// Their 5th percentile, where each has a quality of its own.
    pub in_time_p5: Option<f64>,
    /// Over all requests, a miss counting 0.
    pub all: f64,
    /// Mean of what the server said about the images in time.
    pub claimed: Option<f64>,
    /// The distance of all images in time to real ones, and its standard error as one of the quality, where they are judged so.
    pub distance: Option<Distance>,
}

/// How far images are from real ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distance {
    /// The Fréchet distance, without what few images add to it.
    pub fd: f64,
    /// The standard error of the quality.
    pub quality_error: f64,
}

/// Of a distribution that may hold infinities.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Percentiles {
    /// Of at least one value, none of them NaN.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let [p50, p95, p99, max] = [0.5, 0.95, 0.99, 1.0].map(|share| nearest_rank(&values, share));
        Self { p50, p95, p99, max }
    }
}

/// The least of the sorted values that a `share` of them does not exceed.
fn nearest_rank(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The part of a run that counts: requests intended at or after `from`, images received before `to`.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The end of the warm-up.
    pub from: Duration,
    /// The end of the run.
    pub to: Duration,
}

impl Row {
    /// What the requests of a run came to. At least one lies in the window.
    ///
    /// # Errors
    /// As [`Judge::together`].
    pub(super) fn new(
        policy: &str,
        load: f64,
        samples: &[Sample],
        window: Window,
        deadline: Duration,
        judge: &mut Judge,
    ) -> Result<Self> {
        let seconds = (window.to - window.from).as_secs_f64();
        let within = |sample: &&Sample| sample.image().is_some() && (window.from..window.to).contains(&sample.ended);
        let throughput = samples.iter().filter(within).count();
        let counted: Vec<&Sample> = samples.iter().filter(|sample| sample.intended >= window.from).collect();
        let mut kinds = Kinds::default();
        let latency = counted.iter().map(|sample| kinds.count(sample, deadline, judge)).collect();
        let sent = counted.len();
        let Kinds { in_time: seen, claimed, late, refused, timed_out, errors, problems, plans, replanned } = kinds;
        let in_time = seen.len();
        let images = (in_time + late).max(1) as f64;
        let mut qualities: Vec<f64> = seen.iter().filter_map(|seen| seen.quality).collect();
        qualities.sort_by(f64::total_cmp);
        let together = judge.together(&seen)?;
        let mean = |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        let lateness = |sample: &&Sample| ms(sample.sent.saturating_sub(sample.intended));
        let lateness = Percentiles::of(counted.iter().map(lateness).collect());
        let quality = together.map(|rating| rating.quality).or(mean(&qualities));
        Ok(Self {
            policy: policy.to_owned(),
            load,
            sent,
            in_time,
            late,
            refused,
            timed_out,
            errors,
            problems,
            attainment: in_time as f64 / sent as f64,
            throughput_per_s: throughput as f64 / seconds,
            goodput_per_s: in_time as f64 / seconds,
            latency_ms: Percentiles::of(latency),
            quality: Quality {
                in_time: quality,
                in_time_p5: (!qualities.is_empty()).then(|| nearest_rank(&qualities, 0.05)),
                all: quality.unwrap_or(0.0) * in_time as f64 / sent as f64,
                claimed: mean(&claimed),
                distance: together.map(|rating| Distance { fd: rating.distance, quality_error: rating.error }),
            },
            plans: plans.into_iter().map(|(plan, count)| (plan, count as f64 / images)).collect(),
            replanned: replanned as f64 / images,
            void: lateness.p99 > MOST_LATENESS * ms(deadline),
            lateness_ms: lateness,
        })
    }
}

/// The requests of a run by what became of them.
#[derive(Default)]
struct Kinds {
    in_time: Vec<Seen>,
    /// What the server said of those.
    claimed: Vec<f64>,
    late: usize,
    refused: usize,
    timed_out: usize,
    errors: usize,
    problems: BTreeMap<String, usize>,
    plans: BTreeMap<String, usize>,
    replanned: usize,
}

impl Kinds {
    /// The latency in milliseconds; infinity without an image.
    fn count(&mut self, sample: &Sample, deadline: Duration, judge: &Judge) -> f64 {
        let mut problem = |code: String| *self.problems.entry(code).or_default() += 1;
        let reply = match &sample.answer {
            None => {
                self.timed_out += 1;
                return f64::INFINITY;
            }
            Some(Err(broken)) => {
                problem(broken.clone());
                self.errors += 1;
                return f64::INFINITY;
            }
            Some(Ok(reply)) => reply,
        };
        if reply.status != StatusCode::OK {
            problem(reply.code());
            match reply.status.as_u16() {
                422 | 429 | 503 => self.refused += 1,
                504 => self.timed_out += 1,
                _ => self.errors += 1,
            }
            return f64::INFINITY;
        }
        // An image that cannot be looked at is no image.
        let seen = match judge.look(sample.call, &reply.body) {
            Ok(seen) => seen,
            Err(broken) => {
                problem(broken);
                self.errors += 1;
                return f64::INFINITY;
            }
        };
        let plan = reply.header("x-accordion-plan").unwrap_or("unknown");
        *self.plans.entry(plan.to_owned()).or_default() += 1;
        self.replanned += usize::from(reply.header("x-accordion-planned").is_some_and(|planned| planned != plan));
        if sample.latency() > deadline {
            self.late += 1;
        } else {
            self.in_time.push(seen);
            self.claimed.extend(reply.header("x-accordion-quality").and_then(|claimed| claimed.parse::<f64>().ok()));
        }
        ms(sample.latency())
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::loadtest::client::Reply;
    use crate::loadtest::images::{References, asked, tests::png};
    use axum::http::HeaderMap;
    use tokio::time::Instant;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn percentiles_hold_failures_at_infinity() {
        let hundred = |failed: usize| {
            let value = |i: usize| if i < 100 - failed { i as f64 + 1.0 } else { f64::INFINITY };
            Percentiles::of((0..100).map(value).collect())
        };
        let of = |p50, p95, p99, max| Percentiles { p50, p95, p99, max };
        assert_eq!(hundred(0), of(50.0, 95.0, 99.0, 100.0));
        assert_eq!(hundred(1), of(50.0, 95.0, 99.0, f64::INFINITY));
        assert_eq!(hundred(2), of(50.0, 95.0, f64::INFINITY, f64::INFINITY));
        assert_eq!(hundred(51), of(f64::INFINITY, f64::INFINITY, f64::INFINITY, f64::INFINITY));
        assert_eq!(Percentiles::of(vec![3.0]), of(3.0, 3.0, 3.0, 3.0));
        assert_eq!(serde_json::to_value(hundred(2)).unwrap()["p99"], serde_json::Value::Null);
    }

    /// By references of two images that are each other's opposite.
    fn judge() -> Judge {
        Judge::Reference(References::new(&asked(2, 1), &[png([0, 255]), png([255, 0])]).unwrap())
    }

    fn sample(
        intended: u32,
        latency: u32,
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: Vec<u8>,
    ) -> Sample {
        let now = Instant::now();
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let headers: HeaderMap = headers.collect();
        let status = StatusCode::from_u16(status).unwrap();
        let reply = Reply { sent: now, received: now, status, headers, body: body.into() };
        let intended = intended * MS;
        Sample { intended, sent: intended + 2 * MS, ended: intended + latency * MS, call: 0, answer: Some(Ok(reply)) }
    }

    fn image(intended: u32, latency: u32, plan: &'static str, planned: &'static str, body: Vec<u8>) -> Sample {
        let headers = [("x-accordion-plan", plan), ("x-accordion-planned", planned), ("x-accordion-quality", "0.5")];
        sample(intended, latency, 200, &headers, body)
    }

    fn refusal(intended: u32, status: u16, code: &str) -> Sample {
        sample(intended, 1, status, &[], format!(r#"{{"error":{{"code":"{code}","message":"x"}}}}"#).into_bytes())
    }

    pub fn row() -> Row {
        let (same, other) = (|| png([0, 255]), || png([255, 0]));
        let mut samples = vec![
            image(500, 10, "heun-18@full", "heun-18@full", same()),
            image(1000, 100, "heun-18@full", "heun-18@full", same()),
            image(1100, 99, "euler-4@full", "heun-18@full", other()),
            image(1200, 101, "euler-4@full", "euler-4@full", same()),
            refusal(1300, 429, "queue_full"),
            refusal(1400, 422, "infeasible"),
            refusal(1500, 503, "draining"),
            refusal(1600, 504, "timeout"),
            refusal(1700, 500, "internal"),
            image(1800, 10, "euler-4@full", "euler-4@full", b"no image".to_vec()),
        ];
        let lost = |answer| Sample { answer, ..refusal(1900, 500, "") };
        samples.extend([lost(None), lost(Some(Err("connection closed".to_owned())))]);
        Row::new("ours", 1.5, &samples, Window { from: 1000 * MS, to: 3000 * MS }, 100 * MS, &mut judge()).unwrap()
    }

    pub fn report(rows: Vec<Row>) -> Report {
        let settings = Settings {
            fixed_plan: "heun-18".to_owned(),
            arrivals: "poisson".to_owned(),
            seed: 0,
            seconds: 2.0,
            warmup_s: 1.0,
            patience_ms: 1000.0,
            max_batch: Some(16),
            queue_images: Some(256),
        };
        Report {
            machine: Machine::here(Some(&ServeConfig::default())),
            model: "tiny".to_owned(),
            settings,
            capacity_per_s: 20.0,
            capacity_after_per_s: Some(19.0),
            unloaded_ms: 25.0,
            deadline_ms: 100.0,
            quality: Scale::of(&judge()),
            rows,
        }
    }

    #[test]
    fn a_report_is_json_whose_infinities_are_null() {
        let json = serde_json::to_value(report(vec![row()])).unwrap();
        assert_eq!((&json["model"], &json["settings"]["seed"]), (&"tiny".into(), &0.into()));
        let row = &json["rows"][0];
        assert_eq!((&row["policy"], &row["load"], &row["sent"]), (&"ours".into(), &1.5.into(), &11.into()));
        assert!(row["latency_ms"]["p50"].is_null() && row["lateness_ms"]["p50"].is_number());
        assert_eq!(row["plans"]["heun-18@full"], 1.0 / 3.0);
    }

    #[test]
    fn every_request_is_of_one_kind_and_all_but_images_in_time_are_misses() {
        let row = row();
        assert_eq!((row.sent, row.in_time, row.late), (11, 2, 1), "the first came before the end of the warm-up");
        assert_eq!((row.refused, row.timed_out, row.errors), (3, 2, 3));
        assert_eq!(row.attainment, 2.0 / 11.0);
        assert_eq!((row.throughput_per_s, row.goodput_per_s), (2.0, 1.0));
        assert_eq!(row.problems.keys().len(), 7, "{:?}", row.problems);
        assert_eq!(row.problems["queue_full"], 1);
    }

    #[test]
    fn quality_is_that_of_the_images_and_a_miss_counts_nothing() {
        let quality = row().quality;
        assert_eq!((quality.in_time, quality.in_time_p5), (Some(0.5), Some(0.0)));
        assert_eq!((quality.all, quality.claimed), (1.0 / 11.0, Some(0.5)));
    }

    #[test]
    fn plans_are_shares_of_the_images() {
        let row = row();
        assert_eq!(row.plans, [("euler-4@full".to_owned(), 2.0 / 3.0), ("heun-18@full".to_owned(), 1.0 / 3.0)].into());
        assert_eq!(row.replanned, 1.0 / 3.0);
    }

    #[test]
    fn a_late_generator_makes_a_row_void() {
        let run = |late: u32| {
            let mut samples: Vec<Sample> = (0..50).map(|i| image(i, 50, "a", "a", png([0, 255]))).collect();
            samples[7].sent = samples[7].intended + late * MS;
            Row::new("ours", 1.0, &samples, Window { from: Duration::ZERO, to: 100 * MS }, 100 * MS, &mut judge())
                .unwrap()
        };
        assert!(!run(10).void && run(11).void);
        assert_eq!(run(10).lateness_ms.p50, 2.0);
    }

    #[test]
    fn a_run_without_a_single_image_has_no_quality() {
        let samples = [refusal(0, 429, "queue_full")];
        let window = Window { from: Duration::ZERO, to: 1000 * MS };
        let row = Row::new("ours", 2.0, &samples, window, 100 * MS, &mut judge()).unwrap();
        assert_eq!(row.quality, Quality::default());
        assert_eq!((row.attainment, row.latency_ms.p50, row.plans.len()), (0.0, f64::INFINITY, 0));
    }
}
