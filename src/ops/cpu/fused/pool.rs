//! Pools of maps that are read side by side.

use super::{Map, Workspace};
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::parts::Parts;
use crate::ops::cpu::pool::{Pixels, Pooling, Reduce};

/// `y = reduce(x)` over the windows at `places`, where `x` has the channels of each of `parts` after those of the one before.
///
/// # Panics
/// If the size of `y` does not fit.
pub fn pool(workspace: &mut Workspace, parts: &[&Map], reduce: Reduce, places: Places, y: &mut Map) {
    let pooling = Pooling { reduce, places, size: [parts[0].height, parts[0].width] };
    let channels: usize = parts.iter().map(|part| part.channels).sum();
    assert_eq!([y.height, y.width], places.on(pooling.size), "size of the output");
    assert_eq!([y.batch, y.channels], [parts[0].batch, channels], "samples and channels of the output");
    let (batch, height, pitch) = (y.batch, y.height, y.pitch());
    let row = y.width * pitch;
    let y = Parts::new(y.data_mut());
    workspace.team.run(batch * height, |task| {
        let (sample, line) = (task / height, task % height);
        // SAFETY: each task has its own row.
        let out = unsafe { y.slice(task * row, row) };
        let mut first = 0;
        for part in parts.iter().filter(|part| part.channels > 0) {
            let data = &part.data()[sample * part.sample()..][..part.sample()];
            let x = Pixels { data, pitch: part.pitch(), channels: part.channels };
            pooling.row(x, line, &mut out[first..], pitch);
            first += part.channels;
        }
    });
}
