//! CPU kernels on plain slices: f32, row-major, channels last.
//!
//! A sample's result never depends on the rest of its batch nor on the number of threads: work is cut by sample and by
//! fixed sizes, and sums over a batch are taken in a fixed order.
#![allow(unsafe_code)]

pub mod activation;
pub mod attention;
pub mod conv;
pub mod elementwise;
pub mod fused;
pub mod group_norm;
pub mod layer_norm;
pub mod memory;
mod parts;
pub mod peak;
pub mod pool;
pub mod resample;
pub(crate) mod simd;
pub mod tokens;

#[cfg(test)]
mod testing;
