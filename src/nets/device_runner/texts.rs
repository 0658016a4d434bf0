//! The texts of calls in a machine's memory. A text stays from call to call until its place is wanted for another.

use super::ALIGN;
use crate::nets::Condition;
use crate::ops::cuda::{Accelerator, Fault, Precision, pitch};
use std::sync::Arc;

/// The texts that are there, and for how many there is room.
#[derive(Debug)]
pub(super) struct Texts {
    /// Tokens and channels of a text.
    shape: [usize; 2],
    precision: Precision,
    /// Zeros, for what has no text.
    nothing: u64,
    places: Vec<Place>,
    /// Counts up with every text that is asked for.
    clock: u64,
}

#[derive(Debug)]
struct Place {
    address: u64,
    text: Option<Arc<[f32]>>,
    /// When it was asked for last.
    used: u64,
}

impl Texts {
    /// Room for the texts of a call of so many samples, and as many more that come back after it.
    fn room(most: usize) -> usize {
        2 * most
    }

    /// Bytes of a text of this shape.
    fn bytes_of_one([tokens, channels]: [usize; 2], precision: Precision) -> usize {
        (tokens * pitch(channels) * precision.bytes()).next_multiple_of(ALIGN)
    }

    /// Bytes of all.
    pub fn bytes(shape: [usize; 2], precision: Precision, most: usize) -> usize {
        (1 + Self::room(most)) * Self::bytes_of_one(shape, precision)
    }

    /// None yet, in [`Self::bytes`] of zeros at this address.
    pub fn new(shape: [usize; 2], precision: Precision, most: usize, address: u64) -> Self {
        let at = |index: usize| address + (index * Self::bytes_of_one(shape, precision)) as u64;
        let places = (1..=Self::room(most)).map(|index| Place { address: at(index), text: None, used: 0 });
        Self { shape, precision, nothing: address, places: places.collect(), clock: 0 }
    }

    /// Where the text of a sample is. Those of a call's samples have places of their own.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn place<M: Accelerator>(&mut self, machine: &mut M, condition: &Condition) -> Result<u64, Fault> {
        let Condition::Text(text) = condition else { return Ok(self.nothing) };
        self.clock += 1;
        let is_here = |place: &&mut Place| place.text.as_ref().is_some_and(|held| Arc::ptr_eq(held, text));
        if let Some(place) = self.places.iter_mut().find(is_here) {
            place.used = self.clock;
            return Ok(place.address);
        }
        let longest = self.places.iter_mut().min_by_key(|place| place.used).expect("room for a text");
        // Until it is there, no text is.
        longest.text = None;
        let [tokens, channels] = self.shape;
        assert_eq!(text.len(), tokens * channels, "size of a text");
        let fill = vec![0.0; pitch(channels) - channels];
        let values = text.chunks_exact(channels).flat_map(|token| token.iter().chain(&fill).copied());
        let mut bytes = Vec::new();
        self.precision.write(values, &mut bytes);
        machine.upload(longest.address, &bytes)?;
        (longest.text, longest.used) = (Some(Arc::clone(text)), self.clock);
        Ok(longest.address)
    }
}
