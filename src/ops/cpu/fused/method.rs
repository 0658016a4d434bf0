//! How a convolution is computed.

use super::panels::PANEL;

/// How a convolution is computed. Chosen by its shape alone, never by the batch, the width of the subnet or a measured
/// time: otherwise the same request could give different bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// With fewer multiplications.
    Winograd(Filtering),
    /// By the definition.
    Direct,
}

impl Method {
    /// The method for a kernel of `kernel` by `kernel` on maps of `side` by `side`.
    pub fn of([kernel, stride, pad]: [usize; 3], c_in: usize, side: usize) -> Self {
        match (kernel, stride, pad) {
            // Few input channels leave less to multiply than the transforms cost.
            (3, 1, 1) if c_in < PANEL => Self::Direct,
            // On few tiles the weights are read for little arithmetic, and F(2x2) has less than half of them.
            (3, 1, 1) if side <= 8 => Self::Winograd(Filtering::F2),
            (3, 1, 1) => Self::Winograd(Filtering::F4),
            _ => Self::Direct,
        }
    }
}

/// F(m x m, 3x3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// m = 2.
    F2,
    /// m = 4.
    F4,
}
