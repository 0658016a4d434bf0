//! Numeric kernels. One contract per op, implementations by device.
