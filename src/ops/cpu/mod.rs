//! CPU kernels on plain slices: f32, row-major, channels last.
#![allow(unsafe_code)]

pub mod activation;
pub mod attention;
pub mod elementwise;
pub mod group_norm;
pub mod resample;
mod simd;

#[cfg(test)]
mod testing;
