//! The parameters of one subnet: views of the supernet's, and the group tables that go with them.

use crate::Result;
use crate::ops::cpu::group_norm::GroupTable;
use crate::supernet::{Spec, Supernet, Widths, groups};
use candle_core::Tensor;
use std::sync::Arc;

/// What a forward pass needs of a subnet.
#[derive(Clone, Debug)]
pub struct Sliced {
    leaves: Vec<Tensor>,
    tables: Tables,
}

/// The channel -> group table of the norm over each pipe, in one subnet.
#[derive(Clone, Debug)]
pub struct Tables(Vec<Arc<GroupTable>>);

impl Tables {
    /// The tables of the subnet of these widths.
    pub fn new(spec: &Spec, supernet: &Supernet, widths: &Widths) -> Self {
        let pipes = spec.pipes.iter().zip(&supernet.permutations).zip(&widths.0);
        let tables = pipes.map(|((pipe, permutation), &kept)| {
            let groups = groups::membership(&permutation[..kept], pipe.norm_groups.unwrap_or(1));
            Arc::new(GroupTable::new(groups))
        });
        Self(tables.collect())
    }

    /// Memory that they take.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|table| size_of_val(table.group_of()) + size_of_val(table.sizes())).sum()
    }

    /// That of the pipe of this index.
    pub fn of(&self, pipe: usize) -> &Arc<GroupTable> {
        &self.0[pipe]
    }
}

impl Sliced {
    /// The subnet of these widths: every parameter is a prefix view of the supernet's, none is copied.
    ///
    /// # Panics
    /// If a width is wider than its pipe: widths are checked where they are read.
    pub fn new(spec: &Spec, supernet: &Supernet, widths: &Widths) -> Result<Self> {
        let mut leaves = Vec::with_capacity(spec.params.len());
        for (param, tensor) in spec.params.iter().zip(&supernet.params) {
            let mut leaf = tensor.clone();
            for slice in &param.slices {
                leaf = leaf.narrow(slice.axis, 0, widths.0[slice.pipe])?;
            }
            // Vectors are read as plain slices.
            leaves.push(if leaf.rank() == 1 { leaf.contiguous()? } else { leaf });
        }
        let tables = Tables::new(spec, supernet, widths);
        Ok(Self { leaves, tables })
    }

    /// The parameter of this index in [`Spec::params`].
    pub fn at(&self, param: usize) -> &Tensor {
        &self.leaves[param]
    }

    /// Every parameter, in the order of [`Spec::params`].
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// The channel -> group table of the norm over the pipe of this index.
    pub fn table(&self, pipe: usize) -> &Arc<GroupTable> {
        self.tables.of(pipe)
    }
}
