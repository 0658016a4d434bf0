//! Multi-head attention, some queries at a time: the matrix of scores is never whole.

use super::panels::{Line, PANEL, Product, Rows, Weights, floats, panels, pitch};
use super::scratch::with_scratch;
use super::softmax::{Online, softmax};
use super::{Map, Workspace};
use crate::ops::cpu::parts::Parts;
use std::f32::consts::LOG2_E;

/// Queries of a task.
const QUERIES: usize = 32;
/// Keys of a tile: where there are more, scores are made tile by tile, so that they, the keys and the values of a tile stay in a core's
/// cache.
const TILE: usize = 512;
/// Queries of a task then, for each of which all keys and values are read once.
const MORE_QUERIES: usize = 64;

/// Where the channel `offset` of a head lies in a pixel, in one of so many parts: q, k and v, or q alone, or k and v. The panels of all
/// parts and heads alternate, so that fewer offsets are a prefix.
pub fn column(parts: usize, heads: usize, part: usize, head: usize, offset: usize) -> usize {
    ((offset / PANEL * parts + part) * heads + head) * PANEL + offset % PANEL
}

/// Where the channel `offset` of a head lies in a pixel of the output: again, fewer offsets are a prefix.
fn place(heads: usize, head: usize, offset: usize) -> usize {
    offset * heads + head
}

/// The head and the offset that lie at `place` in a pixel of the output.
pub fn head_and_offset(heads: usize, place: usize) -> (usize, usize) {
    (place % heads, place / heads)
}

/// Channels of such a pixel for so many offsets a head.
pub fn columns(parts: usize, heads: usize, dim: usize) -> usize {
    parts * heads * pitch(dim)
}

/// `softmax(q k' / sqrt(dim)) v` per sample and head (Vaswani et al. 2017, eq. 1), from the first part of `q` and the last two of `kv`,
/// which may be the same, as [`column`] says to `out` as [`head_and_offset`] says.
pub fn attention(workspace: &mut Workspace, q: &Map, kv: &Map, heads: usize, dim: usize, out: &mut Map) {
    let [of_q, of_kv] = [q, kv].map(|map| map.channels / columns(1, heads, dim));
    assert_eq!(
        [q.channels, kv.channels, out.channels],
        [columns(of_q, heads, dim), columns(of_kv.max(2), heads, dim), heads * dim],
        "channels of attention"
    );
    let Workspace { team, arena, .. } = workspace;
    let (queries, keys_of_sample, pairs) = (q.height * q.width, kv.height * kv.width, q.batch * heads);
    let (key_panels, value_panels) = (panels(keys_of_sample), panels(dim));
    let (key_lines, value_lines) = (key_panels * dim, value_panels * keys_of_sample);
    let out_pitch = out.pitch();
    let query_at = |pair: usize, pixel: usize| &q.data()[(pair / heads * queries + pixel) * q.pitch()..][..q.pitch()];
    let key_at =
        |pair: usize, pixel: usize| &kv.data()[(pair / heads * keys_of_sample + pixel) * kv.pitch()..][..kv.pitch()];

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
                for lane in 0..PANEL.min(keys_of_sample - panel * PANEL) {
                    let from = key_at(pair, panel * PANEL + lane);
                    for (offset, line) in lines.iter_mut().enumerate() {
                        line.0[lane] = from[column(of_kv, heads, of_kv - 2, pair % heads, offset)];
                    }
                }
            } else {
                let panel = panel - key_panels;
                // SAFETY: as above.
                let lines = unsafe { values.slice(pair * value_lines + panel * keys_of_sample, keys_of_sample) };
                let first = column(of_kv, heads, of_kv - 1, pair % heads, panel * PANEL);
                for (index, line) in lines.iter_mut().enumerate() {
                    line.0.copy_from_slice(&key_at(pair, index)[first..][..PANEL]);
                }
            }
        });
    }

    let of_task = if keys_of_sample > TILE { MORE_QUERIES } else { QUERIES };
    let blocks = queries.div_ceil(of_task);
    // Powers of two, where the definition has those of e.
    let temperature = LOG2_E / (dim as f32).sqrt();
    let (key_data, value_data) = (floats(&keys), floats(&values));
    let (score_pitch, dim_pitch) = (pitch(keys_of_sample), pitch(dim));
    let out = Parts::new(out.data_mut());
    team.run(pairs * blocks, |task| {
        let (pair, first) = (task / blocks, task % blocks * of_task);
        let rows = of_task.min(queries - first);
        let tile_pitch = score_pitch.min(TILE);
        with_scratch(of_task * (2 * dim_pitch + tile_pitch), |scratch| {
            let (block, scratch) = scratch.split_at_mut(of_task * dim_pitch);
            let (results, scores) = scratch.split_at_mut(of_task * dim_pitch);
            for (row, query) in block.chunks_exact_mut(dim_pitch).take(rows).enumerate() {
                let from = query_at(pair, first + row);
                for (panel, query) in query.chunks_exact_mut(PANEL).enumerate() {
                    let from = &from[column(of_q, heads, 0, pair % heads, panel * PANEL)..][..PANEL];
                    query.iter_mut().zip(from).for_each(|(query, from)| *query = from * temperature);
                }
            }
            let mut states = [Online::START; MORE_QUERIES];
            for tile in (0..keys_of_sample).step_by(TILE) {
                let keys = TILE.min(keys_of_sample - tile);
                let a = Rows { data: block, row: dim_pitch, taps: &[0] };
                let lines = pair * key_lines + tile / PANEL * dim;
                let w = Weights { data: &key_data[lines * PANEL..], tap: 0, panel: dim * PANEL };
                let product = Product { a, w, rows, depth: dim, panels: panels(keys), onto: false };
                // SAFETY: `scores` has as many rows of that length.
                unsafe { product.into(scores.as_mut_ptr(), tile_pitch) };
                softmax(&mut scores[..rows * tile_pitch], tile_pitch, keys, &mut states[..rows]);
                for (result, state) in results.chunks_exact_mut(dim_pitch).zip(&states[..rows]).filter(|_| tile > 0) {
                    result.iter_mut().for_each(|result| *result *= state.rescale);
                }
                let a = Rows { data: scores, row: tile_pitch, taps: &[0] };
                let lines = pair * value_lines + tile;
                let w = Weights { data: &value_data[lines * PANEL..], tap: 0, panel: keys_of_sample * PANEL };
                let product = Product { a, w, rows, depth: keys, panels: value_panels, onto: tile > 0 };
                // SAFETY: `results` has as many rows of that length.
                unsafe { product.into(results.as_mut_ptr(), dim_pitch) };
            }
            for (row, (result, state)) in results.chunks_exact(dim_pitch).zip(&states[..rows]).enumerate() {
                let (pixel, inverse) = ((pair / heads * queries + first + row) * out_pitch, 1.0 / state.sum);
                for (offset, value) in result[..dim].iter().enumerate() {
                    let to = out.at(pixel + place(heads, pair % heads, offset), 1);
                    // SAFETY: no two tasks share a query and a head.
                    unsafe { to.write(value * inverse) };
                }
            }
        });
    });
    arena.put_lines(keys);
    arena.put_lines(values);
}
