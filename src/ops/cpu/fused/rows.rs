//! Maps that are made row by row.

use super::{Map, Team};
use crate::ops::cpu::parts::Parts;

/// A row of a map that is to be filled.
#[derive(Debug)]
pub struct Row<'a> {
    /// The sample that it is of.
    pub sample: usize,
    /// Its place in the sample.
    pub row: usize,
    /// Its pixels.
    pub pixels: &'a mut [f32],
    /// Elements from a pixel to the next.
    pub pitch: usize,
}

/// Has `fill` make every row of a map.
pub fn fill_rows(team: &mut Team, y: &mut Map, fill: impl Fn(Row) + Sync) {
    let (rows, height, pitch) = (y.batch * y.height, y.height, y.pitch());
    let elements = y.width * pitch;
    let y = Parts::new(y.data_mut());
    team.run(rows, |task| {
        // SAFETY: each task has its own row.
        let pixels = unsafe { y.slice(task * elements, elements) };
        fill(Row { sample: task / height, row: task % height, pixels, pitch });
    });
}
