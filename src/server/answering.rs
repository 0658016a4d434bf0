//! How long an answer takes after its images are drawn: what the engine's deadlines must leave.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Left for handing the images over and for writing the answer.
const HANDOVER: Duration = Duration::from_millis(2);
/// Left for what happens between the client and the server, as a share of the client's time.
const ON_THE_WAY: u32 = 40;
/// Weight of the newest observation, as one of so many.
const MEMORY: u64 = 16;

/// A running mean of encoding times.
#[derive(Debug, Default)]
pub(super) struct Answering {
    mean_ns: AtomicU64,
}

impl Answering {
    /// What to leave between the last step and the deadline of a request that has the time `within`: twice the usual time
    /// to encode, the handover, and a fortieth for the way.
    pub fn reserve(&self, within: Duration) -> Duration {
        HANDOVER + 2 * Duration::from_nanos(self.mean_ns.load(Relaxed)) + within / ON_THE_WAY
    }

    /// Learns from an encoding. Two at once may count as one: it is an estimate.
    pub fn observe(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / MEMORY);
        let mean = self.mean_ns.load(Relaxed);
        self.mean_ns.store(mean - mean / MEMORY + took / MEMORY, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_twice_what_encoding_usually_takes_and_a_share_of_the_time() {
        let answering = Answering::default();
        assert_eq!(answering.reserve(Duration::ZERO), HANDOVER);
        assert_eq!(answering.reserve(Duration::from_secs(2)), HANDOVER + Duration::from_millis(50));
        (0..200).for_each(|_| answering.observe(Duration::from_millis(5)));
        let learnt = answering.reserve(Duration::ZERO) - HANDOVER;
        assert!((9.9..10.1).contains(&(learnt.as_secs_f64() * 1e3)), "{learnt:?}");
    }
}
