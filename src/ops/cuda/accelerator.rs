//! What runs launches: a GPU, or its emulation.

use super::Launch;

/// Why a machine did not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The memory is not there. Nothing was changed.
    #[error("GPU memory: {}", shortage(*needed, *free))]
    OutOfMemory {
        /// Bytes that were asked for, where that is known: the driver does not tell what it needs for itself.
        needed: Option<usize>,
        /// Bytes that were free.
        free: usize,
    },
    /// Anything else.
    #[error("{0}")]
    Device(String),
}

fn shortage(needed: Option<usize>, free: usize) -> String {
    match needed {
        Some(needed) => format!("{needed} bytes are needed and {free} are free"),
        None => format!("the driver needs more than the {free} bytes that are free"),
    }
}

impl From<Fault> for crate::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::OutOfMemory { needed, free } => Self::input("GPU memory", shortage(needed, free)),
            Fault::Device(problem) => Self::Denoiser(problem),
        }
    }
}

/// A machine with memory of its own that runs kernels in the order in which they are given.
///
/// What it allocates it keeps until it is dropped.
pub trait Accelerator: Send {
    /// Launches that were made ready to run again and again.
    type Program: Send;

    /// What it is called, such as `NVIDIA H100 80GB HBM3`.
    fn name(&self) -> String;

    /// Bytes that are free.
    ///
    /// # Errors
    /// [`Fault::Device`].
    fn free(&self) -> Result<usize, Fault>;

    /// The address of so many new bytes, which are zero; it is a multiple of 256.
    ///
    /// # Errors
    /// [`Fault`].
    fn allocate(&mut self, bytes: usize) -> Result<u64, Fault>;

    /// Writes bytes at an address, before whatever is run next.
    ///
    /// # Errors
    /// [`Fault::Device`].
    fn upload(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault>;

    /// Reads the bytes at an address, after everything that was run.
    ///
    /// # Errors
    /// [`Fault::Device`], also of a launch before.
    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault>;

    /// Makes launches ready.
    ///
    /// # Errors
    /// [`Fault`].
    fn prepare(&mut self, launches: Vec<Launch>) -> Result<Self::Program, Fault>;

    /// Runs launches that were made ready.
    ///
    /// # Errors
    /// [`Fault`]; a fault on the device may be told by the next [`Self::download`] only.
    fn run(&mut self, program: &Self::Program) -> Result<(), Fault>;

    /// Runs one launch.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn launch(&mut self, launch: &Launch) -> Result<(), Fault>;
}
