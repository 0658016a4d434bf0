//! What a call is told, in the machine's memory: one block, written at once.

use super::ALIGN;
use crate::ops::cuda::sampler::Row;

/// Where in it what begins. Everything but the counters is written before each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    /// f32 by sample: c_noise.
    pub noise: u64,
    /// u32 by sample: its class.
    pub classes: u64,
    /// u64 by sample: where its input is.
    pub samples: u64,
    /// u64 by sample: where its text is.
    pub texts: u64,
    /// What is done to each image.
    pub rows: u64,
    /// u32 by row.
    pub faults: u64,
    /// u32 by sample: zeros between calls.
    pub counters: u64,
    /// The end.
    pub end: u64,
}

impl Control {
    /// A block at this address, with room for so many samples.
    pub fn new(address: u64, most: usize) -> Self {
        let mut end = address;
        let mut place = |of_sample: usize| {
            let begin = end;
            end = (begin + (most * of_sample) as u64).next_multiple_of(ALIGN as u64);
            begin
        };
        let [noise, classes, samples, texts] = [4, 4, 8, 8].map(&mut place);
        let [rows, faults, counters] = [size_of::<Row>(), 4, 4].map(&mut place);
        Self { noise, classes, samples, texts, rows, faults, counters, end }
    }

    /// The bytes of such a block.
    pub fn bytes(most: usize) -> usize {
        Self::new(0, most).end as usize
    }
}
