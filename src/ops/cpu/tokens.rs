//! Between tokens and the pixels of an image.

/// An image as the last of its tokens.
#[derive(Clone, Copy, Debug)]
pub struct Patches {
    /// Tokens of a sample before those of the image.
    pub front: usize,
    /// Pixels along a side of a patch.
    pub patch: usize,
    /// Rows of the image.
    pub height: usize,
    /// Columns of the image.
    pub width: usize,
}

impl Patches {
    /// Tokens of a sample.
    pub fn tokens(&self) -> usize {
        self.front + self.height / self.patch * (self.width / self.patch)
    }

    /// The token of a pixel, and the pixel's place within it.
    pub fn place(&self, y: usize, x: usize) -> (usize, usize) {
        let token = self.front + y / self.patch * (self.width / self.patch) + x / self.patch;
        (token, y % self.patch * self.patch + x % self.patch)
    }

    /// Calls `each(sample, token, place, pixel)` for every pixel of so many samples.
    fn each(&self, batch: usize, mut each: impl FnMut(usize, usize, usize, usize)) {
        for sample in 0..batch {
            for y in 0..self.height {
                for x in 0..self.width {
                    let (token, place) = self.place(y, x);
                    each(sample, token, place, y * self.width + x);
                }
            }
        }
    }

    /// Tokens `[B, tokens, patch * patch * C]` to an image `[B, height, width, C]`: what is in front is dropped.
    pub fn unpatch(&self, x: &[f32], channels: usize, y: &mut [f32]) {
        let (batch, row) = (y.len() / (self.height * self.width * channels), self.patch * self.patch * channels);
        self.each(batch, |sample, token, place, pixel| {
            let from = (sample * self.tokens() + token) * row + place * channels;
            let to = (sample * self.height * self.width + pixel) * channels;
            y[to..to + channels].copy_from_slice(&x[from..from + channels]);
        });
    }

    /// The gradient of [`Self::unpatch`]: `dx` in the shape of the tokens, zero for those in front.
    pub fn unpatch_backward(&self, dy: &[f32], channels: usize, dx: &mut [f32]) {
        let (batch, row) = (dy.len() / (self.height * self.width * channels), self.patch * self.patch * channels);
        dx.fill(0.0);
        self.each(batch, |sample, token, place, pixel| {
            let to = (sample * self.tokens() + token) * row + place * channels;
            let from = (sample * self.height * self.width + pixel) * channels;
            dx[to..to + channels].copy_from_slice(&dy[from..from + channels]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_a_square_of_pixels_row_by_row() {
        let patches = Patches { front: 1, patch: 2, height: 2, width: 4 };
        // Two channels: 10 times the pixel, then one more.
        let token = |pixels: [f32; 4]| pixels.into_iter().flat_map(|pixel| [10.0 * pixel, 10.0 * pixel + 1.0]);
        let x: Vec<f32> =
            [9.0; 8].into_iter().chain(token([0.0, 1.0, 4.0, 5.0])).chain(token([2.0, 3.0, 6.0, 7.0])).collect();
        let mut y = vec![0.0; 16];
        patches.unpatch(&x, 2, &mut y);
        let want: Vec<f32> = (0..8).flat_map(|pixel| [10.0 * pixel as f32, 10.0 * pixel as f32 + 1.0]).collect();
        assert_eq!(y, want);
        let mut dx = vec![5.0; 24];
        patches.unpatch_backward(&y, 2, &mut dx);
        assert_eq!(dx[..8], [0.0; 8]);
        assert_eq!(dx[8..], x[8..]);
    }
}
