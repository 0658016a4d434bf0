//! One launch of a kernel, as data.

use bytemuck::NoUninit;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of activations and weights on a GPU. Sums, norms and the images themselves are f32 with each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits: what the CPU computes, to rounding.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// f32 without its last 16 bits.
    Bf16,
}

impl Precision {
    /// Every type, the most exact first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The name in options, and what the names of its kernels end with.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Appends values, rounded to nearest.
    pub fn write(self, values: impl IntoIterator<Item = f32>, out: &mut Vec<u8>) {
        for value in values {
            match self {
                Self::F32 => out.extend(value.to_le_bytes()),
                Self::F16 => out.extend(f16::from_f32(value).to_le_bytes()),
                Self::Bf16 => out.extend(bf16::from_f32(value).to_le_bytes()),
            }
        }
    }

    /// The values of some bytes that [`Self::write`] could have made.
    pub fn read(self, bytes: &[u8]) -> Vec<f32> {
        let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        match self {
            Self::F32 => {
                bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
            }
            Self::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
            Self::Bf16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        }
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    /// # Errors
    /// One sentence that lists the accepted names.
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|precision| precision.as_str() == text);
        known.ok_or_else(|| format!("precision `{text}` is unknown: accepted are f32, f16 and bf16"))
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The least that a launch has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes that cross the memory bus if every input is read once and every output written once.
    pub bytes: u64,
    /// Floating point operations of its matrix products, two a multiply-add; 0 where bytes are what it costs.
    pub operations: u64,
}

impl Cost {
    /// Bytes a second of an H100 SXM's memory (NVIDIA H100 data sheet).
    pub const H100_BYTES: f64 = 3.35e12;

    /// Operations a second of an H100 SXM's tensor cores, dense (NVIDIA H100 data sheet): f32 takes three products of tf32.
    pub fn h100_operations(precision: Precision) -> f64 {
        match precision {
            Precision::F32 => 495e12 / 3.0,
            Precision::F16 | Precision::Bf16 => 990e12,
        }
    }

    /// Seconds that an H100 needs at least, by its data sheet.
    pub fn h100_floor(self, precision: Precision) -> f64 {
        let (bytes, operations) = (self.bytes as f64, self.operations as f64);
        (bytes / Self::H100_BYTES).max(operations / Self::h100_operations(precision))
    }
}

/// One launch: a kernel, its grid and its argument. The size of its blocks is the kernel's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel's name without the precision's, such as `conv`.
    pub kernel: &'static str,
    /// The type that it is compiled for; `None` where there is only one.
    pub precision: Option<Precision>,
    /// Blocks.
    pub grid: [u32; 3],
    /// The kernel's one argument, a struct by value.
    pub args: Vec<u8>,
    /// What it has to do.
    pub cost: Cost,
    /// Launches of the same as single operations of candle's CUDA backend (candle-core and candle-nn 0.11.1, without cuDNN),
    /// read off its source.
    pub op_by_op: usize,
    /// The layer that it belongs to.
    pub layer: String,
}

/// The threads of a block, by kernel: as `kernels/*.cuh` declare them.
pub const THREADS: [(&str, u32); 12] = [
    ("attention", 128),
    ("conv", 128),
    ("embedding", 128),
    ("layer_norm", 128),
    ("elementwise", 256),
    ("gate", 256),
    ("group_norm", 256),
    ("normals", 128),
    ("pixels", 128),
    ("sampler", 128),
    ("tokens", 256),
    ("unpatch", 256),
];

impl Launch {
    /// A launch of `kernel` on `grid`, in place of `op_by_op` launches.
    ///
    /// # Panics
    /// If an edge of the grid is empty or exceeds the device's, which the callers' shapes do not reach.
    pub fn new(
        kernel: &'static str,
        precision: Option<Precision>,
        grid: [usize; 3],
        args: &impl NoUninit,
        cost: Cost,
        op_by_op: usize,
    ) -> Self {
        let edge = |(edge, most): (usize, u32)| match u32::try_from(edge) {
            Ok(edge) if (1..=most).contains(&edge) => edge,
            _ => panic!("a grid of {grid:?} for {kernel}"),
        };
        let most = [i32::MAX as u32, 65_535, 65_535];
        let grid = [0, 1, 2].map(|axis| edge((grid[axis], most[axis])));
        Self { kernel, precision, grid, args: bytemuck::bytes_of(args).to_vec(), cost, op_by_op, layer: String::new() }
    }

    /// The same for the layer of this name.
    pub fn of(mut self, layer: impl Into<String>) -> Self {
        self.layer = layer.into();
        self
    }

    /// The kernel's whole name, such as `conv_f16`.
    pub fn name(&self) -> String {
        match self.precision {
            Some(precision) => format!("{}_{precision}", self.kernel),
            None => self.kernel.to_owned(),
        }
    }

    /// The threads of each block.
    ///
    /// # Panics
    /// For a kernel that [`THREADS`] does not list.
    pub fn threads(&self) -> u32 {
        let known = THREADS.iter().find(|(kernel, _)| *kernel == self.kernel);
        known.unwrap_or_else(|| panic!("{} is not in the table of threads", self.kernel)).1
    }
}
