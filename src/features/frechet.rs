//! The Fréchet distance between two sets of features, taken as normal (Dowson and Landau 1982; Heusel et al. 2017).

use crate::{Error, Result};
use faer::{Mat, MatRef, Side};

/// Mean and covariance of features that come in one by one.
#[derive(Clone, Debug)]
pub struct Moments {
    dim: usize,
    count: usize,
    /// The first features: sums are of what is left without them, so that no digits are lost to a common offset.
    origin: Vec<f64>,
    sum: Vec<f64>,
    /// Sums of products, `[dim, dim]`.
    products: Mat<f64>,
}

/// A normal distribution.
#[derive(Clone, Debug)]
pub struct Gaussian {
    /// `[dim]`
    pub mean: Vec<f64>,
    /// `[dim, dim]`
    pub covariance: Mat<f64>,
}

impl Moments {
    /// Of no features yet, of so many dimensions.
    pub fn new(dim: usize) -> Self {
        Self { dim, count: 0, origin: Vec::new(), sum: vec![0.0; dim], products: Mat::zeros(dim, dim) }
    }

    /// Adds features `[n, dim]`.
    pub fn add(&mut self, features: &[f32]) {
        let rows = features.len() / self.dim;
        if rows == 0 {
            return;
        }
        if self.origin.is_empty() {
            self.origin = features[..self.dim].iter().map(|&value| f64::from(value)).collect();
        }
        let x = Mat::from_fn(rows, self.dim, |row, column| {
            f64::from(features[row * self.dim + column]) - self.origin[column]
        });
        for (column, sum) in self.sum.iter_mut().enumerate() {
            *sum += x.col(column).iter().sum::<f64>();
        }
        self.products += x.transpose() * &x;
        self.count += rows;
    }

    /// How many features were added.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Their mean, and their covariance over n - 1.
    ///
    /// # Errors
    /// [`Error::Input`] for fewer than two.
    pub fn gaussian(&self) -> Result<Gaussian> {
        if self.count < 2 {
            return Err(Error::input(
                "images",
                format!("{} are too few for a covariance; give at least 2", self.count),
            ));
        }
        let n = self.count as f64;
        let offset: Vec<f64> = self.sum.iter().map(|sum| sum / n).collect();
        let covariance =
            Mat::from_fn(self.dim, self.dim, |i, j| (self.products[(i, j)] - n * offset[i] * offset[j]) / (n - 1.0));
        let mean = self.origin.iter().zip(&offset).map(|(origin, offset)| origin + offset).collect();
        Ok(Gaussian { mean, covariance })
    }
}

impl Gaussian {
    /// F with `F F' = covariance`.
    fn factor(&self) -> Result<Mat<f64>> {
        let failed = |_| Error::input("covariance", "has no eigenvalues that can be found");
        let eigen = self.covariance.self_adjoint_eigen(Side::Lower).map_err(failed)?;
        let (u, s) = (eigen.U(), eigen.S().column_vector());
        // Rounding makes the smallest ones of a singular covariance negative.
        Ok(Mat::from_fn(u.nrows(), u.ncols(), |i, j| u[(i, j)] * s[j].max(0.0).sqrt()))
    }
}

fn trace(matrix: MatRef<f64>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum()
}

/// `|m1 - m2|^2 + tr C1 + tr C2 - 2 tr sqrt(C1 C2)` (Dowson and Landau 1982, eq. 4), where the last trace is the sum of the
/// singular values of `F1' F2` with `C = F F'`.
///
/// # Errors
/// [`Error::Input`] if the dimensions differ, or a value is not finite.
pub fn distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    if a.mean.len() != b.mean.len() {
        return Err(Error::input("features", format!("have {} dimensions and {}", a.mean.len(), b.mean.len())));
    }
    let means: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2)).sum();
    let mixed = a.factor()?.transpose() * b.factor()?;
    let failed = |_| Error::input("covariances", "have a product without singular values that can be found");
    let root: f64 = mixed.singular_values().map_err(failed)?.iter().sum();
    let distance = means + trace(a.covariance.as_ref()) + trace(b.covariance.as_ref()) - 2.0 * root;
    if distance.is_finite() { Ok(distance) } else { Err(Error::input("features", "have values that are not finite")) }
}
