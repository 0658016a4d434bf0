//! Which plans are worth serving: those that no other beats on both time and quality.

use crate::diffusion::Plan;

/// Plans of less quality are left out: the mean image of a class, which no request asks for, has 0.5.
pub const FLOOR: f64 = 0.5;
/// A plan that is better than a cheaper one by less is left out: the eye does not see it, a fixed set of some tens of
/// images does not prove it, and a router has one row less to look through.
pub const EPSILON: f64 = 0.005;
/// The most plans of a frontier.
pub const ROWS: usize = 24;

/// A plan that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The plan.
    pub plan: Plan,
    /// The time of an image alone, in milliseconds.
    pub ms: f64,
    /// Its quality, as [`super::quality::Yardstick::quality`] has it.
    pub quality: f64,
}

/// The time of an image that is drawn with `plan`, where `call` gives the time of a subnet's call; `None` if it does
/// not know a subnet.
pub fn time_of(plan: &Plan, call: impl Fn(&str) -> Option<f64>) -> Option<f64> {
    (0..plan.steps).map(|step| Some(plan.evaluations_at(step) as f64 * call(plan.subnet_at(step))?)).sum()
}

/// The points that no other beats on both time and quality, ascending in both; of those, the ones of at least
/// [`FLOOR`] (or all, where none has that much), each better than the one before by [`EPSILON`], at most [`ROWS`]. The
/// cheapest and the best of them are always kept.
pub fn pareto(mut points: Vec<Point>) -> Vec<Point> {
    points.retain(|point| point.ms.is_finite() && point.quality.is_finite());
    if points.iter().any(|point| point.quality >= FLOOR) {
        points.retain(|point| point.quality >= FLOOR);
    }
    points.sort_by(|a, b| a.ms.total_cmp(&b.ms).then(b.quality.total_cmp(&a.quality)));
    let mut best = f64::NEG_INFINITY;
    points.retain(|point| {
        let better = point.quality > best;
        best = best.max(point.quality);
        better
    });
    let last = points.pop();
    let mut kept: Vec<Point> = Vec::new();
    for point in points {
        if kept.last().is_none_or(|before| point.quality >= before.quality + EPSILON) {
            kept.push(point);
        }
    }
    kept.extend(last);
    while kept.len() > ROWS {
        let gain = |&index: &usize| kept[index].quality - kept[index - 1].quality;
        let least = (1..kept.len() - 1).min_by(|a, b| gain(a).total_cmp(&gain(b)));
        kept.remove(least.expect("more rows than two"));
    }
    kept
}
