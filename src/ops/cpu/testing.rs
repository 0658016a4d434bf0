//! What the tests of the kernels share.

/// `n` reproducible values, roughly normal, of standard deviation about 1.
pub(crate) fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n).map(|_| (0..4).map(|_| uniform()).sum::<f32>() * 1.732 - 3.464).collect()
}

pub(crate) fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// Largest error relative to the largest magnitude wanted (at least `floor`) must not exceed `tolerance`.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs() / scale;
        assert!(error <= tolerance, "element {i}: got {g}, want {w}, error {error:e} > {tolerance:e}");
    }
}

/// Central difference of `loss` along element `i` of `x`.
pub(crate) fn slope(x: &[f64], i: usize, mut loss: impl FnMut(&[f64]) -> f64) -> f64 {
    let h = 1e-5;
    let mut moved = x.to_vec();
    moved[i] = x[i] + h;
    let above = loss(&moved);
    moved[i] = x[i] - h;
    (above - loss(&moved)) / (2.0 * h)
}

/// Runs `f` in rayon pools of one and of three threads and checks that the bits agree.
#[track_caller]
pub(crate) fn assert_same_in_any_pool<T: PartialEq + Send + std::fmt::Debug>(f: impl Fn() -> T + Sync) {
    let run = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&f);
    assert_eq!(run(1), run(3));
}
