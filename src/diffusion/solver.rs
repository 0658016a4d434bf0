//! Solvers of the probability-flow ODE, one denoiser call at a time: whoever runs the network decides whose call is
//! next.

use super::plan::{Plan, Solver};
use super::schedule::{Level, Process, Spacing};
use crate::philox::NoiseKey;
use std::f64::consts::SQRT_2;
use std::sync::Arc;

/// The denoiser call that a trajectory waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call<'a> {
    /// The noise level of the input.
    pub level: Level,
    /// The subnet that is to run.
    pub subnet: &'a str,
}

/// Noise that is added to an image: `scale z(draw)`, where z(draw) are the standard normals of [`NoiseKey::draw`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Noise {
    /// Its standard deviation; 0 is none.
    pub scale: f64,
    /// The number of the draw.
    pub draw: u32,
}

/// What a denoiser call does to the arrays of an image: every solver step is linear in them.
///
/// With the noisy image x, its denoised image D and an array of memory m, all of before the step,
/// ```text
/// x' = a_x x + a_d D + a_m m + scale z(draw)
/// m' = b_x x + b_d D + b_m m
/// ```
/// Solvers of higher order remember more: where `older` are not 0, x' has those shares of what m was one and two changes before;
/// a step with `b_m` = 1 and no more does not change it. An image begins with m = 0 and with x the sum of the [`Noise`] of
/// [`Course::begin`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Update {
    /// Weight of x in x'.
    pub a_x: f64,
    /// Weight of D in x'.
    pub a_d: f64,
    /// Weight of m in x'.
    pub a_m: f64,
    /// Weights in x' of the two that m was before.
    pub older: [f64; 2],
    /// Weight of x in m'.
    pub b_x: f64,
    /// Weight of D in m'.
    pub b_d: f64,
    /// Weight of m in m'.
    pub b_m: f64,
    /// The churn of the step that begins then, or the noise of a stochastic step.
    pub noise: Noise,
}

impl Update {
    /// `x' = keep x + (1 - keep) D` with `keep = sigma' / sigma`: the exact solution while D is constant, which is both
    /// Euler's step in sigma and, as exp(-h) = sigma' / sigma, the first-order step of DPM-Solver++.
    fn towards(keep: f64) -> Self {
        Self { a_x: keep, a_d: 1.0 - keep, ..Self::default() }
    }

    /// Heun's Euler half from level `sigma` to `next` > 0 (Karras et al. 2022, algorithm 1, lines 4 and 5). In m stays
    /// what the second half starts from: `x + (next - sigma) slope / 2` with `slope = (x - D) / sigma`.
    fn predict(sigma: f64, next: f64) -> Self {
        let half = 0.5 * (next - sigma) / sigma;
        Self { b_x: 1.0 + half, b_d: -half, ..Self::towards(next / sigma) }
    }

    /// Heun's trapezoidal half (Karras et al. 2022, algorithm 1, lines 7 and 8): `m + (next - sigma) slope' / 2` with
    /// `slope' = (x - D) / next`.
    fn correct(sigma: f64, next: f64) -> Self {
        let half = 0.5 * (next - sigma) / next;
        Self { a_x: half, a_d: -half, a_m: 1.0, ..Self::default() }
    }

    /// One step of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), or of SDE-DPM-Solver++(2M) (the same, eq. 18) for an `eta`
    /// above 0, with alpha = 1 and lambda = -ln sigma.
    ///
    /// `x' = (sigma' / sigma) exp(-eta h) x + (1 - exp(-(1 + eta) h)) D* + sigma' sqrt(1 - exp(-2 eta h)) z`, with `h = lambda' -
    /// lambda` and `D* = (1 + r) D - r m`: extrapolated to the middle of the step through m, the denoised image of the step
    /// before, at level `before`. The first step has none; the last one, to sigma' = 0, has h = infinity. Both are of first
    /// order. z is the draw of this number.
    fn multistep(before: Option<f64>, sigma: f64, next: f64, eta: f64, draw: u32) -> Self {
        let ratio = match before {
            Some(before) if next > 0.0 => 0.5 * (sigma / next).ln() / (before / sigma).ln(),
            _ => 0.0,
        };
        // exp(-h) is sigma' / sigma.
        let step = next / sigma;
        let forgotten = if eta > 0.0 { step.powf(eta) } else { 1.0 };
        let keep = step * forgotten;
        let noise = Noise { scale: next * (1.0 - forgotten * forgotten).sqrt(), draw };
        let noise = if noise.scale > 0.0 { noise } else { Noise::default() };
        let (a_d, a_m) = ((1.0 - keep) * (1.0 + ratio), (keep - 1.0) * ratio);
        Self { a_d, a_m, b_d: 1.0, noise, ..Self::towards(keep) }
    }

    /// A step of Adams-Bashforth in sigma on the slope `e = (x - D) / sigma`, the predicted noise, through the slopes of the steps
    /// before, of which m is the last (Liu et al. 2022, eq. 9 and 12). That many are `known`.
    fn adams_bashforth(known: usize, sigma: f64, next: f64) -> Self {
        let step = next - sigma;
        let [now, before, older @ ..] = match known {
            0 => [1.0, 0.0, 0.0, 0.0],
            1 => [1.5, -0.5, 0.0, 0.0],
            2 => [23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0, 0.0],
            _ => [55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let slope = step * now / sigma;
        Self {
            a_x: 1.0 + slope,
            a_d: -slope,
            a_m: step * before,
            older: older.map(|weight| step * weight),
            b_x: 1.0 / sigma,
            b_d: -1.0 / sigma,
            ..Self::default()
        }
    }

    /// The second half of PLMS's first step: from level `sigma` again, by the mean of its slope m and of the slope at `next`, where x is
    /// now. Only the first one is remembered.
    fn repeat(sigma: f64, next: f64) -> Self {
        let step = next - sigma;
        // Where it began was x - step m.
        let slope = 0.5 * step / next;
        Self { a_x: 1.0 + slope, a_d: -slope, a_m: -0.5 * step, b_m: 1.0, ..Self::default() }
    }

    /// The same with x' scaled.
    fn scaled(self, scale: f64) -> Self {
        Self {
            a_x: self.a_x * scale,
            a_d: self.a_d * scale,
            a_m: self.a_m * scale,
            older: self.older.map(|weight| weight * scale),
            noise: Noise { scale: self.noise.scale * scale, ..self.noise },
            ..self
        }
    }

    /// Whether m stays as it is.
    pub fn keeps_memory(&self) -> bool {
        (self.b_x, self.b_d, self.b_m) == (0.0, 0.0, 1.0)
    }
}

/// Where an image is on its way from noise by a plan: everything but the arrays.
///
/// While [`Self::next_call`] asks for a call, [`Self::advance`] says what that call does to the arrays.
#[derive(Clone, Debug)]
pub struct Course {
    plan: Arc<Plan>,
    process: Process,
    levels: Vec<Level>,
    /// Steps that are done.
    step: usize,
    /// The noise level of x.
    level: Level,
    memory: Memory,
}

/// What the array of memory holds.
#[derive(Clone, Copy, Debug)]
enum Memory {
    /// Nothing of use: a step begins.
    Empty,
    /// Heun's first half: the step began at this level.
    Predicted { sigma: f64 },
    /// DPM-Solver++(2M): the denoised image of the step before, which began at this level.
    Denoised { sigma: f64 },
    /// PLMS: the first half of the first step is done, which began at this level.
    Begun { sigma: f64 },
    /// PLMS: the slopes of so many steps.
    Slopes(usize),
}

impl Course {
    /// Churn never more than doubles the variance in a step (Karras et al. 2022, algorithm 2).
    const MAX_GAMMA: f64 = SQRT_2 - 1.0;
    /// `S_noise` of algorithm 2: the best value was tuned for each data set, 1 is the theory. `S_min` and `S_max` are 0
    /// and infinity for the same reason.
    const CHURN_NOISE: f64 = 1.0;

    /// The start of `plan`, for a network of this process, which [`Plan::check_for`] has passed.
    pub fn new(plan: Arc<Plan>, process: Process) -> Self {
        let (levels, step) = (plan.levels(&process), plan.made().start);
        let (level, _) = churned(&plan, step, levels[step]);
        Self { plan, process, levels, step, level, memory: Memory::Empty }
    }

    /// What the image is made of at the start, beside the picture that it may start from: noise scaled to the first level, and the churn of
    /// the first step.
    pub fn begin(&self) -> [Noise; 2] {
        let step = self.plan.made().start;
        let first = self.levels[step];
        let (_, churn) = churned(&self.plan, step, first);
        // As diffusers does: the noise and an image of unit variance together, where it counts in the terms of the process in steps.
        let has_image = match (self.plan.solver, self.plan.spacing) {
            // The image is there.
            _ if self.process.steps() == 0 || self.plan.strength < 1.0 => false,
            (Solver::Heun | Solver::Euler, spacing) => spacing == Spacing::Leading,
            (Solver::DpmPp2m | Solver::Ddim | Solver::Pndm, _) => true,
        };
        let scale = if has_image { first.sigma.hypot(1.0) } else { first.sigma };
        [Noise { scale, draw: NoiseKey::INITIAL }, churn]
    }

    /// The call that is wanted next; `None` when the image is finished.
    pub fn next_call(&self) -> Option<Call<'_>> {
        (!self.is_finished()).then(|| Call { level: self.level, subnet: self.plan.subnet_at(self.step) })
    }

    /// Moves on by the call of [`Self::next_call`], and says what it does to the arrays.
    ///
    /// # Panics
    /// If the image is finished.
    pub fn advance(&mut self) -> Update {
        assert!(!self.is_finished(), "advanced a finished image");
        let (sigma, next) = (self.level.sigma, self.levels[self.step + 1].sigma);
        let mut update = match (self.plan.solver, std::mem::replace(&mut self.memory, Memory::Empty)) {
            (Solver::Heun, Memory::Predicted { sigma: start }) => Update::correct(start, next),
            // At level 0 there is no slope to correct with.
            (Solver::Heun, _) if next > 0.0 => {
                (self.memory, self.level) = (Memory::Predicted { sigma }, self.levels[self.step + 1]);
                return Update::predict(sigma, next);
            }
            (Solver::Pndm, Memory::Begun { sigma: start }) => {
                self.memory = Memory::Slopes(1);
                Update::repeat(start, next)
            }
            (Solver::Pndm, Memory::Slopes(known)) => {
                self.memory = Memory::Slopes(known + 1);
                Update::adams_bashforth(known, sigma, next)
            }
            (Solver::Pndm, _) if self.step + 1 < self.plan.steps => {
                (self.memory, self.level) = (Memory::Begun { sigma }, self.levels[self.step + 1]);
                return Update::adams_bashforth(0, sigma, next);
            }
            (Solver::Heun | Solver::Euler | Solver::Ddim | Solver::Pndm, _) => Update::towards(next / sigma),
            (Solver::DpmPp2m, memory) => {
                self.memory = Memory::Denoised { sigma };
                let before = if let Memory::Denoised { sigma } = memory { Some(sigma) } else { None };
                // Draw 0 is the initial noise.
                Update::multistep(before, sigma, next, self.plan.eta, self.step as u32 + 1)
            }
        };
        self.step += 1;
        let (raised, churn) = churned(&self.plan, self.step, self.levels[self.step]);
        self.level = raised;
        // What is left of the noise there is taken for a part of the image, in the terms of the process in steps.
        if self.is_finished() && next > 0.0 {
            update = update.scaled(1.0 / next.hypot(1.0));
        }
        // Of Heun alone: a step of another solver may have noise of its own.
        if churn.scale > 0.0 {
            update.noise = churn;
        }
        update
    }

    /// Goes on by another plan, whose steps so far must be those that were taken (see [`Plan::continued`]).
    ///
    /// # Panics
    /// In the middle of a step, or if `plan` has another past.
    pub fn replan(&mut self, plan: Arc<Plan>) {
        assert!(
            !matches!(self.memory, Memory::Predicted { .. } | Memory::Begun { .. }),
            "a plan changes between steps"
        );
        let levels = plan.levels(&self.process);
        assert_eq!(self.levels[..=self.step], levels[..=self.step], "the noise levels so far");
        (self.plan, self.levels) = (plan, levels);
    }

    /// The steps that are done; those that are not made are, at the start.
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
}

/// The noise level before step `step`, which would begin at `level`, and the noise that raises it to that (Karras et
/// al. 2022, algorithm 2, lines 4 to 6).
fn churned(plan: &Plan, step: usize, level: Level) -> (Level, Noise) {
    if plan.churn == 0.0 || step == plan.steps {
        return (level, Noise::default());
    }
    let sigma = level.sigma;
    let gamma = (plan.churn / plan.steps as f64).min(Course::MAX_GAMMA);
    let raised = sigma * (1.0 + gamma);
    let scale = Course::CHURN_NOISE * (raised * raised - sigma * sigma).sqrt();
    // Draw 0 is the initial noise.
    (Level::from(raised), Noise { scale, draw: step as u32 + 1 })
}

/// The arrays of one image between two denoiser calls, channels last, in f64.
#[derive(Clone, Debug)]
pub struct State {
    x: Vec<f64>,
    /// The memory and what it was before, the last first; as many as there were, three at most.
    memory: Vec<Vec<f64>>,
}

impl State {
    /// What solvers look back on, at most.
    const MEMORIES: usize = 3;

    /// The sum of `noise` of `key`. `elements` is height x width x channels.
    pub fn new(elements: usize, noise: [Noise; 2], key: NoiseKey) -> Self {
        let mut state = Self { x: vec![0.0; elements], memory: Vec::new() };
        noise.into_iter().for_each(|noise| state.add(noise, key));
        state
    }

    /// The noisy image.
    pub fn x(&self) -> &[f64] {
        &self.x
    }

    /// Adds the picture that it starts from.
    ///
    /// # Panics
    /// If `picture` has another length than x.
    pub fn add_picture(&mut self, picture: &[f32]) {
        assert_eq!(picture.len(), self.x.len(), "length of the picture");
        self.x.iter_mut().zip(picture).for_each(|(x, &picture)| *x += f64::from(picture));
    }

    /// Puts back what is known, at the noise level `sigma` and with the first noise of `key`, where `mask`, of as many pixels as there are,
    /// does not say that the image is drawn anew (as the inpainting pipelines of diffusers; with another noise at each step: RePaint,
    /// Lugmayr et al. 2022, eq. 8a).
    pub fn put_back(&mut self, picture: &[f32], mask: &[bool], sigma: f64, key: NoiseKey) {
        let mut noise = vec![0.0; self.x.len()];
        if sigma > 0.0 {
            key.draw(NoiseKey::INITIAL).fill_normals(&mut noise);
        }
        let channels = self.x.len() / mask.len();
        let pixels =
            self.x.chunks_exact_mut(channels).zip(picture.chunks_exact(channels).zip(noise.chunks_exact(channels)));
        for ((x, (picture, noise)), _) in pixels.zip(mask).filter(|(_, is_new)| !**is_new) {
            let known =
                picture.iter().zip(noise).map(|(&picture, &noise)| f64::from(picture) + sigma * f64::from(noise));
            x.iter_mut().zip(known).for_each(|(x, known)| *x = known);
        }
    }

    /// Takes the denoised image of [`Self::x`].
    ///
    /// # Panics
    /// If `denoised` has another length than x.
    pub fn apply(&mut self, update: &Update, denoised: &[f32], key: NoiseKey) {
        assert_eq!(denoised.len(), self.x.len(), "length of the denoised image");
        let &Update { a_x, a_d, a_m, older, b_x, b_d, b_m, noise } = update;
        let weights = [a_m, older[0], older[1]];
        let oldest = weights.iter().rposition(|&weight| weight != 0.0).map_or(0, |last| last + 1);
        let newest = (!update.keeps_memory()).then(|| match self.memory.len() {
            // What is too old gives its place to what is new.
            Self::MEMORIES if oldest < Self::MEMORIES => self.memory.pop().expect("there are some"),
            _ => vec![0.0; self.x.len()],
        });
        let mut newest = newest.unwrap_or_default();
        for (index, (x, &d)) in self.x.iter_mut().zip(denoised).enumerate() {
            let d = f64::from(d);
            let m = self.memory.first().map_or(0.0, |memory| memory[index]);
            if let Some(new) = newest.get_mut(index) {
                *new = b_x * *x + b_d * d + b_m * m;
            }
            let remembered = self.memory.iter().zip(weights).take(oldest);
            *x = a_x * *x + a_d * d + remembered.map(|(memory, weight)| weight * memory[index]).sum::<f64>();
        }
        if !newest.is_empty() {
            self.memory.insert(0, newest);
            self.memory.truncate(Self::MEMORIES);
        }
        self.add(noise, key);
    }

    fn add(&mut self, noise: Noise, key: NoiseKey) {
        if noise.scale == 0.0 {
            return;
        }
        // f32 hides the last bits of a device's ln and sincos.
        let mut normals = vec![0.0; self.x.len()];
        key.draw(noise.draw).fill_normals(&mut normals);
        for (x, normal) in self.x.iter_mut().zip(normals) {
            *x += noise.scale * f64::from(normal);
        }
    }
}

/// One image on its way from noise: its [`Course`] and its [`State`].
///
/// While [`Self::next_call`] asks for a call, denoise [`Self::input`] and hand the result to [`Self::advance`].
#[derive(Clone, Debug)]
pub struct Trajectory {
    course: Course,
    state: State,
    key: NoiseKey,
}

impl Trajectory {
    /// Starts from the noise of (`seed`, `image`), scaled to the first level. `elements` is height x width x channels.
    pub fn new(plan: Arc<Plan>, process: Process, seed: u64, image: u32, elements: usize) -> Self {
        let (course, key) = (Course::new(plan, process), NoiseKey { seed, image });
        Self { state: State::new(elements, course.begin(), key), course, key }
    }

    /// Starts from `noise` of unit variance, scaled to the first level; `key` gives the churn alone.
    pub fn from_noise(plan: Arc<Plan>, process: Process, key: NoiseKey, noise: &[f32]) -> Self {
        let course = Course::new(plan, process);
        let [initial, churn] = course.begin();
        let x = noise.iter().map(|&noise| f64::from(noise) * initial.scale).collect();
        let mut state = State { x, memory: Vec::new() };
        state.add(churn, key);
        Self { course, state, key }
    }

    /// The call that is wanted next; `None` when the image is finished.
    pub fn next_call(&self) -> Option<Call<'_>> {
        self.course.next_call()
    }

    /// The noisy image to denoise at the level of [`Self::next_call`], channels last.
    pub fn input(&self) -> &[f64] {
        self.state.x()
    }

    /// Takes the result of [`Self::next_call`]: the denoised image of [`Self::input`].
    ///
    /// # Panics
    /// If the image is finished, or `denoised` has another length than the input.
    pub fn advance(&mut self, denoised: &[f32]) {
        let update = self.course.advance();
        self.state.apply(&update, denoised, self.key);
    }

    /// Goes on by another plan, as [`Course::replan`].
    ///
    /// # Panics
    /// In the middle of a step, or if `plan` has another past.
    pub fn replan(&mut self, plan: Arc<Plan>) {
        self.course.replan(plan);
    }

    /// The steps that are done.
    pub fn step(&self) -> usize {
        self.course.step()
    }

    /// The plan that it follows.
    pub fn plan(&self) -> &Arc<Plan> {
        self.course.plan()
    }

    /// Whether no call is left.
    pub fn is_finished(&self) -> bool {
        self.course.is_finished()
    }

    /// The image so far, channels last; the result once [`Self::is_finished`].
    pub fn image(&self) -> &[f64] {
        self.state.x()
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
