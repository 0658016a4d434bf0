//! How a convolution is computed.

use super::panels::PANEL;
use crate::ops::cpu::conv::Places;

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
    /// The method for a kernel at these places of maps of so many rows.
    pub fn of(places: Places, c_in: usize, height: usize) -> Self {
        match () {
            // Few input channels leave less to multiply than the transforms cost.
            () if !is_for_winograd(places) || c_in < PANEL => Self::Direct,
            // On few tiles the weights are read for little arithmetic, and F(2x2) has less than half of them.
            () if height <= 8 => Self::Winograd(Filtering::F2),
            () => Self::Winograd(Filtering::F4),
        }
    }
}

/// Whether Winograd's method can have these places: those of 3x3 kernels on every pixel, with at most one zero around the map.
pub(super) fn is_for_winograd(places: Places) -> bool {
    places.kernel == [3, 3] && places.stride == 1 && places.pad.iter().all(|&pad| pad <= 1)
}

/// F(m x m, 3x3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// m = 2.
    F2,
    /// m = 4.
    F4,
}
