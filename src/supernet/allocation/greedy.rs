//! Allocation to a cost: the channels that are worth the most for what they cost, first.

use super::cost::CostModel;
use super::{Constraint, Cost, check_importance, check_ratio};
use crate::supernet::{Spec, Widths};
use crate::{Error, Result};

/// How far the realised cost may be from the asked one, as a share of the asked one.
pub const TOLERANCE: f64 = 0.02;

/// Widths whose cost is each of `ratios` of the full network's, within [`TOLERANCE`]; answered in the order asked.
///
/// From the floor of every pipe, rounded up to the pipe's [`Constraint::quantum`], the step (one quantum of one pipe)
/// with the most importance for its cost is added again and again; equal steps go to the pipe that keeps the smaller
/// share. Importances are compared across pipes as they are, not normalised: a pipe that matters more is to grow sooner.
/// All ratios stop along this one climb, each at the stop nearest to it, so subnets nest and a larger ratio never
/// costs less. Where the next step is so coarse that neither side of it is near enough, the best steps that still fit
/// go before it. Ratio 1 is the full network.
///
/// # Errors
/// [`Error::Input`] for a ratio outside (0, 1], one below [`smallest_ratio`], or one that the quanta are too coarse to
/// meet (the message names the nearest that are reachable); for an align of 0; for importances that do not fit the pipes.
pub fn greedy(
    spec: &Spec,
    importance: &[Vec<f64>],
    target: Cost,
    ratios: &[f64],
    constraint: Constraint,
) -> Result<Vec<Widths>> {
    ratios.iter().try_for_each(|&ratio| check_ratio(ratio))?;
    constraint.check()?;
    check_importance(spec, importance)?;
    let model = CostModel::new(spec, target);
    let full = model.total(&spec.full().0) as f64;
    let mut climb = Climb::new(spec, importance, &model, constraint);

    let mut ascending: Vec<usize> = (0..ratios.len()).collect();
    ascending.sort_by(|&a, &b| ratios[a].total_cmp(&ratios[b]));
    let mut answers = vec![Widths(Vec::new()); ratios.len()];
    for index in ascending {
        let ratio = ratios[index];
        let refuse = |problem| Error::input("--ratios", format!("{ratio:.3} of the {target} cannot be {problem}"));
        let asked = ratio * full;
        if climb.cost > asked && !near(climb.cost, asked) {
            return Err(refuse(format!(
                "reached, since pipes keep {} of themselves (--floor), and resampling blocks and skips stay whole; \
                 the smallest reachable ratio is {:.3}",
                constraint.floor,
                climb.cost / full
            )));
        }
        climb.advance(asked).map_err(|(below, above)| {
            refuse(format!(
                "met within {:.0} %, since pipes widen by many channels at once; \
                 the nearest reachable ratios are {:.3} and {:.3}",
                TOLERANCE * 100.0,
                below / full,
                above / full
            ))
        })?;
        answers[index] = Widths(climb.widths.clone());
    }
    Ok(answers)
}

/// The ratio of the narrowest network that [`greedy`] gives: the floor of every pipe, rounded up to its quantum.
pub fn smallest_ratio(spec: &Spec, target: Cost, constraint: Constraint) -> f64 {
    let model = CostModel::new(spec, target);
    model.total(&narrowest(spec, constraint)) as f64 / model.total(&spec.full().0) as f64
}

fn narrowest(spec: &Spec, constraint: Constraint) -> Vec<usize> {
    let kept = |pipe: &crate::supernet::Pipe| {
        let floor = (constraint.floor * pipe.width as f64).ceil() as usize;
        floor.next_multiple_of(constraint.quantum(pipe).max(1)).min(pipe.width)
    };
    spec.pipes.iter().map(kept).collect()
}

fn near(cost: f64, asked: f64) -> bool {
    (cost - asked).abs() <= TOLERANCE * asked
}

/// A network on its way from the narrowest to the full one.
struct Climb<'a> {
    spec: &'a Spec,
    importance: &'a [Vec<f64>],
    model: &'a CostModel,
    constraint: Constraint,
    widths: Vec<usize>,
    /// What `widths` cost: a whole number, which a float holds exactly up to 2^53.
    cost: f64,
}

/// One quantum more of one pipe.
struct Step {
    pipe: usize,
    to: usize,
    cost: f64,
    /// Importance for cost.
    worth: f64,
    /// Share of the pipe that is kept before it.
    kept: f64,
}

impl<'a> Climb<'a> {
    fn new(spec: &'a Spec, importance: &'a [Vec<f64>], model: &'a CostModel, constraint: Constraint) -> Self {
        let widths = narrowest(spec, constraint);
        let cost = model.total(&widths) as f64;
        Self { spec, importance, model, constraint, widths, cost }
    }

    /// Climbs to the stop nearest to `asked`, or says what the stops below and above it cost.
    fn advance(&mut self, asked: f64) -> std::result::Result<(), (f64, f64)> {
        let mut too_coarse = vec![false; self.widths.len()];
        let mut around = None;
        loop {
            // Once a step had to be passed over, every further one departs from the climb: go no further than needed.
            if around.is_some() && near(self.cost, asked) {
                return Ok(());
            }
            let Some(step) = self.best(&too_coarse) else { break };
            let after = self.cost + step.cost;
            if after <= asked {
                self.take(&step);
                continue;
            }
            around.get_or_insert((self.cost, after));
            if near(self.cost, asked) || near(after, asked) {
                if after - asked < asked - self.cost {
                    self.take(&step);
                }
                return Ok(());
            }
            too_coarse[step.pipe] = true;
        }
        if near(self.cost, asked) { Ok(()) } else { Err(around.unwrap_or((self.cost, self.cost))) }
    }

    fn best(&self, passed_over: &[bool]) -> Option<Step> {
        let steps = (0..self.widths.len()).filter(|&pipe| !passed_over[pipe]).filter_map(|pipe| self.step(pipe));
        // `min_by` keeps the first of equals, so the rest is decided by forward order.
        steps.min_by(|a, b| b.worth.total_cmp(&a.worth).then(a.kept.total_cmp(&b.kept)))
    }

    fn step(&self, pipe: usize) -> Option<Step> {
        let (from, full) = (self.widths[pipe], self.spec.pipes[pipe].width);
        if from == full {
            return None;
        }
        let to = (from + self.constraint.quantum(&self.spec.pipes[pipe])).min(full);
        let cost = self.model.gain(&self.widths, pipe, to) as f64;
        let gain: f64 = self.importance[pipe][from..to].iter().sum();
        // What costs nothing comes first, be it worth anything or not.
        let worth = if cost > 0.0 { gain / cost } else { f64::INFINITY };
        Some(Step { pipe, to, cost, worth, kept: from as f64 / full as f64 })
    }

    fn take(&mut self, step: &Step) {
        self.widths[step.pipe] = step.to;
        self.cost += step.cost;
    }
}
