//! The kernels' source, compiled for the host.
#![expect(unsafe_code, reason = "calls the C++ emulation")]

use std::ffi::{CStr, CString, c_char, c_void};

unsafe extern "C" {
    fn accordion_emulation_kernel(index: u32, threads: *mut u32, arguments: *mut usize) -> *const c_char;
    fn accordion_emulation_launch(
        kernel: *const c_char,
        grid: *const u32,
        arguments: *const c_void,
        bytes: usize,
        sequence: u32,
        greedy: bool,
        seed: u32,
        message: *mut c_char,
        room: usize,
    ) -> usize;
}

/// The order in which the blocks of a grid, the warps of a block and the lanes of a warp are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// From the first to the last.
    Forward,
    /// From the last to the first.
    Reverse,
    /// Another permutation at every turn, drawn from this seed.
    Shuffled(u32),
}

/// A schedule of threads. What a correct kernel computes depends on none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Every warp goes up to its next barrier or operation of its lanes, then the next warp has its turn.
    InStep(Sequence),
    /// A warp goes as far as it can before the next has its turn.
    Greedy(Sequence),
}

impl Order {
    /// One of each kind.
    pub const ALL: [Self; 6] = [
        Self::InStep(Sequence::Forward),
        Self::InStep(Sequence::Reverse),
        Self::InStep(Sequence::Shuffled(1)),
        Self::Greedy(Sequence::Forward),
        Self::Greedy(Sequence::Reverse),
        Self::Greedy(Sequence::Shuffled(2)),
    ];
}

/// A kernel as its source declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The name to launch it by.
    pub name: String,
    /// The threads of a block.
    pub threads: u32,
    /// The size of its argument struct in bytes.
    pub arguments: usize,
}

/// Every kernel of the emulation.
pub fn kernels() -> Vec<Kernel> {
    (0..)
        .map_while(|index| {
            let (mut threads, mut arguments) = (0, 0);
            // SAFETY: both pointers are to live variables of the right types.
            let name = unsafe { accordion_emulation_kernel(index, &mut threads, &mut arguments) };
            // SAFETY: a name that is not null is a string literal of the C++ side.
            (!name.is_null())
                .then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
                .map(|name| Kernel { name, threads, arguments })
        })
        .collect()
}

/// Runs a kernel on a grid of blocks; `args` are the bytes of its argument struct, in which pointers are addresses of this
/// process. Launches on several threads at once are independent.
///
/// # Errors
///
/// One sentence that names the kernel, and the block where one is at fault: an unknown kernel, arguments of another size,
/// a grid that a GPU refuses, a deadlock, a barrier or an operation of a warp that its threads do not reach together, an
/// access of 16 bytes off its boundary, too much shared memory. What the kernel has written until then stays.
///
/// # Safety
///
/// The kernel must read and write, through the pointers in `args`, only memory that is live and that nothing else uses
/// during the call.
pub unsafe fn launch(kernel: &str, grid: [u32; 3], args: &[u8], order: Order) -> Result<(), String> {
    let Ok(name) = CString::new(kernel) else { return Err(format!("there is no kernel {kernel:?}")) };
    let (sequence, greedy) = match order {
        Order::InStep(sequence) => (sequence, false),
        Order::Greedy(sequence) => (sequence, true),
    };
    let (sequence, seed) = match sequence {
        Sequence::Forward => (0, 1),
        Sequence::Reverse => (1, 1),
        Sequence::Shuffled(seed) => (2, seed),
    };
    let mut message = [0u8; 512];
    // SAFETY: every pointer is to live memory of the size that is passed with it; the caller answers for those in `args`.
    let length = unsafe {
        accordion_emulation_launch(
            name.as_ptr(),
            grid.as_ptr(),
            args.as_ptr().cast(),
            args.len(),
            sequence,
            greedy,
            seed,
            message.as_mut_ptr().cast(),
            message.len(),
        )
    };
    match length {
        0 => Ok(()),
        length => Err(String::from_utf8_lossy(&message[..length]).into_owned()),
    }
}
