//! An NVIDIA GPU through CUDA's driver API.
//!
//! The driver's library is opened when a GPU is asked for, and nothing else of CUDA is needed to run: so the same binary
//! serves from a CPU where there is no driver. The kernels are machine code inside it (see `build.rs`).
#![expect(unsafe_code, reason = "CUDA's driver API is a C library")]

use super::{Accelerator, Fault, Launch};
use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
use cudarc::driver::sys::{CUfunction, CUgraphInstantiate_flags, CUmodule, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaGraph, CudaStream};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;

/// Accelerator code of every kernel for the usual GPUs, and PTX for later ones.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The oldest compute capability that the kernels run on: asynchronous copies, bf16 and tf32 came with it.
const OLDEST: (i32, i32) = (8, 0);

/// Page-locked memory that copies to and from the GPU go through.
const STAGING: usize = 4 << 20;

/// One GPU: its primary context, and a stream of its own.
#[derive(Debug)]
pub struct Gpu {
    stream: Arc<CudaStream>,
    module: CUmodule,
    functions: HashMap<String, CUfunction>,
    allocations: Vec<u64>,
    staging: *mut u8,
    /// Bytes of the staging that copies under way still use.
    staged: usize,
}

// SAFETY: the driver's handles and page-locked memory may be used from any thread, one at a time; `Gpu` is not `Sync`.
unsafe impl Send for Gpu {}

/// Launches as a CUDA graph: one call of the driver starts them all.
pub struct Program(CudaGraph);

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Program")
    }
}

// SAFETY: a graph may be launched from any thread, one at a time.
unsafe impl Send for Program {}

impl Gpu {
    /// Opens the GPU of this index.
    ///
    /// # Errors
    /// [`Error::Input`] with one sentence where there is no driver, no such GPU, an older one than the kernels run on, or no
    /// memory.
    pub fn open(index: usize) -> Result<Self> {
        let device = format!("cuda:{index}");
        let refuse = |problem: String| Error::input(device.clone(), problem);
        // SAFETY: opens and closes the driver's library.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(refuse("there is no NVIDIA driver (libcuda.so.1) on this machine; it can use cpu".to_owned()));
        }
        let told = |what: &str| {
            let (device, what) = (device.clone(), what.to_owned());
            move |error: DriverError| Error::input(device, format!("{what}: {}", describe(error)))
        };
        result::init().map_err(told("the NVIDIA driver does not start"))?;
        let count = CudaContext::device_count().map_err(told("the NVIDIA driver does not tell its GPUs"))?;
        if i32::try_from(index).is_ok_and(|index| index >= count) || count == 0 {
            return Err(refuse(format!("there is no such GPU: the NVIDIA driver knows {count} of them, from cuda:0")));
        }
        let context = CudaContext::new(index).map_err(told("the GPU cannot be used"))?;
        // Memory and order are this module's own: there is one stream.
        // SAFETY: no `CudaSlice` is made.
        unsafe { context.disable_event_tracking() };
        let capability = context.compute_capability().map_err(told("the GPU does not tell its age"))?;
        if capability < OLDEST {
            let (major, minor) = capability;
            return Err(refuse(format!("its compute capability is {major}.{minor}; accepted are 8.0 and later")));
        }
        let stream = context.new_stream().map_err(told("the GPU gives no stream"))?;
        // SAFETY: the image is a whole fatbin, as nvcc wrote it.
        let module = unsafe { result::module::load_data(KERNELS.as_ptr().cast()) };
        let module =
            module.map_err(told("the GPU's driver does not take the kernels (they need release 580 or newer)"))?;
        // SAFETY: a new allocation, freed when dropped.
        let staging = unsafe { result::malloc_host(STAGING, 0) }.map_err(told("no page-locked memory"));
        let staging = staging.inspect_err(|_| {
            // SAFETY: nothing of the module is used.
            let _ = unsafe { result::module::unload(module) };
        })?;
        let (functions, allocations) = (HashMap::new(), Vec::new());
        Ok(Self { stream, module, functions, allocations, staging: staging.cast(), staged: 0 })
    }

    fn bind(&self) -> std::result::Result<(), Fault> {
        self.stream.context().bind_to_thread().map_err(fault)
    }

    fn synchronize(&mut self) -> std::result::Result<(), Fault> {
        self.stream.synchronize().map_err(fault)?;
        self.staged = 0;
        Ok(())
    }

    /// So many bytes of the staging that no copy uses.
    fn stage(&mut self, bytes: usize) -> std::result::Result<*mut u8, Fault> {
        if self.staged + bytes > STAGING {
            self.synchronize()?;
        }
        // SAFETY: `staged + bytes` is inside.
        let at = unsafe { self.staging.add(self.staged) };
        self.staged += bytes;
        Ok(at)
    }

    fn function(&mut self, name: &str) -> std::result::Result<CUfunction, Fault> {
        if let Some(&function) = self.functions.get(name) {
            return Ok(function);
        }
        let symbol = CString::new(name).expect("names of kernels have no NUL");
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.module, symbol) }.map_err(fault)?;
        // The driver loads a function when something of it is wanted first, which a capture would not let it do.
        // SAFETY: the function is of the loaded module.
        unsafe { result::function::get_function_attribute(function, CU_FUNC_ATTRIBUTE_NUM_REGS) }.map_err(fault)?;
        self.functions.insert(name.to_owned(), function);
        Ok(function)
    }

    /// What an error means, of something that wants memory: `needed` bytes of it, where that is known.
    fn memory_fault(&self, error: DriverError, needed: Option<usize>) -> Fault {
        match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Fault::OutOfMemory { needed, free: result::mem_get_info().map_or(0, |(free, _)| free) }
            }
            _ => fault(error),
        }
    }
}

/// CUDA's name of an error and what it says of it.
fn describe(error: DriverError) -> String {
    let text =
        |text: std::result::Result<&std::ffi::CStr, DriverError>| text.map(|text| text.to_string_lossy().into_owned());
    match (text(error.error_name()), text(error.error_string())) {
        (Ok(name), Ok(meaning)) => format!("{meaning} ({name})"),
        _ => format!("CUDA error {}", error.0 as u32),
    }
}

fn fault(error: DriverError) -> Fault {
    Fault::Device(describe(error))
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // What fails here has failed before; there is nobody left to tell.
        let _ = self.bind();
        let _ = self.stream.synchronize();
        for &allocation in &self.allocations {
            // SAFETY: allocated by `allocate`, and nothing runs any more.
            let _ = unsafe { result::free_sync(allocation) };
        }
        // SAFETY: allocated and loaded by `open`, and nothing runs any more.
        let _ = unsafe { result::free_host(self.staging.cast()) };
        // SAFETY: as above.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

impl Accelerator for Gpu {
    type Program = Program;

    fn name(&self) -> String {
        self.stream.context().name().unwrap_or_else(|_| "an NVIDIA GPU".to_owned())
    }

    fn free(&self) -> std::result::Result<usize, Fault> {
        self.bind()?;
        result::mem_get_info().map(|(free, _)| free).map_err(fault)
    }

    fn allocate(&mut self, bytes: usize) -> std::result::Result<u64, Fault> {
        self.bind()?;
        // SAFETY: freed when dropped, after all that uses it.
        let address = unsafe { result::malloc_sync(bytes) };
        let address = address.map_err(|error| self.memory_fault(error, Some(bytes)))?;
        self.allocations.push(address);
        // SAFETY: the allocation is of so many bytes.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }.map_err(fault)?;
        Ok(address)
    }

    fn upload(&mut self, address: u64, bytes: &[u8]) -> std::result::Result<(), Fault> {
        self.bind()?;
        let mut at = address;
        for piece in bytes.chunks(STAGING) {
            let staged = self.stage(piece.len())?;
            // SAFETY: the staging has room for the piece, and no copy under way uses that part of it.
            let staged = unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), staged, piece.len());
                std::slice::from_raw_parts(staged, piece.len())
            };
            // SAFETY: the staging outlives the copy; the caller answers for the address.
            unsafe { result::memcpy_htod_async(at, staged, self.stream.cu_stream()) }.map_err(fault)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn download(&mut self, address: u64, bytes: &mut [u8]) -> std::result::Result<(), Fault> {
        self.bind()?;
        let mut at = address;
        for piece in bytes.chunks_mut(STAGING) {
            let staged = self.stage(piece.len())?;
            // SAFETY: the staging has room for the piece, and no copy under way uses that part of it.
            let staged = unsafe { std::slice::from_raw_parts_mut(staged, piece.len()) };
            // SAFETY: the staging outlives the copy; the caller answers for the address.
            unsafe { result::memcpy_dtoh_async(staged, at, self.stream.cu_stream()) }.map_err(fault)?;
            self.synchronize()?;
            piece.copy_from_slice(staged);
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn prepare(&mut self, launches: Vec<Launch>) -> std::result::Result<Program, Fault> {
        self.bind()?;
        // Functions are loaded before: a capture takes launches alone.
        for launch in &launches {
            self.function(&launch.name())?;
        }
        let capture = self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        capture.map_err(fault)?;
        let launched = launches.iter().try_for_each(|launch| self.launch(launch));
        // Ends also where a launch failed: the stream would stay in the capture.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        launched?;
        let graph = graph.map_err(|error| self.memory_fault(error, None))?;
        let graph = graph.ok_or_else(|| Fault::Device("the capture gave no graph".to_owned()))?;
        graph.upload().map_err(|error| self.memory_fault(error, None))?;
        Ok(Program(graph))
    }

    fn run(&mut self, program: &Program) -> std::result::Result<(), Fault> {
        self.bind()?;
        program.0.launch().map_err(|error| self.memory_fault(error, None))
    }

    fn launch(&mut self, launch: &Launch) -> std::result::Result<(), Fault> {
        self.bind()?;
        let function = self.function(&launch.name())?;
        let [x, y, z] = launch.grid;
        let mut args = [launch.args.as_ptr().cast::<c_void>().cast_mut()];
        // SAFETY: the kernel's one argument is the struct whose bytes these are (`tests/kernels.rs` launches all, and the emulation refuses other sizes than
        // the kernels'), which CUDA copies now; the addresses in it are the caller's to answer for.
        unsafe {
            result::launch_kernel(function, (x, y, z), (launch.threads(), 1, 1), 0, self.stream.cu_stream(), &mut args)
        }
        .map_err(fault)
    }
}
