//! A machine that runs the CUDA kernels' source on the CPU.
#![expect(unsafe_code, reason = "its memory is this process's, addressed as a GPU's would be")]

use accordion::ops::cuda::{Fault, Launch, Machine};
use emulation::Order;
use std::sync::{Arc, Mutex};

/// What is between two allocations.
const POISON: u8 = 0xff;
/// Bytes around an allocation that nothing may write.
const GUARD: usize = 256;

/// The memory that can still be had, and what was asked of the machine.
#[derive(Debug)]
pub struct Limits {
    /// Bytes that are free.
    pub free: usize,
    /// The largest third edge of a grid, or samples, for which there is memory to make a program ready.
    pub samples: u32,
    /// Launches that were run.
    pub launches: usize,
    /// Bytes that were uploaded.
    pub uploaded: usize,
}

/// The machine.
#[derive(Debug)]
pub struct Emulated {
    blocks: Vec<(u64, usize, Vec<u128>)>,
    order: Order,
    limits: Arc<Mutex<Limits>>,
}

impl Emulated {
    /// With so many bytes, running threads in this order.
    pub fn new(free: usize, order: Order) -> Self {
        let limits = Limits { free, samples: u32::MAX, launches: 0, uploaded: 0 };
        Self { blocks: Vec::new(), order, limits: Arc::new(Mutex::new(limits)) }
    }

    /// What may be changed and looked at while somebody else has the machine.
    #[allow(dead_code, reason = "not every test has limits")]
    pub fn limits(&self) -> Arc<Mutex<Limits>> {
        self.limits.clone()
    }

    fn check(&self, address: u64, bytes: usize) {
        let inside =
            |&(start, length, _): &(u64, usize, _)| address >= start && address + bytes as u64 <= start + length as u64;
        assert!(self.blocks.iter().any(inside), "{bytes} bytes at {address:#x} are not allocated");
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        for (address, length, memory) in &self.blocks {
            let bytes: &[u8] = bytemuck::cast_slice(memory);
            let start = (*address - bytes.as_ptr() as u64) as usize;
            let whole = bytes[..start].iter().chain(&bytes[start + length..]).all(|&byte| byte == POISON);
            assert!(whole || std::thread::panicking(), "a kernel wrote outside of {length} bytes");
        }
    }
}

impl Machine for Emulated {
    type Program = Vec<Launch>;

    fn name(&self) -> String {
        "emulation".to_owned()
    }

    fn free(&self) -> Result<usize, Fault> {
        Ok(self.limits.lock().unwrap().free)
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64, Fault> {
        let mut limits = self.limits.lock().unwrap();
        if bytes > limits.free {
            return Err(Fault::OutOfMemory { needed: bytes, free: limits.free });
        }
        limits.free -= bytes;
        let mut memory = vec![u128::from_ne_bytes([POISON; 16]); (bytes + 3 * GUARD).div_ceil(16)];
        let address = (memory.as_ptr() as u64 + GUARD as u64).next_multiple_of(GUARD as u64);
        let start = (address - memory.as_ptr() as u64) as usize;
        bytemuck::cast_slice_mut::<u128, u8>(&mut memory)[start..start + bytes].fill(0);
        self.blocks.push((address, bytes, memory));
        Ok(address)
    }

    fn upload(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.check(address, bytes.len());
        self.limits.lock().unwrap().uploaded += bytes.len();
        // SAFETY: the bytes are of a block of this machine, which nothing else uses now.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        self.check(address, bytes.len());
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn prepare(&mut self, launches: Vec<Launch>) -> Result<Self::Program, Fault> {
        let limits = self.limits.lock().unwrap();
        if launches.iter().any(|launch| launch.grid[2] > limits.samples) {
            return Err(Fault::OutOfMemory { needed: 1, free: 0 });
        }
        Ok(launches)
    }

    fn run(&mut self, program: &Self::Program) -> Result<(), Fault> {
        program.iter().try_for_each(|launch| self.launch(launch))
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), Fault> {
        self.limits.lock().unwrap().launches += 1;
        // SAFETY: a launch names memory of this machine, and that a kernel stays inside it is what the tests are for.
        unsafe { emulation::launch(&launch.name(), launch.grid, &launch.args, self.order) }.map_err(Fault::Device)
    }
}
