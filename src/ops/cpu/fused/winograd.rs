//! 3x3 convolution by Winograd's minimal filtering F(4x4, 3x3): 36 products for 16 outputs, where the definition takes
//! 144 (Winograd 1980; Lavin and Gray 2016, section 4.3).
//!
//! A tile of 6x6 inputs is transformed, `V = B' d B`; for each of the 36 positions the tiles make a matrix that is
//! multiplied with the transformed weights, `M = V U`; each tile of `M` is transformed back, `Y = A' M A`. The points of
//! interpolation are 0, 1, -1, 2, -2 and infinity.

use super::conv::{Finish, with_scratch};
use super::panels::{PANEL, Panels, Product, Rows, floats, floats_mut, panels, pitch};
use super::source::Window;
use super::team::Parts;
use super::{Map, Source, Workspace};
use pulp::{Simd, WithSimd};

/// Rows and columns of outputs that a tile makes.
const TILE: usize = 4;
/// Rows and columns of inputs that it takes.
const EDGE: usize = TILE + 2;
/// Values of a transformed tile.
pub const POSITIONS: usize = EDGE * EDGE;

/// Memory for the transformed tiles of one round: what the caches hold beside the weights.
const ROUND_BYTES: usize = 6 << 20;
/// Channels that a task transforms.
const BLOCK: usize = 32;
/// Multiply-adds worth a task of their own: some microseconds.
const TASK_MACS: usize = 1 << 19;

/// The transformed weights of one input and output channel, `U = G g G'`, row by row.
pub fn transform_weights(g: [[f64; 3]; 3]) -> [f64; POSITIONS] {
    const G: [[f64; 3]; EDGE] = [
        [1.0 / 4.0, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];
    std::array::from_fn(|position| {
        let (row, column) = (position / EDGE, position % EDGE);
        (0..9).map(|tap| G[row][tap / 3] * g[tap / 3][tap % 3] * G[column][tap % 3]).sum()
    })
}

/// One column of `B' d`.
#[inline(always)]
fn transform_input<S: Simd>(simd: S, d: [S::f32s; EDGE]) -> [S::f32s; EDGE] {
    let c = |value: f32| simd.splat_f32s(value);
    let fma = |a, b, c| simd.mul_add_f32s(a, b, c);
    let [d0, d1, d2, d3, d4, d5] = d;
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

/// One column of `A' m`.
#[inline(always)]
fn transform_output<S: Simd>(simd: S, m: [S::f32s; EDGE]) -> [S::f32s; TILE] {
    let c = |value: f32| simd.splat_f32s(value);
    let fma = |a, b, c| simd.mul_add_f32s(a, b, c);
    let [m0, m1, m2, m3, m4, m5] = m;
    let (s, d) = (simd.add_f32s(m1, m2), simd.sub_f32s(m1, m2));
    let (t, u) = (simd.add_f32s(m3, m4), simd.sub_f32s(m3, m4));
    [simd.add_f32s(m0, simd.add_f32s(s, t)), fma(c(2.0), u, d), fma(c(4.0), t, s), simd.add_f32s(fma(c(8.0), u, d), m5)]
}

/// Where tiles of one round lie: position after position, tile after tile, channel after channel.
#[derive(Clone, Copy)]
struct Transformed {
    /// Elements from a tile to the next.
    tile: usize,
    /// Elements from a position to the next: an odd number of cache lines, so that the 36 values of a tile do not
    /// all fall into the same set of a cache.
    position: usize,
}

impl Transformed {
    fn new(tiles: usize, channels: usize) -> Self {
        let tile = pitch(channels);
        Self { tile, position: ((tiles * tile / PANEL) | 1) * PANEL }
    }

    fn lines(self) -> usize {
        POSITIONS * self.position / PANEL
    }
}

/// How the tiles of a convolution are shared out: in bands of whole tile rows of one sample.
struct Bands {
    /// Tile rows of a band.
    rows: usize,
    /// Bands of a sample.
    per_sample: usize,
    /// Tiles of a tile row.
    columns: usize,
}

impl Bands {
    /// Bands as high as leaves `wanted` tasks of `blocks` a band: fewer rows are then read twice.
    fn new(batch: usize, height: usize, width: usize, blocks: usize, wanted: usize) -> Self {
        let rows = height.div_ceil(TILE);
        let fits = |band: &usize| rows.is_multiple_of(*band) && batch * (rows / band) * blocks >= wanted;
        let band = (1..=rows.min(8)).rev().find(fits).unwrap_or(1);
        Self { rows: band, per_sample: rows / band, columns: width.div_ceil(TILE) }
    }

    fn tiles(&self) -> usize {
        self.rows * self.columns
    }
}

/// `y = finish(source * weights)`, padded with one zero on each side.
pub fn run(workspace: &mut Workspace, source: Source, weights: &Panels, finish: &Finish, y: &mut Map) {
    let Workspace { team, arena } = workspace;
    let [batch, height, width] = source.size();
    let (c_in, c_out) = (source.channels(), y.channels);
    let (blocks_in, blocks_out) = (c_in.div_ceil(BLOCK), c_out.div_ceil(BLOCK));
    let bands = Bands::new(batch, height, width, blocks_in.min(blocks_out), team.threads());
    let all = batch * bands.per_sample;
    let band_bytes = bands.tiles() * POSITIONS * (pitch(c_in) + pitch(c_out)) * size_of::<f32>();
    let rounds = all.div_ceil((ROUND_BYTES / band_bytes).max(1));
    let per_round = all.div_ceil(rounds);
    let tiles = per_round * bands.tiles();
    let (in_layout, out_layout) = (Transformed::new(tiles, c_in), Transformed::new(tiles, c_out));
    let mut transformed = arena.lines(in_layout.lines());
    let mut products = arena.lines(out_layout.lines());
    let y_shape = Shape { height, width, pitch: y.pitch() };
    let y = Parts::new(y.data_mut());

    for first in (0..all).step_by(per_round) {
        let count = per_round.min(all - first);
        {
            let transformed = Parts::new(floats_mut(&mut transformed));
            team.run(count * blocks_in, |task| {
                let (band, block) = (task / blocks_in, task % blocks_in);
                let channels = block * BLOCK..c_in.min((block + 1) * BLOCK);
                let (sample, row) = place(first + band, &bands);
                let window = Window {
                    sample,
                    top: (row * TILE) as isize - 1,
                    rows: bands.rows * TILE + 2,
                    left: 1,
                    columns: bands.columns * TILE + 2,
                    channels: channels.clone(),
                };
                let stride = pitch(channels.len());
                with_scratch(window.rows * window.columns * stride, |strip| {
                    source.read(&window, strip, stride);
                    let out = band * bands.tiles() * in_layout.tile + channels.start;
                    let len = (POSITIONS - 1) * in_layout.position + (bands.tiles() - 1) * in_layout.tile + stride;
                    let out = transformed.at(out, len);
                    let (columns, layout) = (window.columns, in_layout);
                    let task = InputTask { strip, stride, columns, bands: &bands, layout, out };
                    pulp::Arch::new().dispatch(task);
                });
            });
        }
        {
            let transformed = floats(&transformed);
            let products = Parts::new(floats_mut(&mut products));
            let tiles = count * bands.tiles();
            let macs = tiles * c_in * pitch(c_out);
            // Either several positions a task, or several tasks a position.
            let positions = [12, 6, 3, 2].into_iter().find(|n| n * macs <= TASK_MACS).unwrap_or(1);
            let splits = (macs / (4 * TASK_MACS)).clamp(1, panels(c_out).div_ceil(4));
            let share = panels(c_out).div_ceil(splits);
            team.run(POSITIONS / positions * splits, |task| {
                let (group, split) = (task / splits, task % splits);
                let chosen = split * share..panels(c_out).min((split + 1) * share);
                for position in group * positions..(group + 1) * positions {
                    let a =
                        Rows { data: &transformed[position * in_layout.position..], row: in_layout.tile, taps: &[0] };
                    let w = weights.from(position, chosen.start);
                    let product = Product { a, w, rows: tiles, depth: c_in, panels: chosen.len() };
                    let start = position * out_layout.position + chosen.start * PANEL;
                    let c = products.at(start, (tiles - 1) * out_layout.tile + chosen.len() * PANEL);
                    // SAFETY: positions and panels are this task's alone, and `at` has checked the room.
                    unsafe { product.into(c, out_layout.tile) };
                }
            });
        }
        let products = floats(&products);
        team.run(count * blocks_out, |task| {
            let (band, block) = (task / blocks_out, task % blocks_out);
            let channels = block * BLOCK..pitch(c_out).min((block + 1) * BLOCK);
            let (sample, row) = place(first + band, &bands);
            let products = &products[band * bands.tiles() * out_layout.tile + channels.start..];
            let layout = out_layout;
            pulp::Arch::new().dispatch(OutputTask {
                products,
                layout,
                bands: &bands,
                sample,
                row,
                channels,
                finish,
                y: &y,
                y_shape,
            });
        });
    }
    arena.put_lines(transformed);
    arena.put_lines(products);
}

/// The sample and the first tile row of a band.
fn place(band: usize, bands: &Bands) -> (usize, usize) {
    (band / bands.per_sample, band % bands.per_sample * bands.rows)
}

/// Transforms the tiles of a band for some channels.
struct InputTask<'a> {
    strip: &'a [f32],
    /// Elements from a pixel of the strip to the next.
    stride: usize,
    /// Pixels of a row of the strip.
    columns: usize,
    bands: &'a Bands,
    layout: Transformed,
    out: *mut f32,
}

impl WithSimd for InputTask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { strip, stride, columns, bands, layout, out } = self;
        assert!(strip.len() >= (bands.rows * TILE + 2) * columns * stride && columns == bands.columns * TILE + 2);
        for tile in 0..bands.tiles() {
            let (row, column) = (tile / bands.columns, tile % bands.columns);
            let corner = (row * TILE * columns + column * TILE) * stride;
            for channel in (0..stride).step_by(S::F32_LANES) {
                // SAFETY: a tile reads 6 by 6 pixels from its corner, which the strip has by the assertion; what it writes
                // is within the part that the task was given.
                unsafe {
                    let from = strip.as_ptr().add(corner + channel);
                    let mut half = [[simd.splat_f32s(0.0); EDGE]; EDGE];
                    for j in 0..EDGE {
                        let d = std::array::from_fn(|i| {
                            from.add((i * columns + j) * stride).cast::<S::f32s>().read_unaligned()
                        });
                        for (half, value) in half.iter_mut().zip(transform_input(simd, d)) {
                            half[j] = value;
                        }
                    }
                    let to = out.add(tile * layout.tile + channel);
                    for (i, half) in half.into_iter().enumerate() {
                        for (j, value) in transform_input(simd, half).into_iter().enumerate() {
                            to.add((i * EDGE + j) * layout.position).cast::<S::f32s>().write_unaligned(value);
                        }
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Shape {
    height: usize,
    width: usize,
    pitch: usize,
}

/// Transforms the tiles of a band back and finishes their pixels, for some channels.
struct OutputTask<'a> {
    products: &'a [f32],
    layout: Transformed,
    bands: &'a Bands,
    sample: usize,
    row: usize,
    channels: std::ops::Range<usize>,
    finish: &'a Finish<'a>,
    y: &'a Parts<'a, f32>,
    y_shape: Shape,
}

impl WithSimd for OutputTask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { products, layout, bands, sample, row, channels, finish, y, y_shape } = self;
        let last = (POSITIONS - 1) * layout.position + (bands.tiles() - 1) * layout.tile + channels.len();
        assert!(last <= products.len());
        for tile in 0..bands.tiles() {
            let (top, left) = ((row + tile / bands.columns) * TILE, tile % bands.columns * TILE);
            for channel in (0..channels.len()).step_by(S::F32_LANES) {
                let mut half = [[simd.splat_f32s(0.0); EDGE]; TILE];
                for j in 0..EDGE {
                    let m = std::array::from_fn(|i| {
                        let place = (i * EDGE + j) * layout.position + tile * layout.tile + channel;
                        // SAFETY: below `last`.
                        unsafe { products.as_ptr().add(place).cast::<S::f32s>().read_unaligned() }
                    });
                    for (half, value) in half.iter_mut().zip(transform_output(simd, m)) {
                        half[j] = value;
                    }
                }
                let apply = finish.at(simd, sample, channels.start + channel);
                for (i, half) in half.into_iter().enumerate().take(y_shape.height - top) {
                    for (j, value) in transform_output(simd, half).into_iter().enumerate().take(y_shape.width - left) {
                        let pixel = (sample * y_shape.height + top + i) * y_shape.width + left + j;
                        let place = pixel * y_shape.pitch + channels.start + channel;
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
