//! LayerNorm over the channels of each pixel, written down.

use super::{Map, Workspace};
use crate::ops::cpu::layer_norm;
use crate::ops::cpu::parts::Parts;
use crate::ops::cpu::simd::vectorised;

/// Pixels of a task.
const SHARE: usize = 16;

/// `(x - mean) / sqrt(var + eps) * scale + shift` over the channels of each pixel (Ba et al. 2016, eq. 4).
///
/// # Panics
/// If the sizes do not fit.
pub fn layer_norm(workspace: &mut Workspace, x: &Map, scale: &[f32], shift: &[f32], eps: f32, y: &mut Map) {
    let (channels, pitch) = (x.channels, x.pitch());
    assert!(y.channels == channels && scale.len() == channels && shift.len() == channels, "channels of a norm");
    let pixels = x.batch * x.height * x.width;
    let y = Parts::new(y.data_mut());
    workspace.team.run(pixels.div_ceil(SHARE), |task| {
        let first = task * SHARE;
        let share = SHARE.min(pixels - first);
        let x = &x.data()[first * pitch..][..share * pitch];
        // SAFETY: no two tasks share a pixel.
        let y = unsafe { y.slice(first * pitch, share * pitch) };
        vectorised(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact(pitch).zip(y.chunks_exact_mut(pitch)) {
                    layer_norm::row(&x[..channels], scale, shift, eps, &mut y[..channels]);
                }
            },
        );
    });
}
