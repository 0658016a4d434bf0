//! What augments images.

use crate::ImageShape;

/// The image mirrored left to right. `image` is `[height, width, channels]`, row-major, and so is the result.
pub fn flip_horizontal(image: &[u8], shape: ImageShape) -> Vec<u8> {
    let rows = image.chunks_exact(shape.width * shape.channels);
    rows.flat_map(|row| row.rchunks_exact(shape.channels)).flatten().copied().collect()
}

/// The image moved by so many pixels, down and to the right where they are positive; what comes in is the nearest pixel.
pub fn shift(image: &[u8], shape: ImageShape, [down, right]: [isize; 2]) -> Vec<u8> {
    let from = |place: usize, by: isize, side: usize| place.saturating_add_signed(-by).min(side - 1);
    let mut shifted = Vec::with_capacity(image.len());
    for y in 0..shape.height {
        let row = from(y, down, shape.height) * shape.width;
        for x in 0..shape.width {
            let pixel = (row + from(x, right, shape.width)) * shape.channels;
            shifted.extend_from_slice(&image[pixel..pixel + shape.channels]);
        }
    }
    shifted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flip_mirrors_pixels_and_keeps_channels_in_order() {
        let shape = ImageShape { height: 2, width: 3, channels: 2 };
        let image: Vec<u8> = (0..12).collect();
        let flipped = flip_horizontal(&image, shape);
        assert_eq!(flipped, [4, 5, 2, 3, 0, 1, 10, 11, 8, 9, 6, 7]);
        assert_eq!(flip_horizontal(&flipped, shape), image);
    }

    #[test]
    fn a_shift_moves_pixels_and_repeats_those_at_the_edge() {
        let shape = ImageShape { height: 2, width: 3, channels: 2 };
        let image: Vec<u8> = (0..12).collect();
        assert_eq!(shift(&image, shape, [0, 1]), [0, 1, 0, 1, 2, 3, 6, 7, 6, 7, 8, 9]);
        assert_eq!(shift(&image, shape, [-1, -2]), [10, 11, 10, 11, 10, 11, 10, 11, 10, 11, 10, 11]);
        assert_eq!(shift(&image, shape, [0, 0]), image);
    }
}
