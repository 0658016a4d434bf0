//! A machine that runs the CUDA kernels' source on the CPU.
#![expect(unsafe_code, reason = "its memory is this process's, addressed as a GPU's would be")]

use accordion::ops::cuda::{Accelerator, Fault, Launch};
use emulation::Order;
use emulation::ptx::Module;
use std::sync::{Arc, Mutex, OnceLock};

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
    /// Whether every launch fails.
    pub broken: bool,
    /// Launches that were run.
    pub launches: usize,
    /// Bytes that were uploaded.
    pub uploaded: usize,
}

/// Address, length, and the memory around it.
type Block = (u64, usize, Vec<u128>);

/// The bytes of an allocation.
fn inside((address, length, memory): &mut Block) -> &mut [u8] {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(memory);
    let start = (*address - bytes.as_ptr() as u64) as usize;
    &mut bytes[start..start + *length]
}

/// The machine.
#[derive(Debug)]
pub struct Emulated {
    blocks: Vec<Block>,
    order: Order,
    ptx: Option<&'static Module>,
    limits: Arc<Mutex<Limits>>,
}

/// Kernels of which a GPU's functions (sine, logarithm) are not the CPU's to the last bit.
const APPROXIMATE: [&str; 3] = ["embedding", "normals", "sampler"];

/// What nvcc made of the kernels, if `ACCORDION_PTX` names the file (scripts/cuda-light.sh makes it).
#[allow(dead_code)]
pub fn ptx() -> Option<&'static Module> {
    static PTX: OnceLock<Option<Module>> = OnceLock::new();
    let read = || {
        let path = std::env::var_os("ACCORDION_PTX")?;
        Some(Module::parse(&std::fs::read_to_string(path).unwrap()).unwrap())
    };
    PTX.get_or_init(read).as_ref()
}

impl Emulated {
    /// With so many bytes, running threads in this order.
    pub fn new(free: usize, order: Order) -> Self {
        let limits = Limits { free, samples: u32::MAX, broken: false, launches: 0, uploaded: 0 };
        Self { blocks: Vec::new(), order, ptx: None, limits: Arc::new(Mutex::new(limits)) }
    }

    /// With so many bytes, running PTX; it has to leave the bits that the kernels' source leaves.
    #[allow(dead_code)]
    pub fn on_ptx(free: usize, ptx: &'static Module) -> Self {
        let mut machine = Self::new(free, Order::ALL[0]);
        machine.ptx = Some(ptx);
        machine
    }

    /// Runs a launch on PTX.
    fn compiled(&mut self, ptx: &Module, launch: &Launch) -> Result<(), Fault> {
        let mut memory: Vec<&mut [u8]> = self.blocks.iter_mut().map(inside).collect();
        ptx.launch(&launch.name(), launch.grid, &launch.args, &mut memory).map_err(Fault::Device)
    }

    /// Runs a launch of the kernels' source.
    fn native(&self, launch: &Launch) -> Result<(), Fault> {
        // SAFETY: a launch names memory of this machine, and that a kernel stays inside it is what the tests are for.
        unsafe { emulation::launch(&launch.name(), launch.grid, &launch.args, self.order) }.map_err(Fault::Device)
    }

    /// What may be changed and looked at while somebody else has the machine.
    #[allow(dead_code, reason = "not every test has limits")]
    pub fn limits(&self) -> Arc<Mutex<Limits>> {
        self.limits.clone()
    }

    fn check(&self, address: u64, bytes: usize) {
        let contains =
            |&(start, length, _): &Block| address >= start && address + bytes as u64 <= start + length as u64;
        assert!(self.blocks.iter().any(contains), "{bytes} bytes at {address:#x} are not allocated");
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

impl Accelerator for Emulated {
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
            return Err(Fault::OutOfMemory { needed: Some(bytes), free: limits.free });
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
            return Err(Fault::OutOfMemory { needed: None, free: 0 });
        }
        Ok(launches)
    }

    fn run(&mut self, program: &Self::Program) -> Result<(), Fault> {
        program.iter().try_for_each(|launch| self.launch(launch))
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), Fault> {
        let mut limits = self.limits.lock().unwrap();
        limits.launches += 1;
        if limits.broken {
            return Err(Fault::Device("the GPU has fallen off the bus".to_owned()));
        }
        drop(limits);
        let Some(ptx) = self.ptx else { return self.native(launch) };
        let held =
            |blocks: &mut [Block]| -> Vec<Vec<u8>> { blocks.iter_mut().map(|block| inside(block).to_vec()).collect() };
        let before = held(&mut self.blocks);
        self.native(launch)?;
        let native = held(&mut self.blocks);
        self.blocks.iter_mut().zip(&before).for_each(|(block, before)| inside(block).copy_from_slice(before));
        self.compiled(ptx, launch)?;
        if !APPROXIMATE.contains(&launch.kernel) {
            for (block, native) in self.blocks.iter_mut().zip(&native) {
                let differs = inside(block).iter().zip(native).position(|(ptx, native)| ptx != native);
                assert_eq!(differs, None, "the byte in which {} differs between PTX and source", launch.name());
            }
        }
        Ok(())
    }
}
