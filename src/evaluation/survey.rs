//! Measures what a profile holds: the time of every subnet, and the quality of the plans that may be worth serving.

use super::candidates::{self, AUTO_SCALES, GOOD, constants, decoders, guides, schedules, shapes, shapes_of};
use super::drawing::BATCH;
use super::frontier::{Point, ROWS, pareto};
use super::latency::{self, Pace};
use super::profile::{Decoding, Device, Latency, Profile, Quality, Rated, image_ms};
use super::prompted::{Examples, Prompted};
use super::realism::Realism;
use super::to_reference::{ToReference, reference};
use super::yardstick::{Metric, Rating, Yardstick};
use crate::Result;
use crate::diffusion::Plan;
use crate::nets::{Denoiser, Opened, Threads};
use crate::subnet_name::SubnetName;
use std::path::Path;
use std::time::Duration;

/// What a quick survey may take for its latencies, and for its qualities; together about 3.5 s.
const QUICK: [Duration; 2] = [Duration::from_millis(1500), Duration::from_secs(2)];
/// Its batches, as far as they are affordable.
const QUICK_BATCHES: [usize; 3] = [1, 4, 16];
/// Its pace: three calls of each setting and three that warm up, at least: the median passes over a disturbance of one round.
const QUICK_PACE: Pace = Pace { time: Duration::from_millis(15), rounds: 3 };
/// One call, after one that is not timed.
const ONCE: Pace = Pace { time: Duration::ZERO, rounds: 1 };
/// The pace of an autoencoder: one call where it takes its time, and where it is short as many as the median needs.
const CODING: Pace = Pace { time: Duration::from_millis(300), rounds: 1 };
/// The most images of a plan in a quick survey.
const QUICK_IMAGES: usize = 16;
/// The plans that a quick survey measures, however slow the machine is.
const QUICK_PLANS: usize = 4;
/// A plan whose quality is this many standard errors below the frontier is given up.
const CERTAIN: f64 = 2.0;
/// The fewest images of a plan by whose features it is judged. Measured: the order of 16 plans by 500 images correlates by 0.92 with
/// that by 1,000, by 250 images by 0.76 (`cargo bench --bench cheap_metric`).
const FEWEST: usize = 500;
/// A round has so many times the images of the one before, of as much smaller a share of its plans.
const ROUND: usize = 4;
/// And so many plans at least.
const FIELD: usize = ROWS / 2;

/// The plans of so many that go on to the next round.
fn going_on(field: usize) -> usize {
    (field / ROUND).max(FIELD).min(field)
}

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
        /// Images of each plan that is decided on, at least 2.
        images: usize,
    },
}

impl Effort {
    /// Images of a plan in each round.
    fn rounds(metric: Metric, images: usize) -> Vec<usize> {
        let mut rounds = vec![images];
        // Of images that have a reference each, few are enough.
        while metric == Metric::Fd && rounds[0] / ROUND >= FEWEST {
            rounds.insert(0, rounds[0] / ROUND);
        }
        rounds
    }
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
    /// Every plan that was measured, by the most of its images that were drawn.
    pub points: Vec<Point>,
    /// How well the first round's qualities foretold the last one's, over the plans of the last: see [`spearman`]; and over
    /// how many plans. `None` where there was one round.
    pub foretold: Option<(f64, usize)>,
}

impl Profile {
    /// Measures a model on its device. `examples` are the texts that one of texts draws for it, `features` the file of those that its
    /// images are measured in; without them, and where little time is, they are held against a reference plan's.
    ///
    /// # Errors
    /// As [`ToReference::new`] and [`Realism::open`].
    pub fn measure(
        opened: &mut dyn Opened,
        examples: &Examples,
        effort: &Effort,
        features: Option<&Path>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Survey> {
        let latency = latencies(opened, effort, progress)?;
        let (encode_ms, decode) = (latency::of_encoder(opened, CODING)?, decodings(opened)?);
        let mut prompted = Prompted::new(opened.denoiser(), examples);
        let mut search = Search::new(&mut prompted, &latency, &decode, progress);
        let (yardstick, images) = match *effort {
            Effort::Quick { .. } => search.quick()?,
            Effort::Thorough { images, .. } => {
                let mut yardstick = match features {
                    Some(path) => Yardstick::Fd(Box::new(Realism::open(path, Threads::ALL)?)),
                    None => Yardstick::MseToReference(search.reference(images)?),
                };
                search.thorough(&mut yardstick, images)?;
                (yardstick, images)
            }
        };
        let foretold = search.foretold(images);
        let decided = search.tried.iter().filter(|tried| tried.images == images);
        let rated: Vec<Rated> =
            decided.map(|Tried { point, .. }| Rated::new(point.plan.clone(), point.rating)).collect();
        let points = search.tried.into_iter().map(|tried| tried.point).collect();
        let bytes = opened.denoiser().about().weight_bytes;
        let quality = Quality::new(&yardstick, images, opened.denoiser().about().usual_guidance());
        let profile = Profile::new(Device::of(opened), bytes, quality, latency.clone(), decode.clone(), rated);
        let profile = Profile { encode_ms, ..profile };
        Ok(Survey { profile, points, foretold })
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
        let (encode_ms, decode) = (latency::of_encoder(opened, CODING)?, decodings(opened)?);
        Ok(Self { encode_ms, ..self.with_times(Device::of(opened), latency, decode) })
    }
}

/// About how long [`Profile::measure`] will take, from the time of one call; `by_features` as it is given them.
///
/// # Errors
/// On a device fault.
pub fn expected(opened: &mut dyn Opened, effort: &Effort, by_features: bool) -> Result<Duration> {
    /// What the plans of a search come to, of the shipped model on average: evaluations of an image, and the share of the widest
    /// subnet's time that one takes.
    const EVALUATIONS: f64 = 7.0;
    const WIDTH: f64 = 0.85;
    let subnets = opened.denoiser().about().subnets.len();
    let Effort::Thorough { batches, time, images } = effort else {
        return Ok(QUICK.into_iter().sum());
    };
    let twice = Pace { rounds: 2, ..ONCE };
    let call = latency::of_calls(opened, &[(subnets - 1, BATCH)], twice, &mut |_| {})?[0] / 1e3 / BATCH as f64;
    let metric = if by_features { Metric::Fd } else { Metric::MseToReference };
    let decode = latency::of_decoders(opened, ONCE)?;
    let (mut field, mut drawn, mut before) = (candidates::about_as_many(metric, subnets, decode.len()), 0, 0);
    for images in Effort::rounds(metric, *images) {
        drawn += field * (images - before);
        (field, before) = (going_on(field), images);
    }
    let timing = time.as_secs_f64() * (batches.len() * subnets) as f64;
    let picture = decode.last().map_or(0.0, |full| full / 1e3);
    Ok(Duration::from_secs_f64(timing + drawn as f64 * (EVALUATIONS * WIDTH * call + picture)))
}

/// The time of every subnet at every batch.
fn latencies(opened: &mut dyn Opened, effort: &Effort, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Vec<Latency>> {
    let names: Vec<String> = opened.denoiser().about().subnets.iter().map(|subnet| subnet.name.to_string()).collect();
    let (batches, pace) = match effort {
        Effort::Quick { max_batch } => {
            // The time of a call of the widest subnet on one image says what else is affordable.
            let call = latency::of_calls(opened, &[(names.len() - 1, 1)], ONCE, &mut |_| {})?[0];
            (quick_batches(*max_batch, names.len(), Duration::from_secs_f64(call / 1e3)), QUICK_PACE)
        }
        Effort::Thorough { batches, time, .. } => (batches.clone(), Pace::thorough(*time)),
    };
    let every = (0..names.len()).flat_map(|subnet| batches.iter().map(move |&batch| (subnet, batch)));
    let settings: Vec<_> = every.collect();
    let total = pace.rounds as usize;
    let mut round = |done| progress(Progress { part: "latency", done: done as usize, total, plan: None });
    let ms = latency::of_calls(opened, &settings, pace, &mut round)?;
    let row =
        |(&(subnet, batch), ms): (&(usize, usize), f64)| Latency { subnet: names[subnet].clone(), batch, ms: real(ms) };
    Ok(settings.iter().zip(ms).map(row).collect())
}

/// The time of every subnet of the decoder.
fn decodings(opened: &mut dyn Opened) -> Result<Vec<Decoding>> {
    let ms = latency::of_decoders(opened, CODING)?;
    let names = opened.denoiser().about().decoders.iter().map(|decoder| decoder.name.to_string());
    Ok(names.zip(ms).map(|(subnet, ms)| Decoding { subnet, ms: real(ms) }).collect())
}

/// A time as a profile has it: nothing smaller is real.
fn real(ms: f64) -> f64 {
    (ms * 1e4).round().max(1.0) / 1e4
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
    decode: &'a [Decoding],
    tried: Vec<Tried>,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

/// A plan and what is known of it.
struct Tried {
    point: Point,
    /// Images that it is known by.
    images: usize,
    /// What the first of them said.
    first: Rating,
}

impl<'a> Search<'a> {
    fn new(
        denoiser: &'a mut dyn Denoiser,
        latency: &'a [Latency],
        decode: &'a [Decoding],
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Self {
        Self { denoiser, latency, decode, tried: Vec::new(), progress }
    }

    /// Few images of every shape at full width, of those that are good there at all widths, of width schedules of those on
    /// the frontier so far, of its plans with guides of narrower subnets, and of its plans with narrower decoders; then more and more of fewer and fewer plans.
    fn thorough(&mut self, yardstick: &mut Yardstick, images: usize) -> Result<()> {
        let names: Vec<String> = self.denoiser.about().subnets.iter().map(|subnet| subnet.name.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (full, others) = names.split_last().expect("a model has a full width");
        let rounds = Effort::rounds(yardstick.metric(), images);
        self.try_all("solvers", yardstick, constants(&shapes(yardstick.metric()), &[*full]), rounds[0])?;
        let (tried, floor) = (self.points(), yardstick.metric().floor());
        let most = tried.len().div_ceil(GOOD);
        let good = shapes_of(&contenders(tried, floor, most));
        self.try_all("widths", yardstick, constants(&good, others), rounds[0])?;
        let frontier = pareto(self.points(), floor);
        let on_it = shapes_of(frontier.iter().map(|point| &point.plan));
        self.try_all("width schedules", yardstick, schedules(&on_it, &names), rounds[0])?;
        let frontier = self.frontier(floor);
        let scales = match (self.is_guided(), yardstick.metric()) {
            (true, _) => &[None][..],
            // What is led away from itself is nearer to real images, if anything, but not to a reference's.
            (false, Metric::Fd) => &AUTO_SCALES.map(Some),
            (false, Metric::MseToReference) => &[],
        };
        self.try_all("guides", yardstick, guides(&frontier, &names, scales), rounds[0])?;
        let narrower = decoders(&self.frontier(floor), &self.decoders());
        self.try_all("decoders", yardstick, narrower, rounds[0])?;
        for pair in rounds.windows(2) {
            let [before, images] = [pair[0], pair[1]];
            let field = self.tried.iter().filter(|tried| tried.images == before);
            let field: Vec<Point> = field.map(|tried| tried.point.clone()).collect();
            let most = going_on(field.len());
            let plans = contenders(field, floor, most);
            if let Yardstick::Fd(realism) = yardstick {
                realism.keep_only(&plans.iter().collect::<Vec<_>>());
            }
            self.rate_all("rounds", yardstick, plans, images)?;
        }
        Ok(())
    }

    /// As many images, and then as many plans, as are affordable.
    fn quick(&mut self) -> Result<(Yardstick, usize)> {
        let names: Vec<String> = self.denoiser.about().subnets.iter().map(|subnet| subnet.name.to_string()).collect();
        let plans = candidates::quick(&names.iter().map(String::as_str).collect::<Vec<_>>(), &self.decoders());
        let costs: Vec<f64> = plans.iter().map(|plan| self.ms(plan)).collect();
        let (images, count) = affordable(self.ms(&reference()), &costs, QUICK[1]);
        let mut yardstick = Yardstick::MseToReference(self.reference(images)?);
        self.try_all("quality", &mut yardstick, plans.into_iter().take(count).collect(), images)?;
        Ok((yardstick, images))
    }

    /// The plans of the frontier so far.
    fn frontier(&self, floor: f64) -> Vec<Plan> {
        pareto(self.points(), floor).into_iter().map(|point| point.plan).collect()
    }

    /// The decoder's subnets.
    fn decoders(&self) -> Vec<SubnetName> {
        self.denoiser.about().decoders.iter().map(|decoder| decoder.name.clone()).collect()
    }

    fn points(&self) -> Vec<Point> {
        self.tried.iter().map(|tried| tried.point.clone()).collect()
    }

    /// The images of the reference plan, which is as good as can be by them.
    fn reference(&mut self, images: usize) -> Result<ToReference> {
        let plan = reference();
        (self.progress)(Progress { part: "reference", done: 0, total: 1, plan: Some(&plan) });
        let reference = ToReference::new(self.denoiser, images)?;
        (self.progress)(Progress { part: "reference", done: 1, total: 1, plan: Some(&plan) });
        let rating = Rating { distance: 0.0, quality: 1.0, error: 0.0 };
        let point = Point { ms: self.ms(&plan), plan, rating };
        self.tried.push(Tried { point, images, first: rating });
        Ok(reference)
    }

    /// Measures those of `plans` that have not been measured yet.
    fn try_all(
        &mut self,
        part: &'static str,
        yardstick: &mut Yardstick,
        mut plans: Vec<Plan>,
        images: usize,
    ) -> Result<()> {
        plans.retain(|plan| self.tried.iter().all(|tried| tried.point.plan != *plan));
        self.rate_all(part, yardstick, plans, images)
    }

    /// Measures so many images of each of `plans`.
    fn rate_all(
        &mut self,
        part: &'static str,
        yardstick: &mut Yardstick,
        plans: Vec<Plan>,
        images: usize,
    ) -> Result<()> {
        let total = plans.len();
        if total == 0 {
            return Ok(());
        }
        for (done, plan) in plans.into_iter().enumerate() {
            (self.progress)(Progress { part, done, total, plan: Some(&plan) });
            let rating = yardstick.rate(self.denoiser, &plan, images)?;
            let point = Point { ms: self.ms(&plan), plan, rating };
            match self.tried.iter_mut().find(|tried| tried.point.plan == point.plan) {
                Some(tried) => (tried.point, tried.images) = (point, images),
                None => self.tried.push(Tried { point, images, first: rating }),
            }
        }
        (self.progress)(Progress { part, done: total, total, plan: None });
        Ok(())
    }

    /// How well the first images of the plans that were measured with this many foretold what came out.
    fn foretold(&self, images: usize) -> Option<(f64, usize)> {
        let decided = || self.tried.iter().filter(|tried| tried.images == images);
        let pairs: Vec<_> = decided().map(|tried| (tried.first.quality, tried.point.rating.quality)).collect();
        let differs = pairs.iter().any(|(first, last)| first != last);
        (differs && pairs.len() > 2).then(|| (spearman(&pairs), pairs.len()))
    }

    /// Whether plans are measured under guidance.
    fn is_guided(&self) -> bool {
        self.denoiser.about().usual_guidance() != 1.0
    }

    fn ms(&self, plan: &Plan) -> f64 {
        image_ms(self.latency, self.decode, plan, self.is_guided()).expect("every subnet was timed")
    }
}

/// The rank correlation of pairs of numbers (Spearman 1904): 1 where both have the same order, -1 where they have opposite ones.
pub fn spearman(pairs: &[(f64, f64)]) -> f64 {
    /// The place of each value in their order; equal ones share the mean of theirs.
    fn ranks(values: Vec<f64>) -> Vec<f64> {
        let rank = |value: &f64| {
            let less = values.iter().filter(|other| *other < value).count() as f64;
            let equal = values.iter().filter(|other| *other == value).count() as f64;
            less + (equal - 1.0) / 2.0
        };
        values.iter().map(rank).collect()
    }
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let (a, b) = (ranks(a), ranks(b));
    let mean = (pairs.len() as f64 - 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

/// The points that no cheaper one certainly beats.
fn near_frontier(points: &[Point]) -> impl Iterator<Item = &Point> {
    points.iter().filter(move |point| deficit(point, points) <= 0.0)
}

/// How far a point's quality is below that of the best one that is no dearer, beside what their standard errors explain.
fn deficit(point: &Point, points: &[Point]) -> f64 {
    let below = |other: &Point| {
        let doubt = point.rating.error.hypot(other.rating.error);
        other.rating.quality - point.rating.quality - CERTAIN * doubt
    };
    points.iter().filter(|other| other.ms <= point.ms).map(below).fold(f64::NEG_INFINITY, f64::max)
}

/// The plans that may be of the frontier, at most so many: those that are the least below it.
fn contenders(mut field: Vec<Point>, floor: f64, most: usize) -> Vec<Plan> {
    if field.iter().any(|point| point.rating.quality >= floor) {
        field.retain(|point| point.rating.quality + CERTAIN * point.rating.error >= floor);
    }
    let mut near: Vec<&Point> = near_frontier(&field).collect();
    let below = |point: &Point| {
        let cheaper = field.iter().filter(|other| other.ms < point.ms).map(|other| other.rating.quality);
        cheaper.fold(f64::NEG_INFINITY, f64::max) - point.rating.quality
    };
    near.sort_by(|a, b| below(a).total_cmp(&below(b)));
    near.into_iter().take(most).map(|point| point.plan.clone()).collect()
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

    fn latency() -> Vec<Latency> {
        let row = |(subnet, ms): (&str, f64)| Latency { subnet: subnet.to_owned(), batch: 1, ms };
        [("0.250", 0.5), ("0.500", 0.7), ("full", 1.0)].map(row).to_vec()
    }

    /// What a search on a denoiser in closed form measures, and the parts that it reports.
    fn search(run: impl Fn(&mut Search<'_>)) -> (Vec<Point>, Vec<&'static str>) {
        let (mut denoiser, _) = Gaussian::conditional();
        let latency = latency();
        let mut parts = Vec::new();
        let mut progress = |progress: Progress<'_>| {
            assert!(progress.done <= progress.total);
            if parts.last() != Some(&progress.part) {
                parts.push(progress.part);
            }
        };
        let mut search = Search::new(&mut *denoiser, &latency, &[], &mut progress);
        run(&mut search);
        let points = search.points();
        (points, parts)
    }

    #[test]
    fn a_thorough_search_ends_at_the_reference_and_measures_nothing_twice() {
        let (points, parts) = search(|search| {
            let mut yardstick = Yardstick::MseToReference(search.reference(4).unwrap());
            search.thorough(&mut yardstick, 4).unwrap();
        });
        assert_eq!(parts, ["reference", "solvers", "widths", "width schedules"]);
        let plans: BTreeSet<String> = points.iter().map(|point| point.plan.to_string()).collect();
        assert_eq!(plans.len(), points.len());
        for plan in ["dpmpp2m-1@full", "heun-12@full", "euler-8@full"] {
            assert!(plans.contains(plan), "{plan}");
        }
        assert!(plans.iter().any(|plan| plan.contains(',')), "{plans:?}");
        let of_reference = points.iter().find(|point| point.plan == reference()).unwrap().clone();
        assert_eq!((of_reference.rating.quality, of_reference.ms), (1.0, 35.0));
        let frontier = pareto(points, Metric::MseToReference.floor());
        let last = frontier.last().unwrap();
        assert!(!of_reference.outdoes(last) && last.ms < of_reference.ms, "as good for less: {last:?}");
        assert!(frontier.len() > 4 && frontier.len() <= ROWS);
    }

    #[test]
    fn a_quick_search_measures_few_plans_and_the_reference() {
        let (points, parts) = search(|search| drop(search.quick().unwrap()));
        assert_eq!(parts, ["reference", "quality"]);
        assert_eq!(points.len(), 22);
        let last = pareto(points, 0.6).pop().unwrap();
        assert!(last.rating.quality > 0.99, "{last:?}");
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
        let points = [point(1.0, 0.5, 0.0), point(2.0, 0.5, 0.0), point(3.0, 0.4, 0.0), point(3.0, 0.7, 0.0)];
        let near = |points: &[Point]| near_frontier(points).map(|point| point.rating.quality).collect::<Vec<_>>();
        assert_eq!(near(&points), [0.5, 0.5, 0.7]);
        let doubtful = [point(1.0, 0.5, 0.03), point(2.0, 0.4, 0.04), point(3.0, 0.35, 0.0)];
        assert_eq!(near(&doubtful), [0.5, 0.4], "two standard errors of the difference are 0.1");
    }

    fn point(ms: f64, quality: f64, error: f64) -> Point {
        Point {
            plan: format!("euler-{ms}@full").parse().unwrap(),
            ms,
            rating: Rating { distance: 0.0, quality, error },
        }
    }

    #[test]
    fn the_best_of_the_field_go_on() {
        let field: Vec<Point> = (1..=100).map(|ms| point(f64::from(ms), 0.3 + 0.005 * f64::from(ms), 0.2)).collect();
        let names = |plans: Vec<Plan>| plans.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(contenders(field.clone(), 0.0, 25).len(), 25);
        assert_eq!(contenders(field[..30].to_vec(), 0.0, 50).len(), 30);
        let mut worse = field[..4].to_vec();
        worse[2].rating = Rating { distance: 0.0, quality: 0.1, error: 0.01 };
        worse[3].rating.quality = 0.9;
        worse.iter_mut().for_each(|point| point.rating.error /= 20.0);
        let going_on = names(contenders(worse, 0.0, 4));
        assert_eq!(going_on.len(), 3);
        assert!(!going_on.contains(&"euler-3@full".to_owned()) && going_on.contains(&"euler-4@full".to_owned()));
    }

    #[test]
    fn rounds_have_four_times_as_many_images_and_a_reference_needs_one() {
        assert_eq!(Effort::rounds(Metric::Fd, 2000), [500, 2000]);
        assert_eq!(Effort::rounds(Metric::Fd, 10_000), [625, 2500, 10_000]);
        assert_eq!(Effort::rounds(Metric::Fd, 100), [100]);
        assert_eq!(Effort::rounds(Metric::MseToReference, 2000), [2000]);
    }

    #[test]
    fn the_rank_correlation_is_that_of_the_order_alone() {
        assert_eq!(spearman(&[(1.0, 10.0), (2.0, 1000.0), (3.0, 1001.0)]), 1.0);
        assert_eq!(spearman(&[(1.0, 3.0), (2.0, 2.0), (3.0, -1.0)]), -1.0);
        // 1 - 6 (1 + 1) / (4 (16 - 1))
        assert!((spearman(&[(1.0, 2.0), (2.0, 1.0), (3.0, 3.0), (4.0, 4.0)]) - 0.8).abs() < 1e-12);
        assert!((spearman(&[(1.0, 1.0), (1.0, 2.0), (2.0, 3.0)]) - 0.866_025_403).abs() < 1e-8);
    }
}
