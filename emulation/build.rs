//! Compiles the kernels of accordion for the host.

use std::path::Path;

const KERNELS: &str = "../src/ops/cuda/kernels";

fn main() {
    for watched in ["cpp", KERNELS] {
        assert!(
            Path::new(watched).exists(),
            "{watched} is not there: the emulation builds inside accordion's tree only"
        );
        println!("cargo::rerun-if-changed={watched}");
    }
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .opt_level(2)
        .define("CUDA_EMULATION", None)
        .include("cpp")
        .include(KERNELS)
        // As nvcc's --fmad=false: a product and a sum are two roundings unless the source says fmaf.
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        .flag("-Wno-unknown-pragmas")
        .warnings_into_errors(true)
        .files(["cpp/emulator.cpp", "cpp/kernels.cpp"])
        .compile("accordion_emulation");
}
