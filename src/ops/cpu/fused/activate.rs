//! Activations of a whole map.

use super::{Map, Team};
use crate::ops::Act;
use crate::ops::cpu::activation;
use crate::ops::cpu::parts::Parts;

/// Elements of a task.
const SHARE: usize = 8 * 1024;

/// Activates every element in place.
pub fn activate(team: &mut Team, act: Act, y: &mut Map) {
    let elements = y.data().len();
    let parts = Parts::new(y.data_mut());
    team.run(elements.div_ceil(SHARE), |task| {
        let first = task * SHARE;
        // SAFETY: no two tasks share an element.
        activation::in_place(act, unsafe { parts.slice(first, SHARE.min(elements - first)) });
    });
}
