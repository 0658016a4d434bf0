//! Convolution as strips of im2col and matrix products, forward and both gradients.

use rayon::prelude::*;
use std::borrow::Cow;
use std::cell::RefCell;

/// Floats of im2col held at a time by a thread: a strip that stays in the L2 cache beside the weights.
const STRIP_FLOATS: usize = 96 * 1024;

/// Partial sums of a weight gradient: fixed, so that the sum does not depend on the number of threads.
const GRADIENT_CHUNKS: usize = 8;

/// Places of a kernel of this side along a side of a map with `pad` zeros at both ends, `stride` pixels apart.
pub fn places(side: usize, kernel: usize, stride: usize, pad: usize) -> usize {
    (side + 2 * pad - kernel) / stride + 1
}

/// Where a kernel stands on a map, along its rows and along its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Pixels from a place to the next, along both axes.
    pub stride: usize,
    /// Zeros above and below the map, and left and right of it.
    pub pad: [usize; 2],
    /// More of them below the map and right of it; fewer where this is negative.
    pub after: isize,
}

impl Places {
    /// With as many zeros before the map as after it.
    pub const fn new(kernel: [usize; 2], stride: usize, pad: [usize; 2]) -> Self {
        Self { kernel, stride, pad, after: 0 }
    }

    /// As many as the map has pixels, of a kernel of odd sides.
    pub fn same(kernel: [usize; 2]) -> Self {
        Self::new(kernel, 1, kernel.map(|side| side / 2))
    }

    /// Those of a square kernel.
    pub const fn square(kernel: usize, stride: usize, pad: usize) -> Self {
        Self::new([kernel; 2], stride, [pad; 2])
    }

    /// Weights of the kernel for an input and an output.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Rows and columns of places on a map of so many rows and columns.
    pub fn on(&self, size: [usize; 2]) -> [usize; 2] {
        let side = |axis: usize| size[axis].strict_add_signed(self.after);
        [0, 1].map(|axis| places(side(axis), self.kernel[axis], self.stride, self.pad[axis]))
    }
}

/// Shape of a convolution with zero padding, channels last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Samples.
    pub batch: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Where the kernel stands.
    pub places: Places,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
}

impl Geometry {
    /// Rows of the output.
    pub fn out_height(&self) -> usize {
        self.places.on([self.height, self.width])[0]
    }

    /// Columns of the output.
    pub fn out_width(&self) -> usize {
        self.places.on([self.height, self.width])[1]
    }

    /// Values of one input sample.
    pub fn in_elements(&self) -> usize {
        self.height * self.width * self.c_in
    }

    /// Values of one output sample.
    pub fn out_elements(&self) -> usize {
        self.out_height() * self.out_width() * self.c_out
    }

    /// Products summed in one output value.
    fn depth(&self) -> usize {
        self.places.taps() * self.c_in
    }

    /// Output rows of one strip.
    fn strip_rows(&self) -> usize {
        (STRIP_FLOATS / (self.depth() * self.out_width()).max(1)).clamp(1, self.out_height())
    }

    /// The convolution that carries the gradient of the output, with zeros where the stride has no place, back to the input.
    fn transposed(&self) -> Self {
        let Places { kernel, pad, after, .. } = self.places;
        let dense = Self { places: Places { stride: 1, ..self.places }, ..*self };
        Self {
            height: dense.out_height(),
            width: dense.out_width(),
            places: Places { after: -after, ..Places::new(kernel, 1, [0, 1].map(|axis| kernel[axis] - 1 - pad[axis])) },
            c_in: self.c_out,
            c_out: self.c_in,
            ..*self
        }
    }
}

/// Weights `[kh, kw, in, out]` with any strides: a prefix of a wider tensor is a view.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    /// The storage, from the view's first element on.
    pub data: &'a [f32],
    /// Distance in elements between neighbours along each axis.
    pub strides: [usize; 4],
}

impl<'a> Kernel<'a> {
    /// The weights as a matrix `[kh * kw * in, out]` and the distance between its rows. Copies only where the rows are
    /// not evenly spaced: in a narrowed input of a kernel larger than 1.
    fn matrix(&self, g: &Geometry) -> (Cow<'a, [f32]>, usize) {
        let [ky, kx, ci, co] = self.strides;
        let across = g.places.kernel[1];
        let single = g.places.taps() == 1;
        let even = co == 1 && (single || (kx == g.c_in * ci && ky == across * kx));
        if even {
            return (Cow::Borrowed(self.data), ci);
        }
        let mut packed = Vec::with_capacity(g.depth() * g.c_out);
        for tap in 0..g.places.taps() {
            let base = tap / across * ky + tap % across * kx;
            for i in 0..g.c_in {
                let row = base + i * ci;
                if co == 1 {
                    packed.extend_from_slice(&self.data[row..row + g.c_out]);
                } else {
                    packed.extend((0..g.c_out).map(|o| self.data[row + o * co]));
                }
            }
        }
        (Cow::Owned(packed), g.c_out)
    }

    /// The weights of [`Geometry::transposed`]: taps reversed, inputs and outputs exchanged; `[kh, kw, out, in]`.
    fn reversed(&self, g: &Geometry) -> Vec<f32> {
        let [ky, kx, ci, co] = self.strides;
        let mut packed = vec![0.0; g.depth() * g.c_out];
        for (tap, rows) in packed.chunks_exact_mut(g.c_in * g.c_out).enumerate() {
            let mirrored = g.places.taps() - 1 - tap;
            let base = mirrored / g.places.kernel[1] * ky + mirrored % g.places.kernel[1] * kx;
            for (o, row) in rows.chunks_exact_mut(g.c_in).enumerate() {
                for (i, value) in row.iter_mut().enumerate() {
                    *value = self.data[base + i * ci + o * co];
                }
            }
        }
        packed
    }
}

/// `y[b, p, o] = bias[b, o] + sum_{ky, kx, i} x[b, stride p + (ky, kx) - pad, i] w[ky, kx, i, o]`.
///
/// `x` is `[batch, height, width, c_in]`, `y` is `[batch, out_height, out_width, c_out]`; `bias` is `[c_out]`, or
/// `[batch, c_out]`, or empty.
pub fn forward(x: &[f32], kernel: Kernel, bias: &[f32], g: &Geometry, y: &mut [f32]) {
    let (weights, row_stride) = kernel.matrix(g);
    let (depth, rows) = (g.depth(), g.strip_rows());
    y.par_chunks_mut(g.out_elements()).enumerate().for_each(|(sample, y)| {
        let x = &x[sample * g.in_elements()..][..g.in_elements()];
        let bias = if bias.len() > g.c_out { &bias[sample * g.c_out..][..g.c_out] } else { bias };
        y.par_chunks_mut(rows * g.out_width() * g.c_out).enumerate().for_each(|(strip, y)| {
            if bias.is_empty() {
                y.fill(0.0);
            } else {
                y.chunks_exact_mut(g.c_out).for_each(|pixel| pixel.copy_from_slice(bias));
            }
            let pixels = y.len() / g.c_out;
            with_columns(x, g, strip * rows, pixels, |columns| {
                multiply_accumulate(
                    y,
                    [pixels, g.c_out, depth],
                    Matrix { data: columns, row: depth, col: 1 },
                    Matrix { data: &weights, row: row_stride, col: 1 },
                );
            });
        });
    });
}

/// The gradient of the input: `dx[b, p, i] = sum dy w`, given `dy` in the shape of the output.
pub fn backward_input(dy: &[f32], kernel: Kernel, g: &Geometry, dx: &mut [f32]) {
    let transposed = g.transposed();
    let reversed = kernel.reversed(g);
    let kernel =
        Kernel { data: &reversed, strides: [g.places.kernel[1] * g.c_in * g.c_out, g.c_in * g.c_out, g.c_in, 1] };
    let dy = if g.places.stride == 1 { Cow::Borrowed(dy) } else { Cow::Owned(spread(dy, g, &transposed)) };
    forward(&dy, kernel, &[], &transposed, dx);
}

/// The gradient of the output where a stride of 1 would have it, and zeros between.
fn spread(dy: &[f32], g: &Geometry, dense: &Geometry) -> Vec<f32> {
    let mut spread = vec![0.0; g.batch * dense.in_elements()];
    for (row, dy) in dy.chunks_exact(g.out_width() * g.c_out).enumerate() {
        let (sample, y) = (row / g.out_height(), row % g.out_height() * g.places.stride);
        let to = &mut spread[sample * dense.in_elements() + y * dense.width * g.c_out..];
        for (to, dy) in to.chunks_mut(g.places.stride * g.c_out).zip(dy.chunks_exact(g.c_out)) {
            to[..g.c_out].copy_from_slice(dy);
        }
    }
    spread
}

/// The gradient of the weights, contiguous `[kh, kw, in, out]`: `dw = sum_{b, p} x dy`.
pub fn backward_weights(x: &[f32], dy: &[f32], g: &Geometry, dw: &mut [f32]) {
    let (depth, rows) = (g.depth(), g.strip_rows());
    let chunks = GRADIENT_CHUNKS.min(g.batch);
    let partial: Vec<Vec<f32>> = (0..chunks)
        .into_par_iter()
        .map(|chunk| {
            let mut sum = vec![0.0; dw.len()];
            for sample in chunk * g.batch / chunks..(chunk + 1) * g.batch / chunks {
                let x = &x[sample * g.in_elements()..][..g.in_elements()];
                let dy = &dy[sample * g.out_elements()..][..g.out_elements()];
                for (strip, dy) in dy.chunks(rows * g.out_width() * g.c_out).enumerate() {
                    let pixels = dy.len() / g.c_out;
                    with_columns(x, g, strip * rows, pixels, |columns| {
                        multiply_accumulate(
                            &mut sum,
                            [depth, g.c_out, pixels],
                            Matrix { data: columns, row: 1, col: depth },
                            Matrix { data: dy, row: g.c_out, col: 1 },
                        );
                    });
                }
            }
            sum
        })
        .collect();
    dw.fill(0.0);
    for partial in partial {
        dw.iter_mut().zip(partial).for_each(|(sum, value)| *sum += value);
    }
}

/// The gradient of the bias: `[batch, c_out]` sums over pixels, or their sum over the batch, by the length of `db`.
pub fn backward_bias(dy: &[f32], g: &Geometry, db: &mut [f32]) {
    let mut by_sample = vec![0.0; g.batch * g.c_out];
    by_sample.par_chunks_mut(g.c_out).zip(dy.par_chunks(g.out_elements())).for_each(|(sum, dy)| {
        for pixel in dy.chunks_exact(g.c_out) {
            sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
    });
    if db.len() == by_sample.len() {
        db.copy_from_slice(&by_sample);
    } else {
        db.fill(0.0);
        for sample in by_sample.chunks_exact(g.c_out) {
            db.iter_mut().zip(sample).for_each(|(sum, value)| *sum += value);
        }
    }
}

/// Calls `then` with the im2col matrix `[pixels, kh * kw * c_in]` of output rows from `first_row` on. A 1x1 kernel
/// needs none: its input is the matrix.
fn with_columns(x: &[f32], g: &Geometry, first_row: usize, pixels: usize, then: impl FnOnce(&[f32])) {
    thread_local!(static COLUMNS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    if g.places == Places::same([1, 1]) {
        let start = first_row * g.width * g.c_in;
        return then(&x[start..start + pixels * g.c_in]);
    }
    COLUMNS.with_borrow_mut(|columns| {
        let wanted = pixels * g.depth();
        if columns.len() < wanted {
            columns.resize(wanted, 0.0);
        }
        fill_columns(x, g, first_row, &mut columns[..wanted]);
        then(&columns[..wanted]);
    });
}

/// Writes the im2col rows of the output pixels from row `first_row` on.
fn fill_columns(x: &[f32], g: &Geometry, first_row: usize, columns: &mut [f32]) {
    let Places { kernel: [_, across], stride, pad: [above, left_pad], .. } = g.places;
    let run = across * g.c_in;
    for (pixel, columns) in columns.chunks_exact_mut(g.depth()).enumerate() {
        let top = ((first_row + pixel / g.out_width()) * stride) as isize - above as isize;
        let left = (pixel % g.out_width() * stride) as isize - left_pad as isize;
        // The taps of one kernel row are neighbours in memory: one copy, cut where it leaves the image.
        let skip = (-left).clamp(0, across as isize) as usize;
        let take = (g.width as isize - left).clamp(skip as isize, across as isize) as usize;
        for (ky, columns) in columns.chunks_exact_mut(run).enumerate() {
            let row = top + ky as isize;
            if row < 0 || row >= g.height as isize || skip == take {
                columns.fill(0.0);
                continue;
            }
            let start = (row as usize * g.width + (left + skip as isize) as usize) * g.c_in;
            columns[..skip * g.c_in].fill(0.0);
            columns[skip * g.c_in..take * g.c_in].copy_from_slice(&x[start..start + (take - skip) * g.c_in]);
            columns[take * g.c_in..].fill(0.0);
        }
    }
}

/// A matrix with any strides, in elements.
struct Matrix<'a> {
    data: &'a [f32],
    row: usize,
    col: usize,
}

impl Matrix<'_> {
    fn reaches(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// `dst += a b` for a contiguous row-major `dst` of `[m, n]`, `a` of `[m, k]` and `b` of `[k, n]`.
fn multiply_accumulate(dst: &mut [f32], [m, n, k]: [usize; 3], a: Matrix, b: Matrix) {
    assert!(dst.len() == m * n && a.reaches(m, k) && b.reaches(k, n), "matrix product out of bounds");
    // SAFETY: the three matrices lie inside their slices (checked above), and `dst` is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            n as isize,
            true,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::{assert_close, assert_same_in_any_pool, values};

    fn contiguous(g: &Geometry) -> [usize; 4] {
        [g.places.kernel[1] * g.c_in * g.c_out, g.c_in * g.c_out, g.c_out, 1]
    }

    /// Visits every product of the convolution: sample, output pixel, tap, input offset.
    fn products(g: &Geometry, mut visit: impl FnMut(usize, usize, usize, usize)) {
        for b in 0..g.batch {
            for oy in 0..g.out_height() {
                for ox in 0..g.out_width() {
                    let Places { kernel: [_, across], stride, pad: [above, left], .. } = g.places;
                    for tap in 0..g.places.taps() {
                        let (iy, ix) = (oy * stride + tap / across, ox * stride + tap % across);
                        if iy < above || ix < left || iy - above >= g.height || ix - left >= g.width {
                            continue;
                        }
                        let pixel = (b * g.height + iy - above) * g.width + ix - left;
                        visit(b, (b * g.out_height() + oy) * g.out_width() + ox, tap, pixel);
                    }
                }
            }
        }
    }

    /// Float32 sums of a few hundred products, as a share of the largest value.
    const TOLERANCE: f64 = 3e-6;

    #[test]
    fn convolution_and_its_gradients_match_loops_in_f64() {
        for (batch, height, width, places, c_in, c_out) in [
            (1, 5, 7, Places::square(3, 1, 1), 3, 4),
            (3, 4, 4, Places::square(3, 1, 2), 5, 8),
            (2, 7, 3, Places::square(1, 1, 0), 6, 3),
            (9, 1, 1, Places::square(1, 1, 0), 8, 5),
            (2, 28, 28, Places::square(3, 1, 1), 40, 33),
            (2, 8, 8, Places::square(3, 2, 1), 4, 5),
            (3, 7, 9, Places::square(3, 2, 1), 3, 4),
            (2, 8, 12, Places::square(4, 4, 0), 3, 7),
            (1, 5, 4, Places::square(1, 2, 0), 3, 2),
            (2, 6, 9, Places::same([1, 7]), 3, 4),
            (2, 9, 6, Places::same([7, 1]), 4, 3),
            (1, 9, 8, Places::new([3, 2], 2, [2, 0]), 2, 5),
            (2, 8, 6, Places { after: 1, ..Places::square(3, 2, 0) }, 3, 4),
            (1, 7, 5, Places { after: 1, ..Places::square(3, 2, 0) }, 2, 3),
        ] {
            let g = Geometry { batch, height, width, places, c_in, c_out };
            let x = values(1, batch * g.in_elements());
            let w = values(2, g.depth() * c_out);
            let bias = values(3, batch * c_out);
            let dy = values(4, batch * g.out_elements());
            let mut want_y: Vec<f64> =
                (0..batch * g.out_elements()).map(|i| bias[i / g.out_elements() * c_out + i % c_out] as f64).collect();
            let (mut want_dx, mut want_dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
            products(&g, |_, out, tap, pixel| {
                for i in 0..c_in {
                    for o in 0..c_out {
                        let (x_at, w_at, y_at) = (pixel * c_in + i, (tap * c_in + i) * c_out + o, out * c_out + o);
                        want_y[y_at] += x[x_at] as f64 * w[w_at] as f64;
                        want_dx[x_at] += dy[y_at] as f64 * w[w_at] as f64;
                        want_dw[w_at] += dy[y_at] as f64 * x[x_at] as f64;
                    }
                }
            });
            let kernel = Kernel { data: &w, strides: contiguous(&g) };
            let mut y = vec![f32::NAN; want_y.len()];
            forward(&x, kernel, &bias, &g, &mut y);
            assert_close(&y, &want_y, TOLERANCE);
            let mut dx = vec![f32::NAN; x.len()];
            backward_input(&dy, kernel, &g, &mut dx);
            assert_close(&dx, &want_dx, TOLERANCE);
            let mut dw = vec![f32::NAN; w.len()];
            backward_weights(&x, &dy, &g, &mut dw);
            assert_close(&dw, &want_dw, TOLERANCE);
            let mut want_db = vec![0.0f64; c_out];
            dy.iter().enumerate().for_each(|(i, v)| want_db[i % c_out] += *v as f64);
            let mut db = vec![f32::NAN; c_out];
            backward_bias(&dy, &g, &mut db);
            assert_close(&db, &want_db, TOLERANCE);
        }
    }

    #[test]
    fn a_prefix_of_wider_weights_is_used_in_place() {
        let wide = Geometry { batch: 1, height: 6, width: 6, places: Places::same([3, 3]), c_in: 8, c_out: 12 };
        let narrow = Geometry { c_in: 5, c_out: 7, ..wide };
        let w = values(5, wide.depth() * wide.c_out);
        let x = values(6, narrow.in_elements());
        let copy: Vec<f32> = (0..9 * 5 * 7).map(|i| w[(i / 35 * 8 + i / 7 % 5) * 12 + i % 7]).collect();
        let (mut by_view, mut by_copy) = (vec![0.0; narrow.out_elements()], vec![0.0; narrow.out_elements()]);
        forward(&x, Kernel { data: &w, strides: contiguous(&wide) }, &[], &narrow, &mut by_view);
        forward(&x, Kernel { data: &copy, strides: contiguous(&narrow) }, &[], &narrow, &mut by_copy);
        assert_eq!(by_view, by_copy);
        let dy = values(7, narrow.out_elements());
        let (mut by_view, mut by_copy) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        backward_input(&dy, Kernel { data: &w, strides: contiguous(&wide) }, &narrow, &mut by_view);
        backward_input(&dy, Kernel { data: &copy, strides: contiguous(&narrow) }, &narrow, &mut by_copy);
        assert_eq!(by_view, by_copy);
    }

    #[test]
    fn a_sample_is_the_same_alone_and_in_a_batch() {
        let g = Geometry { batch: 5, height: 14, width: 14, places: Places::same([3, 3]), c_in: 48, c_out: 40 };
        let (x, w, bias) = (values(8, 5 * g.in_elements()), values(9, g.depth() * g.c_out), values(10, g.c_out));
        let kernel = Kernel { data: &w, strides: contiguous(&g) };
        let mut together = vec![0.0; 5 * g.out_elements()];
        forward(&x, kernel, &bias, &g, &mut together);
        for b in 0..5 {
            let mut alone = vec![0.0; g.out_elements()];
            forward(
                &x[b * g.in_elements()..][..g.in_elements()],
                kernel,
                &bias,
                &Geometry { batch: 1, ..g },
                &mut alone,
            );
            assert_eq!(alone, together[b * g.out_elements()..][..g.out_elements()]);
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let g = Geometry { batch: 11, height: 14, width: 14, places: Places::same([3, 3]), c_in: 24, c_out: 20 };
        let (x, w) = (values(11, 11 * g.in_elements()), values(12, g.depth() * g.c_out));
        let dy = values(13, 11 * g.out_elements());
        let kernel = Kernel { data: &w, strides: contiguous(&g) };
        assert_same_in_any_pool(|| {
            let mut y = vec![0.0; dy.len()];
            forward(&x, kernel, &[], &g, &mut y);
            let mut dx = vec![0.0; x.len()];
            backward_input(&dy, kernel, &g, &mut dx);
            let mut dw = vec![0.0; w.len()];
            backward_weights(&x, &dy, &g, &mut dw);
            [y, dx, dw].concat()
        });
    }
}
