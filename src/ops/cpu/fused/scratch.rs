//! Memory of a task.

use super::panels::{Line, floats_mut, panels};
use std::cell::RefCell;

/// Calls `then` with so many floats of this thread's own, on whole cache lines, of unspecified content.
pub(super) fn with_scratch<T>(floats: usize, then: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local!(static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });
    SCRATCH.with_borrow_mut(|lines| {
        let wanted = panels(floats);
        if lines.len() < wanted {
            lines.resize(wanted, Line::ZERO);
        }
        then(&mut floats_mut(lines)[..floats])
    })
}
