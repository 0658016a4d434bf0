//! Solvers of the probability-flow ODE, one denoiser call at a time: whoever runs the network decides whose call is next.

use super::noise::NoiseKey;
use super::plan::{Plan, Solver};
use super::schedule::{SigmaRange, levels};
use std::f64::consts::SQRT_2;
use std::sync::Arc;

/// The denoiser call that a trajectory waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call<'a> {
    /// The noise level of the input.
    pub sigma: f64,
    /// The subnet that is to run.
    pub subnet: &'a str,
}

/// One image on its way from noise: the state between two denoiser calls, in f64.
///
/// While [`Self::next_call`] asks for a call, denoise [`Self::input`] and hand the result to [`Self::advance`].
#[derive(Clone, Debug)]
pub struct Trajectory {
    plan: Arc<Plan>,
    range: SigmaRange,
    sigmas: Vec<f64>,
    key: NoiseKey,
    /// Steps that are done.
    step: usize,
    /// The noise level of `x`.
    sigma: f64,
    x: Vec<f64>,
    memory: Memory,
}

/// What a solver remembers besides `x`.
#[derive(Clone, Debug)]
enum Memory {
    /// Nothing: a step begins.
    Empty,
    /// Heun's first half: where the step began, at which level, and the slope dx/dsigma there.
    Predicted { start: Vec<f64>, sigma: f64, slope: Vec<f64> },
    /// DPM-Solver++(2M): the level and the denoised image of the step before.
    Denoised { sigma: f64, image: Vec<f64> },
}

impl Trajectory {
    /// Churn never more than doubles the variance in a step (Karras et al. 2022, algorithm 2).
    const MAX_GAMMA: f64 = SQRT_2 - 1.0;
    /// `S_noise` of algorithm 2: the best value was tuned for each data set, 1 is the theory. `S_min` and `S_max` are 0
    /// and infinity for the same reason.
    const CHURN_NOISE: f64 = 1.0;

    /// Starts from the noise of (`seed`, `image`), scaled to the first level. `elements` is height x width x channels.
    pub fn new(plan: Arc<Plan>, range: SigmaRange, seed: u64, image: u32, elements: usize) -> Self {
        let key = NoiseKey { seed, image };
        let mut noise = vec![0.0; elements];
        key.draw(NoiseKey::INITIAL).fill_normals(&mut noise);
        Self::from_noise(plan, range, key, &noise)
    }

    /// Starts from `noise` of unit variance, scaled to the first level; `key` gives the churn alone.
    pub fn from_noise(plan: Arc<Plan>, range: SigmaRange, key: NoiseKey, noise: &[f32]) -> Self {
        let sigmas = levels(&plan, range);
        let sigma = sigmas[0];
        let x = noise.iter().map(|&noise| f64::from(noise) * sigma).collect();
        let mut trajectory = Self { plan, range, sigmas, key, step: 0, sigma, x, memory: Memory::Empty };
        trajectory.churn();
        trajectory
    }

    /// The call that is wanted next; `None` when the image is finished.
    pub fn next_call(&self) -> Option<Call<'_>> {
        (!self.is_finished()).then(|| Call { sigma: self.sigma, subnet: self.plan.subnet_at(self.step) })
    }

    /// The noisy image to denoise at the level of [`Self::next_call`], channels last.
    pub fn input(&self) -> &[f64] {
        &self.x
    }

    /// Takes the result of [`Self::next_call`]: the denoised image of [`Self::input`].
    ///
    /// # Panics
    /// If the image is finished, or `denoised` has another length than the input.
    pub fn advance(&mut self, denoised: &[f32]) {
        assert!(!self.is_finished(), "advanced a finished trajectory");
        assert_eq!(denoised.len(), self.x.len(), "length of the denoised image");
        let next = self.sigmas[self.step + 1];
        match (self.plan.solver, std::mem::replace(&mut self.memory, Memory::Empty)) {
            (Solver::Heun, Memory::Predicted { start, sigma, slope }) => {
                self.correct(denoised, &start, sigma, &slope);
                self.end_step();
            }
            // At level 0 there is no slope to correct with.
            (Solver::Heun, _) if next > 0.0 => self.predict(denoised, next),
            (Solver::Heun | Solver::Euler, _) => {
                self.move_towards(next, denoised.iter().map(|&d| f64::from(d)));
                self.end_step();
            }
            (Solver::DpmPp2m, memory) => {
                self.multistep(denoised, next, memory);
                self.end_step();
            }
        }
    }

    /// Goes on by another plan, whose steps so far must be those that were taken (see [`Plan::continued`]).
    ///
    /// # Panics
    /// In the middle of a step, or if `plan` has another past.
    pub fn replan(&mut self, plan: Arc<Plan>) {
        assert!(!matches!(self.memory, Memory::Predicted { .. }), "a plan changes between steps");
        let sigmas = levels(&plan, self.range);
        assert_eq!(self.sigmas[..=self.step], sigmas[..=self.step], "the noise levels so far");
        (self.plan, self.sigmas) = (plan, sigmas);
    }

    /// The steps that are done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The plan that it follows.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Whether no call is left.
    pub fn is_finished(&self) -> bool {
        self.step == self.plan.steps
    }

    /// The image so far, channels last; the result once [`Self::is_finished`].
    pub fn image(&self) -> &[f64] {
        &self.x
    }

    fn end_step(&mut self) {
        self.step += 1;
        self.sigma = self.sigmas[self.step];
        self.churn();
    }

    /// Raises the noise level before a step (Karras et al. 2022, algorithm 2, lines 4 to 6).
    fn churn(&mut self) {
        if self.plan.churn == 0.0 || self.is_finished() {
            return;
        }
        let gamma = (self.plan.churn / self.plan.steps as f64).min(Self::MAX_GAMMA);
        let raised = self.sigma * (1.0 + gamma);
        let scale = Self::CHURN_NOISE * (raised * raised - self.sigma * self.sigma).sqrt();
        // Draw 0 is the initial noise. f32, as the initial noise is, hides the last bits of a device's ln and sincos.
        let mut noise = vec![0.0; self.x.len()];
        self.key.draw(self.step as u32 + 1).fill_normals(&mut noise);
        for (x, noise) in self.x.iter_mut().zip(noise) {
            *x += scale * f64::from(noise);
        }
        self.sigma = raised;
    }

    /// Heun's Euler half (Karras et al. 2022, algorithm 1, lines 4 and 5), where the step does not end at 0.
    fn predict(&mut self, denoised: &[f32], next: f64) {
        let sigma = self.sigma;
        let slope: Vec<f64> = self.x.iter().zip(denoised).map(|(x, &d)| (x - f64::from(d)) / sigma).collect();
        let predicted = self.x.iter().zip(&slope).map(|(x, slope)| x + (next - sigma) * slope).collect();
        let start = std::mem::replace(&mut self.x, predicted);
        self.sigma = next;
        self.memory = Memory::Predicted { start, sigma, slope };
    }

    /// Heun's trapezoidal half (Karras et al. 2022, algorithm 1, lines 7 and 8).
    fn correct(&mut self, denoised: &[f32], start: &[f64], sigma: f64, slope: &[f64]) {
        let next = self.sigma;
        for (((x, &d), start), slope) in self.x.iter_mut().zip(denoised).zip(start).zip(slope) {
            let slope_at_end = (*x - f64::from(d)) / next;
            *x = start + (next - sigma) * (0.5 * slope + 0.5 * slope_at_end);
        }
    }

    /// One step of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) with alpha = 1 and lambda = -ln sigma.
    ///
    /// `x' = (sigma' / sigma) x - (exp(-h) - 1) D`, with `h = lambda' - lambda` and D extrapolated to the middle of the
    /// step through the denoised image of the step before. The first step has none; the last one, to sigma' = 0, has
    /// h = infinity. Both are of first order.
    fn multistep(&mut self, denoised: &[f32], next: f64, memory: Memory) {
        let current: Vec<f64> = denoised.iter().map(|&d| f64::from(d)).collect();
        match memory {
            Memory::Denoised { sigma, image } if next > 0.0 => {
                let half_ratio = 0.5 * (self.sigma / next).ln() / (sigma / self.sigma).ln();
                self.move_towards(next, current.iter().zip(image).map(|(d, before)| d + half_ratio * (d - before)));
            }
            _ => self.move_towards(next, current.iter().copied()),
        }
        self.memory = Memory::Denoised { sigma: self.sigma, image: current };
    }

    /// `x' = (sigma' / sigma) x + (1 - sigma' / sigma) D`: the exact solution while D is constant, which is both Euler's
    /// step in sigma and, as exp(-h) = sigma' / sigma, the first-order step of DPM-Solver++.
    fn move_towards(&mut self, next: f64, target: impl Iterator<Item = f64>) {
        let keep = next / self.sigma;
        for (x, target) in self.x.iter_mut().zip(target) {
            *x = keep * *x + (1.0 - keep) * target;
        }
    }
}

/// Classifier-free guidance (Ho and Salimans 2022, equation 6, on denoised images): `D_u + scale (D_c - D_u)`.
///
/// Scale 1 is the conditional image and 0 the unconditional one, to the bit.
pub fn guide(conditional: &[f32], unconditional: &[f32], scale: f64) -> Vec<f32> {
    let blend = |(&c, &u): (&f32, &f32)| (scale * f64::from(c) + (1.0 - scale) * f64::from(u)) as f32;
    conditional.iter().zip(unconditional).map(blend).collect()
}

#[cfg(test)]
mod tests;
