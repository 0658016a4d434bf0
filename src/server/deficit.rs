//! The quality deficit: how far below the asked quality the server serves. A server that degrades instead of queueing has
//! a short queue under any load, so this is what tells an autoscaler that it is too small.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What was served is forgotten with this time constant.
const MEMORY_S: f64 = 30.0;

#[derive(Debug)]
struct Sums {
    asked: f64,
    served: f64,
    at: Instant,
}

/// Sums over images with fading memory.
#[derive(Debug)]
pub(super) struct Deficit(Mutex<Sums>);

impl Default for Deficit {
    fn default() -> Self {
        Self(Mutex::new(Sums { asked: 0.0, served: 0.0, at: Instant::now() }))
    }
}

impl Deficit {
    /// So many images of quality `served`, of which an idle machine would have made `asked`.
    pub fn observe(&self, asked: f64, served: f64, images: f64) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = sums.kept();
        *sums = Sums {
            asked: sums.asked * kept + asked * images,
            served: sums.served * kept + served * images,
            at: Instant::now(),
        };
    }

    /// The share of the asked quality that is missing. An idle server misses nothing: it fades with time.
    pub fn now(&self) -> f64 {
        let sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = sums.kept();
        // One image of full quality is always remembered, so that the memory of the last one can fade.
        let missing = (sums.asked - sums.served) * kept;
        if missing <= 0.0 { 0.0 } else { missing / (sums.asked * kept + 1.0 - kept) }
    }
}

impl Sums {
    fn kept(&self) -> f64 {
        (-self.at.elapsed().as_secs_f64() / MEMORY_S).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deficit_is_the_missing_share_over_images() {
        let deficit = Deficit::default();
        assert_eq!(deficit.now(), 0.0);
        deficit.observe(1.0, 0.5, 1.0);
        deficit.observe(1.0, 1.0, 3.0);
        assert!((deficit.now() - 0.125).abs() < 1e-3, "{}", deficit.now());
        deficit.0.lock().unwrap().at -= std::time::Duration::from_secs(3600);
        assert!(deficit.now() < 1e-9);
    }
}
