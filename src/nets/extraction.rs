//! A subnet as a network of its own.

use super::model::{Card, Model};
use super::sliced::Sliced;
use crate::Result;
use crate::supernet::{Order, Supernet, ranking};
use candle_core::Tensor;

impl Model {
    /// The subnet of this index as a whole model, which computes the same and can be cut further.
    ///
    /// Its pipes are as wide as the subnet's and stay in order of importance; its "original" order is that of the kept
    /// channels in the supernet's original order, so that the same channels share a GroupNorm group.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] on a device fault.
    pub fn extract(&self, subnet: usize) -> Result<Model> {
        let spec = self.network.spec();
        let widths = self.widths(subnet);
        let narrower = spec.pipes.iter().zip(&widths.0).filter(|(pipe, kept)| **kept < pipe.width);
        let backbone = self.card.backbone.clone().narrowed(narrower.map(|(pipe, &kept)| (pipe.name.clone(), kept)));
        let sliced = Sliced::new(spec, &self.supernet, &widths)?;
        let params = sliced.leaves().iter().map(Tensor::force_contiguous).collect::<candle_core::Result<_>>()?;
        let pipes = self.supernet.permutations.iter().zip(&widths.0);
        let permutations = pipes.map(|(origin, &kept)| ranks(&origin[..kept])).collect();
        let supernet = Supernet { params, order: self.supernet.order, permutations };
        let model = Model::unallocated(Card { backbone, ..self.card.clone() }, supernet)?;
        Ok(model.with_parts_of(self))
    }

    /// The parameters with the channels of every pipe in their original order, in which GroupNorm groups are contiguous:
    /// the order of the public checkpoints.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] on a device fault.
    pub fn in_original_order(&self) -> Result<Vec<Tensor>> {
        let orders: Vec<_> = self.supernet.permutations.iter().map(|origin| ranking::ascending(origin)).collect();
        Ok(self.supernet.permuted(self.network.spec(), &orders, Order::Original)?.params)
    }
}

/// How many of `values`, all different, are below each of them.
fn ranks(values: &[u32]) -> Vec<u32> {
    // The inverse of the sorting permutation.
    ranking::ascending(&ranking::ascending(values))
}

#[cfg(test)]
mod tests {
    use super::ranks;

    #[test]
    fn ranks_keep_the_order_of_what_was_kept() {
        assert_eq!(ranks(&[7, 2, 9, 4]), [2, 0, 3, 1]);
    }
}
