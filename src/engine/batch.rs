//! One call of the denoiser: the rows of some slots, and what comes back to them.

use crate::diffusion::solver::guide;
use crate::engine::pool::Pool;

/// The arguments of one call. A slot under guidance has two rows: with its class, then without.
pub(super) struct Batch {
    pub subnet: usize,
    pub slots: Vec<usize>,
    pub x: Vec<f32>,
    pub sigma: Vec<f64>,
    pub class: Vec<Option<usize>>,
}

impl Batch {
    /// The batch whose turn it is; `None` when nothing runs.
    pub fn next(pool: &mut Pool) -> Option<Self> {
        let (subnet, slots) = pool.next_batch()?;
        let mut batch = Self { subnet, slots, x: Vec::new(), sigma: Vec::new(), class: Vec::new() };
        for &index in &batch.slots {
            let slot = pool.slot(index);
            let Some(call) = slot.trajectory.next_call() else { continue };
            for class in [slot.class, None].into_iter().take(slot.rows()) {
                batch.x.extend(slot.trajectory.input().iter().map(|&value| value as f32));
                batch.sigma.push(call.sigma);
                batch.class.push(class);
            }
        }
        Some(batch)
    }

    /// Samples in the call.
    pub fn rows(&self) -> usize {
        self.sigma.len()
    }

    /// Steps every slot with its rows of `denoised`, which has the layout of `x`.
    pub fn advance(&self, pool: &mut Pool, denoised: &[f32]) {
        let mut rows = denoised.chunks_exact(denoised.len() / self.rows());
        for &index in &self.slots {
            let slot = pool.slot_mut(index);
            let mut row = || rows.next().expect("the batch has the rows of its slots");
            let conditional = row();
            match slot.guidance {
                None => slot.trajectory.advance(conditional),
                Some(scale) => slot.trajectory.advance(&guide(conditional, row(), scale)),
            }
        }
    }
}
