//! What it costs to change the subnet between two calls.

use super::latency::{Input, median};
use crate::nets::HostRunner;
use std::time::{Duration, Instant};

/// Calls of one subnet in a part of a round take about so long together.
const PART: Duration = Duration::from_millis(5);
/// Rounds at least: what [`Interval`] needs to leave some out on both sides.
const ROUNDS: usize = 16;
/// Half of the interval at which the ratio is known well enough.
const ENOUGH: f64 = 0.002;

/// Calls that take turns between two subnets, against calls of each alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Switching {
    /// Mean time of a call that follows one of the other subnet, in milliseconds; half of them are of either subnet.
    pub alternating_ms: f64,
    /// Mean time of a call that follows one of its own subnet, in milliseconds; half of them are of either subnet.
    pub constant_ms: f64,
    /// The first over the second.
    pub ratio: Interval,
    /// Calls that were timed.
    pub calls: usize,
}

/// A median over rounds and where that of endless rounds lies with 95 % confidence, whatever the distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The median.
    pub median: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Of some values, at least one. The ends are order statistics: as many values lie below the median of the
    /// distribution as a fair coin gives heads, so 0.98 sqrt(n) ranks on either side are 1.96 standard deviations.
    fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let outside = (n as f64 / 2.0 - 0.98 * (n as f64).sqrt()).max(0.0) as usize;
        let (low, high) = (values[outside], values[n - 1 - outside]);
        Self { median: median(values), low, high }
    }
}

/// Times calls of two subnets by turns and of each alone, in rounds, for at least 16 rounds and until `time` is over or
/// the ratio is known to 0.2 %, with the threads that `runner` has.
pub fn switching(runner: &mut HostRunner, subnets: [usize; 2], batch: usize, time: Duration) -> Switching {
    let input = Input::new(runner.network(), batch);
    let mut pair = |repeats: usize| seconds(runner, &input, &subnets, repeats);
    // The first brings everything into the caches.
    pair(1);
    let per_part = (PART.as_secs_f64() / (pair(1) / 2.0)).ceil().clamp(2.0, 64.0) as usize;
    let (mut alternating, mut constant, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    let ratio = loop {
        // The parts of a round mirror each other, so that a machine that becomes faster or slower favours none.
        let [first, second] = if ratios.len() % 2 == 0 { subnets } else { [subnets[1], subnets[0]] };
        let calls = (2 * per_part) as f64;
        let before = seconds(runner, &input, &[first], per_part);
        let turns = seconds(runner, &input, &[first, second], per_part) / calls;
        let alone = (before + seconds(runner, &input, &[second], per_part)) / calls;
        alternating.push(turns);
        constant.push(alone);
        ratios.push(turns / alone);
        let known = Interval::new(ratios.clone());
        let enough = known.high - known.low <= 2.0 * ENOUGH || start.elapsed() >= time;
        if ratios.len() >= ROUNDS && enough {
            break known;
        }
    };
    Switching {
        calls: ratios.len() * 4 * per_part,
        alternating_ms: median(alternating) * 1e3,
        constant_ms: median(constant) * 1e3,
        ratio,
    }
}

/// Time of `repeats` calls of each of these subnets in turn, after one of each that is not timed.
fn seconds(runner: &mut HostRunner, input: &Input, subnets: &[usize], repeats: usize) -> f64 {
    let mut start = Instant::now();
    for repeat in 0..=repeats {
        subnets.iter().for_each(|&subnet| input.call(runner, subnet));
        if repeat == 0 {
            start = Instant::now();
        }
    }
    start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_median_leaves_out_the_outer_values() {
        let values = |n: usize| (0..n).rev().map(|value| value as f64).collect();
        assert_eq!(Interval::new(values(1)), Interval { median: 0.0, low: 0.0, high: 0.0 });
        assert_eq!(Interval::new(values(16)), Interval { median: 7.5, low: 4.0, high: 11.0 });
        assert_eq!(Interval::new(values(101)), Interval { median: 50.0, low: 40.0, high: 60.0 });
    }
}
