//! The frontier as a ladder: plans in ascending order of time and quality.

use crate::diffusion::plan::{Plan, WidthRun};
use crate::engine::policy::{Ask, Wish};
use crate::routing::StepTimes;
use crate::routing::times::Kind;
use crate::{Error, Result};
use std::sync::Arc;

/// Qualities closer than this are the same: a profile has four decimals.
const EPSILON: f64 = 1e-6;

/// What an image of a plan asks of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Time as a share of efficient batches, in seconds as they were measured.
    pub seconds: f64,
    /// Denoiser calls, one after the other.
    pub calls: usize,
    /// The kind of its calls, of those the slowest.
    pub kind: Kind,
    /// Time that its picture takes after them, in seconds as it was measured; the rest is of each of its samples.
    pub finish: f64,
}

/// Images, as work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Samples that they add to calls.
    pub rows: f64,
    /// How many there are.
    pub images: f64,
}

impl Load {
    /// So many images, which add so many samples each.
    pub fn new(images: f64, rows: usize) -> Self {
        Self { rows: images * rows as f64, images }
    }

    /// As much of it.
    pub fn times(self, share: f64) -> Self {
        Self { rows: share * self.rows, images: share * self.images }
    }
}

impl std::ops::AddAssign for Load {
    fn add_assign(&mut self, more: Self) {
        self.rows += more.rows;
        self.images += more.images;
    }
}

impl Cost {
    fn new(calls: &[(Kind, usize)], finish: f64, times: &StepTimes) -> Self {
        let slowest = calls.iter().map(|&(kind, _)| kind).reduce(|one, other| times.slower(one, other));
        let count = calls.iter().map(|&(_, count)| count).sum();
        Self { seconds: seconds(calls, times), calls: count, kind: slowest.unwrap_or(0), finish }
    }

    /// The time of images that each have this cost, in seconds as it was measured.
    pub fn of(&self, load: Load) -> f64 {
        load.rows * self.seconds + load.images * self.finish
    }
}

/// The plans that the images of a request may run by. Looked up once, when it is taken: a policy asks too often to look
/// for the rungs of its qualities, or count the steps of its plan, each time.
#[derive(Clone, Debug, PartialEq)]
pub enum Menu {
    /// This one, and what it costs.
    Exact(Arc<Plan>, Cost),
    /// Those of the rungs from `floor` to `top`.
    Rungs {
        /// The lowest rung.
        floor: usize,
        /// The highest rung.
        top: usize,
        /// The ladder of images whose rungs take another time: they start from a picture and leave out steps, or have guides of their own
        /// widths.
        own: Option<Arc<Ladder>>,
    },
}

impl Menu {
    /// This plan alone.
    pub fn exact(plan: Arc<Plan>, is_guided: bool, times: &StepTimes) -> Self {
        let finish = times.finish(&plan).unwrap_or(0.0);
        let cost = calls(&plan, 0, is_guided, times).map_or(Cost::default(), |calls| Cost::new(&calls, finish, times));
        Self::Exact(plan, cost)
    }

    /// The rung of an image under a cap; `None` for an exact plan.
    pub fn rung(&self, cap: usize) -> Option<usize> {
        match *self {
            Self::Exact(..) => None,
            Self::Rungs { floor, top, .. } => Some(cap.clamp(floor, top)),
        }
    }

    /// The ladder that its rungs are of, where `ladder` is that of images from noise which nothing leads.
    pub fn ladder<'a>(&'a self, ladder: &'a Ladder) -> &'a Ladder {
        match self {
            Self::Rungs { own: Some(own), .. } => own,
            Self::Rungs { .. } | Self::Exact(..) => ladder,
        }
    }
}

impl Rung {
    fn new(plan: Plan, quality: f64, is_guided: bool, times: &StepTimes) -> Result<Self> {
        let calls = calls(&plan, 0, is_guided, times)?;
        let unknown = || Error::input("frontier", format!("{plan} decodes by {}, which the model lacks", plan.decode));
        let cost = Cost::new(&calls, times.finish(&plan).ok_or_else(unknown)?, times);
        let rows = if is_guided { 2 } else { 1 };
        let calls_alone: f64 = calls.iter().map(|&(kind, count)| count as f64 * times.measured(kind, rows)).sum();
        // Where it starts from a picture, that is encoded before.
        let encode = times.encoding(usize::from(plan.strength < 1.0));
        let alone = encode + calls_alone + cost.finish;
        Ok(Self { plan: Arc::new(plan), quality, calls, cost, alone })
    }
}

/// One plan of the frontier.
#[derive(Clone, Debug, PartialEq)]
pub struct Rung {
    /// The plan.
    pub plan: Arc<Plan>,
    /// Its measured quality.
    pub quality: f64,
    /// Its evaluations by kind.
    pub calls: Vec<(Kind, usize)>,
    /// What an image of it costs.
    pub cost: Cost,
    /// Time of an image alone, in seconds as they were measured.
    pub alone: f64,
}

/// Plans of which none is beaten on both time and quality, the fastest first. Never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Ladder {
    rungs: Vec<Rung>,
    /// Whether its images are led by something.
    is_guided: bool,
}

impl Ladder {
    /// The frontier of these plans and qualities on a machine of these `times`.
    ///
    /// # Errors
    /// [`Error::Input`] for a plan whose subnet has no times, and where there is no plan at all.
    pub fn new(plans: impl IntoIterator<Item = (Plan, f64)>, times: &StepTimes) -> Result<Self> {
        Self::of_measured(plans, false, times)
    }

    /// The same of images that something leads, or nothing but the plans themselves.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_measured(
        plans: impl IntoIterator<Item = (Plan, f64)>,
        is_guided: bool,
        times: &StepTimes,
    ) -> Result<Self> {
        let rung = |(plan, quality)| Rung::new(plan, quality, is_guided, times);
        let mut all = plans.into_iter().map(rung).collect::<Result<Vec<_>>>()?;
        let takes = |rung: &Rung| rung.cost.of(one(is_guided));
        all.sort_by(|a, b| takes(a).total_cmp(&takes(b)).then(b.quality.total_cmp(&a.quality)));
        let mut rungs: Vec<Rung> = Vec::new();
        for rung in all {
            if rungs.last().is_none_or(|last| rung.quality > last.quality + EPSILON) {
                rungs.push(rung);
            }
        }
        if rungs.is_empty() {
            return Err(Error::input("frontier", "has no plans; run `accordion profile`"));
        }
        Ok(Self { rungs, is_guided })
    }

    /// The same plans of images that start from a picture at this strength, or that something leads, each with the quality that it has
    /// here. A faster one may not be faster then by as much, or at all, since whole steps are left out.
    fn of_images(&self, strength: f64, is_guided: bool, times: &StepTimes) -> Self {
        let rung = |rung: &Rung| Rung::new(rung.plan.started(strength), rung.quality, is_guided, times);
        let rungs = self.rungs.iter().map(rung).collect::<Result<_>>();
        Self { rungs: rungs.expect("the subnets are those of the whole plans"), is_guided }
    }

    /// The same plans of images that start from a picture at this strength.
    pub fn started(&self, strength: f64, times: &StepTimes) -> Self {
        self.of_images(strength, self.is_guided, times)
    }

    /// The plans, the fastest first.
    pub fn rungs(&self) -> &[Rung] {
        &self.rungs
    }

    /// The best plan.
    pub fn best(&self) -> &Rung {
        &self.rungs[self.top()]
    }

    /// Index of the best plan.
    pub fn top(&self) -> usize {
        self.rungs.len() - 1
    }

    /// Index of the fastest plan that is at least so good; of the best where none is.
    pub fn at_least(&self, quality: f64) -> usize {
        self.rungs.partition_point(|rung| rung.quality + EPSILON < quality).min(self.top())
    }

    /// What the images of a request may run by.
    pub fn menu(&self, ask: &Ask, times: &StepTimes) -> Menu {
        match &ask.wish {
            Wish::Exact(plan) => Menu::exact(plan.clone(), ask.is_guided, times),
            Wish::Quality { floor, target } => {
                let floor = self.at_least(*floor);
                Menu::Rungs { floor, top: self.at_least(*target).max(floor), own: self.own(ask, times) }
            }
        }
    }

    /// The ladder of a request's images, where their rungs take another time.
    pub fn own(&self, ask: &Ask, times: &StepTimes) -> Option<Arc<Self>> {
        let has_guides = || self.rungs.iter().any(|rung| rung.plan.guide.is_some());
        let are_others = ask.is_guided != self.is_guided && has_guides();
        (are_others || ask.strength < 1.0).then(|| Arc::new(self.of_images(ask.strength, ask.is_guided, times)))
    }

    /// The plan of an image under a cap.
    pub fn plan<'a>(&'a self, menu: &'a Menu, cap: usize) -> &'a Arc<Plan> {
        match menu {
            Menu::Exact(plan, _) => plan,
            Menu::Rungs { floor, top, .. } => &menu.ladder(self).rungs[cap.clamp(*floor, *top)].plan,
        }
    }

    /// What an image costs under a cap.
    pub fn cost(&self, menu: &Menu, cap: usize) -> Cost {
        match menu {
            Menu::Exact(_, cost) => *cost,
            Menu::Rungs { floor, top, .. } => menu.ladder(self).rungs[cap.clamp(*floor, *top)].cost,
        }
    }

    /// The quality of `plan` where it was measured: for plans of the frontier. Of images that start from a picture it is that of the
    /// whole plan.
    pub fn quality(&self, plan: &Plan) -> Option<f64> {
        self.rungs.iter().find(|rung| rung.plan.differs_in_strength_alone(plan)).map(|rung| rung.quality)
    }

    /// About the quality of a plan that was one of the frontier and changed while it ran: that of the best plan of the
    /// frontier that takes no longer.
    pub fn estimate(&self, plan: &Plan, times: &StepTimes) -> Option<f64> {
        self.quality(plan).or_else(|| {
            let whole = plan.started(1.0);
            let load = one(self.is_guided);
            let takes =
                Cost::new(&calls(&whole, 0, self.is_guided, times).ok()?, times.finish(&whole)?, times).of(load);
            let below = self.rungs.partition_point(|rung| rung.cost.of(load) <= takes * (1.0 + EPSILON));
            Some(self.rungs[below.saturating_sub(1)].quality)
        })
    }

    /// What is left of rung `index` for a plan that has done `done` of its steps: the same share of the rung's
    /// evaluations as is left of the plan's, on the rung's subnets.
    pub fn rest(&self, index: usize, plan: &Plan, done: usize) -> Vec<WidthRun> {
        let (rung, evaluations) = (&self.rungs[index].plan, self.rungs[index].cost.calls);
        let left = (plan.steps - done) as f64 / plan.steps as f64;
        let per_step = plan.evaluations_at(0).max(1) as f64;
        let steps = (left * evaluations as f64 / per_step).round().max(1.0) as usize;
        let mut runs: Vec<WidthRun> = Vec::new();
        for step in 0..steps {
            let position = 1.0 - left * (1.0 - (step as f64 + 0.5) / steps as f64);
            let subnet = rung.subnet_at(((position * rung.steps as f64) as usize).min(rung.steps - 1));
            match runs.last_mut() {
                Some(last) if last.subnet == *subnet => last.steps += 1,
                _ => runs.push(WidthRun { subnet: subnet.clone(), steps: 1 }),
            }
        }
        runs
    }
}

/// An image that something leads, or nothing.
fn one(is_guided: bool) -> Load {
    Load::new(1.0, if is_guided { 2 } else { 1 })
}

/// Evaluations of `plan` after `done` steps, by the kind of their calls.
///
/// # Errors
/// [`Error::Input`] for a subnet that `times` does not know.
pub fn calls(plan: &Plan, done: usize, is_guided: bool, times: &StepTimes) -> Result<Vec<(Kind, usize)>> {
    if let Some(name) = plan.subnets().find(|name| times.subnet(name).is_none()) {
        return Err(Error::input("frontier", format!("{plan} uses {name}, which the model lacks")));
    }
    let mut calls: Vec<(Kind, usize)> = Vec::new();
    for step in done.max(plan.made().start)..plan.steps {
        let kind = times.kind(plan, step, is_guided).expect("its subnets are known");
        match calls.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += plan.evaluations_at(step),
            None => calls.push((kind, plan.evaluations_at(step))),
        }
    }
    Ok(calls)
}

/// The time of these evaluations in efficient batches, in seconds as they were measured.
pub fn seconds(calls: &[(Kind, usize)], times: &StepTimes) -> f64 {
    calls.iter().map(|&(kind, count)| count as f64 * times.measured_row(kind)).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 0.250 at 1 ms a sample, 0.500 at 2 ms and full at 4 ms; batches bring nothing.
    pub fn times() -> StepTimes {
        let row = |name: &str, ms: f64| (name.to_owned(), vec![(1, ms / 1e3), (8, 8.0 * ms / 1e3)]);
        StepTimes::new([row("0.250", 1.0), row("0.500", 2.0), row("full", 4.0)], 8)
    }

    /// A frontier of five plans: 2, 4, 12, 32 and 140 ms.
    pub fn ladder() -> Ladder {
        let plans = [
            ("dpmpp2m-2@0.250", 0.6),
            ("dpmpp2m-4@0.250", 0.8),
            ("dpmpp2m-6@0.500", 0.9),
            ("dpmpp2m-8@full", 0.96),
            ("heun-18@full", 1.0),
        ];
        Ladder::new(plans.map(|(plan, quality)| (plan.parse().unwrap(), quality)), &times()).unwrap()
    }

    #[test]
    fn a_rung_knows_its_calls_and_its_times() {
        let ladder = ladder();
        let times: Vec<f64> = ladder.rungs().iter().map(|rung| (rung.cost.seconds * 1e6).round() / 1e3).collect();
        assert_eq!(times, [2.0, 4.0, 12.0, 32.0, 140.0]);
        assert_eq!(ladder.best().calls, [(2, 35)]);
    }

    #[test]
    fn a_quality_finds_the_fastest_plan_that_has_it() {
        let ladder = ladder();
        let found = [0.0, 0.6, 0.61, 0.9, 0.97, 1.0, 2.0].map(|quality| ladder.at_least(quality));
        assert_eq!(found, [0, 0, 1, 2, 4, 4, 4]);
    }

    #[test]
    fn the_rest_of_a_plan_is_its_share_of_a_rung() {
        let ladder = ladder();
        let rest = |index, plan: &str, done| {
            let runs = ladder.rest(index, &plan.parse().unwrap(), done);
            runs.iter().map(|run| format!("{}*{}", run.subnet, run.steps)).collect::<Vec<_>>().join(",")
        };
        assert_eq!(rest(1, "dpmpp2m-8@full", 4), "0.250*2");
        assert_eq!(rest(1, "dpmpp2m-8@full", 7), "0.250*1");
        assert_eq!(rest(2, "heun-18@full", 9), "0.500*2");
        assert_eq!(rest(4, "dpmpp2m-8@full", 4), "full*18");
    }

    #[test]
    fn what_is_known_of_a_quality_is_said_and_no_more() {
        let (ladder, times) = (ladder(), times());
        let plan = |text: &str| text.parse::<Plan>().unwrap();
        assert_eq!(ladder.quality(&plan("dpmpp2m-6@0.500")), Some(0.9));
        assert_eq!(ladder.quality(&plan("dpmpp2m-5@0.500")), None);
        assert_eq!(ladder.estimate(&plan("dpmpp2m-6@0.500"), &times), Some(0.9));
        assert_eq!(ladder.estimate(&plan("dpmpp2m-6@full*4,0.250*2~respace=4/8"), &times), Some(0.9), "18 ms");
        assert_eq!(ladder.estimate(&plan("euler-1@0.250"), &times), Some(0.6), "less than the fastest");
    }

    #[test]
    fn a_narrower_decoder_is_a_rung_of_its_own() {
        let times = times().with_codec(0.0, vec![("0.500".to_owned(), 0.003), ("full".to_owned(), 0.006)]);
        let plans =
            [("dpmpp2m-4@0.250", 0.8), ("dpmpp2m-4@0.250~decode=0.5", 0.7), ("dpmpp2m-6@0.250~decode=0.5", 0.79)];
        let ladder = Ladder::new(plans.map(|(plan, quality)| (plan.parse().unwrap(), quality)), &times).unwrap();
        let rungs: Vec<(String, f64)> =
            ladder.rungs().iter().map(|rung| (rung.plan.to_string(), (rung.alone * 1e6).round() / 1e3)).collect();
        let want =
            [("dpmpp2m-4@0.250~decode=0.500", 7.0), ("dpmpp2m-6@0.250~decode=0.500", 9.0), ("dpmpp2m-4@0.250", 10.0)];
        assert_eq!(rungs, want.map(|(plan, ms)| (plan.to_owned(), ms)));
        assert_eq!(ladder.estimate(&"euler-5@0.250~decode=0.5".parse().unwrap(), &times), Some(0.7), "8 ms");
        let error = Ladder::new([("euler-2@full~decode=0.3".parse().unwrap(), 1.0)], &times).unwrap_err().to_string();
        assert_eq!(error, "frontier: euler-2@full~decode=0.300 decodes by 0.300, which the model lacks");
    }

    #[test]
    fn a_plan_of_an_unknown_subnet_is_refused_with_its_name() {
        let error = Ladder::new([("euler-2@0.333".parse().unwrap(), 1.0)], &times()).unwrap_err();
        assert!(error.to_string().contains("euler-2@0.333 uses 0.333"), "{error}");
        assert!(Ladder::new([], &times()).is_err());
    }

    proptest! {
        #[test]
        fn no_rung_is_beaten_on_both_time_and_quality(
            rows in prop::collection::vec((1usize..30, 0usize..3, 0.0f64..1.0), 1..40)
        ) {
            let plan = |steps, subnet: usize| format!("euler-{steps}@{}", ["0.250", "0.500", "full"][subnet]);
            let plans: Vec<(Plan, f64)> =
                rows.iter().map(|&(steps, subnet, quality)| (plan(steps, subnet).parse().unwrap(), quality)).collect();
            let ladder = Ladder::new(plans.clone(), &times()).unwrap();
            let ascending = |pair: &[Rung]| pair[0].cost.seconds < pair[1].cost.seconds && pair[0].quality < pair[1].quality;
            prop_assert!(ladder.rungs().windows(2).all(ascending));
            let best = plans.iter().map(|(_, quality)| *quality).fold(0.0, f64::max);
            prop_assert!(ladder.best().quality >= best - EPSILON);
        }
    }
}
