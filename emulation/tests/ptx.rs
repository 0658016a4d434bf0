//! What nvcc made of the kernels computes what their source says.
//!
//! `ACCORDION_PTX` names the file, which scripts/cuda-light.sh makes.
#![allow(unsafe_code)]

use emulation::ptx::Module;
use emulation::{Order, launch};

fn module() -> Module {
    let path = std::env::var("ACCORDION_PTX").expect("ACCORDION_PTX names the file: see scripts/cuda-light.sh");
    Module::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Memory of 64-bit words, on a boundary of 16 bytes.
#[repr(align(16))]
#[derive(Clone)]
struct Words([u64; 1024]);

/// The argument of the probes (`cpp/probes.cu`): a, b and out lie one behind the other.
fn probe_args(memory: &Words, numbers: [u32; 2]) -> Vec<u8> {
    let start = memory.0.as_ptr() as u64;
    let words = [start, start + 1024, start + 2048, u64::from(numbers[0]) | u64::from(numbers[1]) << 32];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Runs a kernel on PTX, as what memory holds afterwards.
fn on_ptx(module: &Module, kernel: &str, blocks: u32, memory: &mut Words, args: &[u8]) -> Result<(), String> {
    module.launch(kernel, [blocks, 1, 1], args, &mut [bytemuck::bytes_of_mut(&mut memory.0)])
}

/// Some bits.
fn noise(index: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).wrapping_mul(0xd1b5_4a32_d192_ed03)
}

#[test]
#[ignore = "needs ACCORDION_PTX"]
fn the_kernels_are_those_of_the_source() {
    let native = emulation::kernels();
    let mut names: Vec<&str> = native.iter().map(|kernel| kernel.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(module().kernels(), names);
}

#[test]
#[ignore = "needs ACCORDION_PTX"]
fn every_probe_leaves_the_same_bits() {
    let module = module();
    let floats = |index: usize| {
        // f32 of exponents around 1 in both halves, and their upper halves are bf16.
        let float = |bits: u64| 0x3e00_0000 + (bits & 0x81ff_ffff) as u32;
        u64::from(float(noise(index))) | u64::from(float(noise(index) >> 32)) << 32
    };
    let halves = |index: usize| noise(index) & 0xbfff_bfff_bfff_bfff;
    type Fill<'a> = &'a dyn Fn(usize) -> u64;
    let cases: [(&str, u32, [u32; 2], Fill); 7] = [
        ("probe_mma_f16", 1, [0, 0], &halves),
        ("probe_mma_bf16", 1, [0, 0], &floats),
        ("probe_mma_tf32", 1, [0, 0], &floats),
        ("probe_sum", 3, [250, 0], &noise),
        ("probe_round", 2, [100, 0], &noise),
        ("probe_copy", 4, [1000, 0], &noise),
        ("probe_philox", 2, [7, 9], &noise),
    ];
    for (kernel, blocks, numbers, fill) in cases {
        let mut memory = Words(std::array::from_fn(fill));
        let args = probe_args(&memory, numbers);
        let before = memory.clone();
        // SAFETY: the probes stay in the memory for these numbers.
        unsafe { launch(kernel, [blocks, 1, 1], &args, Order::ALL[0]) }.unwrap();
        let native = std::mem::replace(&mut memory, before.clone());
        on_ptx(&module, kernel, blocks, &mut memory, &args).unwrap();
        assert!(memory.0 != before.0, "{kernel} wrote nothing");
        let differs = (0..1024).find(|&at| memory.0[at] != native.0[at]);
        let words = differs.map(|at| (at, format!("{:#x} on PTX, {:#x} natively", memory.0[at], native.0[at])));
        assert_eq!(words, None, "{kernel}");
    }
}

#[test]
#[ignore = "needs ACCORDION_PTX"]
fn normals_are_the_same_to_the_last_bits() {
    let module = module();
    let mut memory = Words([u64::MAX; 1024]);
    let seed = 0x0123_4567_89ab_cdef_u64;
    let words = [memory.0.as_ptr() as u64, seed, 1001, 7 | 3 << 32];
    let args: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    // SAFETY: 1001 floats are in the memory.
    unsafe { launch("normals", [2, 1, 1], &args, Order::ALL[0]) }.unwrap();
    let native = std::mem::replace(&mut memory, Words([u64::MAX; 1024]));
    on_ptx(&module, "normals", 2, &mut memory, &args).unwrap();
    let (native, ptx): (&[u32], &[u32]) = (bytemuck::cast_slice(&native.0), bytemuck::cast_slice(&memory.0));
    for (native, ptx) in native.iter().zip(ptx) {
        assert!(native.abs_diff(*ptx) <= 1, "{} and {}", f32::from_bits(*native), f32::from_bits(*ptx));
    }
    assert!(ptx[1001..].iter().all(|word| *word == u32::MAX), "elements behind the last were written");
}

#[test]
#[ignore = "needs ACCORDION_PTX"]
fn mistakes_are_found_in_ptx_too() {
    let module = module();
    let mistakes = [
        (1, "waits at bar.sync"),
        (3, "waits for lanes of its mask"),
        (4, "is not of the mask it names"),
        (5, "reads lane 0, which is not of its mask"),
        (7, "is not on a boundary of its size"),
    ];
    for (wrong, expected) in mistakes {
        let mut memory = Words([0; 1024]);
        let args = probe_args(&memory, [0, wrong]);
        let error = on_ptx(&module, "probe_wrong", 2, &mut memory, &args).unwrap_err();
        assert!(error.starts_with("kernel probe_wrong, block (0, 0, 0): "), "{error}");
        assert!(error.contains(expected), "mistake {wrong}: {error}");
    }
    // Memory that ends too early.
    let mut memory = Words([0; 1024]);
    let args = probe_args(&memory, [1000, 0]);
    let error =
        module.launch("probe_copy", [4, 1, 1], &args, &mut [&mut bytemuck::bytes_of_mut(&mut memory.0)[..4096]]);
    assert!(error.unwrap_err().contains("outside of the memory"));
}

#[test]
fn what_is_not_known_is_named() {
    let kernel = |body: &str| {
        let head = ".version 9.0\n.target sm_80\n.visible .entry k(\n\t.param .align 8 .b8 k_param_0[8]\n)\n.maxntid 32, 1, 1\n";
        Module::parse(&format!("{head}{{\n\t.reg .b32 %r<9>;\n{body}\n}}\n"))
    };
    let told = |body| kernel(body).unwrap_err();
    assert_eq!(told("\tsin.approx.f32 %f1, %f2;"), "line 9 of the PTX: the instruction sin.approx.f32 is not known");
    assert_eq!(told("\tmov.u32 %r1, nothing;"), "line 9 of the PTX: the operand `nothing` is not known");
    let module = kernel("\tmov.u32 %r1, 1;\n\tret;").unwrap();
    assert_eq!(module.launch("j", [1; 3], &[], &mut []).unwrap_err(), "there is no kernel j");
    let error = module.launch("k", [1; 3], &[], &mut []).unwrap_err();
    assert_eq!(error, "kernel k takes 8 bytes of arguments, not 0");
    assert_eq!(module.launch("k", [1; 3], &[0; 8], &mut []), Ok(()));
}
