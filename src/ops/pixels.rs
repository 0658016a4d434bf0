//! From values to bytes.

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
}
