//! How long a call of the denoiser takes: measured beforehand, corrected while serving.

use crate::diffusion::Plan;
use std::time::Duration;

/// A larger batch is worth waiting for while it makes a sample this much cheaper.
const WORTHWHILE: f64 = 0.98;
/// How far one call moves the correction.
const GAIN: f64 = 0.05;
/// One call counts at most as this many times slower or faster than predicted: a hiccup is no trend.
const CLIP: f64 = 2.0;
/// The correction stays within these: beyond them the profile is of another machine.
const SCALE: [f64; 2] = [0.25, 16.0];
/// What was learnt halves about every 20 s, so that a machine that was slow once is not believed to be slow for ever.
const DECAY_S: f64 = 30.0;

/// The calls of a step: of one subnet, or of two, where another guides it. As an index, of which the first are those of the subnets.
pub type Kind = usize;

/// Which calls a step is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    /// One, of this subnet.
    Of(usize),
    /// One on half of the samples, and one on the guiding half.
    Halves(usize, usize),
    /// One on all samples, and one that guides them.
    Both(usize, usize),
}

/// The time of the calls of a step by their kind and batch, in seconds.
///
/// Between measured batches it is linear; beyond the largest one it goes on as it did before.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTimes {
    subnets: Vec<String>,
    /// By subnet: (batch, seconds), ascending in batch.
    measured: Vec<Vec<(usize, f64)>>,
    /// By kind: the time of a call of so many samples, up to the largest batch: a policy asks too often to interpolate
    /// each time.
    calls: Vec<Vec<f64>>,
    efficient: Vec<usize>,
    /// The time of encoding a picture that images start from, in seconds as it was measured.
    encode: f64,
    /// By subnet of the decoder: the time that a picture takes after its last call, in seconds as it was measured. None where pictures are
    /// drawn themselves.
    decoders: Vec<(String, f64)>,
    /// The machine's slowness now, over that of the measurement.
    scale: f64,
    updated: Duration,
}

impl StepTimes {
    /// From measured `(batch, seconds)` of each subnet, narrow to wide. Batches above `max_batch` are never run.
    ///
    /// # Panics
    /// If a subnet has no measurement.
    pub fn new(rows: impl IntoIterator<Item = (String, Vec<(usize, f64)>)>, max_batch: usize) -> Self {
        let (subnets, mut measured): (Vec<String>, Vec<Vec<(usize, f64)>>) = rows.into_iter().unzip();
        for row in &mut measured {
            assert!(!row.is_empty(), "a subnet without a measured time");
            row.sort_by_key(|&(batch, _)| batch);
        }
        let mut times = Self {
            subnets,
            measured,
            calls: Vec::new(),
            efficient: Vec::new(),
            encode: 0.0,
            decoders: Vec::new(),
            scale: 1.0,
            updated: Duration::ZERO,
        };
        let kinds = 0..times.subnets.len() * (1 + 2 * times.subnets.len());
        times.calls =
            kinds.clone().map(|kind| (0..=max_batch).map(|rows| times.computed(kind, rows)).collect()).collect();
        times.efficient = kinds.map(|kind| times.most_efficient(kind, max_batch)).collect();
        times
    }

    /// The calls of a step of a plan, where something leads the image, or nothing; None for a subnet that is not known.
    pub fn kind(&self, plan: &Plan, step: usize, is_guided: bool) -> Option<Kind> {
        let own = self.subnet(plan.subnet_at(step))?;
        let Some((guide, _)) = plan.guide_at(step, is_guided.then_some(1.0)) else { return Some(own) };
        let guide = self.subnet(guide)?;
        let both = usize::from(!is_guided);
        let count = self.subnets.len();
        Some(if own == guide { own } else { count + 2 * (own * count + guide) + both })
    }

    fn calls_of(&self, kind: Kind) -> Calls {
        let count = self.subnets.len();
        let Some(pair) = kind.checked_sub(count) else { return Calls::Of(kind) };
        let (own, guide) = (pair / 2 / count, pair / 2 % count);
        if pair % 2 == 0 { Calls::Halves(own, guide) } else { Calls::Both(own, guide) }
    }

    /// The time of the calls of a kind on so many samples, from those that were measured.
    fn computed(&self, kind: Kind, rows: usize) -> f64 {
        let call = |subnet: usize, rows: usize| match rows {
            0 => 0.0,
            rows => interpolated(&self.measured[subnet], rows),
        };
        match self.calls_of(kind) {
            Calls::Of(subnet) => interpolated(&self.measured[subnet], rows),
            Calls::Halves(own, guide) => call(own, rows.div_ceil(2)) + call(guide, rows / 2),
            Calls::Both(own, guide) => call(own, rows) + call(guide, rows),
        }
    }

    /// The kind of these two whose samples take longer.
    pub fn slower(&self, one: Kind, other: Kind) -> Kind {
        if self.measured_row(other) > self.measured_row(one) { other } else { one }
    }

    /// The same for a model of latents, which takes so many seconds to encode a picture, and to decode one by each subnet of its decoder.
    pub fn with_codec(self, encode: f64, decoders: Vec<(String, f64)>) -> Self {
        Self { encode, decoders, ..self }
    }

    /// The time of so many encodings of pictures, in seconds as it was measured.
    pub fn encoding(&self, encodings: usize) -> f64 {
        self.encode * encodings as f64
    }

    /// The time that a plan's picture takes after its last call, in seconds as it was measured; None for a decoder that is not known.
    pub fn finish(&self, plan: &Plan) -> Option<f64> {
        match &*self.decoders {
            [] => plan.decode.is_full().then_some(0.0),
            decoders => decoders.iter().find(|(name, _)| plan.decode == *name).map(|&(_, seconds)| seconds),
        }
    }

    /// Names of the decoder's subnets, narrow to wide; none where pictures are drawn themselves.
    pub fn decoders(&self) -> impl Iterator<Item = &str> {
        self.decoders.iter().map(|(name, _)| name.as_str())
    }

    /// Names of the subnets, narrow to wide.
    pub fn subnets(&self) -> &[String] {
        &self.subnets
    }

    /// Index of a subnet.
    pub fn subnet(&self, name: &str) -> Option<usize> {
        self.subnets.iter().position(|subnet| subnet == name)
    }

    /// The time of calls on `rows` samples as it was measured.
    pub fn measured(&self, kind: Kind, rows: usize) -> f64 {
        let known = self.calls[kind].get(rows).copied();
        known.unwrap_or_else(|| self.computed(kind, rows))
    }

    /// The time of calls on `rows` samples now.
    pub fn call(&self, kind: Kind, rows: usize) -> f64 {
        self.scale * self.measured(kind, rows)
    }

    /// The time of a sample in calls of the efficient batch, as it was measured.
    pub fn measured_row(&self, kind: Kind) -> f64 {
        self.measured(kind, self.efficient[kind]) / self.efficient[kind] as f64
    }

    /// The smallest batch at which a sample is about as cheap as it gets.
    pub fn efficient_batch(&self, kind: Kind) -> usize {
        self.efficient[kind]
    }

    /// How much slower than measured the machine is now.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Learns from a call. Bounded: one call moves the correction by 5 % at most, and it decays over 30 s.
    pub fn observe(&mut self, kind: Kind, rows: usize, took: Duration, now: Duration) {
        let idle = now.saturating_sub(self.updated).as_secs_f64();
        self.updated = now;
        self.scale = 1.0 + (self.scale - 1.0) * (-idle / DECAY_S).exp();
        let ratio = took.as_secs_f64() / self.measured(kind, rows);
        let ratio = ratio.clamp(self.scale / CLIP, self.scale * CLIP);
        self.scale = (self.scale + GAIN * (ratio - self.scale)).clamp(SCALE[0], SCALE[1]);
    }

    fn most_efficient(&self, kind: Kind, max_batch: usize) -> usize {
        let row = |batch: usize| self.measured(kind, batch) / batch as f64;
        let (subnet, of_sample) = match self.calls_of(kind) {
            Calls::Of(subnet) | Calls::Both(subnet, _) => (subnet, 1),
            Calls::Halves(subnet, _) => (subnet, 2),
        };
        let candidates = || {
            let measured = self.measured[subnet].iter().map(|&(batch, _)| (of_sample * batch).min(max_batch));
            [1].into_iter().chain(measured)
        };
        let best = candidates().map(row).fold(f64::INFINITY, f64::min);
        candidates().filter(|&batch| row(batch) * WORTHWHILE <= best).min().unwrap_or(1)
    }
}

/// The time of a call of `rows` samples by measured `(batch, seconds)`, ascending in batch.
fn interpolated(points: &[(usize, f64)], rows: usize) -> f64 {
    let after = points.partition_point(|&(batch, _)| batch < rows).min(points.len() - 1);
    let (high, low) = (points[after], points[after.saturating_sub(1)]);
    match (high.0 == low.0, rows < high.0 && after == 0) {
        // One point, or before the first: a smaller batch takes no less that anybody knows; a larger one its share.
        (true, true) => high.1,
        (true, false) => high.1 * rows as f64 / high.0 as f64,
        (false, _) => {
            let slope = (high.1 - low.1) / (high.0 - low.0) as f64;
            (high.1 + slope * (rows as f64 - high.0 as f64)).max(0.5 * low.1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times(points: &[(usize, f64)]) -> StepTimes {
        StepTimes::new([("full".to_owned(), points.to_vec())], 16)
    }

    #[test]
    fn times_are_linear_between_measured_batches_and_beyond_them() {
        let times = times(&[(4, 7.0), (1, 4.0), (16, 13.0)]);
        let calls = [1, 2, 4, 10, 16, 20].map(|rows| times.call(0, rows));
        assert_eq!(calls, [4.0, 5.0, 7.0, 10.0, 13.0, 15.0]);
    }

    #[test]
    fn one_measured_batch_gives_the_others_their_share() {
        let times = times(&[(2, 4.0)]);
        assert_eq!([1, 2, 4].map(|rows| times.call(0, rows)), [4.0, 4.0, 8.0]);
    }

    #[test]
    fn the_efficient_batch_is_the_smallest_that_is_about_as_cheap_as_any() {
        assert_eq!(times(&[(1, 1.0), (2, 1.9), (4, 3.76), (8, 7.9)]).efficient_batch(0), 2);
        assert_eq!(times(&[(1, 1.0), (2, 2.1)]).efficient_batch(0), 1);
        assert_eq!(times(&[(1, 1.0), (64, 1.5)]).efficient_batch(0), 16, "no more than may run");
    }

    #[test]
    fn a_guide_of_another_width_is_a_call_of_its_own() {
        let row = |name: &str, ms: f64| (name.to_owned(), vec![(1, ms / 1e3), (4, 2.0 * ms / 1e3)]);
        let times = StepTimes::new([row("0.250", 1.0), row("full", 4.0)], 8);
        let ms = |plan: &str, is_guided, rows| {
            let plan = plan.parse().unwrap();
            let kind = times.kind(&plan, 0, is_guided).unwrap();
            (times.measured(kind, rows) * 1e6).round() / 1e3
        };
        // Of a batch of 2 a call takes 4/3 of the time, of 4 twice.
        assert_eq!([ms("euler-2@full", false, 1), ms("euler-2@full", true, 2)], [4.0, 5.333]);
        assert_eq!([ms("euler-2@full^0.25", false, 1), ms("euler-2@full^0.25", true, 2)], [4.0, 5.0]);
        assert_eq!([ms("euler-2@full^full", false, 1), ms("euler-2@full^full", true, 2)], [4.0, 5.333]);
        assert_eq!([ms("euler-2@full^auto:0.25", false, 1), ms("euler-2@full^auto:0.25", true, 2)], [5.0, 5.0]);
        assert_eq!([ms("euler-2@full^auto:full", false, 1), ms("euler-2@full^auto:0.25", false, 4)], [4.0, 10.0]);
        assert_eq!(ms("euler-2@full^0.25", true, 8), 10.0);
        assert_eq!(times.kind(&"euler-2@full^0.5".parse().unwrap(), 0, true), None);
    }

    #[test]
    fn a_picture_takes_what_its_plan_s_decoder_does() {
        let plan = |text: &str| text.parse::<Plan>().unwrap();
        let drawn = times(&[(1, 0.01)]);
        let finish = |times: &StepTimes, text: &str| times.finish(&plan(text));
        assert_eq!([finish(&drawn, "euler-2@full"), finish(&drawn, "euler-2@full~decode=0.5")], [Some(0.0), None]);
        let decoded = drawn.with_codec(0.05, vec![("0.500".to_owned(), 0.03), ("full".to_owned(), 0.05)]);
        let found =
            ["", "~decode=0.5", "~decode=0.25"].map(|decode| finish(&decoded, &format!("euler-2@full{decode}")));
        assert_eq!(found, [Some(0.05), Some(0.03), None]);
    }

    #[test]
    fn a_slower_machine_is_noticed_and_forgotten() {
        let mut times = times(&[(1, 0.01)]);
        let second = Duration::from_secs(1);
        for _ in 0..100 {
            times.observe(0, 1, Duration::from_millis(30), second);
        }
        assert!((times.scale() - 3.0).abs() < 0.1, "{}", times.scale());
        times.observe(0, 1, Duration::from_millis(10), 200 * second);
        assert!((times.scale() - 1.0).abs() < 0.02, "{}", times.scale());
    }

    #[test]
    fn one_hiccup_moves_the_correction_by_a_twentieth() {
        let mut times = times(&[(1, 0.01)]);
        times.observe(0, 1, Duration::from_secs(60), Duration::ZERO);
        assert!((times.scale() - 1.05).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn the_correction_stays_bounded(calls in prop::collection::vec((0.0f64..100.0, 0.0f64..100.0), 0..200)) {
            let mut times = times(&[(1, 0.01)]);
            for (took, now) in calls {
                times.observe(0, 1, Duration::from_secs_f64(took), Duration::from_secs_f64(now));
                prop_assert!((SCALE[0]..=SCALE[1]).contains(&times.scale()));
            }
        }
    }
}
