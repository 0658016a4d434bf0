//! `a * gelu(b)` of the two parts of a pipe.

use super::panels::PANEL;
use super::{Map, Workspace};
use crate::ops::cpu::activation::gate_row;
use crate::ops::cpu::parts::Parts;

/// Pixels of a task.
const PIXELS: usize = 64;

/// Where a channel of a part lies in a pixel of `x`: the panels of both parts alternate, so that fewer channels are a prefix.
pub fn column(part: usize, channel: usize) -> usize {
    (channel / PANEL * 2 + part) * PANEL + channel % PANEL
}

/// `y = a * gelu(b)` (GEGLU, Shazeer 2020) by pixel, from `x` as [`column`] says.
pub fn gate(workspace: &mut Workspace, x: &Map, y: &mut Map) {
    let (pixels, from, to) = (y.batch * y.height * y.width, x.pitch(), y.pitch());
    assert_eq!((x.batch * x.height * x.width, from), (pixels, 2 * to), "size of the gate");
    let y = Parts::new(y.data_mut());
    workspace.team.run(pixels.div_ceil(PIXELS), |task| {
        let first = task * PIXELS;
        let count = PIXELS.min(pixels - first);
        // SAFETY: a pixel is one task's.
        let y = unsafe { y.slice(first * to, count * to) };
        for (x, y) in x.data()[first * from..][..count * from].chunks_exact(2 * PANEL).zip(y.chunks_exact_mut(PANEL)) {
            let (a, b) = x.split_at(PANEL);
            gate_row(a, b, y);
        }
    });
}
