//! Runs PTX, the text that nvcc makes of the kernels, on the CPU: so what the compiler made is checked too, not only the
//! source.
//!
//! It knows the instructions that nvcc 13 emits for our kernels and refuses every other by name. Every access is checked:
//! it must lie inside of the memory that was passed and on a boundary of its own size. As in the emulation of the source,
//! shared memory and the targets of copies under way are NaN, and `ex2`, `lg2`, `rcp` and `rsqrt`, which a GPU only
//! approximates, are those of the CPU.

mod arithmetic;
mod instruction;
mod launch;
mod memory;
mod parse;
mod warp;

use instruction::Instruction;
use std::collections::HashMap;

/// The kernels of a PTX file.
#[derive(Debug)]
pub struct Module {
    kernels: HashMap<String, Kernel>,
    /// Variables of the whole module, one behind the other.
    globals: Vec<u8>,
}

#[derive(Debug, Default)]
struct Kernel {
    instructions: Vec<Instruction>,
    registers: usize,
    /// Bytes of the one argument, of the shared arrays, and of a thread's stack.
    arguments: usize,
    shared: usize,
    local: usize,
    threads: u32,
}

impl Module {
    /// Reads a PTX file.
    ///
    /// # Errors
    ///
    /// One sentence, with the line where it has one: an instruction or a form of it that is not known, a name that is not
    /// declared.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse::module(text)
    }

    /// The kernels' names, sorted.
    pub fn kernels(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Runs a kernel as [`crate::launch`] does. Pointers in `args` and behind them are the addresses of `memory`, outside of
    /// which nothing can be reached.
    ///
    /// # Errors
    ///
    /// One sentence with kernel, block and line of the text: what [`crate::launch`] finds, and an access outside of the
    /// memory. What the kernel has written until then stays.
    pub fn launch(&self, kernel: &str, grid: [u32; 3], args: &[u8], memory: &mut [&mut [u8]]) -> Result<(), String> {
        let Some(found) = self.kernels.get(kernel) else { return Err(format!("there is no kernel {kernel}")) };
        if args.len() != found.arguments {
            let (takes, given) = (found.arguments, args.len());
            return Err(format!("kernel {kernel} takes {takes} bytes of arguments, not {given}"));
        }
        launch::run(self, found, grid, args, memory).map_err(|problem| format!("kernel {kernel}, {problem}"))
    }
}
