//! What widths cost, cheap enough to ask thousands of times.

use crate::supernet::Spec;
use std::collections::BTreeMap;

/// What a ratio is a ratio of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cost {
    /// Multiply-accumulates of one call on one image: [`Spec::macs`].
    Macs,
    /// Parameters: [`Spec::parameters`].
    Params,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Macs => "MACs",
            Self::Params => "parameters",
        })
    }
}

/// The cost as a polynomial in the kept widths, so that one more step of one pipe looks at that pipe's terms only.
pub(super) struct CostModel {
    terms: Vec<Term>,
    /// Terms that hold each pipe.
    of_pipe: Vec<Vec<usize>>,
}

/// `coefficient` times the kept widths of `pipes`.
struct Term {
    coefficient: u64,
    pipes: Vec<usize>,
}

impl CostModel {
    /// The model whose [`CostModel::total`] is [`Spec::macs`] or [`Spec::parameters`] at every width.
    pub(super) fn new(spec: &Spec, cost: Cost) -> Self {
        let mut coefficients: BTreeMap<Vec<usize>, u64> = BTreeMap::new();
        for param in &spec.params {
            let sliced = |axis: usize| param.slices.iter().any(|slice| slice.axis == axis);
            let whole: usize = (0..param.shape.len()).filter(|&a| !sliced(a)).map(|a| param.shape[a]).product();
            let times = match cost {
                Cost::Macs => param.uses,
                Cost::Params => 1,
            };
            let mut pipes: Vec<usize> = param.slices.iter().map(|slice| slice.pipe).collect();
            pipes.sort_unstable();
            *coefficients.entry(pipes).or_default() += whole as u64 * times;
        }
        if cost == Cost::Macs {
            for (index, pipe) in spec.pipes.iter().enumerate() {
                *coefficients.entry(vec![index]).or_default() += pipe.macs_per_channel;
            }
        }
        let terms: Vec<Term> =
            coefficients.into_iter().map(|(pipes, coefficient)| Term { coefficient, pipes }).collect();
        let holding = |pipe| (0..terms.len()).filter(|&t| terms[t].pipes.contains(&pipe)).collect();
        let of_pipe = (0..spec.pipes.len()).map(holding).collect();
        Self { terms, of_pipe }
    }

    /// What `widths` cost.
    pub(super) fn total(&self, widths: &[usize]) -> u64 {
        self.terms.iter().map(|term| term.value(|pipe| widths[pipe])).sum()
    }

    /// What widening `pipe` to `to` channels adds.
    pub(super) fn gain(&self, widths: &[usize], pipe: usize, to: usize) -> u64 {
        let widened = |p| if p == pipe { to } else { widths[p] };
        let terms = self.of_pipe[pipe].iter().map(|&t| &self.terms[t]);
        terms.map(|term| term.value(widened) - term.value(|p| widths[p])).sum()
    }
}

impl Term {
    fn value(&self, width: impl Fn(usize) -> usize) -> u64 {
        self.pipes.iter().fold(self.coefficient, |product, &pipe| product * width(pipe) as u64)
    }
}
