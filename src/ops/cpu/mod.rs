//! CPU kernels on plain slices: f32, row-major, channels last.
#![allow(unsafe_code)]

pub mod activation;
pub mod group_norm;

#[cfg(test)]
mod testing;
