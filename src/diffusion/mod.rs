//! Preconditioning, noise schedules, solvers and counter-based noise. Pure: no tensors, no device.

pub mod plan;
pub mod preconditioning;
pub mod schedule;
pub mod solver;

pub use plan::{Plan, Respacing, Solver, WidthRun};
pub use schedule::{Level, Process, SigmaRange, Spacing};
pub use solver::{Call, Course, Noise, State, Trajectory, Update, guide};
