//! The paper's allocation: channels shared out among the blocks of a group by their importance.

use super::{Constraint, check_importance, check_ratio};
use crate::Result;
use crate::supernet::{Spec, Widths};
use std::collections::BTreeMap;

/// The widths for a ratio P of the channels, by Formula 5 of the paper and the rounding of its reference code.
///
/// Within each group of K blocks, a block of width |l| and importance I_l (the sum over its pipes) keeps
/// `C_l = clamp(round(I_l / sum(I) * K * P * |l|), max(1, round(|l| / 4)), |l|)` channels (the quarter is `constraint.floor`; at 0 it
/// may be none), floored to a multiple of `constraint.align` where that stays above the minimum; every pipe of the block keeps `round(C_l / |l| * width)`.
/// Rounding is half to even. What clamping takes from one block is not given to another, so the realised share of the
/// channels is below P, and the share of the cost is something else again: use [`super::greedy`] to meet a cost.
///
/// Two things go beyond the formula. P = 1 is the whole network: the formula alone would cut the unimportant blocks
/// even there. A within-group order floors a normalised pipe to a multiple of its groups, or keeps the smallest multiple
/// that is at least its floor.
///
/// Each width grows with P, so subnets nest.
///
/// # Errors
/// [`crate::Error::Input`] for a ratio outside (0, 1], an align of 0, or importances that do not fit the pipes.
pub fn channels(spec: &Spec, importance: &[Vec<f64>], ratio: f64, constraint: Constraint) -> Result<Widths> {
    check_ratio(ratio)?;
    constraint.check()?;
    check_importance(spec, importance)?;
    if ratio == 1.0 {
        return Ok(spec.full());
    }
    let mut widths = spec.full();
    for blocks in groups(spec).values() {
        let scores: Vec<f64> =
            blocks.values().map(|pipes| pipes.iter().flat_map(|&p| &importance[p]).sum::<f64>()).collect();
        let total: f64 = scores.iter().sum();
        let count = blocks.len() as f64;
        for (pipes, score) in blocks.values().zip(&scores) {
            // A group that nothing ranks shares evenly.
            let share = if total > 0.0 { score / total } else { 1.0 / count };
            let block = spec.pipes[pipes[0]].block_width;
            let kept = kept_of_block(share * count * ratio, block, constraint);
            for &p in pipes {
                widths.0[p] = kept_of_pipe(spec, p, kept as f64 / block.max(1) as f64, constraint);
            }
        }
    }
    Ok(widths)
}

/// The pipes of each block of each group.
fn groups(spec: &Spec) -> BTreeMap<&str, BTreeMap<&str, Vec<usize>>> {
    let mut groups: BTreeMap<&str, BTreeMap<&str, Vec<usize>>> = BTreeMap::new();
    for (index, pipe) in spec.pipes.iter().enumerate() {
        groups.entry(&pipe.allocation_group).or_default().entry(&pipe.block).or_default().push(index);
    }
    groups
}

/// C_l, of a block of `width` channels whose unclamped share of them is `share`.
fn kept_of_block(share: f64, width: usize, constraint: Constraint) -> usize {
    let (minimum, align) = (minimum(width, constraint.floor), constraint.align);
    let kept = ((share * width as f64).round_ties_even() as usize).clamp(minimum, width);
    if kept == width { width } else { (kept / align * align).max(minimum) }
}

fn kept_of_pipe(spec: &Spec, pipe: usize, share: f64, constraint: Constraint) -> usize {
    let pipe = &spec.pipes[pipe];
    // The formula leaves a narrow pipe of a wide block with none where its share rounds to 0.
    let least = usize::from(share > 0.0).min(pipe.width);
    let kept = ((share * pipe.width as f64).round_ties_even() as usize).clamp(least, pipe.width);
    match pipe.norm_groups.filter(|_| constraint.within_group) {
        Some(groups) if kept < pipe.width => {
            let minimum = minimum(pipe.width, constraint.floor).next_multiple_of(groups).min(pipe.width);
            (kept / groups * groups).max(minimum)
        }
        _ => kept,
    }
}

/// The floor of `width` channels, half to even: at least 1, where it is above 0.
fn minimum(width: usize, floor: f64) -> usize {
    let least = usize::from(floor > 0.0).min(width);
    ((floor * width as f64).round_ties_even() as usize).max(least)
}
