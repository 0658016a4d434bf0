//! How a convolution is computed.

use super::panels::PANEL;
use crate::ops::cpu::conv::Places;

/// How a convolution is computed. Chosen by its shape alone, never by the batch, the width of the subnet or a measured
/// time: otherwise the same request could give different bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// With fewer multiplications, on every pixel.
    Winograd(Filtering),
    /// By the definition.
    Direct,
}

impl Method {
    /// The method for a kernel at these places of maps of so many rows.
    pub fn of(places: Places, c_in: usize, height: usize) -> Self {
        // Few input channels leave less to multiply than the transforms cost.
        if places.stride != 1 || c_in < PANEL || !has_usual_padding(places) {
            return Self::Direct;
        }
        match places.kernel {
            // On few tiles the weights are read for little arithmetic, and F(2x2) has less than half of them.
            [3, 3] if height <= 8 => Self::Winograd(Filtering::F2),
            [3, 3] => Self::Winograd(Filtering::F4),
            [5, 5] => Self::Winograd(Filtering::F2Of5),
            [1, 3] => Self::Winograd(Filtering::F4InRow),
            [3, 1] => Self::Winograd(Filtering::F4InColumn),
            [1, 7] => Self::Winograd(Filtering::F3Of7InRow),
            [7, 1] => Self::Winograd(Filtering::F3Of7InColumn),
            _ => Self::Direct,
        }
    }
}

/// Whether there are at most so many zeros around the map that each pixel keeps its place.
fn has_usual_padding(Places { kernel, pad, after, .. }: Places) -> bool {
    after == 0 && (0..2).all(|axis| pad[axis] <= kernel[axis] / 2)
}

/// F(rows x columns of outputs, rows x columns of the kernel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// F(2x2, 3x3).
    F2,
    /// F(4x4, 3x3).
    F4,
    /// F(2x2, 5x5).
    F2Of5,
    /// F(1x4, 1x3).
    F4InRow,
    /// F(4x1, 3x1).
    F4InColumn,
    /// F(1x3, 1x7).
    F3Of7InRow,
    /// F(3x1, 7x1).
    F3Of7InColumn,
}

impl Filtering {
    /// Rows and columns of the kernels that it is for.
    pub fn kernel(self) -> [usize; 2] {
        match self {
            Self::F2 | Self::F4 => [3, 3],
            Self::F2Of5 => [5, 5],
            Self::F4InRow => [1, 3],
            Self::F4InColumn => [3, 1],
            Self::F3Of7InRow => [1, 7],
            Self::F3Of7InColumn => [7, 1],
        }
    }

    /// The positions of a tile, for each of which it has a matrix of weights in place of one for each tap of the kernel.
    pub fn matrices(self) -> usize {
        match self {
            Self::F2 => 4 * 4,
            Self::F4 | Self::F2Of5 => 6 * 6,
            Self::F4InRow | Self::F4InColumn => 6,
            Self::F3Of7InRow | Self::F3Of7InColumn => 9,
        }
    }

    /// Its name beside the size of the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::F2 | Self::F2Of5 => "F2",
            Self::F4 | Self::F4InRow | Self::F4InColumn => "F4",
            Self::F3Of7InRow | Self::F3Of7InColumn => "F3",
        }
    }
}
