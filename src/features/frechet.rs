//! The Fréchet distance between two sets of features, taken as normal (Dowson and Landau 1982; Heusel et al. 2017).

use super::sample::mean_and_deviation;
use crate::philox::Stream;
use crate::{Error, Result};
use faer::{Mat, MatRef, Side};
use serde::Serialize;

/// Rows that are added at a time.
const ROWS: usize = 1024;
/// The stream of the draws with replacement.
const BOOTSTRAP: u32 = 60;

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
        for features in features.chunks(ROWS * self.dim) {
            let rows: Vec<&[f32]> = features.chunks_exact(self.dim).collect();
            self.add_rows(&rows, &vec![1.0; rows.len()]);
        }
        self.count += rows;
    }

    /// Adds each of these features as often as its weight says, all but the count.
    fn add_rows(&mut self, rows: &[&[f32]], weights: &[f64]) {
        let x = Mat::from_fn(rows.len(), self.dim, |row, column| f64::from(rows[row][column]) - self.origin[column]);
        let weighted = Mat::from_fn(rows.len(), self.dim, |row, column| weights[row] * x[(row, column)]);
        for (column, sum) in self.sum.iter_mut().enumerate() {
            *sum += weighted.col(column).iter().sum::<f64>();
        }
        self.products += weighted.transpose() * &x;
    }

    /// Those of as many features `[n, dim]`, drawn from them with replacement; another `draw` draws others.
    fn resampled(features: &[f32], dim: usize, draw: u64) -> Self {
        let count = features.len() / dim;
        let mut moments = Self::new(dim);
        moments.origin = features[..dim].iter().map(|&value| f64::from(value)).collect();
        let (stream, mut weights) = (Stream::new(0, BOOTSTRAP, draw), vec![0.0; count]);
        for index in 0..count as u64 {
            weights[stream.below(index, count as u32) as usize] += 1.0;
        }
        let drawn: Vec<usize> = (0..count).filter(|&index| weights[index] > 0.0).collect();
        for drawn in drawn.chunks(ROWS) {
            let rows: Vec<&[f32]> = drawn.iter().map(|&index| &features[index * dim..][..dim]).collect();
            moments.add_rows(&rows, &drawn.iter().map(|&index| weights[index]).collect::<Vec<f64>>());
        }
        Self { count, ..moments }
    }

    /// Those of the features of both.
    fn joined(mut self, other: &Self) -> Self {
        let between: Vec<f64> = other.origin.iter().zip(&self.origin).map(|(theirs, ours)| theirs - ours).collect();
        let count = other.count as f64;
        // (x + b)(x + b)' = xx' + xb' + bx' + bb', with b from our origin to theirs.
        let moved = Mat::from_fn(self.dim, self.dim, |i, j| {
            let (a, b) = (between[i], between[j]);
            other.products[(i, j)] + other.sum[i] * b + a * other.sum[j] + count * a * b
        });
        self.products += moved;
        for ((sum, theirs), between) in self.sum.iter_mut().zip(&other.sum).zip(&between) {
            *sum += theirs + count * between;
        }
        self.count += other.count;
        self
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

/// A distribution that others are measured against.
#[derive(Clone, Debug)]
pub struct Target {
    gaussian: Gaussian,
    /// F with `F F' = covariance`.
    factor: Mat<f64>,
}

/// A distance as it is estimated from samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Of the samples as they are.
    pub distance: f64,
    /// What it would be with samples without end, to first order: fewer samples make it larger by a share of 1/n, so it is
    /// as much less than `distance` as `distance` is less than the mean of both halves' (Chong and Forsyth 2020, section 3,
    /// with two sizes).
    pub limit: f64,
    /// The standard error of `limit` and of `distance`, by bootstrap over the samples (Efron 1979).
    pub error: f64,
}

impl Target {
    /// This distribution.
    ///
    /// # Errors
    /// [`Error::Input`] if a value is not finite.
    pub fn new(gaussian: Gaussian) -> Result<Self> {
        Ok(Self { factor: gaussian.factor()?, gaussian })
    }

    /// How many dimensions it has.
    pub fn dim(&self) -> usize {
        self.gaussian.mean.len()
    }

    /// `|m1 - m2|^2 + tr C1 + tr C2 - 2 tr sqrt(C1 C2)` (Dowson and Landau 1982, eq. 4), where the last trace is that of
    /// `sqrt(F' C2 F)` with `C1 = F F'`.
    ///
    /// # Errors
    /// [`Error::Input`] if the dimensions differ, or a value is not finite.
    pub fn distance(&self, other: &Gaussian) -> Result<f64> {
        if self.dim() != other.mean.len() {
            return Err(Error::input("features", format!("have {} dimensions and {}", self.dim(), other.mean.len())));
        }
        let means: f64 = self.gaussian.mean.iter().zip(&other.mean).map(|(a, b)| (a - b).powi(2)).sum();
        let mixed = self.factor.transpose() * &other.covariance * &self.factor;
        let failed = |_| Error::input("covariances", "have a product without eigenvalues that can be found");
        let squares = mixed.self_adjoint_eigenvalues(Side::Lower).map_err(failed)?;
        let root: f64 = squares.iter().map(|square| square.max(0.0).sqrt()).sum();
        let traces = trace(self.gaussian.covariance.as_ref()) + trace(other.covariance.as_ref());
        let distance = means + traces - 2.0 * root;
        if distance.is_finite() {
            Ok(distance)
        } else {
            Err(Error::input("features", "have values that are not finite"))
        }
    }

    /// The distance of samples' features `[n, dim]`, in an order that has nothing to do with them but that of their classes,
    /// which take turns. The error is by so many bootstrap samples.
    ///
    /// # Errors
    /// As [`Self::distance`]; for fewer than four samples.
    pub fn estimate(&self, features: &[f32], bootstrap: u64) -> Result<Estimate> {
        let [distance, limit] = self.distance_and_limit(features)?;
        let resampled = |draw| self.distance(&Moments::resampled(features, self.dim(), draw).gaussian()?);
        let drawn = (0..bootstrap).map(resampled).collect::<Result<Vec<f64>>>()?;
        let (_, error) = mean_and_deviation(&drawn);
        Ok(Estimate { distance, limit, error })
    }

    /// [`Estimate::distance`] and [`Estimate::limit`] of such features.
    ///
    /// # Errors
    /// As [`Self::estimate`].
    pub fn distance_and_limit(&self, features: &[f32]) -> Result<[f64; 2]> {
        let dim = self.dim();
        let half = features.len() / dim / 2 * dim;
        let halves = [&features[..half], &features[half..]].map(|half| {
            let mut moments = Moments::new(dim);
            moments.add(half);
            moments
        });
        let mut of_halves = 0.0;
        for half in &halves {
            of_halves += 0.5 * self.distance(&half.gaussian()?)?;
        }
        let [first, second] = halves;
        let distance = self.distance(&first.joined(&second).gaussian()?)?;
        // An estimate of what is nearly 0 may fall below.
        Ok([distance, (2.0 * distance - of_halves).max(0.0)])
    }
}

/// The Fréchet distance of two distributions: [`Target::distance`].
///
/// # Errors
/// As there.
pub fn distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    Target::new(a.clone())?.distance(b)
}
