//! Which plans are worth measuring.

use super::frontier::ROWS;
use super::yardstick::Metric;
use crate::diffusion::plan::PlannedGuide;
use crate::diffusion::{Plan, Solver, WidthRun};
use crate::subnet_name::{FULL, SubnetName};
use std::collections::BTreeSet;

/// Steps of DPM-Solver++(2M), which has most of the frontier.
const DPM: [usize; 12] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 24];
/// Steps of Heun, two calls each; fewer leave the image's range.
const HEUN: [usize; 6] = [5, 6, 8, 10, 12, 18];
/// Steps of Euler, whose first two are those of DPM-Solver++(2M).
const EULER: [usize; 5] = [3, 4, 8, 12, 18];
/// Steps of DPM-Solver++(2M) in the order in which they are worth measuring when time is short.
const DPM_QUICK: [usize; 7] = [8, 4, 2, 12, 6, 3, 18];
/// Steps up to which a quick survey tries a narrower decoder.
const FEW: usize = 8;
/// Steps of DPM-Solver++(2M) between those, where the question is how real images look.
const DPM_BETWEEN: [usize; 2] = [7, 9];
/// Calls above which the question is not asked. Measured on the shipped model: of 15 plans none of more is better than 8.
const MOST_CALLS: usize = 15;
/// A last noise level that is tried beside the model's own: what is below it a network often draws worse than it leaves out. Measured
/// on the shipped model: 0.1 is no better at 8 steps.
const LAST: f64 = 0.05;
/// Steps from which that can pay: at 3 steps of a narrow subnet 0.1 is three times as far from real images.
const LAST_FROM: usize = 5;
/// The share of noise that is drawn anew, which forgets the errors of earlier steps. Measured: 0.5 is no better, and Heun's churn far
/// worse.
const ETA: f64 = 1.0;
/// Steps from which that can pay.
const ETA_FROM: usize = 6;

/// The scales of guidance by a narrower subnet that are tried.
pub const AUTO_SCALES: [f64; 2] = [1.5, 2.0];

/// A plan but for its widths: those that it has do not count.
pub type Shape = Plan;

/// Every solver at sensible steps, and what else may pay by this metric.
pub fn shapes(metric: Metric) -> Vec<Shape> {
    let of = |solver, steps: &[usize]| steps.iter().map(|&steps| uniform(solver, steps)).collect::<Vec<_>>();
    let (dpm, heun, euler) = (of(Solver::DpmPp2m, &DPM), of(Solver::Heun, &HEUN), of(Solver::Euler, &EULER));
    let mut shapes = [dpm, heun, euler].concat();
    // Nothing is nearer to a reference that is drawn without noise and down to the model's own last level.
    if metric == Metric::Fd {
        shapes.retain(|shape| shape.evaluations() <= MOST_CALLS);
        shapes.extend(of(Solver::DpmPp2m, &DPM_BETWEEN));
        let with_last = |shape: &Shape| Shape { last: Some(LAST), ..shape.clone() };
        shapes.extend(shapes.iter().filter(|shape| shape.steps >= LAST_FROM).map(with_last).collect::<Vec<_>>());
        let stochastic = |shape: &&Shape| shape.solver == Solver::DpmPp2m && shape.steps >= ETA_FROM;
        let with_eta = |shape: &Shape| Shape { eta: ETA, ..shape.clone() };
        shapes.extend(shapes.iter().filter(stochastic).map(with_eta).collect::<Vec<_>>());
    }
    shapes
}

/// The share of the shapes, one in so many, that is tried at other widths than full.
pub const GOOD: usize = 3;

/// About how many plans a search tries on a model of so many subnets, and so many of its decoder, where as many shapes are on the frontier as
/// half of it has rows.
pub fn about_as_many(metric: Metric, subnets: usize, decoders: usize) -> usize {
    /// Of a shape: six pairs of widths that change at two places.
    const SCHEDULES: usize = 12;
    let shapes = shapes(metric).len();
    /// Of a plan on the frontier: two subnets that may guide it, at each scale.
    const GUIDES: usize = 2 * AUTO_SCALES.len();
    let guides = if metric == Metric::Fd { ROWS / 2 * GUIDES } else { 0 };
    let decoded = ROWS / 2 * decoders.saturating_sub(1);
    let narrower = if subnets > 1 { ROWS / 2 * SCHEDULES + guides } else { 0 };
    shapes + shapes.div_ceil(GOOD) * (subnets - 1) + narrower + decoded
}

/// The plans of one subnet for all steps: every shape on every subnet.
pub fn constants(shapes: &[Shape], subnets: &[&str]) -> Vec<Plan> {
    let on = |shape: &Shape| subnets.iter().map(|subnet| changing(shape, &[(subnet, shape.steps)])).collect::<Vec<_>>();
    shapes.iter().flat_map(on).collect()
}

/// A few plans that span the frontier, the most telling first; at last those of few steps by the narrowest decoder too, whose time is most of
/// theirs.
pub fn quick(subnets: &[&str], decoders: &[SubnetName]) -> Vec<Plan> {
    let plans = constants(&DPM_QUICK.map(|steps| uniform(Solver::DpmPp2m, steps)), &spread(subnets));
    let narrowest = decoders.first().filter(|decoder| !decoder.is_full());
    let few: Vec<Plan> = plans.iter().filter(|plan| plan.steps <= FEW).cloned().collect();
    let narrower = narrowest.map_or_else(Vec::new, |narrowest| self::decoders(&few, std::slice::from_ref(narrowest)));
    [plans, narrower].concat()
}

/// The shapes of these plans, each once.
pub fn shapes_of<'a>(plans: impl IntoIterator<Item = &'a Plan>) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = Vec::new();
    for plan in plans {
        let shape = Shape { widths: uniform(plan.solver, plan.steps).widths, ..plan.clone() };
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    shapes
}

/// Plans of two widths that change at about a third and two thirds of the steps: every shape on the pairs of the
/// narrowest, the middle and the widest subnet. Either may come first: the narrow one saves most where the network does
/// least, which may be at high noise or in the last steps.
pub fn schedules(shapes: &[Shape], subnets: &[&str]) -> Vec<Plan> {
    let subnets = spread(subnets);
    let mut plans = Vec::new();
    for shape in shapes.iter().filter(|shape| shape.steps >= 2) {
        let steps = shape.steps;
        let splits = BTreeSet::from([(steps + 1) / 3, (2 * steps + 1) / 3].map(|split| split.clamp(1, steps - 1)));
        for first in &subnets {
            for then in subnets.iter().filter(|then| *then != first) {
                plans.extend(splits.iter().map(|&split| changing(shape, &[(first, split), (then, steps - split)])));
            }
        }
    }
    plans
}

/// These plans with each of the narrowest and the middle subnet for a guide, where it is narrower than what it guides; at each scale of
/// guidance of a plan's own.
pub fn guides(plans: &[Plan], subnets: &[&str], scales: &[Option<f64>]) -> Vec<Plan> {
    let place = |name: &str| subnets.iter().position(|subnet| *subnet == name);
    let guided = |plan: &Plan, name: &str, auto: Option<f64>| {
        let guide = PlannedGuide { subnet: name.parse().expect("the name of a subnet"), auto };
        Plan { guide: Some(guide), ..plan.clone() }
    };
    let narrower = |plan: &Plan| {
        let narrowest = plan.widths.iter().filter_map(|run| place(&run.subnet)).min().unwrap_or(0);
        spread(subnets).into_iter().filter(move |name| place(name) < Some(narrowest))
    };
    let of = |plan: &Plan| {
        narrower(plan)
            .flat_map(|name| scales.iter().map(move |&auto| (name, auto)))
            .map(|(name, auto)| guided(plan, name, auto))
            .collect::<Vec<_>>()
    };
    plans.iter().flat_map(of).collect()
}

/// These plans with each narrower decoder than the full one, which is the last of them. There are few: a decode is a large part of a fast
/// plan's time, so that each may be worth it to another.
pub fn decoders(plans: &[Plan], decoders: &[SubnetName]) -> Vec<Plan> {
    let narrower = decoders.iter().filter(|decoder| !decoder.is_full());
    let by =
        |plan: &Plan| narrower.clone().map(|name| Plan { decode: name.clone(), ..plan.clone() }).collect::<Vec<_>>();
    plans.iter().flat_map(by).collect()
}

/// The narrowest, the middle and the widest of them, narrow to wide; fewer where there are not so many.
fn spread<'a>(subnets: &[&'a str]) -> Vec<&'a str> {
    let last = subnets.len() - 1;
    BTreeSet::from([0, last / 2, last]).into_iter().map(|index| subnets[index]).collect()
}

fn uniform(solver: Solver, steps: usize) -> Shape {
    Plan::constant(solver, steps, FULL).expect("steps in range")
}

/// The shape on subnets for so many steps each.
fn changing(shape: &Shape, runs: &[(&str, usize)]) -> Plan {
    let run =
        |&(subnet, steps): &(&str, usize)| WidthRun { subnet: subnet.parse().expect("the name of a subnet"), steps };
    Plan { widths: runs.iter().map(run).collect(), ..shape.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBNETS: [&str; 4] = ["0.250", "0.500", "0.750", "full"];

    fn texts(plans: Vec<Plan>) -> Vec<String> {
        plans.iter().map(Plan::to_string).collect()
    }

    #[test]
    fn every_candidate_is_another_plan() {
        for metric in Metric::ALL {
            let mut plans = texts(constants(&shapes(metric), &SUBNETS));
            plans.extend(texts(schedules(&shapes(metric), &SUBNETS)));
            for plan in &plans {
                assert_eq!(plan.parse::<Plan>().unwrap().to_string(), *plan);
            }
            let all: BTreeSet<&String> = plans.iter().collect();
            assert_eq!(all.len(), plans.len());
            let reference = super::super::to_reference::REFERENCE.to_owned();
            assert_eq!(plans.contains(&reference), metric == Metric::MseToReference);
        }
    }

    #[test]
    fn width_schedules_change_at_about_a_third_and_two_thirds() {
        let plans = texts(schedules(&[uniform(Solver::DpmPp2m, 6)], &["0.250", "0.375", "0.500", "0.750", "full"]));
        let pairs = |[a, b]: [&str; 2]| [format!("dpmpp2m-6@{a}*2,{b}*4"), format!("dpmpp2m-6@{a}*4,{b}*2")];
        let [narrow, middle, wide] = ["0.250", "0.500", "full"];
        let order =
            [[narrow, middle], [narrow, wide], [middle, narrow], [middle, wide], [wide, narrow], [wide, middle]];
        assert_eq!(plans, order.map(pairs).concat());
        let splits = |steps| texts(schedules(&[uniform(Solver::Heun, steps)], &["0.500", "full"]))[..2].to_vec();
        assert_eq!(splits(3), ["heun-3@0.500*1,full*2", "heun-3@0.500*2,full*1"]);
        assert_eq!(splits(2), ["heun-2@0.500*1,full*1", "heun-2@full*1,0.500*1"]);
        assert!(schedules(&[uniform(Solver::Euler, 1)], &SUBNETS).is_empty());
        assert!(schedules(&shapes(Metric::Fd), &["full"]).is_empty());
    }

    #[test]
    fn guides_are_narrower_than_what_they_guide() {
        let plans = ["euler-4@full", "euler-4@0.500*2,full*2", "euler-4@0.250"].map(|text| text.parse().unwrap());
        let subnets = ["0.250", "0.500", "full"];
        assert_eq!(
            texts(guides(&plans, &subnets, &[None])),
            ["euler-4@full^0.250", "euler-4@full^0.500", "euler-4@0.500*2,full*2^0.250"]
        );
        let auto = texts(guides(&plans[1..], &subnets, &AUTO_SCALES.map(Some)));
        assert_eq!(auto, ["euler-4@0.500*2,full*2^auto:0.250", "euler-4@0.500*2,full*2^auto:0.250*2"]);
    }

    #[test]
    fn every_narrower_decoder_is_tried() {
        let plans = ["euler-4@full", "euler-4@0.500"].map(|text| text.parse().unwrap());
        let found = texts(decoders(&plans, &[0.5, 0.75, 1.0].map(SubnetName::of)));
        let of = |plan: &str| ["0.500", "0.750"].map(|decoder| format!("{plan}~decode={decoder}"));
        assert_eq!(found, [of("euler-4@full"), of("euler-4@0.500")].concat());
        assert!(decoders(&plans, &[SubnetName::full()]).is_empty() && decoders(&plans, &[]).is_empty());
    }

    #[test]
    fn the_quick_plans_are_the_most_telling_first() {
        let plans = texts(quick(&SUBNETS, &[]));
        assert_eq!(plans[..4], ["dpmpp2m-8@0.250", "dpmpp2m-8@0.500", "dpmpp2m-8@full", "dpmpp2m-4@0.250"]);
        assert_eq!(texts(quick(&["full"], &[SubnetName::full()])).len(), DPM_QUICK.len());
        let decoders = [0.5, 0.75, 1.0].map(SubnetName::of);
        let plans = texts(quick(&["full"], &decoders));
        assert_eq!((plans.len(), &*plans[0]), (7 + 5, "dpmpp2m-8@full"));
        let narrower = [8, 4, 2, 6, 3].map(|steps| format!("dpmpp2m-{steps}@full~decode=0.500"));
        assert_eq!(plans[7..], narrower);
    }

    #[test]
    fn shapes_are_taken_from_plans_once() {
        let plans = ["heun-3@full", "heun-3@0.500", "euler-3@full"].map(|text| text.parse().unwrap());
        assert_eq!(shapes_of(&plans), [uniform(Solver::Heun, 3), uniform(Solver::Euler, 3)]);
    }
}
