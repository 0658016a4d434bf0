//! Convolution by its definition: 1x1 kernels, few input channels, strides, unusual kernels and padding.

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
    if places == Places::square(1, 1, 0) && source.affine.is_none() {
        return run_on_maps(workspace, source.parts, weights, epilogue, y);
    }
    let Places { kernel: [tall, wide], stride: step, pad: [above, left], after } = places;
    let [batch, _, width] = source.size();
    let c_in = source.channels();
    // Pixels of few channels lie close together.
    let is_whole = c_in == weights.depth();
    let stride = if is_whole && c_in < PANEL { c_in } else { pitch(c_in) };
    // Short rows of the output are made in one product: the map is copied once for each tap of a kernel's row, or each tap where
    // the kernel steps, as that tap sees it, so that the places of all rows follow each other. Where each column has a
    // place, the map is that already.
    let follows = step == 1 && wide == 1 && left == 0 || c_in >= PANEL && y.width < SHORT;
    let (planes, columns) = match (follows, step) {
        (false, _) => (1, (width + 2 * left).strict_add_signed(after)),
        (true, 1) => (wide, y.width),
        (true, _) => (tall * wide, y.width),
    };
    // Rows of a plane for so many of the output.
    let high = |rows: usize| match (follows, step) {
        (false, _) | (true, 1) => (rows - 1) * step + tall,
        (true, _) => rows,
    };
    let most = STRIP / (planes * columns * stride * if follows { 1 } else { step });
    let rows = most.max(FEW_PIXELS.div_ceil(y.width)).clamp(1, y.height);
    let strips = y.height.div_ceil(rows);
    let rows = y.height.div_ceil(strips);
    let plane = high(rows) * columns * stride;
    // Where nothing lies between two pixels' channels, nor between two taps' weights, the taps of a kernel's row are one.
    let side_by_side = if is_whole && stride == c_in && planes == 1 { wide } else { 1 };
    let taps: [usize; MOST_TAPS] = std::array::from_fn(|tap| {
        let (row, column) = (tap * side_by_side / wide, tap * side_by_side % wide);
        match planes {
            1 => (row * columns + column) * stride,
            _ if step == 1 => row * columns * stride + column * plane,
            _ => tap * plane,
        }
    });
    let (taps, depth) = (&taps[..places.taps() / side_by_side], side_by_side * c_in);
    let all = panels(y.channels);
    let (splits, share) = splits(all, batch * strips, workspace.team.threads());
    let (height, out_width, y_pitch) = (y.height, y.width, y.pitch());
    let y = Parts::new(y.data_mut());
    workspace.team.run(batch * strips * splits, |task| {
        let (strip, split) = (task / splits, task % splits);
        let (sample, top) = (strip / strips, strip % strips * rows);
        let rows = rows.min(height - top);
        let window = |plane: usize| Window {
            sample,
            top: (top * step + if step == 1 { 0 } else { plane / wide }) as isize - above as isize,
            left: (plane % wide) as isize - left as isize,
            rows: high(rows),
            columns,
            step: if follows { step } else { 1 },
            channels: 0..c_in,
        };
        let first = split * share;
        let share = share.min(all - first);
        with_scratch(planes * plane, |strip| {
            strip.chunks_exact_mut(plane).enumerate().for_each(|(i, plane)| source.read(&window(i), plane, stride));
            let (lines, pixels, pitch) =
                if follows { (1, rows * out_width, stride) } else { (rows, out_width, step * stride) };
            let mut w = weights.from(0, first);
            w.tap *= side_by_side;
            for line in 0..lines {
                let first_row = line * step * columns * stride;
                let a = Rows { data: &strip[first_row..], row: pitch, taps };
                let product = Product { a, w, rows: pixels, depth, panels: share, onto: false };
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

/// The panels of an output in shares, how many and of how many panels: enough tasks for all threads, where there are panels to share
/// out. Each then reads the input again.
fn splits(panels: usize, tasks: usize, threads: usize) -> (usize, usize) {
    let splits = (2 * threads).div_ceil(tasks).clamp(1, panels.div_ceil(2));
    let share = panels.div_ceil(splits);
    (panels.div_ceil(share), share)
}

/// A kernel of one pixel, on maps that are read as they are: nothing is copied.
fn run_on_maps(workspace: &mut Workspace, parts: &[&Map], weights: &Panels, epilogue: &Epilogue, y: &mut Map) {
    let (batch, pixels, y_pitch) = (y.batch, y.height * y.width, y.pitch());
    let width: usize = parts.iter().map(|part| part.pitch()).sum();
    let strips = pixels.div_ceil((STRIP / width).max(FEW_PIXELS));
    let long = pixels.div_ceil(strips);
    let all = panels(y.channels);
    let (splits, share) = splits(all, batch * strips, workspace.team.threads());
    let y = Parts::new(y.data_mut());
    workspace.team.run(batch * strips * splits, |task| {
        let (strip, split) = (task / splits, task % splits);
        let (sample, pixel) = (strip / strips, strip % strips * long);
        let rows = long.min(pixels.saturating_sub(pixel));
        if rows == 0 {
            return;
        }
        let first = split * share;
        let share = share.min(all - first);
        let start = (sample * pixels + pixel) * y_pitch + first * PANEL;
        let c = y.at(start, (rows - 1) * y_pitch + share * PANEL);
        let mut above = 0;
        for part in parts.iter().filter(|part| part.channels > 0) {
            let row = part.pitch();
            let mut w = weights.from(0, first);
            w.data = &w.data[above * PANEL..];
            let a = Rows { data: &part.data()[(sample * pixels + pixel) * row..], row, taps: &[0] };
            let product = Product { a, w, rows, depth: part.channels, panels: share, onto: above > 0 };
            // SAFETY: no two tasks share a pixel and a channel, and `at` has checked the room.
            unsafe { product.into(c, y_pitch) };
            above += part.channels;
        }
        let (channel, channels) = (first * PANEL, share * PANEL);
        arch().dispatch(EpilogueTask { epilogue, sample, channel, channels, start, pixels: rows, y: &y, y_pitch });
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
