//! Which subnets a step trains.

use super::config::{Rule, Sampling};
use crate::philox::Stream;

/// Probabilities of subnets of these ratios, ascending: weights fall linearly from `reweighting` at the smallest to 1 at
/// the largest (the paper, eq. 6).
pub fn probabilities(ratios: &[f64], reweighting: f64) -> Vec<f64> {
    let (min, max) = (ratios[0], ratios[ratios.len() - 1]);
    let weight = |ratio: f64| match max > min {
        true => reweighting - (reweighting - 1.0) * (ratio - min) / (max - min),
        false => 1.0,
    };
    let total: f64 = ratios.iter().map(|&ratio| weight(ratio)).sum();
    ratios.iter().map(|&ratio| weight(ratio) / total).collect()
}

/// The subnets of a step, widest first, as indices into `ratios`, which ascend to the full network.
pub fn choose(sampling: &Sampling, ratios: &[f64], stream: Stream) -> Vec<usize> {
    let mut rest = stream.uniform(0);
    let draw = probabilities(ratios, sampling.reweighting).into_iter().position(|p| {
        rest -= p;
        rest < 0.0
    });
    let drawn = draw.unwrap_or(ratios.len() - 1);
    match sampling.rule {
        Rule::One => vec![drawn],
        Rule::Sandwich => {
            let mut chosen = vec![ratios.len() - 1, drawn, 0];
            chosen.dedup();
            chosen
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::config::Teacher;

    #[test]
    fn the_papers_31_sizes_have_the_papers_probabilities() {
        // method.md: 31 sizes, P_min .048 and P_max .016.
        let ratios: Vec<f64> = (0..31).map(|i| 0.25 + 0.025 * i as f64).collect();
        let p = probabilities(&ratios, 3.0);
        assert!((p[0] - 0.048).abs() < 5e-4 && (p[30] - 0.016).abs() < 5e-4, "{p:?}");
        assert!((p[0] / p[30] - 3.0).abs() < 1e-12);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(p.windows(3).all(|w| (w[0] - 2.0 * w[1] + w[2]).abs() < 1e-12), "not linear");
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_sandwich_has_both_ends() {
        let ratios = [0.25, 0.5, 0.75, 1.0];
        let one = Sampling::default();
        let mut counts = [0u32; 4];
        for step in 0..8000 {
            counts[choose(&one, &ratios, Stream::new(1, 5, step))[0]] += 1;
        }
        for (count, p) in counts.iter().zip(probabilities(&ratios, 3.0)) {
            assert!((*count as f64 / 8000.0 - p).abs() < 0.02, "{counts:?}");
        }
        let sandwich = Sampling { rule: Rule::Sandwich, teacher: Teacher::Full, ..one };
        for step in 0..50 {
            let chosen = choose(&sandwich, &ratios, Stream::new(1, 5, step));
            assert_eq!((chosen[0], chosen[chosen.len() - 1]), (3, 0));
            assert!(chosen.is_sorted_by(|a, b| a > b));
        }
    }
}
