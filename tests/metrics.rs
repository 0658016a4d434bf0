//! The distances between sets of features, held against an independent implementation in NumPy and SciPy.

use accordion::features::frechet::{Gaussian, Moments, distance};
use accordion::features::kid::{matrix, squared_discrepancy};
use accordion::features::manifold::{overlap, radii};
use candle_core::{DType, Device, Tensor};
use faer::Mat;
use std::collections::HashMap;
use std::path::Path;

fn golden() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/frechet.expected.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn floats(golden: &HashMap<String, Tensor>, name: &str) -> Vec<f64> {
    golden[name].to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Features as they are, and their dimensions.
fn features(golden: &HashMap<String, Tensor>, name: &str) -> (Vec<f32>, usize) {
    (golden[name].flatten_all().unwrap().to_vec1().unwrap(), golden[name].dim(1).unwrap())
}

/// In parts of uneven size.
fn gaussian(features: &[f32], dim: usize) -> Gaussian {
    let mut moments = Moments::new(dim);
    let (first, rest) = features.split_at(7 * dim);
    moments.add(first);
    rest.chunks(64 * dim).for_each(|part| moments.add(part));
    assert_eq!(moments.count(), features.len() / dim);
    moments.gaussian().unwrap()
}

#[track_caller]
fn assert_near(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance * want.abs(), "{got} is not {want}");
}

const SETS: [(&str, f64); 2] = [("", 1e-10), ("low_rank.", 1e-6)];

#[test]
fn means_covariances_and_the_frechet_distance_are_those_of_the_reference() {
    let golden = golden();
    for (set, tolerance) in SETS {
        let [real, fake] = ["real", "fake"].map(|which| {
            let (features, dim) = features(&golden, &format!("{set}{which}"));
            let gaussian = gaussian(&features, dim);
            let (mean, cov) =
                (floats(&golden, &format!("{set}mean_{which}")), floats(&golden, &format!("{set}cov_{which}")));
            let largest = cov.iter().fold(0.0f64, |most, value| most.max(value.abs()));
            for (got, want) in gaussian.mean.iter().zip(&mean) {
                assert!((got - want).abs() < 1e-12 * want.abs().max(1.0), "{got} is not {want}");
            }
            for (index, want) in cov.iter().enumerate() {
                let got = gaussian.covariance[(index / dim, index % dim)];
                assert!((got - want).abs() < 1e-12 * largest, "{got} is not {want}");
            }
            gaussian
        });
        let got = distance(&real, &fake).unwrap();
        assert_near(
            got,
            floats(&golden, &format!("{set}value.frechet").replace("low_rank.value", "value.low_rank"))[0],
            tolerance,
        );
        assert!(distance(&real, &real).unwrap().abs() < 1e-4, "a set's distance to itself");
    }
}

#[test]
fn sets_that_cannot_be_compared_are_refused() {
    let mut one = Moments::new(2);
    one.add(&[1.0, 2.0]);
    assert_eq!(one.gaussian().unwrap_err().to_string(), "images: 1 are too few for a covariance; give at least 2");
    let of = |dim: usize| Gaussian { mean: vec![0.0; dim], covariance: Mat::zeros(dim, dim) };
    assert_eq!(distance(&of(2), &of(3)).unwrap_err().to_string(), "features: have 2 dimensions and 3");
}

#[test]
fn the_kernel_distance_is_that_of_the_reference() {
    let golden = golden();
    for (set, name) in [("", "value.kid_full"), ("low_rank.", "value.low_rank.kid_full")] {
        let [real, fake] = ["real", "fake"].map(|which| {
            let (features, dim) = features(&golden, &format!("{set}{which}"));
            matrix(&features, dim)
        });
        assert_near(squared_discrepancy(&real, &fake), floats(&golden, name)[0], 1e-9);
    }
    let (real, dim) = features(&golden, "real");
    let (fake, _) = features(&golden, "fake");
    let rows = |name: &str| golden[name].to_vec2::<i64>().unwrap();
    let chosen = |features: &[f32], rows: &[i64]| {
        matrix(&rows.iter().flat_map(|&row| &features[row as usize * dim..][..dim]).copied().collect::<Vec<_>>(), dim)
    };
    let subsets = rows("kid_subsets_real").into_iter().zip(rows("kid_subsets_fake"));
    for ((real_rows, fake_rows), want) in subsets.zip(floats(&golden, "kid_subset_values")) {
        assert_near(squared_discrepancy(&chosen(&real, &real_rows), &chosen(&fake, &fake_rows)), want, 1e-9);
    }
}

#[test]
fn balls_reach_as_far_and_overlap_as_in_the_reference() {
    let golden = golden();
    for (set, value) in [("", "value."), ("low_rank.", "value.low_rank.")] {
        let [real, fake] = ["real", "fake"].map(|which| features(&golden, &format!("{set}{which}")));
        for (which, (features, dim)) in [("real", &real), ("fake", &fake)] {
            let want = floats(&golden, &format!("{set}radius_{which}"));
            let got = radii(features, *dim);
            assert_eq!(got.len(), want.len());
            got.iter().zip(&want).for_each(|(got, want)| assert_near(got.sqrt(), *want, 1e-12));
        }
        let got = overlap(&real.0, &fake.0, real.1);
        let want = |name: &str| floats(&golden, &format!("{value}{name}"))[0];
        assert_near(got.precision, want("precision"), 1e-12);
        assert_near(got.recall, want("recall"), 1e-12);
        assert_near(got.density, want("density"), 1e-12);
        assert_near(got.coverage, want("coverage"), 1e-12);
    }
}
