//! Convolution by minimal filtering (Winograd 1980; Lavin and Gray 2016, section 4): `F(m x n, r x s)` makes m x n outputs of an r x s
//! kernel with (m + r - 1)(n + s - 1) products, where the definition takes m n r s. 36 for 144 in F(4x4, 3x3), 16 for 36 in F(2x2, 3x3),
//! 36 for 100 in F(2x2, 5x5), 9 for 21 in F(1x3, 1x7).
//!
//! A tile of inputs is transformed, `V = B' d B`; for each position the tiles make a matrix that is multiplied with the
//! transformed weights, `M = V U`; each tile of `M` is transformed back, `Y = A' M A`. All three matrices follow from points at which
//! polynomials are evaluated, as many as a tile has positions along an axis, the last of which is infinity: see [`points`].

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

/// The most positions that a tile has along an axis.
const MOST: usize = 9;

/// Elements of the transformed tiles that a task holds: more tiles share each reading of the weights, fewer leave the
/// caches to the weights.
const HELD: usize = 600_000;
/// Tiles below which sharing out the outputs is better than sharing out the tiles.
const FEW_TILES: usize = 12;
/// Rows of tiles read at a time: the rows of pixels between two are read twice.
const TILE_ROWS: usize = 4;
/// Channels transformed at a time on the way in, and on the way out.
const BLOCK_IN: usize = 64;
const BLOCK_OUT: usize = 64;

/// Points for tiles of so many positions along an axis, all but the last, which is infinity. More of them, or larger ones, cost digits:
/// those for 7 taps are, of three pairs of quarters up to 4 and one more, the ones that cost the fewest, by trial.
const fn points(edge: usize) -> &'static [f64] {
    match edge {
        1 => &[],
        4 => &[0.0, 1.0, -1.0],
        6 => &[0.0, 1.0, -1.0, 2.0, -2.0],
        9 => &[0.0, 0.5, -0.5, 0.75, -0.75, 2.0, -2.0, -1.25],
        _ => panic!("no such tile"),
    }
}

/// `B'`: row by row the coefficients of the polynomial that is 0 at all other points.
const fn interpolation<const EDGE: usize>() -> [[f32; EDGE]; EDGE] {
    let points = points(EDGE);
    let mut rows = [[0.0; EDGE]; EDGE];
    let mut row = 0;
    while row < EDGE {
        let mut polynomial = [0.0; EDGE];
        polynomial[0] = 1.0;
        let mut other = 0;
        while other < points.len() {
            if other != row {
                // Times (t - point), from the highest power down.
                let mut power = EDGE - 1;
                while power > 0 {
                    polynomial[power] = polynomial[power - 1] - points[other] * polynomial[power];
                    power -= 1;
                }
                polynomial[0] *= -points[other];
            }
            other += 1;
        }
        let mut power = 0;
        while power < EDGE {
            rows[row][power] = polynomial[power] as f32;
            power += 1;
        }
        row += 1;
    }
    rows
}

/// `A'`: by output, the powers of the points; that of infinity counts in the last output alone.
const fn evaluation<const TILE: usize, const EDGE: usize>() -> [[f32; EDGE]; TILE] {
    let points = points(EDGE);
    let mut rows = [[0.0; EDGE]; TILE];
    let mut column = 0;
    while column < points.len() {
        let (mut power, mut row) = (1.0, 0);
        while row < TILE {
            rows[row][column] = power as f32;
            power *= points[column];
            row += 1;
        }
        column += 1;
    }
    rows[TILE - 1][EDGE - 1] = 1.0;
    rows
}

/// `G`, for so many taps: the powers of each point, over what `B'` has there; at infinity the last tap alone.
fn weighting(edge: usize, taps: usize) -> Vec<Vec<f64>> {
    let points = points(edge);
    let row = |point: &f64| {
        let scale: f64 = points.iter().filter(|other| *other != point).map(|other| point - other).product();
        (0..taps as i32).map(|power| point.powi(power) / scale).collect()
    };
    let mut rows: Vec<Vec<f64>> = points.iter().map(row).collect();
    rows.push((0..taps).map(|tap| f64::from(u8::from(tap + 1 == taps))).collect());
    rows
}

/// Packs the transformed weights `U = G g G'` of a kernel whose taps lie row by row, read by `value(tap, input, output)`.
pub fn weights(
    filtering: Filtering,
    [c_in, c_out]: [usize; 2],
    value: impl Fn(usize, usize, usize) -> f32 + Sync,
) -> Panels {
    fn packed<const POSITIONS: usize>(
        [tall, wide]: [usize; 2],
        taps: [usize; 2],
        [c_in, c_out]: [usize; 2],
        value: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Panels {
        let (rows, columns) = (weighting(tall, taps[0]), weighting(wide, taps[1]));
        Panels::transformed::<POSITIONS>(c_in, c_out, |input, output| {
            // Rows first, then columns: a fraction of the work of both at once.
            let mut half = [[0.0; MOST]; MOST];
            for (half, row) in half.iter_mut().zip(&rows) {
                for (x, half) in half.iter_mut().enumerate().take(taps[1]) {
                    let row = row.iter().enumerate();
                    *half = row.map(|(y, g)| g * f64::from(value(y * taps[1] + x, input, output))).sum();
                }
            }
            std::array::from_fn(|position| {
                let (half, column) = (&half[position / wide], &columns[position % wide]);
                half.iter().zip(column).map(|(half, g)| half * g).sum()
            })
        })
    }
    let (taps, channels) = (filtering.kernel(), [c_in, c_out]);
    match filtering {
        Filtering::F2 => packed::<16>([4, 4], taps, channels, value),
        Filtering::F4 | Filtering::F2Of5 => packed::<36>([6, 6], taps, channels, value),
        Filtering::F4InRow => packed::<6>([1, 6], taps, channels, value),
        Filtering::F4InColumn => packed::<6>([6, 1], taps, channels, value),
        Filtering::F3Of7InRow => packed::<9>([1, 9], taps, channels, value),
        Filtering::F3Of7InColumn => packed::<9>([9, 1], taps, channels, value),
    }
}

/// One column of `B' d`.
#[inline(always)]
fn transform_input<S: Simd, const EDGE: usize>(simd: S, d: [S::f32s; EDGE]) -> [S::f32s; EDGE] {
    let c = |value: f32| simd.splat_f32s(value);
    let (add, sub) = (|a, b| simd.add_f32s(a, b), |a, b| simd.sub_f32s(a, b));
    let fma = |a, b, c| simd.mul_add_f32s(a, b, c);
    // The short ones by hand, with what their rows share.
    match EDGE {
        1 => d,
        4 => {
            let [d0, d1, d2, d3] = std::array::from_fn(|i| d[i]);
            let out = [sub(d2, d0), add(d1, d2), sub(d2, d1), sub(d3, d1)];
            std::array::from_fn(|i| out[i])
        }
        6 => {
            let [d0, d1, d2, d3, d4, d5] = std::array::from_fn(|i| d[i]);
            let (a, b) = (fma(c(-4.0), d2, d4), fma(c(-4.0), d1, d3));
            let (e, f) = (sub(d4, d2), sub(d3, d1));
            let out = [
                fma(c(4.0), d0, fma(c(-5.0), d2, d4)),
                add(a, b),
                sub(a, b),
                fma(c(2.0), f, e),
                fma(c(-2.0), f, e),
                fma(c(4.0), d1, fma(c(-5.0), d3, d5)),
            ];
            std::array::from_fn(|i| out[i])
        }
        _ => multiply(simd, &const { interpolation::<EDGE>() }, &d),
    }
}

/// One column of `A' m`.
#[inline(always)]
fn transform_output<S: Simd, const TILE: usize, const EDGE: usize>(simd: S, m: [S::f32s; EDGE]) -> [S::f32s; TILE] {
    let c = |value: f32| simd.splat_f32s(value);
    let (add, sub) = (|a, b| simd.add_f32s(a, b), |a, b| simd.sub_f32s(a, b));
    let fma = |a, b, c| simd.mul_add_f32s(a, b, c);
    match EDGE {
        1 => std::array::from_fn(|i| m[i]),
        4 => {
            let [m0, m1, m2, m3] = std::array::from_fn(|i| m[i]);
            let out = [add(m0, add(m1, m2)), add(sub(m1, m2), m3)];
            std::array::from_fn(|i| out[i])
        }
        6 => {
            let [m0, m1, m2, m3, m4, m5] = std::array::from_fn(|i| m[i]);
            let (s, d, t, u) = (add(m1, m2), sub(m1, m2), add(m3, m4), sub(m3, m4));
            let out = [add(m0, add(s, t)), fma(c(2.0), u, d), fma(c(4.0), t, s), fma(c(8.0), u, d)];
            std::array::from_fn(|i| if i + 1 == TILE { add(out[i], m5) } else { out[i] })
        }
        _ => multiply(simd, &const { evaluation::<TILE, EDGE>() }, &m),
    }
}

/// `matrix values`
#[inline(always)]
fn multiply<S: Simd, const ROWS: usize, const COLUMNS: usize>(
    simd: S,
    matrix: &[[f32; COLUMNS]; ROWS],
    values: &[S::f32s; COLUMNS],
) -> [S::f32s; ROWS] {
    // Loops of constant length, which are unrolled: in a closure they would not be compiled for the vectors.
    let mut sums = [simd.splat_f32s(0.0); ROWS];
    for row in 0..ROWS {
        for column in 0..COLUMNS {
            sums[row] = simd.mul_add_f32s(simd.splat_f32s(matrix[row][column]), values[column], sums[row]);
        }
    }
    sums
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
    fn new(
        tile: [usize; 2],
        positions: usize,
        [batch, height, width]: [usize; 3],
        c_in: usize,
        c_out: usize,
        threads: usize,
    ) -> Self {
        let columns = width.div_ceil(tile[1]);
        let tiles = height.div_ceil(tile[0]) * columns;
        let held = (HELD / (positions * pitch(c_in))).clamp(1, tiles);
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
                ((left / columns).min(TILE_ROWS), columns)
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

/// `y = epilogue(source * weights)`, with `pad` zeros above and below the map and left and right of it.
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
        Filtering::F2 => run_tiles::<2, 2, 4, 4>(workspace, source, pad, weights, epilogue, y),
        Filtering::F4 => run_tiles::<4, 4, 6, 6>(workspace, source, pad, weights, epilogue, y),
        Filtering::F2Of5 => run_tiles::<2, 2, 6, 6>(workspace, source, pad, weights, epilogue, y),
        Filtering::F4InRow => run_tiles::<1, 4, 1, 6>(workspace, source, pad, weights, epilogue, y),
        Filtering::F4InColumn => run_tiles::<4, 1, 6, 1>(workspace, source, pad, weights, epilogue, y),
        Filtering::F3Of7InRow => run_tiles::<1, 3, 1, 9>(workspace, source, pad, weights, epilogue, y),
        Filtering::F3Of7InColumn => run_tiles::<3, 1, 9, 1>(workspace, source, pad, weights, epilogue, y),
    }
}

/// With tiles of `HIGH` rows and `WIDE` columns of outputs and `ROWS` rows and `COLUMNS` columns of positions.
fn run_tiles<const HIGH: usize, const WIDE: usize, const ROWS: usize, const COLUMNS: usize>(
    workspace: &mut Workspace,
    source: Source,
    [above, left]: [usize; 2],
    weights: &Panels,
    epilogue: &Epilogue,
    y: &mut Map,
) {
    let positions = ROWS * COLUMNS;
    let size @ [batch, height, width] = [y.batch, y.height, y.width];
    let (c_in, c_out) = (source.channels(), y.channels);
    let Workspace { team, recorder, .. } = workspace;
    let phases = recorder.as_ref().map(Recorder::phases);
    let shares = Shares::new([HIGH, WIDE], positions, size, c_in, c_out, team.threads());
    let y_pitch = y.pitch();
    let y = Parts::new(y.data_mut());
    team.run(batch * shares.runs * shares.splits, |task| {
        let mut clock = Clock::new(phases);
        let (run, split) = (task / shares.splits, task % shares.splits);
        let (sample, run) = (run / shares.runs, shares.run(run % shares.runs));
        let chosen = split * shares.panels..panels(c_out).min((split + 1) * shares.panels);
        let block_out = BLOCK_OUT.min(chosen.len() * PANEL);
        let (in_layout, out_layout) = (Layout::new(run.len(), c_in), Layout::new(run.len(), block_out));
        // Pixels that so many tiles read.
        let tall = |rows: usize| rows * HIGH + ROWS - HIGH;
        let wide = |columns: usize| columns * WIDE + COLUMNS - WIDE;
        let strip = tall(TILE_ROWS) * wide(shares.columns) * BLOCK_IN;
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
                        top: (rectangle.row * HIGH) as isize - above as isize,
                        left: (rectangle.column * WIDE) as isize - left as isize,
                        rows: tall(rectangle.rows),
                        columns: wide(rectangle.columns),
                        step: 1,
                        channels: channels.clone(),
                    };
                    source.read(&window, strip, stride);
                    let out = &mut transformed[rectangle.first * in_layout.tile + first..];
                    let layout = in_layout;
                    arch().dispatch(InputTask::<HIGH, WIDE, ROWS, COLUMNS> { strip, stride, rectangle, layout, out });
                }
            }
            clock.end(Phase::In);
            for first in chosen.clone().step_by(BLOCK_OUT / PANEL) {
                let block = first..chosen.end.min(first + BLOCK_OUT / PANEL);
                for position in 0..positions {
                    let a =
                        Rows { data: &transformed[position * in_layout.position..], row: in_layout.tile, taps: &[0] };
                    let w = weights.from(position, first);
                    let product = Product { a, w, rows: run.len(), depth: c_in, panels: block.len(), onto: false };
                    let c = &mut products[position * out_layout.position..][..run.len() * out_layout.tile];
                    // SAFETY: each tile has room for a block.
                    unsafe { product.into(c.as_mut_ptr(), out_layout.tile) };
                }
                clock.end(Phase::Multiply);
                arch().dispatch(OutputTask::<HIGH, WIDE, ROWS, COLUMNS> {
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
struct InputTask<'a, const HIGH: usize, const WIDE: usize, const ROWS: usize, const COLUMNS: usize> {
    strip: &'a [f32],
    /// Elements from a pixel of the strip to the next.
    stride: usize,
    rectangle: Rectangle,
    layout: Layout,
    out: &'a mut [f32],
}

impl<const HIGH: usize, const WIDE: usize, const ROWS: usize, const COLUMNS: usize> WithSimd
    for InputTask<'_, HIGH, WIDE, ROWS, COLUMNS>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { strip, stride, rectangle, layout, out } = self;
        let (rows, columns) = (rectangle.rows, rectangle.columns);
        let line = (columns * WIDE + COLUMNS - WIDE) * stride;
        assert!(strip.len() >= (rows * HIGH + ROWS - HIGH) * line);
        assert!(out.len() >= (ROWS * COLUMNS - 1) * layout.position + (rows * columns - 1) * layout.tile + stride);
        for tile in 0..rows * columns {
            let corner = tile / columns * HIGH * line + tile % columns * WIDE * stride;
            for channel in (0..stride).step_by(S::F32_LANES) {
                // SAFETY: a tile reads its pixels from its corner and writes its positions, which the assertions grant.
                unsafe {
                    let from = strip.as_ptr().add(corner + channel);
                    let mut half = [[simd.splat_f32s(0.0); COLUMNS]; ROWS];
                    for j in 0..COLUMNS {
                        let pixel = |i: usize| from.add(i * line + j * stride).cast::<S::f32s>().read_unaligned();
                        let column = transform_input::<S, ROWS>(simd, std::array::from_fn(pixel));
                        for (half, value) in half.iter_mut().zip(column) {
                            half[j] = value;
                        }
                    }
                    let to = out.as_mut_ptr().add(tile * layout.tile + channel);
                    for (i, half) in half.into_iter().enumerate() {
                        for (j, value) in transform_input::<S, COLUMNS>(simd, half).into_iter().enumerate() {
                            to.add((i * COLUMNS + j) * layout.position).cast::<S::f32s>().write_unaligned(value);
                        }
                    }
                }
            }
        }
    }
}

/// Transforms the tiles of a run back and epiloguees their pixels, for some channels.
struct OutputTask<'a, const HIGH: usize, const WIDE: usize, const ROWS: usize, const COLUMNS: usize> {
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

impl<const HIGH: usize, const WIDE: usize, const ROWS: usize, const COLUMNS: usize> WithSimd
    for OutputTask<'_, HIGH, WIDE, ROWS, COLUMNS>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { products, layout, run, columns, sample, channels, epilogue, y, y_size: [height, width, pitch] } =
            self;
        let last = (ROWS * COLUMNS - 1) * layout.position + (run.len() - 1) * layout.tile + channels.len();
        assert!(last <= products.len());
        for (index, tile) in run.enumerate() {
            let (top, left) = (tile / columns * HIGH, tile % columns * WIDE);
            for channel in (0..channels.len()).step_by(S::F32_LANES) {
                let mut half = [[simd.splat_f32s(0.0); COLUMNS]; HIGH];
                for j in 0..COLUMNS {
                    let product = |i: usize| {
                        let place = (i * COLUMNS + j) * layout.position + index * layout.tile + channel;
                        // SAFETY: below `last`.
                        unsafe { products.as_ptr().add(place).cast::<S::f32s>().read_unaligned() }
                    };
                    let column = transform_output::<S, HIGH, ROWS>(simd, std::array::from_fn(product));
                    for (half, value) in half.iter_mut().zip(column) {
                        half[j] = value;
                    }
                }
                let apply = epilogue.at(simd, sample, channels.start + channel);
                for (i, half) in half.into_iter().enumerate().take(height - top) {
                    let row = transform_output::<S, WIDE, COLUMNS>(simd, half);
                    for (j, value) in row.into_iter().enumerate().take(width - left) {
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
