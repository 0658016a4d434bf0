//! Slices that several tasks write to.

use std::marker::PhantomData;

/// A slice whose parts are written by several tasks, none of them by two.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: only hands out pointers; whoever writes through them vouches that the parts are disjoint.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrowed: PhantomData }
    }

    /// A pointer to the element at `offset`, good for `len` elements from there.
    pub fn at(&self, offset: usize, len: usize) -> *mut T {
        assert!(offset + len <= self.len, "{len} elements at {offset} of {}", self.len);
        self.start.wrapping_add(offset)
    }

    /// The `len` elements from `offset` on.
    ///
    /// # Safety
    /// No other task touches them while the borrow lasts.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches that tasks take disjoint parts")]
    pub unsafe fn slice(&self, offset: usize, len: usize) -> &mut [T] {
        // SAFETY: in bounds by `at`, exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset, len), len) }
    }
}
