//! Which plans are worth measuring.

use crate::diffusion::{Plan, Solver, WidthRun};
use std::collections::BTreeSet;

/// A solver and its steps.
pub type Shape = (Solver, usize);

/// Steps of DPM-Solver++(2M), which has most of the frontier.
const DPM: [usize; 12] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 24];
/// Steps of Heun, two calls each; fewer leave the image's range.
const HEUN: [usize; 6] = [5, 6, 8, 10, 12, 18];
/// Steps of Euler, whose first two are those of DPM-Solver++(2M).
const EULER: [usize; 5] = [3, 4, 8, 12, 18];
/// Steps of DPM-Solver++(2M) in the order in which they are worth measuring when time is short.
const DPM_QUICK: [usize; 7] = [8, 4, 2, 12, 6, 3, 18];

/// Every solver at sensible steps.
pub fn shapes() -> Vec<Shape> {
    let of = |solver, steps: &[usize]| steps.iter().map(|&steps| (solver, steps)).collect::<Vec<_>>();
    [of(Solver::DpmPp2m, &DPM), of(Solver::Heun, &HEUN), of(Solver::Euler, &EULER)].concat()
}

/// The plans of one subnet for all steps: every shape on every subnet.
pub fn constants(shapes: &[Shape], subnets: &[&str]) -> Vec<Plan> {
    let on = |&(solver, steps): &Shape| subnets.iter().map(move |subnet| uniform(solver, steps, subnet));
    shapes.iter().flat_map(on).collect()
}

/// A few plans that span the frontier, the most telling first.
pub fn quick(subnets: &[&str]) -> Vec<Plan> {
    constants(&DPM_QUICK.map(|steps| (Solver::DpmPp2m, steps)), &spread(subnets))
}

/// The shapes of these plans, each once.
pub fn shapes_of<'a>(plans: impl IntoIterator<Item = &'a Plan>) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = Vec::new();
    for plan in plans {
        if !shapes.contains(&(plan.solver, plan.steps)) {
            shapes.push((plan.solver, plan.steps));
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
    for &(solver, steps) in shapes.iter().filter(|(_, steps)| *steps >= 2) {
        let splits = BTreeSet::from([(steps + 1) / 3, (2 * steps + 1) / 3].map(|split| split.clamp(1, steps - 1)));
        for first in &subnets {
            for then in subnets.iter().filter(|then| *then != first) {
                plans.extend(splits.iter().map(|&split| changing(solver, steps, [first, then], split)));
            }
        }
    }
    plans
}

/// The narrowest, the middle and the widest of them, narrow to wide; fewer where there are not so many.
fn spread<'a>(subnets: &[&'a str]) -> Vec<&'a str> {
    let last = subnets.len() - 1;
    BTreeSet::from([0, last / 2, last]).into_iter().map(|index| subnets[index]).collect()
}

fn uniform(solver: Solver, steps: usize, subnet: &str) -> Plan {
    Plan::constant(solver, steps, subnet).expect("steps in range and the name of a subnet")
}

fn changing(solver: Solver, steps: usize, subnets: [&str; 2], split: usize) -> Plan {
    let widths = subnets.into_iter().zip([split, steps - split]);
    let run =
        |(subnet, steps): (&str, usize)| WidthRun { subnet: subnet.parse().expect("the name of a subnet"), steps };
    let widths = widths.map(run).collect();
    Plan { widths, ..uniform(solver, steps, subnets[0]) }
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
        let mut plans = texts(constants(&shapes(), &SUBNETS));
        plans.extend(texts(schedules(&shapes(), &SUBNETS)));
        for plan in &plans {
            assert_eq!(plan.parse::<Plan>().unwrap().to_string(), *plan);
        }
        let all: BTreeSet<&String> = plans.iter().collect();
        assert_eq!(all.len(), plans.len());
        assert!(plans.contains(&super::super::quality::REFERENCE.to_owned()));
    }

    #[test]
    fn width_schedules_change_at_about_a_third_and_two_thirds() {
        let plans = texts(schedules(&[(Solver::DpmPp2m, 6)], &["0.250", "0.375", "0.500", "0.750", "full"]));
        let pairs = |[a, b]: [&str; 2]| [format!("dpmpp2m-6@{a}*2,{b}*4"), format!("dpmpp2m-6@{a}*4,{b}*2")];
        let [narrow, middle, wide] = ["0.250", "0.500", "full"];
        let order =
            [[narrow, middle], [narrow, wide], [middle, narrow], [middle, wide], [wide, narrow], [wide, middle]];
        assert_eq!(plans, order.map(pairs).concat());
        let splits = |steps| texts(schedules(&[(Solver::Heun, steps)], &["0.500", "full"]))[..2].to_vec();
        assert_eq!(splits(3), ["heun-3@0.500*1,full*2", "heun-3@0.500*2,full*1"]);
        assert_eq!(splits(2), ["heun-2@0.500*1,full*1", "heun-2@full*1,0.500*1"]);
        assert!(schedules(&[(Solver::Euler, 1)], &SUBNETS).is_empty());
        assert!(schedules(&shapes(), &["full"]).is_empty());
    }

    #[test]
    fn the_quick_plans_are_the_most_telling_first() {
        let plans = texts(quick(&SUBNETS));
        assert_eq!(plans[..4], ["dpmpp2m-8@0.250", "dpmpp2m-8@0.500", "dpmpp2m-8@full", "dpmpp2m-4@0.250"]);
        assert_eq!(texts(quick(&["full"])).len(), DPM_QUICK.len());
    }

    #[test]
    fn shapes_are_taken_from_plans_once() {
        let plans = ["heun-3@full", "heun-3@0.500", "euler-3@full"].map(|text| text.parse().unwrap());
        assert_eq!(shapes_of(&plans), [(Solver::Heun, 3), (Solver::Euler, 3)]);
    }
}
