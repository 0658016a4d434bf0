//! 3x3 convolution by Winograd's minimal filtering F(m x m, 3x3): (m + 2)^2 products for m^2 outputs, where the definition
//! takes 9 m^2 (Winograd 1980; Lavin and Gray 2016, section 4). 36 for 144 at m = 4, 16 for 36 at m = 2.
//!
//! A tile of inputs is transformed, `V = B' d B`; for each position the tiles make a matrix that is multiplied with the
//! transformed weights, `M = V U`; each tile of `M` is transformed back, `Y = A' M A`. The points of interpolation are 0,
//! 1, -1 and infinity, and 2 and -2 at m = 4.

use super::epilogue::Epilogue;
use super::method::Filtering;
use super::panels::{PANEL, Panels, Product, Rows, panels, pitch};
use super::record::{Clock, Phase, Recorder};
use super::scratch::with_scratch;
use super::source::Window;
use super::{Map, Source, Workspace};
use crate::ops::cpu::parts::Parts;
use crate::ops::cpu::simd::arch;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// The most rows and columns of inputs that a tile takes.
const MOST: usize = 6;

/// Elements of the transformed tiles that a task holds: more tiles share each reading of the weights, fewer leave the
/// caches to the weights.
const HELD: usize = 600_000;
/// Tiles below which sharing out the outputs is better than sharing out the tiles.
const FEW_TILES: usize = 12;
/// Rows of tiles read at a time: the rows of pixels between two are read twice.
const HIGH: usize = 4;
/// Channels transformed at a time on the way in, and on the way out.
const BLOCK_IN: usize = 64;
const BLOCK_OUT: usize = 64;

/// The transformed weights `U = G g G'` of one input and output channel, row by row.
pub fn transform_weights<const POSITIONS: usize>(g: [[f64; 3]; 3]) -> [f64; POSITIONS] {
    const G2: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
    const G4: [[f64; 3]; 6] = [
        [1.0 / 4.0, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];
    let (edge, matrix) = if POSITIONS == 16 { (4, &G2[..]) } else { (6, &G4[..]) };
    // Rows first, then columns: a third of the work of both at once.
    let mut half = [[0.0; 3]; MOST];
    for (half, row) in half.iter_mut().zip(matrix) {
        *half = std::array::from_fn(|j| row[0] * g[0][j] + row[1] * g[1][j] + row[2] * g[2][j]);
    }
    std::array::from_fn(|position| {
        let (row, column) = (&half[position / edge], &matrix[position % edge]);
        row[0] * column[0] + row[1] * column[1] + row[2] * column[2]
    })
}

/// One column of `B' d`. Beyond the edge of a tile the values mean nothing.
#[inline(always)]
fn transform_input<S: Simd, const TILE: usize>(simd: S, d: [S::f32s; MOST]) -> [S::f32s; MOST] {
    let [d0, d1, d2, d3, d4, d5] = d;
    if TILE == 2 {
        let sub = |a, b| simd.sub_f32s(a, b);
        return [sub(d0, d2), simd.add_f32s(d1, d2), sub(d2, d1), sub(d1, d3), d4, d5];
    }
    let c = |value: f32| simd.splat_f32s(value);
    let fma = |a, b, c| simd.mul_add_f32s(a, b, c);
    let a = fma(c(-4.0), d2, d4);
    let b = fma(c(-4.0), d1, d3);
    let e = simd.sub_f32s(d4, d2);
    let f = simd.sub_f32s(d3, d1);
    [
        fma(c(4.0), d0, fma(c(-5.0), d2, d4)),
        simd.add_f32s(a, b),
        simd.sub_f32s(a, b),
        fma(c(2.0), f, e),
        fma(c(-2.0), f, e),
        fma(c(4.0), d1, fma(c(-5.0), d3, d5)),
    ]
}

/// One column of `A' m`. Beyond the edge of a tile the values mean nothing.
#[inline(always)]
fn transform_output<S: Simd, const TILE: usize>(simd: S, m: [S::f32s; MOST]) -> [S::f32s; TILE] {
    let add = |a, b| simd.add_f32s(a, b);
    let c = |value: f32| simd.splat_f32s(value);
    let fma = |a, b, c| simd.mul_add_f32s(a, b, c);
    let [m0, m1, m2, m3, m4, m5] = m;
    let (s, d) = (add(m1, m2), simd.sub_f32s(m1, m2));
    let all = if TILE == 2 {
        [add(m0, s), simd.sub_f32s(d, m3), m4, m5]
    } else {
        let (t, u) = (add(m3, m4), simd.sub_f32s(m3, m4));
        [add(m0, add(s, t)), fma(c(2.0), u, d), fma(c(4.0), t, s), add(fma(c(8.0), u, d), m5)]
    };
    std::array::from_fn(|i| all[i])
}

/// Where the transformed tiles of a task lie: position after position, tile after tile, channel after channel.
#[derive(Clone, Copy)]
struct Layout {
    /// Elements from a tile to the next.
    tile: usize,
    /// Elements from a position to the next: an odd number of cache lines, so that the values of a tile do not all fall
    /// into the same set of a cache.
    position: usize,
}

impl Layout {
    fn new(tiles: usize, channels: usize) -> Self {
        let tile = pitch(channels);
        Self { tile, position: ((tiles * tile / PANEL) | 1) * PANEL }
    }
}

/// How a convolution is shared out: each sample's tiles, row by row, in runs of equal length; the outputs of a run in
/// splits. Results depend on neither.
#[derive(Clone, Copy, Debug)]
struct Shares {
    /// Tiles of a sample, and of a row of it.
    tiles: usize,
    columns: usize,
    /// Runs of a sample.
    runs: usize,
    /// Splits of a run, and the panels of each.
    splits: usize,
    panels: usize,
}

impl Shares {
    fn new(tile: usize, [batch, height, width]: [usize; 3], c_in: usize, c_out: usize, threads: usize) -> Self {
        let columns = width.div_ceil(tile);
        let tiles = height.div_ceil(tile) * columns;
        let held = (HELD / ((tile + 2).pow(2) * pitch(c_in))).clamp(1, tiles);
        let least = tiles.div_ceil(held);
        // All threads busy to the end: a multiple of their number, or so many that the last ones do not matter.
        let even = |runs: &usize| (batch * runs).is_multiple_of(threads) || batch * runs >= 4 * threads;
        let most = tiles.div_ceil(FEW_TILES).max(least);
        let runs = (least..=most).find(even).unwrap_or(most);
        let wanted = threads.div_ceil(batch * runs);
        let panels = panels(c_out).div_ceil(wanted);
        Self { tiles, columns, runs, splits: self::panels(c_out).div_ceil(panels), panels }
    }

    /// The tiles of a run.
    fn run(self, run: usize) -> Range<usize> {
        run * self.tiles / self.runs..(run + 1) * self.tiles / self.runs
    }
}

/// The rectangles of tiles that a run consists of: a part of a row, whole rows, a part of a row; none too high for the
/// caches.
fn rectangles(run: Range<usize>, columns: usize) -> impl Iterator<Item = Rectangle> {
    let mut next = run.start;
    std::iter::from_fn(move || {
        (next < run.end).then(|| {
            let (row, column) = (next / columns, next % columns);
            let left = run.end - next;
            let (rows, wide) = if column > 0 || left < columns {
                (1, left.min(columns - column))
            } else {
                ((left / columns).min(HIGH), columns)
            };
            let first = next - run.start;
            next += rows * wide;
            Rectangle { first, row, column, rows, columns: wide }
        })
    })
}

/// Tiles side by side and below each other.
struct Rectangle {
    /// The first of them, counted from the first of the run.
    first: usize,
    row: usize,
    column: usize,
    rows: usize,
    columns: usize,
}

/// `y = epilogue(source * weights)`, with `pad` zeros, at most one, above and below the map and left and right of it.
pub fn run(
    workspace: &mut Workspace,
    filtering: Filtering,
    source: Source,
    pad: [usize; 2],
    weights: &Panels,
    epilogue: &Epilogue,
    y: &mut Map,
) {
    match filtering {
        Filtering::F2 => run_tiles::<2>(workspace, source, pad, weights, epilogue, y),
        Filtering::F4 => run_tiles::<4>(workspace, source, pad, weights, epilogue, y),
    }
}

fn run_tiles<const TILE: usize>(
    workspace: &mut Workspace,
    source: Source,
    [above, left]: [usize; 2],
    weights: &Panels,
    epilogue: &Epilogue,
    y: &mut Map,
) {
    let positions = (TILE + 2).pow(2);
    let size @ [batch, height, width] = [y.batch, y.height, y.width];
    let (c_in, c_out) = (source.channels(), y.channels);
    let Workspace { team, recorder, .. } = workspace;
    let phases = recorder.as_ref().map(Recorder::phases);
    let shares = Shares::new(TILE, size, c_in, c_out, team.threads());
    let y_pitch = y.pitch();
    let y = Parts::new(y.data_mut());
    team.run(batch * shares.runs * shares.splits, |task| {
        let mut clock = Clock::new(phases);
        let (run, split) = (task / shares.splits, task % shares.splits);
        let (sample, run) = (run / shares.runs, shares.run(run % shares.runs));
        let chosen = split * shares.panels..panels(c_out).min((split + 1) * shares.panels);
        let block_out = BLOCK_OUT.min(chosen.len() * PANEL);
        let (in_layout, out_layout) = (Layout::new(run.len(), c_in), Layout::new(run.len(), block_out));
        let strip = (HIGH * TILE + 2) * (shares.columns * TILE + 2) * BLOCK_IN;
        let (in_len, out_len) = (positions * in_layout.position, positions * out_layout.position);
        with_scratch(in_len + out_len + strip, |scratch| {
            let (transformed, rest) = scratch.split_at_mut(in_len);
            let (products, strip) = rest.split_at_mut(out_len);
            for first in (0..c_in).step_by(BLOCK_IN) {
                let channels = first..c_in.min(first + BLOCK_IN);
                let stride = pitch(channels.len());
                for rectangle in rectangles(run.clone(), shares.columns) {
                    let window = Window {
                        sample,
                        top: (rectangle.row * TILE) as isize - above as isize,
                        left: (rectangle.column * TILE) as isize - left as isize,
                        rows: rectangle.rows * TILE + 2,
                        columns: rectangle.columns * TILE + 2,
                        step: 1,
                        channels: channels.clone(),
                    };
                    source.read(&window, strip, stride);
                    let out = &mut transformed[rectangle.first * in_layout.tile + first..];
                    arch().dispatch(InputTask::<TILE> { strip, stride, rectangle, layout: in_layout, out });
                }
            }
            clock.end(Phase::In);
            for first in chosen.clone().step_by(BLOCK_OUT / PANEL) {
                let block = first..chosen.end.min(first + BLOCK_OUT / PANEL);
                for position in 0..positions {
                    let a =
                        Rows { data: &transformed[position * in_layout.position..], row: in_layout.tile, taps: &[0] };
                    let w = weights.from(position, first);
                    let product = Product { a, w, rows: run.len(), depth: c_in, panels: block.len() };
                    let c = &mut products[position * out_layout.position..][..run.len() * out_layout.tile];
                    // SAFETY: each tile has room for a block.
                    unsafe { product.into(c.as_mut_ptr(), out_layout.tile) };
                }
                clock.end(Phase::Multiply);
                arch().dispatch(OutputTask::<TILE> {
                    products,
                    layout: out_layout,
                    run: run.clone(),
                    columns: shares.columns,
                    sample,
                    channels: block.start * PANEL..block.end * PANEL,
                    epilogue,
                    y: &y,
                    y_size: [height, width, y_pitch],
                });
                clock.end(Phase::Out);
            }
        });
    });
}

/// Transforms the tiles of a rectangle for some channels.
struct InputTask<'a, const TILE: usize> {
    strip: &'a [f32],
    /// Elements from a pixel of the strip to the next.
    stride: usize,
    rectangle: Rectangle,
    layout: Layout,
    out: &'a mut [f32],
}

impl<const TILE: usize> WithSimd for InputTask<'_, TILE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { strip, stride, rectangle, layout, out } = self;
        let (rows, columns) = (rectangle.rows, rectangle.columns);
        let edge = TILE + 2;
        let line = (columns * TILE + 2) * stride;
        assert!(strip.len() >= (rows * TILE + 2) * line);
        assert!(out.len() >= (edge * edge - 1) * layout.position + (rows * columns - 1) * layout.tile + stride);
        for tile in 0..rows * columns {
            let corner = tile / columns * TILE * line + tile % columns * TILE * stride;
            for channel in (0..stride).step_by(S::F32_LANES) {
                let none = simd.splat_f32s(0.0);
                // SAFETY: a tile reads its pixels from its corner and writes its positions, which the assertions grant.
                unsafe {
                    let from = strip.as_ptr().add(corner + channel);
                    let mut half = [[none; MOST]; MOST];
                    for j in 0..edge {
                        let mut d = [none; MOST];
                        for (i, d) in d.iter_mut().enumerate().take(edge) {
                            *d = from.add(i * line + j * stride).cast::<S::f32s>().read_unaligned();
                        }
                        for (half, value) in half.iter_mut().zip(transform_input::<S, TILE>(simd, d)).take(edge) {
                            half[j] = value;
                        }
                    }
                    let to = out.as_mut_ptr().add(tile * layout.tile + channel);
                    for (i, half) in half.into_iter().enumerate().take(edge) {
                        for (j, value) in transform_input::<S, TILE>(simd, half).into_iter().enumerate().take(edge) {
                            to.add((i * edge + j) * layout.position).cast::<S::f32s>().write_unaligned(value);
                        }
                    }
                }
            }
        }
    }
}

/// Transforms the tiles of a run back and epiloguees their pixels, for some channels.
struct OutputTask<'a, const TILE: usize> {
    products: &'a [f32],
    layout: Layout,
    run: Range<usize>,
    /// Tiles of a row.
    columns: usize,
    sample: usize,
    channels: Range<usize>,
    epilogue: &'a Epilogue<'a>,
    y: &'a Parts<'a, f32>,
    /// Rows, columns, and elements from a pixel to the next.
    y_size: [usize; 3],
}

impl<const TILE: usize> WithSimd for OutputTask<'_, TILE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { products, layout, run, columns, sample, channels, epilogue, y, y_size: [height, width, pitch] } =
            self;
        let edge = TILE + 2;
        let last = (edge * edge - 1) * layout.position + (run.len() - 1) * layout.tile + channels.len();
        assert!(last <= products.len());
        for (index, tile) in run.enumerate() {
            let (top, left) = (tile / columns * TILE, tile % columns * TILE);
            for channel in (0..channels.len()).step_by(S::F32_LANES) {
                let none = simd.splat_f32s(0.0);
                let mut half = [[none; MOST]; TILE];
                for j in 0..edge {
                    let mut m = [none; MOST];
                    for (i, m) in m.iter_mut().enumerate().take(edge) {
                        let place = (i * edge + j) * layout.position + index * layout.tile + channel;
                        // SAFETY: below `last`.
                        *m = unsafe { products.as_ptr().add(place).cast::<S::f32s>().read_unaligned() };
                    }
                    for (half, value) in half.iter_mut().zip(transform_output::<S, TILE>(simd, m)) {
                        half[j] = value;
                    }
                }
                let apply = epilogue.at(simd, sample, channels.start + channel);
                for (i, half) in half.into_iter().enumerate().take(height - top) {
                    for (j, value) in transform_output::<S, TILE>(simd, half).into_iter().enumerate().take(width - left)
                    {
                        let pixel = (sample * height + top + i) * width + left + j;
                        let place = pixel * pitch + channels.start + channel;
                        // SAFETY: no two tasks share a pixel and a channel.
                        unsafe {
                            let to = y.at(place, S::F32_LANES).cast::<S::f32s>();
                            to.write_unaligned(apply.value(place, value));
                        }
                    }
                }
            }
        }
    }
}
