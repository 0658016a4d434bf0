//! Which plans are worth serving: those that no other beats on both time and quality.

use super::yardstick::Rating;
use crate::diffusion::Plan;
use std::collections::BTreeMap;

/// A plan that is better than a cheaper one by less is left out: the eye does not see it, and a router has one row less to
/// look through.
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
    /// How good it is.
    pub rating: Rating,
}

impl Point {
    fn quality(&self) -> f64 {
        self.rating.quality
    }

    /// Whether it is so much better than a cheaper one that it is worth its time: by more than the larger of the two standard
    /// errors, and by [`EPSILON`].
    pub fn outdoes(&self, cheaper: &Self) -> bool {
        let doubt = self.rating.error.max(cheaper.rating.error).max(EPSILON);
        self.quality() >= cheaper.quality() + doubt
    }
}

/// The time of an image that is drawn with `plan`, where `call` gives the time of a subnet's call; `None` if it does
/// not know a subnet. Something leads the image, or nothing but what the plan itself has.
pub fn time_of(plan: &Plan, guided: bool, call: impl Fn(&str) -> Option<f64>) -> Option<f64> {
    // Summed by subnet: the same calls in another order must take the same time to the bit, or both orders stay.
    let mut calls: BTreeMap<&str, usize> = BTreeMap::new();
    for step in plan.made() {
        let by = plan.guide_at(step, guided.then_some(1.0)).map(|(subnet, _)| subnet);
        for subnet in [Some(plan.subnet_at(step)), by].into_iter().flatten() {
            *calls.entry(subnet).or_default() += plan.evaluations_at(step);
        }
    }
    calls.into_iter().map(|(subnet, calls)| Some(calls as f64 * call(subnet)?)).sum()
}

/// The points that no other beats on both time and quality, ascending in both; of those, the ones of at least `floor` (or
/// all, where none has that much), each of which [outdoes](Point::outdoes) the one before and is better than every cheaper
/// point, at most [`ROWS`].
pub fn pareto(mut points: Vec<Point>, floor: f64) -> Vec<Point> {
    points.retain(|point| point.ms.is_finite() && point.quality().is_finite());
    if points.iter().any(|point| point.quality() >= floor) {
        points.retain(|point| point.quality() >= floor);
    }
    points.sort_by(|a, b| a.ms.total_cmp(&b.ms).then(b.quality().total_cmp(&a.quality())));
    let (mut kept, mut best) = (Vec::<Point>::new(), f64::NEG_INFINITY);
    for point in points {
        // What was left out for its doubt counts too: each row is better than all that is cheaper.
        let is_better = point.quality() > best;
        best = best.max(point.quality());
        if is_better && kept.last().is_none_or(|before| point.outdoes(before)) {
            kept.push(point);
        }
    }
    while kept.len() > ROWS {
        let gain = |&index: &usize| kept[index].quality() - kept[index - 1].quality();
        let least = (1..kept.len() - 1).min_by(|a, b| gain(a).total_cmp(&gain(b)));
        kept.remove(least.expect("more rows than two"));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FLOOR: f64 = 0.6;

    fn point(ms: f64, quality: f64) -> Point {
        doubtful(ms, quality, 0.0)
    }

    fn doubtful(ms: f64, quality: f64, error: f64) -> Point {
        Point { plan: "euler-1@full".parse().unwrap(), ms, rating: Rating { distance: 1.0 - quality, quality, error } }
    }

    fn kept(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let points = points.iter().map(|&(ms, quality)| point(ms, quality)).collect();
        pareto(points, FLOOR).into_iter().map(|point| (point.ms, point.quality())).collect()
    }

    #[test]
    fn what_another_plan_beats_is_left_out() {
        let points = [(3.0, 0.9), (1.0, 0.6), (2.0, 0.6), (4.0, 0.8), (3.0, 0.95), (9.0, 1.0)];
        assert_eq!(kept(&points), [(1.0, 0.6), (3.0, 0.95), (9.0, 1.0)]);
    }

    #[test]
    fn a_small_gain_is_left_out() {
        assert_eq!(kept(&[(1.0, 0.7), (2.0, 0.704), (3.0, 0.708)]), [(1.0, 0.7), (3.0, 0.708)]);
        assert_eq!(kept(&[(1.0, 0.7), (2.0, 0.704), (3.0, 0.709), (4.0, 0.711)]), [(1.0, 0.7), (3.0, 0.709)]);
    }

    #[test]
    fn a_gain_within_the_standard_error_is_left_out_so_the_best_is_the_cheapest_that_nothing_outdoes() {
        let points =
            [doubtful(1.0, 0.7, 0.01), doubtful(2.0, 0.72, 0.03), doubtful(3.0, 0.74, 0.01), doubtful(4.0, 0.745, 0.0)];
        let kept: Vec<f64> = pareto(points.to_vec(), FLOOR).into_iter().map(|point| point.ms).collect();
        assert_eq!(kept, [1.0, 3.0]);
    }

    #[test]
    fn plans_below_the_floor_are_kept_only_where_nothing_else_is() {
        assert_eq!(kept(&[(1.0, 0.2), (2.0, 0.6), (3.0, 0.9)]), [(2.0, 0.6), (3.0, 0.9)]);
        assert_eq!(kept(&[(1.0, -0.2), (2.0, 0.3)]), [(1.0, -0.2), (2.0, 0.3)]);
        assert_eq!(kept(&[(1.0, f64::NAN), (2.0, f64::NEG_INFINITY)]), []);
    }

    #[test]
    fn the_time_of_an_image_adds_up_its_calls() {
        let call = |subnet: &str| match subnet {
            "0.250" => Some(1.0),
            "full" => Some(10.0),
            _ => None,
        };
        let time = |plan: &str| time_of(&plan.parse().unwrap(), false, call);
        assert_eq!(time("dpmpp2m-5@0.250*3,full*2"), Some(23.0));
        assert_eq!(time("heun-3@0.250*1,full*2"), Some(32.0), "the last step is one call");
        assert_eq!(time("heun-3@0.250*1,0.500*2"), None);
    }

    #[test]
    fn the_same_calls_in_another_order_take_the_same_time_to_the_bit() {
        let call = |subnet: &str| Some(if subnet == "full" { 6.578 } else { 4.394 });
        let times = ["dpmpp2m-5@0.250*2,full*3", "dpmpp2m-5@full*3,0.250*2"];
        let [narrow_first, wide_first] =
            times.map(|plan| time_of(&plan.parse().unwrap(), false, call).unwrap().to_bits());
        assert_eq!(narrow_first, wide_first);
    }

    /// Points of few times and qualities, so that some are equal.
    fn points() -> impl Strategy<Value = Vec<Point>> {
        let point = (1..60u32, -200..=1000i32).prop_map(|(ms, quality)| point(ms.into(), f64::from(quality) / 1e3));
        prop::collection::vec(point, 0..300)
    }

    proptest! {
        #[test]
        fn the_frontier_ascends_and_every_other_plan_has_a_reason(points in points()) {
            let frontier = pareto(points.clone(), FLOOR);
            prop_assert!(frontier.is_sorted_by(|a, b| a.ms < b.ms && b.outdoes(a)));
            prop_assert!(frontier.len() <= ROWS);
            prop_assert_eq!(frontier.is_empty(), points.is_empty());
            let floor = if points.iter().any(|point| point.quality() >= FLOOR) { FLOOR } else { f64::NEG_INFINITY };
            let good: Vec<&Point> = points.iter().filter(|point| point.quality() >= floor).collect();
            for kept in &frontier {
                prop_assert!(good.contains(&kept));
                let better = |other: &&&Point| other.ms < kept.ms && other.quality() >= kept.quality();
                prop_assert!(!good.iter().any(|other| better(&other)), "{:?} is not better than a cheaper one", kept);
            }
            for point in &good {
                let near = frontier.iter().any(|kept| kept.ms <= point.ms && !point.outdoes(kept));
                let equalled = good.iter().any(|other| other.ms <= point.ms && other.quality() >= point.quality() && other != point);
                prop_assert!(near || equalled || frontier.len() == ROWS, "{:?} is missing", point);
            }
            if let Some(first) = frontier.first() {
                prop_assert!(good.iter().all(|point| first.ms <= point.ms));
            }
        }

        #[test]
        fn the_frontier_of_a_frontier_is_itself(points in points()) {
            let frontier = pareto(points, FLOOR);
            prop_assert_eq!(pareto(frontier.clone(), FLOOR), frontier);
        }
    }
}
