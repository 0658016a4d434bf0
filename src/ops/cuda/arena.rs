//! Places in one block of memory, given out and taken back while a list of launches is made: nothing is allocated when it runs.

/// Places start at multiples of this.
const ALIGN: usize = 256;

/// Places between an address and wherever it takes. Launches run in the order in which they are listed, so a place that was
/// given back may be given out again at once.
#[derive(Clone, Debug)]
pub struct Arena {
    base: u64,
    /// Free places below `top` as (start, length), sorted; neighbours are joined.
    free: Vec<(usize, usize)>,
    top: usize,
    most: usize,
}

impl Arena {
    /// An empty arena at this address.
    pub fn new(base: u64) -> Self {
        Self { base, free: Vec::new(), top: 0, most: 0 }
    }

    /// Bytes that have been in use at once, gaps included.
    pub fn bytes(&self) -> usize {
        self.most
    }

    /// The address of a place of `bytes`: the smallest free one that holds them.
    pub fn take(&mut self, bytes: usize) -> u64 {
        let bytes = bytes.max(1).next_multiple_of(ALIGN);
        let fitting = self.free.iter().enumerate().filter(|(_, place)| place.1 >= bytes);
        let start = match fitting.min_by_key(|(_, place)| place.1).map(|(index, _)| index) {
            Some(index) => {
                let (start, length) = self.free[index];
                if length == bytes {
                    self.free.remove(index);
                } else {
                    self.free[index] = (start + bytes, length - bytes);
                }
                start
            }
            None => {
                // A free place at the end is where the new one begins.
                let start = match self.free.last() {
                    Some(&(start, length)) if start + length == self.top => {
                        self.free.pop();
                        start
                    }
                    _ => self.top,
                };
                self.top = start + bytes;
                start
            }
        };
        self.most = self.most.max(self.top);
        self.base + start as u64
    }

    /// Takes back a place of `bytes`.
    ///
    /// # Panics
    /// If it is free already.
    pub fn put(&mut self, address: u64, bytes: usize) {
        let (start, bytes) = ((address - self.base) as usize, bytes.max(1).next_multiple_of(ALIGN));
        let at = self.free.partition_point(|place| place.0 < start);
        let after_last = at == 0 || self.free[at - 1].0 + self.free[at - 1].1 <= start;
        let before_next = at == self.free.len() || start + bytes <= self.free[at].0;
        assert!(after_last && before_next && start + bytes <= self.top, "a place that is free is given back");
        self.free.insert(at, (start, bytes));
        if at + 1 < self.free.len() && start + bytes == self.free[at + 1].0 {
            self.free[at].1 += self.free.remove(at + 1).1;
        }
        if at > 0 && self.free[at - 1].0 + self.free[at - 1].1 == start {
            self.free[at - 1].1 += self.free.remove(at).1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_given_back_is_given_out_again() {
        let mut arena = Arena::new(1 << 20);
        let [a, b, c] = [300, 256, 512].map(|bytes| arena.take(bytes));
        assert_eq!([a, b, c].map(|at| at - (1 << 20)), [0, 512, 768]);
        arena.put(a, 300);
        arena.put(b, 256);
        assert_eq!(arena.take(700), a, "neighbours are joined");
        arena.put(c, 512);
        assert_eq!(arena.take(4096), c, "the end grows where its last place is free");
        assert_eq!(arena.bytes(), 768 + 4096);
    }

    proptest! {
        #[test]
        fn places_in_use_never_overlap(steps in prop::collection::vec((0usize..2000, any::<bool>(), 0usize..8), 1..80)) {
            let mut arena = Arena::new(4096);
            let mut used: Vec<(u64, usize)> = Vec::new();
            for (bytes, give, which) in steps {
                if give && !used.is_empty() {
                    let (at, bytes) = used.swap_remove(which % used.len());
                    arena.put(at, bytes);
                } else {
                    let at = arena.take(bytes);
                    let apart = |&(other, size): &(u64, usize)| at + bytes as u64 <= other || other + size as u64 <= at;
                    prop_assert!(at.is_multiple_of(256) && used.iter().all(apart));
                    used.push((at, bytes));
                }
            }
            for (at, bytes) in used {
                arena.put(at, bytes);
            }
            prop_assert_eq!(arena.take(arena.bytes()), 4096, "nothing is lost");
        }
    }
}
