//! The noise of the CUDA kernels against that of the CPU.
#![allow(unsafe_code)]

use accordion::diffusion::noise::{NoiseKey, philox4x32};
use emulation::{Order, launch};

const SEED: u64 = 0x0123_4567_89ab_cdef;

/// As `kernels/noise.cuh` has it.
#[repr(C)]
struct NormalsArgs {
    out: *mut f32,
    seed: u64,
    count: u64,
    image: u32,
    draw: u32,
}

/// As `emulation/cpp/probes.cu` has it.
#[repr(C)]
struct ProbeArgs {
    key: *const u64,
    nothing: u64,
    out: *mut u32,
    words: [u32; 2],
}

/// # Safety
/// As [`emulation::launch`]; `T` has no padding.
unsafe fn run<T>(kernel: &str, blocks: u32, args: &T) {
    // SAFETY: the caller's.
    unsafe {
        let bytes = std::slice::from_raw_parts((&raw const *args).cast(), size_of::<T>());
        launch(kernel, [blocks, 1, 1], bytes, Order::ALL[0]).unwrap();
    }
}

#[test]
fn the_integers_of_both_are_the_same() {
    let mut words = [[0u32; 4]; 64];
    let args = ProbeArgs { key: &SEED, nothing: 0, out: words.as_mut_ptr().cast(), words: [7, u32::MAX] };
    // SAFETY: 64 threads write four words each.
    unsafe { run("probe_philox", 2, &args) };
    for (block, words) in words.iter().enumerate() {
        assert_eq!(*words, philox4x32([block as u32, 7, u32::MAX, 3], [SEED as u32, (SEED >> 32) as u32]));
    }
}

#[test]
fn the_normals_of_both_are_the_same_to_the_last_bits() {
    for (count, image, draw) in [(1, 0, 0), (511, 3, 0), (4098, 7, 25)] {
        let mut out = vec![f32::NAN; count + 4];
        let args = NormalsArgs { out: out.as_mut_ptr(), seed: SEED, count: count as u64, image, draw };
        // SAFETY: elements up to `count` are written.
        unsafe { run("normals", count.div_ceil(4 * 128) as u32, &args) };
        let mut expected = vec![0.0; count];
        NoiseKey { seed: SEED, image }.draw(draw).fill_normals(&mut expected);
        for (out, expected) in out.iter().zip(&expected) {
            let ulps = out.to_bits().abs_diff(expected.to_bits());
            assert!(ulps <= 2, "{out} instead of {expected}");
        }
        assert!(out[count..].iter().all(|value| value.is_nan()), "elements behind the last were written");
    }
}
