//! How much is asked of the server at present, from the requests that came lately.

use crate::routing::ladder::Load;
use std::time::Duration;

/// The memory of the estimate, in typical deadlines; the count of requests in it says how well the rate is known.
const MEMORY_DEADLINES: f64 = 8.0;
/// The memory's bounds, in seconds.
const MEMORY_S: [f64; 2] = [1.0, 60.0];
/// Weight of the newest request in the typical deadline.
const NEWEST: f64 = 0.05;

/// Rates with exponentially fading memory.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Images a second, by the best rung that they are asked for.
    images: Vec<Load>,
    /// Seconds of the device a second that no rung changes: of requests for exact plans, and of what comes before the first call.
    exact: f64,
    /// The typical time from arrival to deadline, in seconds; `None` before the first request.
    within: Option<f64>,
    updated: Duration,
}

impl Demand {
    /// Nothing yet, for a ladder of so many rungs.
    pub fn new(rungs: usize) -> Self {
        Self { images: vec![Load::default(); rungs], exact: 0.0, within: None, updated: Duration::ZERO }
    }

    /// A request for these `images`, at best on rung `top`, which takes so many `seconds` on any beside them.
    pub fn ask(&mut self, now: Duration, within: Duration, top: usize, images: Load, seconds: f64) {
        let memory = self.fade(now, within);
        self.images[top] += images.times(1.0 / memory);
        self.exact += seconds / memory;
    }

    /// A request for an exact plan that takes `seconds`.
    pub fn ask_exact(&mut self, now: Duration, within: Duration, seconds: f64) {
        let memory = self.fade(now, within);
        self.exact += seconds / memory;
    }

    /// The typical time from arrival to deadline, in seconds.
    pub fn within(&self) -> Option<f64> {
        self.within
    }

    /// Seconds of the device that arrive a second if nothing runs above rung `cap`, where images take `seconds` on a rung.
    pub fn at(&self, cap: usize, seconds: impl Fn(usize, Load) -> f64) -> f64 {
        let asked = self.images.iter().enumerate().filter(|(_, load)| load.images > 0.0);
        self.exact + asked.map(|(top, &load)| seconds(top.min(cap), load)).sum::<f64>()
    }

    fn fade(&mut self, now: Duration, within: Duration) -> f64 {
        let within = within.as_secs_f64();
        // A request that has all the time in the world says nothing about the others.
        let typical = self.within.map_or(within, |typical| typical + NEWEST * (within.min(4.0 * typical) - typical));
        self.within = Some(typical);
        let memory = (MEMORY_DEADLINES * typical).clamp(MEMORY_S[0], MEMORY_S[1]);
        let kept = (-now.saturating_sub(self.updated).as_secs_f64() / memory).exp();
        self.updated = now;
        self.images.iter_mut().for_each(|load| *load = load.times(kept));
        self.exact *= kept;
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_is_known_by_its_rate() {
        let mut demand = Demand::new(3);
        for arrival in 0..4000 {
            demand.ask(Duration::from_millis(10 * arrival), Duration::from_millis(250), 2, Load::new(1.0, 1), 0.0);
        }
        let seconds = |rung: usize, load: Load| load.rows * [0.001, 0.002, 0.005][rung];
        for (cap, share) in [(2, 0.5), (1, 0.2), (0, 0.1)] {
            assert!((demand.at(cap, seconds) - share).abs() < 0.01, "{cap}");
        }
        assert!((demand.within().unwrap() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_stream_that_ends_is_forgotten() {
        let mut demand = Demand::new(1);
        (0..100)
            .for_each(|i| demand.ask(Duration::from_millis(10 * i), Duration::from_secs(1), 0, Load::new(1.0, 1), 0.0));
        demand.ask_exact(Duration::from_secs(600), Duration::from_secs(1), 0.0);
        assert!(demand.at(0, |_, load| load.images) < 1e-6);
    }
}
