//! Preconditioning, noise schedules, solvers and counter-based noise. Pure: no tensors, no device.

pub mod noise;
pub mod plan;
pub mod preconditioning;
pub mod schedule;
pub mod solver;

pub use noise::{NoiseKey, Stream};
pub use plan::{Plan, Solver, WidthRun, subnet_name};
pub use schedule::{SigmaRange, Spacing, sigmas};
pub use solver::{Call, Trajectory, guide};
