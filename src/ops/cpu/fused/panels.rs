//! Matrix products over weights that lie in panels: the arithmetic of every layer of inference.
//!
//! A matrix `[depth, n]` is kept as panels of [`PANEL`] columns, each panel `[depth, PANEL]`. A prefix of its columns is a
//! prefix of the panels, a prefix of its rows is a prefix of each panel: a subnet's product reads the supernet's weights
//! where they lie.
//!
//! Every value of a product is one chain of fused multiply-adds over the depth, from first to last, whatever the number
//! of rows and wherever a row stands. So a sample's bits cannot depend on its batch.

use crate::ops::cpu::parts::Parts;
use crate::ops::cpu::simd::arch;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Columns of a panel: one cache line of f32.
pub const PANEL: usize = 16;

/// Depth of a product between two visits to its result: rows of weights that stay in the L1 cache while those of the input
/// pass through it.
const DEPTH_BLOCK: usize = 128;
/// Rows of weights between two prefetches.
const STRETCH: usize = 8;
/// How many rows ahead weights are asked for: the hardware's own prefetch ends at every page, and a panel is a few pages.
const AHEAD: usize = 64;

/// A cache line.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Line(pub [f32; PANEL]);

impl Line {
    /// Zeros.
    pub const ZERO: Self = Self([0.0; PANEL]);
}

/// The elements of whole lines.
pub fn floats(lines: &[Line]) -> &[f32] {
    // SAFETY: a line is 16 floats without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * PANEL) }
}

/// The elements of whole lines.
pub fn floats_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is 16 floats without padding, and any float is a valid one.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * PANEL) }
}

/// Panels that hold `columns` columns.
pub fn panels(columns: usize) -> usize {
    columns.div_ceil(PANEL)
}

/// `columns` rounded up to whole panels.
pub fn pitch(columns: usize) -> usize {
    panels(columns) * PANEL
}

/// Several matrices of one shape, `[taps, depth, n]`, in panels; columns beyond `n` are zeros.
#[derive(Clone, Debug)]
pub struct Panels {
    lines: Vec<Line>,
    /// Lines from a matrix to the next, and from a panel to the next.
    strides: [usize; 2],
    depth: usize,
}

impl Panels {
    /// Each matrix whole, one after the other; `value(tap, row, column)`.
    pub fn by_tap(taps: usize, depth: usize, n: usize, value: impl FnMut(usize, usize, usize) -> f32) -> Self {
        Self::new([taps, depth, n], [panels(n) * depth, depth], value)
    }

    /// The same panel of all matrices together, for products that run through all taps.
    pub fn by_panel(taps: usize, depth: usize, n: usize, value: impl FnMut(usize, usize, usize) -> f32) -> Self {
        Self::new([taps, depth, n], [depth, taps * depth], value)
    }

    fn new(
        shape @ [taps, depth, n]: [usize; 3],
        strides: [usize; 2],
        mut value: impl FnMut(usize, usize, usize) -> f32,
    ) -> Self {
        let mut all = Self::zeros(shape, strides);
        for tap in 0..taps {
            for row in 0..depth {
                for column in 0..n {
                    *all.at(tap, row, column) = value(tap, row, column);
                }
            }
        }
        all
    }

    fn zeros([taps, depth, n]: [usize; 3], strides: [usize; 2]) -> Self {
        Self { lines: vec![Line::ZERO; taps * depth * panels(n)], strides, depth }
    }

    /// Rows of each matrix.
    pub fn depth(&self) -> usize {
        self.depth
    }

    fn at(&mut self, tap: usize, row: usize, column: usize) -> &mut f32 {
        let line = tap * self.strides[0] + column / PANEL * self.strides[1] + row;
        &mut self.lines[line].0[column % PANEL]
    }

    /// Each matrix whole, one after the other, with the values of all matrices at one row and column made together by
    /// `values(row, column)`.
    pub fn transformed<const TAPS: usize>(
        depth: usize,
        n: usize,
        values: impl Fn(usize, usize) -> [f64; TAPS] + Sync,
    ) -> Self {
        let mut all = Self::zeros([TAPS, depth, n], [panels(n) * depth, depth]);
        let [tap_stride, panel_stride] = all.strides;
        let lines = Parts::new(&mut all.lines);
        (0..panels(n)).into_par_iter().for_each(|panel| {
            for row in 0..depth {
                let mut made = [Line::ZERO; TAPS];
                for (lane, column) in (panel * PANEL..n.min((panel + 1) * PANEL)).enumerate() {
                    for (made, value) in made.iter_mut().zip(values(row, column)) {
                        made.0[lane] = value as f32;
                    }
                }
                for (tap, made) in made.into_iter().enumerate() {
                    // SAFETY: a panel is one task's.
                    unsafe { lines.slice(tap * tap_stride + panel * panel_stride + row, 1)[0] = made };
                }
            }
        });
        all
    }

    /// The weights from this tap and panel on.
    pub fn from(&self, tap: usize, panel: usize) -> Weights<'_> {
        let [tap_stride, panel_stride] = self.strides;
        let data = floats(&self.lines[tap * tap_stride + panel * panel_stride..]);
        Weights { data, tap: tap_stride * PANEL, panel: panel_stride * PANEL }
    }

    /// Memory that they take.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }
}

/// Matrices in panels, anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// The elements, from the first that a product reads.
    pub data: &'a [f32],
    /// Elements from a matrix to the next.
    pub tap: usize,
    /// Elements from a panel to the next.
    pub panel: usize,
}

/// The rows of a product's left side: row `r` of tap `t` starts at `data[r * row + taps[t]]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The elements, from the first that the product reads.
    pub data: &'a [f32],
    /// Elements from a row to the next.
    pub row: usize,
    /// Where the rows of each tap start.
    pub taps: &'a [usize],
}

/// `c[r, j] = sum_t sum_k a[r, t, k] w[t, k, j]` for some rows, `panels * 16` columns and the first `depth` of k.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// The left side.
    pub a: Rows<'a>,
    /// The right side.
    pub w: Weights<'a>,
    /// Rows of the result.
    pub rows: usize,
    /// Rows of each matrix of `w` that count.
    pub depth: usize,
    /// Panels of the result.
    pub panels: usize,
    /// Whether it is added to what is there: a chain of sums goes on, to the bit as if it had never paused.
    pub onto: bool,
}

impl Product<'_> {
    /// Computes it into or onto `c`, whose rows lie `c_row` elements apart.
    ///
    /// # Safety
    /// `c` is good for writes of `panels * 16` elements in each of the rows, and nobody else touches those meanwhile.
    ///
    /// # Panics
    /// If `a` or `w` are too short.
    pub unsafe fn into(self, c: *mut f32, c_row: usize) {
        // SAFETY: the caller's word.
        arch().dispatch(unsafe { Multiply::new(self, c, c_row) });
    }
}

/// A checked [`Product`] with the place of its result.
struct Multiply<'a> {
    product: Product<'a>,
    c: *mut f32,
    c_row: usize,
}

impl<'a> Multiply<'a> {
    /// # Safety
    /// As [`Product::into`], until the product has been computed.
    unsafe fn new(product: Product<'a>, c: *mut f32, c_row: usize) -> Self {
        let Product { a, w, rows, depth, panels, .. } = product;
        if rows > 0 && panels > 0 {
            let deepest = a.taps.iter().max().expect("a product has a tap");
            assert!(depth > 0 && deepest + (rows - 1) * a.row + depth <= a.data.len(), "left side of {product:?}");
            let last = (a.taps.len() - 1) * w.tap + (panels - 1) * w.panel;
            assert!(last + depth * PANEL <= w.data.len(), "right side of {product:?}");
        }
        Self { product, c, c_row }
    }
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Product { a, w, rows, depth, panels, onto } = self.product;
        if rows == 0 {
            return;
        }
        // A tile takes as many rows and panels as the registers hold sums for; rows are dealt out evenly, since a tile of
        // few rows cannot hide the latency of its multiply-adds.
        let (most, side_by_side) = match S::F32_LANES {
            16 if rows <= 4 => (4, 4),
            16 => (8, 2),
            8 | 4 => (6, 1),
            _ => (1, 1),
        };
        let tiles = rows.div_ceil(most);
        let mut panel = 0;
        while panel < panels {
            let wide = side_by_side.min(panels - panel);
            for (tap, &a_tap) in a.taps.iter().enumerate() {
                let weights = |panel: usize, tap: usize| w.data.as_ptr().wrapping_add(panel * w.panel + tap * w.tap);
                let next = if tap + 1 < a.taps.len() { weights(panel, tap + 1) } else { weights(panel + wide, 0) };
                for start in (0..depth).step_by(DEPTH_BLOCK) {
                    for index in 0..tiles {
                        let (row, end) = (index * rows / tiles, (index + 1) * rows / tiles);
                        let tile = Tile {
                            a: a.data.as_ptr().wrapping_add(a_tap + row * a.row),
                            a_row: a.row,
                            w: weights(panel, tap),
                            w_panel: w.panel,
                            next,
                            depth,
                            block: start..depth.min(start + DEPTH_BLOCK),
                            fresh: tap == 0 && start == 0 && !onto,
                            // Later tiles find the weights in the cache.
                            prefetch: index == 0,
                            c: self.c.wrapping_add(row * self.c_row + panel * PANEL),
                            c_row: self.c_row,
                        };
                        // SAFETY: `new` has bounded what is read, its caller vouches for what is written.
                        unsafe { tile.compute(simd, end - row, wide) };
                    }
                }
            }
            panel += wide;
        }
    }
}

/// The rows and panels whose sums stay in registers, for a part of the depth.
struct Tile {
    a: *const f32,
    a_row: usize,
    w: *const f32,
    w_panel: usize,
    /// The weights that come after these.
    next: *const f32,
    depth: usize,
    block: Range<usize>,
    /// Whether the sums begin here.
    fresh: bool,
    /// Whether to ask for weights before they are needed.
    prefetch: bool,
    c: *mut f32,
    c_row: usize,
}

/// Calls the kernel of so many vectors a row with the number of rows as a constant.
macro_rules! by_rows {
    ($tile:expr, $simd:expr, $vectors:literal, $rows:expr, $($count:literal)+) => {
        match $rows {
            $($count => unsafe { $tile.sum::<S, $count, $vectors>($simd) },)+
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

impl Tile {
    /// # Safety
    /// As [`Product::into`], of `rows` rows and `panels` panels from here.
    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, simd: S, rows: usize, panels: usize) {
        // The first number after `simd` counts vectors.
        match (S::F32_LANES, panels) {
            (16, 4) => by_rows!(self, simd, 4, rows, 1 2 3 4),
            (16, 3) => by_rows!(self, simd, 3, rows, 1 2 3 4),
            (16, 2) => by_rows!(self, simd, 2, rows, 1 2 3 4 5 6 7 8),
            (16, 1) => by_rows!(self, simd, 1, rows, 1 2 3 4 5 6 7 8),
            (8, 1) => by_rows!(self, simd, 2, rows, 1 2 3 4 5 6),
            (4, 1) => by_rows!(self, simd, 4, rows, 1 2 3 4 5 6),
            (2, 1) => by_rows!(self, simd, 8, rows, 1),
            (1, 1) => by_rows!(self, simd, 16, rows, 1),
            (lanes, _) => unreachable!("{panels} panels of vectors of {lanes}"),
        }
    }

    /// `R` rows of `V` vectors.
    ///
    /// # Safety
    /// As [`Product::into`].
    #[inline(always)]
    unsafe fn sum<S: Simd, const R: usize, const V: usize>(&self, simd: S) {
        let lanes = S::F32_LANES;
        let offsets: [usize; V] = std::array::from_fn(|v| v * lanes / PANEL * self.w_panel + v * lanes % PANEL);
        let c = |r: usize, v: usize| self.c.wrapping_add(r * self.c_row + v * lanes).cast::<S::f32s>();
        // SAFETY: by the caller's contract all of these lie in bounds.
        unsafe {
            let mut sums = [[simd.splat_f32s(0.0); V]; R];
            if !self.fresh {
                sums = std::array::from_fn(|r| std::array::from_fn(|v| c(r, v).read_unaligned()));
            }
            let mut k = self.block.start;
            while k < self.block.end {
                let stop = self.block.end.min(k + STRETCH);
                if self.prefetch {
                    let ahead = k + AHEAD;
                    let line = if ahead < self.depth {
                        self.w.wrapping_add(ahead * PANEL)
                    } else {
                        self.next.wrapping_add((ahead - self.depth) * PANEL)
                    };
                    for panel in 0..(V * lanes).div_ceil(PANEL) {
                        for line_of_stretch in 0..STRETCH {
                            prefetch(line.wrapping_add(panel * self.w_panel + line_of_stretch * PANEL));
                        }
                    }
                }
                for k in k..stop {
                    let row = offsets.map(|offset| self.w.add(k * PANEL + offset).cast::<S::f32s>().read_unaligned());
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let value = simd.splat_f32s(*self.a.add(r * self.a_row + k));
                        for (sum, w) in sums.iter_mut().zip(row) {
                            *sum = simd.mul_add_f32s(value, w, *sum);
                        }
                    }
                }
                k = stop;
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    c(r, v).write_unaligned(sum);
                }
            }
        }
    }
}

/// Asks for the cache line at `address`, which need not exist.
#[inline(always)]
fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::{assert_close, values};
    use pulp::Scalar;

    /// rows, depth, columns, taps
    const SHAPES: [[usize; 4]; 9] = [
        [1, 1, 1, 1],
        [3, 5, 17, 1],
        [4, 64, 64, 1],
        [5, 7, 33, 9],
        [8, 300, 16, 2],
        [9, 16, 48, 1],
        [16, 257, 40, 1],
        [49, 30, 100, 1],
        [2, 513, 70, 3],
    ];

    struct Case {
        a: Vec<f32>,
        w: Vec<f32>,
        taps: Vec<usize>,
        shape: [usize; 4],
    }

    impl Case {
        fn new(shape @ [rows, depth, columns, taps]: [usize; 4]) -> Self {
            let a = values(1, (rows + taps) * depth);
            Self { a, w: values(2, taps * depth * columns), taps: (0..taps).map(|tap| tap * depth).collect(), shape }
        }

        fn panels(&self, by_tap: bool) -> Panels {
            let [_, depth, columns, taps] = self.shape;
            let value = |tap: usize, row: usize, column: usize| self.w[(tap * depth + row) * columns + column];
            if by_tap {
                Panels::by_tap(taps, depth, columns, value)
            } else {
                Panels::by_panel(taps, depth, columns, value)
            }
        }

        /// The first `kept` of the depth, on the instruction set of `simd`.
        fn product(&self, panels: &Panels, kept: usize, run: impl Fn(Multiply)) -> Vec<f32> {
            let [rows, depth, columns, _] = self.shape;
            let a = Rows { data: &self.a, row: depth, taps: &self.taps };
            let width = pitch(columns);
            let product = Product { a, w: panels.from(0, 0), rows, depth: kept, panels: width / PANEL, onto: false };
            let mut c = vec![f32::NAN; rows * width];
            // SAFETY: `c` has the size of the result.
            run(unsafe { Multiply::new(product, c.as_mut_ptr(), width) });
            c.chunks_exact(width).flat_map(|row| row[..columns].to_vec()).collect()
        }

        fn reference(&self, kept: usize) -> Vec<f64> {
            let [rows, depth, columns, taps] = self.shape;
            let mut c = vec![0.0; rows * columns];
            for (i, c) in c.iter_mut().enumerate() {
                for tap in 0..taps {
                    for k in 0..kept {
                        let a = f64::from(self.a[i / columns * depth + self.taps[tap] + k]);
                        *c += a * f64::from(self.w[(tap * depth + k) * columns + i % columns]);
                    }
                }
            }
            c
        }
    }

    fn on_this_machine(multiply: Multiply) {
        arch().dispatch(multiply);
    }

    #[test]
    fn products_match_plain_f64_loops_at_every_prefix_of_the_depth() {
        for shape in SHAPES {
            let case = Case::new(shape);
            for kept in [shape[1], shape[1].div_ceil(2)] {
                for by_tap in [true, false] {
                    let got = case.product(&case.panels(by_tap), kept, on_this_machine);
                    assert_close(&got, &case.reference(kept), 2e-6);
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_computes_the_same_bits() {
        for shape in SHAPES {
            let case = Case::new(shape);
            let panels = case.panels(true);
            let want = case.product(&panels, shape[1], on_this_machine);
            assert_eq!(case.product(&panels, shape[1], |multiply| multiply.with_simd(Scalar)), want);
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = pulp::x86::V3::try_new() {
                assert_eq!(case.product(&panels, shape[1], |multiply| Simd::vectorize(simd, multiply)), want);
            }
        }
    }

    #[test]
    fn a_row_s_bits_do_not_depend_on_the_rows_beside_it() {
        for shape @ [rows, depth, columns, _] in SHAPES {
            let case = Case::new(shape);
            let panels = case.panels(false);
            let all = case.product(&panels, depth, on_this_machine);
            for row in 0..rows {
                let mut one = Case::new(shape);
                one.shape[0] = 1;
                one.a.drain(..row * depth);
                assert_eq!(one.product(&panels, depth, on_this_machine), all[row * columns..][..columns]);
            }
        }
    }
}
