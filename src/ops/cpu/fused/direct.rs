//! Convolution by its definition: 1x1 kernels, few input channels, strides, unusual padding.

use super::epilogue::Epilogue;
use super::panels::{PANEL, Panels, Product, Rows, panels, pitch};
use super::scratch::with_scratch;
use super::source::Window;
use super::{Map, Source, Workspace};
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::parts::Parts;
use crate::ops::cpu::simd::arch;
use pulp::{Simd, WithSimd};

/// Elements of the input that a task copies at a time: a share of the L2 cache.
const STRIP: usize = 32 * 1024;

/// Pixels that a task makes, at least: they share each reading of the weights.
const FEW_PIXELS: usize = 64;
/// Columns below which a row of the output is short for a product of its own.
const SHORT: usize = 32;
/// Taps of the largest kernel.
const MOST_TAPS: usize = 64;

/// `y = epilogue(source * weights)` with the kernel at `places`.
pub fn run(
    workspace: &mut Workspace,
    source: Source,
    places: Places,
    weights: &Panels,
    epilogue: &Epilogue,
    y: &mut Map,
) {
    let Places { kernel: [tall, wide], stride: step, pad: [above, left] } = places;
    let [batch, _, width] = source.size();
    let c_in = source.channels();
    // Pixels of few channels lie close together.
    let is_whole = c_in == weights.depth();
    let stride = if is_whole && c_in < PANEL { c_in } else { pitch(c_in) };
    // The columns of the map as each tap of a kernel's row sees them, one plane a tap, so that the places of all rows follow each
    // other: where every column has a place, that is one plane; of short rows, several.
    let follows = step == 1 && (wide == 1 && left == 0 || c_in >= PANEL && y.width < SHORT);
    let (planes, columns) = if follows { (wide, y.width) } else { (1, width + 2 * left) };
    let rows = (STRIP / (planes * columns * stride * step)).max(FEW_PIXELS.div_ceil(y.width)).clamp(1, y.height);
    let strips = y.height.div_ceil(rows);
    let rows = y.height.div_ceil(strips);
    let plane = ((rows - 1) * step + tall) * columns * stride;
    // Where nothing lies between two pixels' channels, nor between two taps' weights, the taps of a kernel's row are one.
    let side_by_side = if is_whole && stride == c_in && planes == 1 { wide } else { 1 };
    let taps: [usize; MOST_TAPS] = std::array::from_fn(|tap| {
        let (row, column) = (tap * side_by_side / wide, tap * side_by_side % wide);
        row * columns * stride + column * if planes == 1 { stride } else { plane }
    });
    let (taps, depth) = (&taps[..places.taps() / side_by_side], side_by_side * c_in);
    // Enough tasks for all threads, where there are panels to share out; each then reads the input again.
    let all = panels(y.channels);
    let splits = (2 * workspace.team.threads()).div_ceil(batch * strips).clamp(1, all.div_ceil(2));
    let share = all.div_ceil(splits);
    let splits = all.div_ceil(share);
    let (height, out_width, y_pitch) = (y.height, y.width, y.pitch());
    let y = Parts::new(y.data_mut());
    workspace.team.run(batch * strips * splits, |task| {
        let (strip, split) = (task / splits, task % splits);
        let (sample, top) = (strip / strips, strip % strips * rows);
        let rows = rows.min(height - top);
        let mut window = Window {
            sample,
            top: (top * step) as isize - above as isize,
            rows: (rows - 1) * step + tall,
            left: -(left as isize),
            columns,
            channels: 0..c_in,
        };
        let first = split * share;
        let share = share.min(all - first);
        with_scratch(planes * plane, |strip| {
            for plane in strip.chunks_exact_mut(plane) {
                source.read(&window, plane, stride);
                window.left += 1;
            }
            let (lines, pixels) = if follows { (1, rows * out_width) } else { (rows, out_width) };
            let mut w = weights.from(0, first);
            w.tap *= side_by_side;
            for line in 0..lines {
                let first_row = line * step * columns * stride;
                let a = Rows { data: &strip[first_row..], row: step * stride, taps };
                let product = Product { a, w, rows: pixels, depth, panels: share };
                let start = ((sample * height + top + line) * out_width) * y_pitch + first * PANEL;
                let c = y.at(start, (pixels - 1) * y_pitch + share * PANEL);
                // SAFETY: no two tasks share a pixel and a channel, and `at` has checked the room.
                unsafe { product.into(c, y_pitch) };
                arch().dispatch(EpilogueTask {
                    epilogue,
                    sample,
                    channel: first * PANEL,
                    channels: share * PANEL,
                    start,
                    pixels,
                    y: &y,
                    y_pitch,
                });
            }
        });
    });
}

/// Epiloguees what a product has left in some pixels and channels.
struct EpilogueTask<'a> {
    epilogue: &'a Epilogue<'a>,
    sample: usize,
    channel: usize,
    channels: usize,
    /// Where the first of them lies in the output.
    start: usize,
    pixels: usize,
    y: &'a Parts<'a, f32>,
    y_pitch: usize,
}

impl WithSimd for EpilogueTask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for channel in (0..self.channels).step_by(S::F32_LANES) {
            let apply = self.epilogue.at(simd, self.sample, self.channel + channel);
            for pixel in 0..self.pixels {
                let place = self.start + pixel * self.y_pitch + channel;
                let at = self.y.at(place, S::F32_LANES).cast::<S::f32s>();
                // SAFETY: these are the caller's task's alone, and `at` has checked the room.
                unsafe { at.write_unaligned(apply.value(place, at.read_unaligned())) };
            }
        }
    }
}
