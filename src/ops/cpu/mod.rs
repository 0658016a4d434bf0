//! CPU kernels on plain slices: f32, row-major, channels last.
#![allow(unsafe_code)]

pub mod activation;
pub mod group_norm;
mod simd;

#[cfg(test)]
mod testing;
