//! Compiles the CUDA kernels (`src/ops/cuda/kernels`), if the feature `cuda` is on.
//!
//! What comes out is `kernels.fatbin`: machine code for the GPUs that are in use, and PTX that drivers compile for later ones.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const KERNELS: &str = "src/ops/cuda/kernels";

/// Compute capabilities with machine code: A100, L4 and RTX 4090, H100 and H200.
const MACHINE_CODE: [u32; 3] = [80, 89, 90];
/// The oldest compute capability, whose PTX every later GPU can have compiled.
const OLDEST: u32 = 80;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={KERNELS}");
    for variable in ["ACCORDION_NVCC", "NVCC", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.fatbin");
    let compiled = match env::var("ACCORDION_NVCC").as_deref() {
        // For type checks, which need no kernels.
        Ok("none") => std::fs::write(&out, []).map_err(|error| format!("{}: {error}", out.display())),
        _ => compile(&out),
    };
    if let Err(problem) = compiled {
        println!("cargo::error={problem}");
        exit(1);
    }
}

/// Compiles the kernels into a fatbin.
fn compile(out: &Path) -> Result<(), String> {
    let nvcc = nvcc().ok_or(
        "the feature `cuda` needs nvcc, which is not in NVCC, CUDA_HOME/bin or PATH: scripts/cuda-toolkit.sh installs it",
    )?;
    let mut command = Command::new(&nvcc);
    // As the emulation's compiler (emulation/build.rs): a product and a sum are two roundings unless the source says fmaf.
    command.args(["-std=c++17", "-O3", "--fmad=false", "-Werror", "all-warnings", "-fatbin", "--threads", "0"]);
    command.args(MACHINE_CODE.map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}")));
    command.arg(format!("-gencode=arch=compute_{OLDEST},code=compute_{OLDEST}"));
    command.arg("-o").arg(out).arg(Path::new(KERNELS).join("kernels.cu"));
    let output = command.output().map_err(|error| format!("{}: {error}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    // nvcc tells some of its errors on stdout.
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    eprintln!("{told}");
    let first = told.lines().find(|line| line.contains("error")).unwrap_or("it says nothing");
    Err(format!("{} does not compile the kernels: {first}", nvcc.display()))
}

fn nvcc() -> Option<PathBuf> {
    let at_home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let named = env::var_os("NVCC").map(PathBuf::from);
    named.into_iter().chain(at_home).chain(on_path.map(|folder| folder.join("nvcc"))).find(|nvcc| nvcc.is_file())
}
