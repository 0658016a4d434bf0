//! The kernel distance between two sets of features (Binkowski et al. 2018, section 4): the unbiased squared maximum mean
//! discrepancy of the kernel `(x.y / d + 1)^3`.

use faer::Mat;

/// Features `[n, dim]` as a matrix.
pub fn matrix(features: &[f32], dim: usize) -> Mat<f64> {
    Mat::from_fn(features.len() / dim, dim, |row, column| f64::from(features[row * dim + column]))
}

/// The squared discrepancy of two sets of at least two features each; it may be negative.
pub fn squared_discrepancy(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    let (m, n) = (a.nrows() as f64, b.nrows() as f64);
    let within = |x: &Mat<f64>, count: f64| sum_of_kernels(x, x, true) / (count * (count - 1.0));
    within(a, m) + within(b, n) - 2.0 * sum_of_kernels(a, b, false) / (m * n)
}

/// The sum of the kernel over all pairs, perhaps without those on the diagonal.
fn sum_of_kernels(a: &Mat<f64>, b: &Mat<f64>, without_diagonal: bool) -> f64 {
    /// Rows of products that are held at a time.
    const ROWS: usize = 256;
    let dim = a.ncols() as f64;
    let mut sum = 0.0;
    for first in (0..a.nrows()).step_by(ROWS) {
        let rows = ROWS.min(a.nrows() - first);
        let products = a.subrows(first, rows) * b.transpose();
        for j in 0..products.ncols() {
            for i in 0..rows {
                if !(without_diagonal && first + i == j) {
                    sum += (products[(i, j)] / dim + 1.0).powi(3);
                }
            }
        }
    }
    sum
}
