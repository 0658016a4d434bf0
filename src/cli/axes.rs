//! What drawings share.

use crate::{Error, Result};
use plotters::drawing::DrawingAreaErrorKind;

/// What the drawing library returns.
pub type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// The text of an SVG file.
///
/// # Errors
/// [`Error::Input`] if it cannot be drawn: a bug of ours.
pub fn svg(draw: impl FnOnce(&mut String) -> Drawn) -> Result<String> {
    let mut drawing = String::new();
    draw(&mut drawing).map_err(|error| Error::input("--plot", error))?;
    Ok(drawing)
}

/// A number without needless decimals.
pub fn decimal(value: &f64) -> String {
    format!("{value:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// From below the least to above the greatest by this factor.
pub fn span(values: impl Iterator<Item = f64>, factor: f64) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, 0.0), |(low, high), value| (value.min(low), value.max(high)));
    low / factor..high * factor
}

/// Round numbers within the range, at least four of them where there are so many.
pub fn ticks(range: &std::ops::Range<f64>) -> Vec<f64> {
    const STEPS: [&[f64]; 3] = [
        &[1.0, 2.0, 5.0],
        &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
        &[1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 8.0, 9.0],
    ];
    let decades = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    let within = |steps: &&[f64]| -> Vec<f64> {
        let all = decades.clone().flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
        all.filter(|tick| range.contains(tick)).collect()
    };
    let sets: Vec<Vec<f64>> = STEPS.iter().map(within).collect();
    sets.iter().find(|set| set.len() >= 4).unwrap_or(&sets[2]).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enough() {
        assert_eq!(ticks(&(0.9..60.0)), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(ticks(&(1.4..4.5)), [1.5, 2.0, 3.0, 4.0]);
        assert_eq!(ticks(&(2.0..2.5)), [2.0, 2.2]);
    }

    #[test]
    fn numbers_have_the_decimals_that_they_need() {
        assert_eq!([0.5, 20.0, 1.25, 0.0001].map(|value| decimal(&value)), ["0.5", "20", "1.25", "0.0001"]);
    }
}
