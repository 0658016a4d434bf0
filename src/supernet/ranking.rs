//! Rankings of the channels of each pipe: orders from scores, control scores, and the scores on disk.
//!
//! A score table has a row a pipe and a number a channel. An order table has, by pipe, the channel that each position
//! takes, best first; equal channels keep their order.

use crate::files::{parse_tensors, tensor, write_tensors};
use crate::philox::Stream;
use crate::supernet::checkpoint::{Order, Supernet, read_f32};
use crate::supernet::groups;
use crate::supernet::spec::{Pipe, Role, Spec};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::Path;

/// The file of a model directory that keeps the scores.
pub const FILE: &str = "importance.safetensors";

/// The stream of the random control; importance has the ones before it.
const RANDOM_STREAM: u32 = 43;

/// The best channels first, whatever their group.
pub fn order_global(scores: &[Vec<f64>]) -> Vec<Vec<u32>> {
    scores.iter().map(|scores| best_first(scores)).collect()
}

/// The best channel of every group, then the second of every group, and so on; each round best first.
///
/// `groups` has the group of each channel. So any number of whole rounds keeps the same number of every group.
pub fn order_within_group(scores: &[Vec<f64>], groups: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let of_pipe = |(scores, groups): (&Vec<f64>, &Vec<u32>)| {
        let mut order = best_first(scores);
        let mut taken: HashMap<u32, u32> = HashMap::new();
        let mut round = vec![0; order.len()];
        for &channel in &order {
            let next = taken.entry(groups[channel as usize]).or_default();
            round[channel as usize] = *next;
            *next += 1;
        }
        order.sort_by_key(|&channel| round[channel as usize]);
        order
    };
    scores.iter().zip(groups).map(of_pipe).collect()
}

/// The order table for [`Supernet::permuted`], from scores in the supernet's current order.
pub fn order(spec: &Spec, supernet: &Supernet, scores: &[Vec<f64>], order: Order) -> Vec<Vec<u32>> {
    match order {
        Order::Original => supernet.permutations.iter().map(|origin| ascending(origin)).collect(),
        Order::Global => order_global(scores),
        Order::WithinGroup => {
            let pipes = spec.pipes.iter().zip(&supernet.permutations);
            let groups = pipes.map(|(pipe, origin)| groups::membership(origin, pipe.norm_groups.unwrap_or(1)));
            order_within_group(scores, &groups.collect::<Vec<_>>())
        }
    }
}

fn best_first(scores: &[f64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
    order
}

/// The positions in ascending order of what stands there: the inverse, where `origin` is a permutation.
pub fn ascending(origin: &[u32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..origin.len() as u32).collect();
    order.sort_unstable_by_key(|&position| origin[position as usize]);
    order
}

/// Control: uniform scores in [0, 1) from `seed`, in original channel order.
pub fn random(spec: &Spec, seed: u64) -> Vec<Vec<f64>> {
    let of_pipe = |(index, pipe): (usize, &Pipe)| {
        let stream = Stream::new(seed, RANDOM_STREAM, index as u64);
        (0..pipe.width as u64).map(|channel| stream.uniform(channel)).collect()
    };
    spec.pipes.iter().enumerate().map(of_pipe).collect()
}

/// Control: the sum of |w| over the weights that produce or consume each channel (Li et al. 2017), in the supernet's
/// current order.
///
/// # Errors
/// [`Error::Tensor`] on a device fault.
pub fn magnitude(spec: &Spec, supernet: &Supernet) -> Result<Vec<Vec<f64>>> {
    let mut scores: Vec<Vec<f64>> = spec.pipes.iter().map(|pipe| vec![0.0; pipe.width]).collect();
    for (param, weight) in spec.params.iter().zip(&supernet.params) {
        for slice in param.slices.iter().filter(|slice| slice.role != Role::Follows) {
            let width = param.shape[slice.axis];
            let inner: usize = param.shape[slice.axis + 1..].iter().product();
            let weight = weight.flatten_all()?.to_vec1::<f32>()?;
            for (row, weights) in weight.chunks_exact(inner).enumerate() {
                let sum: f64 = weights.iter().map(|&weight| f64::from(weight).abs()).sum();
                scores[slice.pipe][row % width] += sum;
            }
        }
    }
    Ok(scores)
}

/// Scores by position, from scores by original channel.
pub fn from_original(supernet: &Supernet, scores: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let pipes = supernet.permutations.iter().zip(scores);
    pipes.map(|(origin, scores)| origin.iter().map(|&channel| scores[channel as usize]).collect()).collect()
}

/// Scores by original channel, from scores by position.
pub fn to_original(supernet: &Supernet, scores: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let pipes = supernet.permutations.iter().zip(scores);
    pipes.map(|(origin, scores)| ascending(origin).iter().map(|&p| scores[p as usize]).collect()).collect()
}

/// The name of a pipe's scores in a file.
pub fn tensor_name(pipe: &Pipe) -> String {
    format!("importance.{}.{}", pipe.kind.as_str(), pipe.block)
}

/// Writes scores in original channel order, in f32; `notes` say how they were made (`method`, `samples`).
///
/// # Errors
/// [`Error::Io`] if the file cannot be written; what [`read`] would refuse.
pub fn write(spec: &Spec, scores: &[Vec<f64>], notes: &[(&str, String)], path: &Path) -> Result<()> {
    let mut tensors = Vec::with_capacity(scores.len());
    for (pipe, scores) in spec.pipes.iter().zip(scores) {
        let scores: Vec<f32> = scores.iter().map(|&score| score as f32).collect();
        check(path, pipe, &scores)?;
        tensors.push((tensor_name(pipe), Tensor::new(scores, &Device::Cpu)?));
    }
    let notes = notes.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
    write_tensors(path, tensors, Some(notes))
}

/// Reads scores in original channel order.
///
/// # Errors
/// One sentence with the file and the tensor that is missing, of another width, damaged or negative.
pub fn read(spec: &Spec, path: &Path) -> Result<Vec<Vec<f64>>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = parse_tensors(path, &bytes)?;
    let of_pipe = |pipe: &Pipe| {
        let name = tensor_name(pipe);
        let view = tensor(path, &file, &name)?;
        if view.shape() != [pipe.width] {
            return Err(Error::field(path, &name, format!("shape {:?} is not [{}]", view.shape(), pipe.width)));
        }
        let scores = read_f32(path, &name, &view)?.to_vec1::<f32>()?;
        check(path, pipe, &scores)?;
        Ok(scores.into_iter().map(f64::from).collect())
    };
    spec.pipes.iter().map(of_pipe).collect()
}

fn check(path: &Path, pipe: &Pipe, scores: &[f32]) -> Result<()> {
    match scores.iter().any(|&score| score < 0.0) {
        true => Err(Error::field(path, &tensor_name(pipe), "has negative values; importances are at least 0")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_equals_keep_their_order() {
        assert_eq!(order_global(&[vec![1.0, 3.0, 2.0, 3.0, 1.0]]), [[1, 3, 2, 0, 4]]);
    }

    #[test]
    fn every_round_takes_the_best_that_is_left_of_every_group() {
        let scores = [vec![9.0, 8.0, 7.0, 1.0, 2.0, 3.0]];
        let groups = [vec![0, 0, 0, 1, 1, 1]];
        assert_eq!(order_within_group(&scores, &groups), [[0, 5, 1, 4, 2, 3]]);
    }

    #[test]
    fn scores_survive_the_way_to_original_order_and_back() {
        let supernet = Supernet { params: vec![], order: Order::Global, permutations: vec![vec![2, 0, 1]] };
        let original = to_original(&supernet, &[vec![9.0, 5.0, 1.0]]);
        assert_eq!(original, [[5.0, 1.0, 9.0]]);
        assert_eq!(from_original(&supernet, &original), [[9.0, 5.0, 1.0]]);
    }
}
