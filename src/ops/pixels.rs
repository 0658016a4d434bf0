//! Between values and bytes.

/// The value in [-1, 1] that a network sees for a byte: `byte / 127.5 - 1`. Its inverse is [`byte`].
pub fn to_unit(byte: u8) -> f32 {
    f32::from(byte) / 127.5 - 1.0
}

/// The byte of a value in [-1, 1]: `127.5 x + 127.5`, rounded; values outside are clamped, NaN becomes 0.
pub fn byte(value: f64) -> u8 {
    (value * 127.5 + 127.5).round().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_scaled_rounded_and_clamped() {
        assert_eq!([-1.0, 1.0, 0.0, -2.0, 7.0, f64::INFINITY, f64::NAN].map(byte), [0, 255, 128, 0, 255, 255, 0]);
        for value in 0..=255u8 {
            let exact = f64::from(value) / 127.5 - 1.0;
            assert_eq!([exact, exact - 0.4 / 127.5, exact + 0.4 / 127.5].map(byte), [value; 3]);
        }
    }

    #[test]
    fn every_byte_survives_the_round_trip() {
        for value in 0..=255 {
            assert_eq!(byte(f64::from(to_unit(value))), value);
        }
        assert_eq!((to_unit(0), to_unit(255)), (-1.0, 1.0));
    }
}
