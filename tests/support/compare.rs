//! How far values lie from those wanted.

/// The largest error as a share of the largest wanted magnitude; infinite where a value is no number.
pub fn relative_error(got: &[f32], want: &[impl Copy + Into<f64>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let range = want.iter().fold(0f64, |max, &value| max.max(value.into().abs()));
    let errors = got.iter().zip(want).map(|(&got, &want)| (f64::from(got) - want.into()).abs() / range);
    errors.map(|error| if error.is_nan() { f64::INFINITY } else { error }).fold(0.0, f64::max)
}
