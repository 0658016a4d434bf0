//! Pipes, ranking, allocation, subnets and the checkpoint on disk. Knows no device and no HTTP.

pub mod allocation;
pub mod checkpoint;
pub mod groups;
pub mod ranking;
pub mod spec;
pub mod subnet;

pub use checkpoint::{Order, Supernet};
pub use spec::{Param, Pipe, PipeKind, Spec};
pub use subnet::{Subnet, Widths, bytes_as_copies, widths_of};
