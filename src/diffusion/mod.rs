//! Preconditioning, noise schedules, solvers and counter-based noise. Pure: no tensors, no device.

pub mod preconditioning;
