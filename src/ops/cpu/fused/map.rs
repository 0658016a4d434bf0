//! Feature maps and the buffers that they live in.

use super::panels::{Line, PANEL, floats, floats_mut, panels};
use std::ops::{Deref, DerefMut};

/// Feature maps `[batch, height, width, channels]`, every pixel on whole cache lines: what lies between the last channel
/// and the end of its line is unspecified.
#[derive(Debug)]
pub struct Map {
    /// Samples.
    pub batch: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    lines: Buffer,
}

impl Map {
    /// Elements from a pixel to the next.
    pub fn pitch(&self) -> usize {
        panels(self.channels) * PANEL
    }

    /// Elements from a sample to the next.
    pub fn sample(&self) -> usize {
        self.height * self.width * self.pitch()
    }

    /// All elements, padding included.
    pub fn data(&self) -> &[f32] {
        floats(&self.lines)
    }

    /// All elements, padding included.
    pub fn data_mut(&mut self) -> &mut [f32] {
        floats_mut(&mut self.lines)
    }

    /// Copies samples without padding, `[batch, height, width, channels]`, in.
    pub fn copy_from(&mut self, dense: &[f32]) {
        let (channels, pitch) = (self.channels, self.pitch());
        assert_eq!(dense.len() * pitch, self.data().len() * channels, "a map of {channels} channels");
        for (pixel, dense) in self.data_mut().chunks_exact_mut(pitch).zip(dense.chunks_exact(channels)) {
            pixel[..channels].copy_from_slice(dense);
        }
    }

    /// The pixels without their padding.
    pub fn pixels(&self) -> impl Iterator<Item = &[f32]> {
        self.data().chunks_exact(self.pitch()).map(|pixel| &pixel[..self.channels])
    }
}

/// Some lines of an [`Arena`].
#[derive(Debug)]
pub struct Buffer {
    /// As many as were ever wanted of it: a buffer is filled once in its life.
    all: Vec<Line>,
    used: usize,
}

impl Deref for Buffer {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        &self.all[..self.used]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [Line] {
        &mut self.all[..self.used]
    }
}

/// Buffers that are used again and again.
#[derive(Debug, Default)]
pub struct Arena {
    free: Vec<Vec<Line>>,
    bytes: usize,
}

impl Arena {
    /// A map of unspecified content.
    pub fn map(&mut self, [batch, height, width, channels]: [usize; 4]) -> Map {
        let lines = self.lines(batch * height * width * panels(channels));
        Map { batch, height, width, channels, lines }
    }

    /// So many lines of unspecified content.
    pub fn lines(&mut self, used: usize) -> Buffer {
        // Sizes come in classes and a buffer serves its own class only: what a call needs of each class is there once the
        // same call has been made, whatever came between. A larger buffer lent out could be missing later.
        let size = used.next_multiple_of((used.next_power_of_two() / 8).max(1));
        let free = self.free.iter().position(|buffer| buffer.len() == size);
        let mut all = free.map(|index| self.free.swap_remove(index)).unwrap_or_else(|| {
            self.bytes += size * size_of::<Line>();
            vec![Line::ZERO; size]
        });
        if cfg!(test) {
            // Whoever relies on unspecified content shall not pass.
            all.fill(Line([f32::NAN; PANEL]));
        }
        Buffer { all, used }
    }

    /// Takes a map's buffer back.
    pub fn put(&mut self, map: Map) {
        self.put_lines(map.lines);
    }

    /// Takes a buffer back.
    pub fn put_lines(&mut self, buffer: Buffer) {
        self.free.push(buffer.all);
    }

    /// Memory in all its buffers, those in use included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
