//! Numbers as people read them in a log, of as many digits as say something.

use std::time::Duration;

/// Milliseconds, to a tenth.
pub(crate) fn ms(time: Duration) -> f64 {
    to_decimals(time.as_secs_f64() * 1e3, 1)
}

/// Seconds, to a tenth.
pub(crate) fn seconds(time: Duration) -> f64 {
    to_decimals(time.as_secs_f64(), 1)
}

/// The number with so many decimals that is nearest to `value`: its text has no more.
pub(crate) fn to_decimals(value: f64, decimals: i32) -> f64 {
    let scale = 10f64.powi(decimals);
    let rounded = (value * scale).round() / scale;
    if rounded.is_finite() { rounded } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_have_one_decimal() {
        assert_eq!(ms(Duration::from_nanos(12_345_678)).to_string(), "12.3");
        assert_eq!(ms(Duration::from_nanos(51_234)).to_string(), "0.1");
        assert_eq!(seconds(Duration::from_millis(1_950)).to_string(), "2");
        assert_eq!(to_decimals(f64::INFINITY, 3), f64::INFINITY);
        assert_eq!(to_decimals(f64::MAX, 3), f64::MAX);
    }

    proptest! {
        #[test]
        fn no_number_is_written_with_more_decimals_than_asked(value in -1e9..1e9, decimals in 0..5i32) {
            let text = to_decimals(value, decimals).to_string();
            let written = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
            prop_assert!(written <= decimals as usize, "{}", text);
        }
    }
}
