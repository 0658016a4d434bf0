//! Measures what a profile holds: the time of every subnet, and the quality of the plans that may be worth serving.

use super::candidates::{self, constants, schedules, shapes, shapes_of};
use super::frontier::{Point, pareto, time_of};
use super::latency::{self, Pace};
use super::profile::{Device, Latency, Profile, Quality, Rated, call_ms};
use super::quality::{Yardstick, reference};
use crate::Result;
use crate::diffusion::{Plan, SigmaRange};
use crate::nets::{Denoiser, Opened};
use std::time::Duration;

/// What a quick survey may take for its latencies, and for its qualities; together about 3 s.
const QUICK: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// Its batches, as far as they are affordable.
const QUICK_BATCHES: [usize; 3] = [1, 4, 16];
/// Its pace: two calls of each setting and two that warm up, at least.
const QUICK_PACE: Pace = Pace { time: Duration::from_millis(15), rounds: 2 };
/// The most images of a plan in a quick survey.
const QUICK_IMAGES: usize = 16;
/// The plans that a quick survey measures, however slow the machine is.
const QUICK_PLANS: usize = 4;
/// A shape this far below the frontier at full width is not tried at other widths.
const SLACK: f64 = 0.01;

/// How much is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effort {
    /// What a server can wait for: about 3 seconds, or as long as two images of a few plans take.
    Quick {
        /// Samples of the largest batch.
        max_batch: usize,
    },
    /// All that is known to matter.
    Thorough {
        /// Samples of the calls that are timed, ascending.
        batches: Vec<usize>,
        /// Time for each subnet and batch.
        time: Duration,
        /// Images of each plan, at least 2.
        images: usize,
    },
}

/// How far a survey has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What is being measured.
    pub part: &'static str,
    /// Parts of it that are done.
    pub done: usize,
    /// Parts that it has.
    pub total: usize,
    /// The plan whose quality is measured.
    pub plan: Option<&'a Plan>,
}

/// What a survey found.
#[derive(Clone, Debug, PartialEq)]
pub struct Survey {
    /// The profile.
    pub profile: Profile,
    /// Every plan that was measured.
    pub points: Vec<Point>,
}

impl Profile {
    /// Measures a model on its device. `range` is the noise that it is sampled over.
    ///
    /// # Errors
    /// As [`Yardstick::new`].
    pub fn measure(
        opened: &mut dyn Opened,
        range: SigmaRange,
        effort: &Effort,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Survey> {
        let latency = latencies(opened, effort, progress)?;
        let mut search = Search { denoiser: opened.denoiser(), latency: &latency, points: Vec::new(), progress };
        let yardstick = match effort {
            Effort::Quick { .. } => search.quick(range)?,
            Effort::Thorough { images, .. } => search.thorough(range, *images)?,
        };
        let points = search.points;
        let rated = points.iter().map(|Point { plan, quality, .. }| Rated { plan: plan.clone(), quality: *quality });
        let bytes = opened.denoiser().about().weight_bytes;
        let profile = Profile::new(Device::of(opened), bytes, Quality::from(&yardstick), latency.clone(), rated);
        Ok(Survey { profile, points })
    }

    /// The profile of another device or number of threads, with the times of this one: qualities are the same anywhere.
    ///
    /// # Errors
    /// On a device fault.
    pub fn measured_here(
        self,
        opened: &mut dyn Opened,
        effort: &Effort,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self> {
        let latency = latencies(opened, effort, progress)?;
        Ok(self.with_latency(Device::of(opened), latency))
    }
}

/// The time of every subnet at every batch.
fn latencies(opened: &mut dyn Opened, effort: &Effort, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Vec<Latency>> {
    let names: Vec<String> = opened.denoiser().about().subnets.iter().map(|subnet| subnet.name.to_string()).collect();
    let (batches, pace) = match effort {
        Effort::Quick { max_batch } => {
            // The time of a call of the widest subnet on one image says what else is affordable.
            let once = Pace { time: Duration::ZERO, rounds: 1 };
            let call = latency::of_calls(opened, &[(names.len() - 1, 1)], once, &mut |_| {})?[0];
            (quick_batches(*max_batch, names.len(), Duration::from_secs_f64(call / 1e3)), QUICK_PACE)
        }
        Effort::Thorough { batches, time, .. } => (batches.clone(), Pace::thorough(*time)),
    };
    let every = (0..names.len()).flat_map(|subnet| batches.iter().map(move |&batch| (subnet, batch)));
    let settings: Vec<_> = every.collect();
    let total = pace.rounds as usize;
    let mut round = |done| progress(Progress { part: "latency", done: done as usize, total, plan: None });
    let ms = latency::of_calls(opened, &settings, pace, &mut round)?;
    let row = |(&(subnet, batch), ms): (&(usize, usize), f64)| Latency {
        subnet: names[subnet].clone(),
        batch,
        // Nothing smaller is real.
        ms: (ms * 1e4).round().max(1.0) / 1e4,
    };
    Ok(settings.iter().zip(ms).map(row).collect())
}

/// Batches up to `max_batch` whose calls are affordable, where `call` is the time of a call on one image; 1 always.
fn quick_batches(max_batch: usize, subnets: usize, call: Duration) -> Vec<usize> {
    let mut batches: Vec<usize> = QUICK_BATCHES.into_iter().filter(|&batch| batch < max_batch).collect();
    batches.push(max_batch.max(1));
    let calls = 2 * QUICK_PACE.rounds as usize * subnets;
    let time = |batches: &[usize]| call.as_secs_f64() * (calls * batches.iter().sum::<usize>()) as f64;
    while batches.len() > 1 && time(&batches) > QUICK[0].as_secs_f64() {
        batches.pop();
    }
    batches
}

/// The search for a frontier.
struct Search<'a> {
    denoiser: &'a mut dyn Denoiser,
    latency: &'a [Latency],
    points: Vec<Point>,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

impl Search<'_> {
    /// Every shape at full width, those that are good there at all widths, and width schedules of those on the frontier
    /// so far.
    fn thorough(&mut self, range: SigmaRange, images: usize) -> Result<Yardstick> {
        let names: Vec<String> = self.denoiser.about().subnets.iter().map(|subnet| subnet.name.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (full, others) = names.split_last().expect("a model has a full width");
        let yardstick = self.yardstick(range, images)?;
        self.try_all("solvers", &yardstick, constants(&shapes(), &[*full]))?;
        let good = shapes_of(near_frontier(&self.points, SLACK).map(|point| &point.plan));
        self.try_all("widths", &yardstick, constants(&good, others))?;
        let frontier = pareto(self.points.clone());
        let on_it = shapes_of(frontier.iter().map(|point| &point.plan));
        self.try_all("width schedules", &yardstick, schedules(&on_it, &names))?;
        Ok(yardstick)
    }

    /// As many images, and then as many plans, as are affordable.
    fn quick(&mut self, range: SigmaRange) -> Result<Yardstick> {
        let names: Vec<String> = self.denoiser.about().subnets.iter().map(|subnet| subnet.name.to_string()).collect();
        let plans = candidates::quick(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let costs: Vec<f64> = plans.iter().map(|plan| self.ms(plan)).collect();
        let (images, count) = affordable(self.ms(&reference()), &costs, QUICK[1]);
        let yardstick = self.yardstick(range, images)?;
        self.try_all("quality", &yardstick, plans.into_iter().take(count).collect())?;
        Ok(yardstick)
    }

    fn yardstick(&mut self, range: SigmaRange, images: usize) -> Result<Yardstick> {
        let plan = reference();
        (self.progress)(Progress { part: "reference", done: 0, total: 1, plan: Some(&plan) });
        let yardstick = Yardstick::new(self.denoiser, range, images)?;
        (self.progress)(Progress { part: "reference", done: 1, total: 1, plan: Some(&plan) });
        self.points.push(Point { ms: self.ms(&plan), plan, quality: 1.0 });
        Ok(yardstick)
    }

    /// Measures those of `plans` that have not been measured yet.
    fn try_all(&mut self, part: &'static str, yardstick: &Yardstick, mut plans: Vec<Plan>) -> Result<()> {
        plans.retain(|plan| self.points.iter().all(|point| point.plan != *plan));
        let total = plans.len();
        if total == 0 {
            return Ok(());
        }
        for (done, plan) in plans.into_iter().enumerate() {
            (self.progress)(Progress { part, done, total, plan: Some(&plan) });
            // Rounded down: nothing but the reference is as good as itself.
            let quality = (yardstick.quality(self.denoiser, &plan)? * 1e4).floor() / 1e4;
            self.points.push(Point { ms: self.ms(&plan), plan, quality });
        }
        (self.progress)(Progress { part, done: total, total, plan: None });
        Ok(())
    }

    fn ms(&self, plan: &Plan) -> f64 {
        time_of(plan, |subnet| call_ms(self.latency, subnet)).expect("every subnet was timed")
    }
}

/// The points that no cheaper one beats by more than `slack`.
fn near_frontier(points: &[Point], slack: f64) -> impl Iterator<Item = &Point> {
    let beaten =
        move |point: &Point| points.iter().any(|other| other.ms <= point.ms && other.quality > point.quality + slack);
    points.iter().filter(move |point| !beaten(point))
}

/// How many images, and how many of the plans whose images take `costs` milliseconds, fit into `time` beside the
/// reference; at least two images of some plans.
fn affordable(reference: f64, costs: &[f64], time: Duration) -> (usize, usize) {
    let budget = time.as_secs_f64() * 1e3;
    let images = (budget / (reference + costs.iter().sum::<f64>())) as usize;
    let images = images.clamp(2, QUICK_IMAGES);
    let mut left = budget / images as f64 - reference;
    let fits = |cost: &&f64| {
        left -= **cost;
        left >= 0.0
    };
    let count = costs.iter().take_while(fits).count();
    (images, count.max(QUICK_PLANS).min(costs.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::gaussian::Gaussian;
    use crate::evaluation::frontier::ROWS;
    use std::collections::BTreeSet;

    const RANGE: SigmaRange = SigmaRange { min: 0.002, max: 80.0 };

    fn latency() -> Vec<Latency> {
        let row = |(subnet, ms): (&str, f64)| Latency { subnet: subnet.to_owned(), batch: 1, ms };
        [("0.250", 0.5), ("0.500", 0.7), ("full", 1.0)].map(row).to_vec()
    }

    /// What a search on a denoiser in closed form measures, and the parts that it reports.
    fn search(run: impl Fn(&mut Search<'_>) -> Result<Yardstick>) -> (Vec<Point>, Vec<&'static str>) {
        let (mut denoiser, _) = Gaussian::conditional();
        let latency = latency();
        let mut parts = Vec::new();
        let mut progress = |progress: Progress<'_>| {
            assert!(progress.done <= progress.total);
            if parts.last() != Some(&progress.part) {
                parts.push(progress.part);
            }
        };
        let mut search =
            Search { denoiser: &mut *denoiser, latency: &latency, points: Vec::new(), progress: &mut progress };
        run(&mut search).unwrap();
        (search.points, parts)
    }

    #[test]
    fn a_thorough_search_ends_at_the_reference_and_measures_nothing_twice() {
        let (points, parts) = search(|search| search.thorough(RANGE, 4));
        assert_eq!(parts, ["reference", "solvers", "widths", "width schedules"]);
        let plans: BTreeSet<String> = points.iter().map(|point| point.plan.to_string()).collect();
        assert_eq!(plans.len(), points.len());
        for plan in ["dpmpp2m-1@full", "heun-12@full", "euler-8@full"] {
            assert!(plans.contains(plan), "{plan}");
        }
        assert!(plans.iter().any(|plan| plan.contains(',')), "{plans:?}");
        let frontier = pareto(points);
        let last = frontier.last().unwrap();
        assert!(last.quality == 1.0 && last.plan == reference() && last.ms == 35.0, "{last:?}");
        assert!(frontier.len() > 4 && frontier.len() <= ROWS);
    }

    #[test]
    fn a_quick_search_measures_few_plans_and_the_reference() {
        let (points, parts) = search(|search| search.quick(RANGE));
        assert_eq!(parts, ["reference", "quality"]);
        assert_eq!(points.len(), 22);
        assert_eq!(pareto(points).last().unwrap().plan, reference());
    }

    #[test]
    fn a_slow_machine_affords_fewer_images_then_fewer_plans_but_some() {
        let costs = [8.0; 10];
        let plans = |scale: f64| affordable(35.0 * scale, &costs.map(|cost| cost * scale), Duration::from_secs(2));
        assert_eq!(plans(1.0), (16, 10));
        assert_eq!(plans(4.0), (4, 10));
        // Two images of the reference and of five plans: 2 * (35 + 5 * 8) * 13 = 1950 ms.
        assert_eq!(plans(13.0), (2, 5));
        assert_eq!(plans(1e4), (2, QUICK_PLANS));
        assert_eq!(affordable(35e4, &[8.0; 2], Duration::ZERO), (2, 2));
    }

    #[test]
    fn a_slow_machine_times_smaller_batches() {
        let batches = |max, ms| quick_batches(max, 7, Duration::from_millis(ms));
        assert_eq!(batches(16, 1), [1, 4, 16]);
        assert_eq!(batches(64, 0), [1, 4, 16, 64]);
        assert_eq!(batches(8, 1), [1, 4, 8]);
        assert_eq!(batches(1, 1), [1]);
        assert_eq!(batches(16, 5), [1, 4]);
        assert_eq!(batches(16, 500), [1]);
    }

    #[test]
    fn what_is_far_below_the_frontier_is_not_near_it() {
        let point = |ms, quality| Point { plan: reference(), ms, quality };
        let points = [point(1.0, 0.5), point(2.0, 0.495), point(3.0, 0.4), point(3.0, 0.7)];
        let near: Vec<f64> = near_frontier(&points, 0.01).map(|point| point.quality).collect();
        assert_eq!(near, [0.5, 0.495, 0.7]);
    }
}
