//! Maps made whole from parts, normalised on the way, and made larger or smaller.

use super::scratch::with_scratch;
use super::source::Window;
use super::{Map, Source, Workspace};
use crate::ops::cpu::parts::Parts;
use crate::ops::cpu::resample::Resampler;

/// Rows of a task.
const ROWS: usize = 4;

/// Writes the source down.
pub fn copy(workspace: &mut Workspace, source: Source, y: &mut Map) {
    let [batch, height, width] = source.size();
    assert_eq!(
        [y.batch, y.height, y.width, y.channels],
        [batch, height, width, source.channels()],
        "size of the output"
    );
    let (row, pitch) = (width * y.pitch(), y.pitch());
    let strips = height.div_ceil(ROWS);
    let y = Parts::new(y.data_mut());
    workspace.team.run(batch * strips, |task| {
        let (sample, top) = (task / strips, task % strips * ROWS);
        let rows = ROWS.min(height - top);
        let channels = 0..source.channels();
        let window = Window { sample, top: top as isize, rows, left: 0, columns: width, step: 1, channels };
        // SAFETY: each task has its own rows.
        let out = unsafe { y.slice((sample * height + top) * row, rows * row) };
        source.read(&window, out, pitch);
    });
}

/// `y = resampler(x)`, sample by sample. The resampler is made for pixels of the maps' pitch.
pub fn resample(workspace: &mut Workspace, resampler: &Resampler, x: &Map, y: &mut Map) {
    assert_eq!([y.height, y.width], resampler.output(), "size of the output");
    let (height, row, sample) = (y.height, y.width * y.pitch(), x.sample());
    let strips = height.div_ceil(ROWS);
    let (batch, y) = (x.batch, Parts::new(y.data_mut()));
    let x = x.data();
    workspace.team.run(batch * strips, |task| {
        let (index, top) = (task / strips, task % strips * ROWS);
        let x = &x[index * sample..][..sample];
        with_scratch(resampler.scratch(), |scratch| {
            for line in top..height.min(top + ROWS) {
                // SAFETY: each task has its own rows.
                let out = unsafe { y.slice((index * height + line) * row, row) };
                resampler.row(x, line, scratch, out);
            }
        });
    });
}
