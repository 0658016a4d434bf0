//! CPU kernels on plain slices: f32, row-major, channels last.
#![allow(unsafe_code)]
