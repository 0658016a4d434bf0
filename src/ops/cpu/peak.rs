//! What this machine's arithmetic units can do at most: the measure that kernels are held against.

use super::fused::Team;
use super::simd::arch;
use pulp::{Simd, WithSimd};
use std::hint::black_box;
use std::time::Instant;

/// Sums that do not wait for each other: more than two units with a latency of four cycles keep busy, and few enough
/// for 16 registers.
const CHAINS: usize = 12;
/// Multiply-adds of each chain in a task: some 50 us, so that the threads share the tasks out evenly.
const STEPS: usize = 1 << 15;
/// Tasks for each thread.
const TASKS: usize = 64;

/// Multiply-adds in registers alone.
struct Chains;

impl WithSimd for Chains {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // x = 0.5 x + 0.5 stays at 1, far from the numbers that slow a unit down.
        let half = black_box(simd.splat_f32s(0.5));
        let mut sums = black_box([simd.splat_f32s(1.0); CHAINS]);
        for _ in 0..STEPS {
            // Not `sums.map`, whose closure would be a call without vectors.
            for sum in &mut sums {
                *sum = simd.mul_add_f32s(half, *sum, half);
            }
        }
        black_box(sums);
    }
}

/// The rate of f32 multiply-adds of `team`, in 1e9 operations a second, where a multiply-add is two. Takes some
/// milliseconds.
pub fn gflops(team: &mut Team) -> f64 {
    let tasks = TASKS * team.threads();
    let start = Instant::now();
    team.run(tasks, |_| arch().dispatch(Chains));
    let operations = 2 * tasks * STEPS * CHAINS * lanes();
    operations as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// The instruction set that the kernels run with on this machine.
pub fn instruction_set() -> &'static str {
    match lanes() {
        16 => "avx512",
        8 => "avx2",
        1 => "scalar",
        _ => "simd128",
    }
}

/// f32 values of a vector.
fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    arch().dispatch(Lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_team_has_a_peak() {
        for threads in [1, 2] {
            let peak = gflops(&mut Team::new(threads, false));
            assert!(peak.is_finite() && peak > 0.0);
        }
        assert!(["avx512", "avx2", "simd128", "scalar"].contains(&instruction_set()));
    }
}
