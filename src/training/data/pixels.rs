//! Bytes to network values, and the flip that augments them.

use crate::ImageShape;

/// The value in [-1, 1] that a network sees for a byte: `byte / 127.5 - 1`. Its inverse is [`crate::ops::pixels::byte`].
pub fn to_unit(byte: u8) -> f32 {
    f32::from(byte) / 127.5 - 1.0
}

/// The image mirrored left to right. `image` is `[height, width, channels]`, row-major, and so is the result.
pub fn flip_horizontal(image: &[u8], shape: ImageShape) -> Vec<u8> {
    let rows = image.chunks_exact(shape.width * shape.channels);
    rows.flat_map(|row| row.rchunks_exact(shape.channels)).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pixels;

    #[test]
    fn every_byte_survives_the_round_trip() {
        for byte in 0..=255 {
            assert_eq!(pixels::byte(f64::from(to_unit(byte))), byte);
        }
        assert_eq!((to_unit(0), to_unit(255)), (-1.0, 1.0));
    }

    #[test]
    fn a_flip_mirrors_pixels_and_keeps_channels_in_order() {
        let shape = ImageShape { height: 2, width: 3, channels: 2 };
        let image: Vec<u8> = (0..12).collect();
        let flipped = flip_horizontal(&image, shape);
        assert_eq!(flipped, [4, 5, 2, 3, 0, 1, 10, 11, 8, 9, 6, 7]);
        assert_eq!(flip_horizontal(&flipped, shape), image);
    }
}
