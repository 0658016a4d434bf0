//! Multi-head self-attention, some queries at a time: the matrix of scores is never whole.

use super::panels::{Line, PANEL, Product, Rows, Weights, floats, panels, pitch};
use super::scratch::with_scratch;
use super::{Map, Workspace};
use crate::ops::cpu::attention::softmax;
use crate::ops::cpu::parts::Parts;

/// Queries of a task.
const QUERIES: usize = 32;

/// Where the channel `offset` of a head's q (part 0), k (1) or v (2) lies in a pixel of `qkv`: the panels of all parts and
/// heads alternate, so that fewer offsets are a prefix.
pub fn column(heads: usize, part: usize, head: usize, offset: usize) -> usize {
    ((offset / PANEL * 3 + part) * heads + head) * PANEL + offset % PANEL
}

/// Where the channel `offset` of a head lies in a pixel of the output: again, fewer offsets are a prefix.
fn place(heads: usize, head: usize, offset: usize) -> usize {
    offset * heads + head
}

/// The head and the offset that lie at `place` in a pixel of the output.
pub fn head_and_offset(heads: usize, place: usize) -> (usize, usize) {
    (place % heads, place / heads)
}

/// Channels of `qkv` for so many offsets a head.
pub fn columns(heads: usize, dim: usize) -> usize {
    3 * heads * pitch(dim)
}

/// `softmax(q k' / sqrt(dim)) v` per sample and head (Vaswani et al. 2017, eq. 1), from `qkv` as [`column`] says to `out`
/// as [`head_and_offset`] says.
pub fn attention(workspace: &mut Workspace, qkv: &Map, heads: usize, dim: usize, out: &mut Map) {
    assert_eq!([qkv.channels, out.channels], [columns(heads, dim), heads * dim], "channels of attention");
    let Workspace { team, arena, .. } = workspace;
    let (pixels, pairs) = (qkv.height * qkv.width, qkv.batch * heads);
    let (key_panels, value_panels) = (panels(pixels), panels(dim));
    let (key_lines, value_lines) = (key_panels * dim, value_panels * pixels);
    let (in_pitch, out_pitch) = (qkv.pitch(), out.pitch());
    let pixel = |pair: usize, pixel: usize| &qkv.data()[(pair / heads * pixels + pixel) * in_pitch..][..in_pitch];

    // Keys and values as right sides of a product.
    let (mut keys, mut values) = (arena.lines(pairs * key_lines), arena.lines(pairs * value_lines));
    {
        let (keys, values) = (Parts::new(&mut keys), Parts::new(&mut values));
        team.run(pairs * (key_panels + value_panels), |task| {
            let (pair, panel) = (task / (key_panels + value_panels), task % (key_panels + value_panels));
            if panel < key_panels {
                // SAFETY: a panel is one task's.
                let lines = unsafe { keys.slice(pair * key_lines + panel * dim, dim) };
                lines.fill(Line::ZERO);
                for lane in 0..PANEL.min(pixels - panel * PANEL) {
                    let from = pixel(pair, panel * PANEL + lane);
                    for (offset, line) in lines.iter_mut().enumerate() {
                        line.0[lane] = from[column(heads, 1, pair % heads, offset)];
                    }
                }
            } else {
                let panel = panel - key_panels;
                // SAFETY: as above.
                let lines = unsafe { values.slice(pair * value_lines + panel * pixels, pixels) };
                let first = column(heads, 2, pair % heads, panel * PANEL);
                for (index, line) in lines.iter_mut().enumerate() {
                    line.0.copy_from_slice(&pixel(pair, index)[first..][..PANEL]);
                }
            }
        });
    }

    let blocks = pixels.div_ceil(QUERIES);
    let temperature = 1.0 / (dim as f32).sqrt();
    let (key_data, value_data) = (floats(&keys), floats(&values));
    let (score_pitch, dim_pitch) = (pitch(pixels), pitch(dim));
    let out = Parts::new(out.data_mut());
    team.run(pairs * blocks, |task| {
        let (pair, first) = (task / blocks, task % blocks * QUERIES);
        let rows = QUERIES.min(pixels - first);
        with_scratch(QUERIES * (dim_pitch + score_pitch), |scratch| {
            let (queries, scores) = scratch.split_at_mut(QUERIES * dim_pitch);
            for (row, query) in queries.chunks_exact_mut(dim_pitch).take(rows).enumerate() {
                let from = pixel(pair, first + row);
                for (panel, query) in query.chunks_exact_mut(PANEL).enumerate() {
                    let from = &from[column(heads, 0, pair % heads, panel * PANEL)..][..PANEL];
                    query.iter_mut().zip(from).for_each(|(query, from)| *query = from * temperature);
                }
            }
            let a = Rows { data: queries, row: dim_pitch, taps: &[0] };
            let w = Weights { data: &key_data[pair * key_lines * PANEL..], tap: 0, panel: dim * PANEL };
            let product = Product { a, w, rows, depth: dim, panels: key_panels, onto: false };
            // SAFETY: `scores` has as many rows of that length.
            unsafe { product.into(scores.as_mut_ptr(), score_pitch) };
            for scores in scores.chunks_exact_mut(score_pitch).take(rows) {
                softmax(&mut scores[..pixels], pixels);
            }
            let a = Rows { data: scores, row: score_pitch, taps: &[0] };
            let w = Weights { data: &value_data[pair * value_lines * PANEL..], tap: 0, panel: pixels * PANEL };
            let product = Product { a, w, rows, depth: pixels, panels: value_panels, onto: false };
            // The queries are no longer needed.
            // SAFETY: `queries` has as many rows of that length.
            unsafe { product.into(queries.as_mut_ptr(), dim_pitch) };
            for (row, result) in queries.chunks_exact(dim_pitch).take(rows).enumerate() {
                let pixel = (pair / heads * pixels + first + row) * out_pitch;
                for (offset, value) in result[..dim].iter().enumerate() {
                    let to = out.at(pixel + place(heads, pair % heads, offset), 1);
                    // SAFETY: no two tasks share a query and a head.
                    unsafe { to.write(*value) };
                }
            }
        });
    });
    arena.put_lines(keys);
    arena.put_lines(values);
}
