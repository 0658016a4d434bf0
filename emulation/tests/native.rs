//! What the emulation computes, and which mistakes it finds.
#![allow(unsafe_code)]

use emulation::{Order, Sequence, launch};

/// The struct of that name in `cpp/probes.cu`.
#[repr(C)]
struct ProbeArgs {
    a: *const u8,
    b: *const u8,
    out: *mut u8,
    count: u32,
    wrong: u32,
}

fn probe<A, B, C>(
    kernel: &str,
    blocks: u32,
    a: &[A],
    b: &[B],
    out: &mut [C],
    numbers: [u32; 2],
    order: Order,
) -> Result<(), String> {
    let [count, wrong] = numbers;
    let args = ProbeArgs { a: a.as_ptr().cast(), b: b.as_ptr().cast(), out: out.as_mut_ptr().cast(), count, wrong };
    // SAFETY: the struct has no padding, and the probes stay within the slices for the numbers that the tests pass.
    unsafe {
        let bytes = std::slice::from_raw_parts((&raw const args).cast(), size_of::<ProbeArgs>());
        launch(kernel, [blocks, 1, 1], bytes, order)
    }
}

/// Numbers between -2 and 2 with 4 bits after the point, from an index: exact in every format.
fn small(index: usize) -> f32 {
    ((index * 2_654_435_761) >> 8 & 63) as f32 / 16.0 - 2.0
}

#[repr(align(16))]
struct Aligned<T>(T);

#[test]
fn an_mma_multiplies_matrices_of_every_format() {
    let (a, b): (Vec<f32>, Vec<f32>) = ((0..256).map(small).collect(), (0..128).map(|i| small(i + 999)).collect());
    let product = |m: usize, n: usize| -> f32 { (0..16).map(|k| a[16 * m + k] * b[16 * n + k]).sum() };
    // f16 and bf16 of numbers with few digits, by their definitions.
    let f16 = |x: f32| match x.to_bits() {
        0 => 0,
        bits => (bits >> 16 & 0x8000 | ((bits >> 23 & 255) - 112) << 10 | bits >> 13 & 0x3ff) as u16,
    };
    let bf16 = |x: f32| (x.to_bits() >> 16) as u16;
    let halves = |convert: &dyn Fn(f32) -> u16, from: &[f32]| from.iter().map(|&x| convert(x)).collect::<Vec<u16>>();
    for order in Order::ALL {
        // The probes of 16 bits do it twice, that of tf32 in two halves of k.
        for (kernel, convert, times) in
            [("probe_mma_f16", &f16 as &dyn Fn(f32) -> u16, 2.0), ("probe_mma_bf16", &bf16, 2.0)]
        {
            let mut out = [f32::NAN; 128];
            probe(kernel, 1, &halves(convert, &a), &halves(convert, &b), &mut out, [0; 2], order).unwrap();
            for (i, out) in out.iter().enumerate() {
                assert_eq!(*out, times * product(i / 8, i % 8), "{kernel} at {i}");
            }
        }
        let mut out = [f32::NAN; 128];
        probe("probe_mma_tf32", 1, &a, &b, &mut out, [0; 2], order).unwrap();
        for (i, out) in out.iter().enumerate() {
            assert_eq!(*out, product(i / 8, i % 8), "tf32 at {i}");
        }
    }
}

#[test]
fn sums_by_shuffles_shared_memory_and_atomics_are_right_in_every_order() {
    let numbers: Vec<u32> = (0..1000).map(|i| i * i).collect();
    for order in Order::ALL {
        let mut out = [0u32; 3];
        probe("probe_sum", 5, &numbers, &[0u8], &mut out, [1000, 0], order).unwrap();
        assert_eq!(out, [numbers.iter().sum(), 0, 0b11111]);
    }
}

#[test]
fn rounding_is_that_of_the_formats() {
    let (infinity, nan) = (f32::INFINITY, f32::NAN);
    let tie = 1.0 + 2f32.powi(-11);
    // value, f16 and bf16 (ties to even), tf32 (ties away from zero)
    let cases = [
        [1.0, 1.0, 1.0, 1.0],
        [tie, 1.0, 1.0, 1.0 + 2f32.powi(-10)],
        [tie + 2f32.powi(-10), 1.0 + 2f32.powi(-9), 1.0, 1.0 + 2f32.powi(-9)],
        [-1.0 - 2f32.powi(-8), -1.0 - 2f32.powi(-8), -1.0, -1.0 - 2f32.powi(-8)],
        [65519.0, 65504.0, 65536.0, 65504.0],
        [65520.0, infinity, 65536.0, 65536.0],
        [3.0 * 2f32.powi(-25), 2f32.powi(-23), 3.0 * 2f32.powi(-25), 3.0 * 2f32.powi(-25)],
        [2f32.powi(-25), 0.0, 2f32.powi(-25), 2f32.powi(-25)],
        [f32::MAX, infinity, infinity, infinity],
        [-infinity, -infinity, -infinity, -infinity],
        [nan, nan, nan, nan],
    ];
    let values = cases.map(|case| case[0]);
    let mut out = [0f32; 3 * 11];
    probe("probe_round", 1, &values, &[0u8], &mut out, [11, 0], Order::ALL[0]).unwrap();
    for (case, out) in cases.iter().zip(out.chunks(3)) {
        for (expected, out) in case[1..].iter().zip(out) {
            assert!(expected == out || expected.is_nan() && out.is_nan(), "{case:?} gave {out}");
        }
    }
}

#[test]
fn a_copy_arrives_at_its_wait_and_zeros_where_it_is_not_valid() {
    let from = Aligned(std::array::from_fn::<f32, 1024, _>(|i| i as f32));
    for order in Order::ALL {
        let mut out = Aligned([f32::NAN; 1024]);
        probe("probe_copy", 4, &from.0, &[0u8], &mut out.0, [1000, 0], order).unwrap();
        for (i, out) in out.0.iter().enumerate() {
            let source = i / 256 * 256 + 255 - i % 256;
            assert_eq!(*out, if source < 1000 { source as f32 } else { 0.0 }, "{order:?}, {i}");
        }
    }
}

#[test]
fn mistakes_are_named_with_kernel_and_block() {
    let mistakes = [
        (1, "waits at __syncthreads"),
        (2, "thread 0 waits at __syncthreads in line"),
        (3, "waits for lanes of its mask"),
        (4, "is not of the mask it names"),
        (5, "reads lane 0, which is not of its mask"),
        (6, "meet at different operations"),
        (7, "is not on a boundary of 16"),
    ];
    for (wrong, expected) in mistakes {
        for order in Order::ALL {
            let mut out = Aligned([0f32; 256]);
            let error = probe("probe_wrong", 2, &[0u8], &[0u8], &mut out.0, [0, wrong], order).unwrap_err();
            assert!(error.starts_with("kernel probe_wrong, block ("), "{error}");
            assert!(error.contains(expected), "mistake {wrong}, {order:?}: {error}");
        }
    }
    let mut out = [0f32; 64];
    probe("probe_wrong", 1, &[0u8], &[0u8], &mut out, [0, 8], Order::Greedy(Sequence::Forward)).unwrap();
    assert!(out[0].is_nan(), "shared memory that nobody has written yet was {}", out[0]);
}

#[test]
fn a_launch_that_cannot_be_is_refused() {
    // SAFETY: no kernel runs.
    let run = |kernel, grid, bytes| unsafe { launch(kernel, grid, &vec![0; bytes], Order::ALL[0]) }.unwrap_err();
    assert_eq!(run("nothing", [1; 3], 0), "there is no kernel nothing");
    assert_eq!(run("probe_sum", [1; 3], 31), "kernel probe_sum takes 32 bytes of arguments, not 31");
    assert_eq!(run("probe_sum", [1, 70_000, 1], 32), "kernel probe_sum: a GPU refuses the grid (1, 70000, 1)");
    assert_eq!(run("probe_sum", [0, 1, 1], 32), "kernel probe_sum: a GPU refuses the grid (0, 1, 1)");
}

#[test]
fn kernels_are_listed_by_the_source_alone() {
    let kernels = emulation::kernels();
    let sum = kernels.iter().find(|kernel| kernel.name == "probe_sum").unwrap();
    assert_eq!((sum.threads, sum.arguments), (128, size_of::<ProbeArgs>()));
    assert!(kernels.iter().any(|kernel| kernel.name == "normals"));
}
