//! Linear layers on packed weights.

use super::Team;
use super::panels::{PANEL, Panels, Product, Rows, panels};
use crate::ops::cpu::parts::Parts;

/// The weights and the bias of a linear layer.
#[derive(Debug)]
pub struct Linear {
    weights: Panels,
    bias: Vec<f32>,
    c_in: usize,
}

/// A linear layer's share of one [`run`].
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// The layer.
    pub layer: &'a Linear,
    /// Its outputs that are wanted.
    pub channels: usize,
    /// Where in a row of the result they begin: a multiple of 16.
    pub offset: usize,
}

impl Linear {
    /// Packs weights `[c_in, c_out]`, read by `value(input, output)`.
    pub fn new([c_in, c_out]: [usize; 2], bias: &[f32], mut value: impl FnMut(usize, usize) -> f32) -> Self {
        let weights = Panels::by_tap(1, c_in, c_out, |_, input, output| value(input, output));
        let mut bias = bias.to_vec();
        bias.resize(panels(c_out) * PANEL, 0.0);
        Self { weights, bias, c_in }
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        self.weights.bytes() + size_of_val(&*self.bias)
    }
}

/// `y = x w + bias` of several layers on the same `x`: rows of `x` lie `x_pitch` apart, rows of `y` `y_pitch`.
pub fn run(team: &mut Team, x: &[f32], x_pitch: usize, outputs: &[Output], y: &mut [f32], y_pitch: usize) {
    /// Panels of a task.
    const SHARE: usize = 4;
    let rows = y.len() / y_pitch;
    let tasks: usize = outputs.iter().map(|output| panels(output.channels).div_ceil(SHARE)).sum();
    let y = Parts::new(y);
    team.run(tasks, |mut task| {
        let mut chosen = outputs.iter();
        let output = loop {
            let output = chosen.next().expect("a task belongs to an output");
            let mine = panels(output.channels).div_ceil(SHARE);
            if task < mine {
                break output;
            }
            task -= mine;
        };
        let first = task * SHARE;
        let share = SHARE.min(panels(output.channels) - first);
        let layer = output.layer;
        let a = Rows { data: x, row: x_pitch, taps: &[0] };
        let product =
            Product { a, w: layer.weights.from(0, first), rows, depth: layer.c_in, panels: share, onto: false };
        let start = output.offset + first * PANEL;
        // SAFETY: the panels of an output are one task's alone, outputs do not overlap, and `at` checks the room.
        unsafe { product.into(y.at(start, (rows - 1) * y_pitch + share * PANEL), y_pitch) };
        let bias = &layer.bias[first * PANEL..][..share * PANEL];
        for row in 0..rows {
            // SAFETY: as above.
            let y = unsafe { y.slice(start + row * y_pitch, share * PANEL) };
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
    });
}
