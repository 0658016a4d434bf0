//! Which plans are worth serving: those that no other beats on both time and quality.

use crate::diffusion::Plan;
use std::collections::BTreeMap;

/// Plans of less quality are left out: a blur, the mean image of a class, has 0.5 or a little more, and nobody asks for it.
pub const FLOOR: f64 = 0.6;
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
    // Summed by subnet: the same calls in another order must take the same time to the bit, or both orders stay.
    let mut calls: BTreeMap<&str, usize> = BTreeMap::new();
    for step in 0..plan.steps {
        *calls.entry(plan.subnet_at(step)).or_default() += plan.evaluations_at(step);
    }
    calls.into_iter().map(|(subnet, calls)| Some(calls as f64 * call(subnet)?)).sum()
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(ms: f64, quality: f64) -> Point {
        Point { plan: "euler-1@full".parse().unwrap(), ms, quality }
    }

    fn kept(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let points = points.iter().map(|&(ms, quality)| point(ms, quality)).collect();
        pareto(points).into_iter().map(|point| (point.ms, point.quality)).collect()
    }

    #[test]
    fn what_another_plan_beats_is_left_out() {
        let points = [(3.0, 0.9), (1.0, 0.6), (2.0, 0.6), (4.0, 0.8), (3.0, 0.95), (9.0, 1.0)];
        assert_eq!(kept(&points), [(1.0, 0.6), (3.0, 0.95), (9.0, 1.0)]);
    }

    #[test]
    fn a_small_gain_is_left_out_unless_it_is_the_best() {
        assert_eq!(kept(&[(1.0, 0.7), (2.0, 0.704), (3.0, 0.708)]), [(1.0, 0.7), (3.0, 0.708)]);
        assert_eq!(
            kept(&[(1.0, 0.7), (2.0, 0.704), (3.0, 0.709), (4.0, 0.711)]),
            [(1.0, 0.7), (3.0, 0.709), (4.0, 0.711)]
        );
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
        let time = |plan: &str| time_of(&plan.parse().unwrap(), call);
        assert_eq!(time("dpmpp2m-5@0.250*3,full*2"), Some(23.0));
        assert_eq!(time("heun-3@0.250*1,full*2"), Some(32.0), "the last step is one call");
        assert_eq!(time("heun-3@0.250*1,0.500*2"), None);
    }

    #[test]
    fn the_same_calls_in_another_order_take_the_same_time_to_the_bit() {
        let call = |subnet: &str| Some(if subnet == "full" { 6.578 } else { 4.394 });
        let times = ["dpmpp2m-5@0.250*2,full*3", "dpmpp2m-5@full*3,0.250*2"];
        let [narrow_first, wide_first] = times.map(|plan| time_of(&plan.parse().unwrap(), call).unwrap().to_bits());
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
            let frontier = pareto(points.clone());
            prop_assert!(frontier.is_sorted_by(|a, b| a.ms < b.ms && a.quality < b.quality));
            prop_assert!(frontier.len() <= ROWS);
            prop_assert_eq!(frontier.is_empty(), points.is_empty());
            let floor = if points.iter().any(|point| point.quality >= FLOOR) { FLOOR } else { f64::NEG_INFINITY };
            let good: Vec<&Point> = points.iter().filter(|point| point.quality >= floor).collect();
            for kept in &frontier {
                prop_assert!(good.contains(&kept));
                let beaten = |other: &&&Point| {
                    other.ms <= kept.ms && other.quality >= kept.quality && (other.ms, other.quality) != (kept.ms, kept.quality)
                };
                prop_assert!(!good.iter().any(|other| beaten(&other)), "{:?} is beaten", kept);
            }
            for point in &good {
                let near = frontier.iter().any(|kept| kept.ms <= point.ms && kept.quality > point.quality - EPSILON);
                prop_assert!(near || frontier.len() == ROWS, "{:?} is missing", point);
            }
            if let (Some(first), Some(last)) = (frontier.first(), frontier.last()) {
                prop_assert!(good.iter().all(|point| first.ms <= point.ms && point.quality <= last.quality));
            }
        }

        #[test]
        fn the_frontier_of_a_frontier_is_itself(points in points()) {
            let frontier = pareto(points);
            prop_assert_eq!(pareto(frontier.clone()), frontier);
        }
    }
}
