//! What one request runs, as data, and its compact text: `dpmpp2m-12@0.250*8,full*4~logsnr`.

use super::schedule::{Level, Process, Spacing, Times};
use crate::subnet_name::{SubnetName, thousandths};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;

/// The accepted numbers of steps.
pub const STEPS: RangeInclusive<usize> = 1..=1000;

/// The accepted amounts of churn. At 1000 steps, more than 415 changes nothing (see [`Plan::churn`]).
pub const CHURN: RangeInclusive<f64> = 0.0..=1000.0;

/// The accepted amounts of eta; 1 is the diffusion process itself, run backwards.
pub const ETA: RangeInclusive<f64> = 0.0..=1.0;

/// The accepted last noise levels of a plan.
pub const LAST: RangeInclusive<f64> = 0.001..=1.0;

/// The accepted scales of guidance by a narrower network.
pub const AUTO_SCALE: RangeInclusive<f64> = 1.0..=20.0;
/// The scale where a plan's text says none.
const USUAL_AUTO_SCALE: f64 = 1.5;

/// Why a plan's decoder is refused where pictures are drawn themselves.
pub const NO_DECODER: &str = "~decode is of models that draw latents, but this one draws pictures itself";

/// The accepted strengths.
pub const STRENGTH: RangeInclusive<f64> = 0.001..=1.0;

/// A solver, its steps, and a subnet for each step.
///
/// The text form is
/// `<solver>-<steps>@<widths>[^<guide>][~<spacing>][~last=<level>][~eta=<number>][~churn=<number>][~strength=<share>][~decode=<subnet>][~respace=<done>/<of>,...]`,
/// where widths is one
/// subnet for all steps (`heun-18@full`) or counted runs in order (`0.250*8,full*4`). [`fmt::Display`] writes the
/// canonical form, which parses to the same plan: subnet names with three decimals, equal neighbours merged, defaults
/// left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Plan {
    /// How a step is taken.
    pub solver: Solver,
    /// How the noise levels are spread; one in time is of a network that was trained on a process in steps.
    pub spacing: Spacing,
    /// Solver steps, in [`STEPS`].
    pub steps: usize,
    /// `S_churn` of Karras et al. 2022, algorithm 2, in [`CHURN`]; 0 is deterministic. Heun only. A step's share
    /// `churn / steps` saturates at sqrt 2 - 1.
    pub churn: f64,
    /// Share of the noise that a step of DPM-Solver++ takes away and draws anew, in [`ETA`]; 0 is deterministic
    /// (SDE-DPM-Solver++(2M), Lu et al. 2022, appendix; eta as in DDIM, Song et al. 2021, eq. 16).
    pub eta: f64,
    /// The last level before the clean image, in [`LAST`], in place of the model's own: what is left there is denoised in one step.
    pub last: Option<f64>,
    /// The share of the steps that are made, the last ones, in [`STRENGTH`]: the image starts from a picture at their first noise level
    /// (SDEdit, Meng et al. 2022). 1 starts from noise alone.
    pub strength: f64,
    /// Consecutive steps and the subnet that runs them.
    pub widths: Vec<WidthRun>,
    /// The subnet of the second call of a guided step, where it is another than that of the first.
    pub guide: Option<PlannedGuide>,
    /// The subnet of the decoder that makes the picture, of a model that draws latents.
    pub decode: SubnetName,
    /// Where the noise levels that were left have been spread anew, in order. Empty for a plan that was never changed
    /// while it ran.
    pub respacings: Vec<Respacing>,
}

/// Which subnet guides: `^0.250`, or `^auto:0.250`, which also guides what is not guided by anything else.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedGuide {
    /// The subnet of the second call.
    pub subnet: SubnetName,
    /// Where nothing else guides an image, it is led away from what this subnet makes of the same condition (autoguidance, Karras et al.
    /// 2024), at this scale in [`AUTO_SCALE`]: `^auto:0.250*2`, or `^auto:0.250` for 1.5.
    pub auto: Option<f64>,
}

impl fmt::Display for PlannedGuide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.auto {
            None => write!(f, "^{}", self.subnet),
            Some(USUAL_AUTO_SCALE) => write!(f, "^auto:{}", self.subnet),
            Some(scale) => write!(f, "^auto:{}*{scale}", self.subnet),
        }
    }
}

impl FromStr for PlannedGuide {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(auto) = text.strip_prefix("auto:") else {
            return Ok(Self { subnet: text.parse()?, auto: None });
        };
        let (subnet, scale) = match auto.split_once('*') {
            Some((subnet, scale)) => (subnet, number("the scale of auto", scale, AUTO_SCALE)?),
            None => (auto, USUAL_AUTO_SCALE),
        };
        Ok(Self { subnet: subnet.parse()?, auto: Some(scale) })
    }
}

/// A change of the number of steps in mid-course: `~respace=5/12` says that the first 5 steps were those of 12, and that
/// the steps after them share what was left of the noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Respacing {
    /// Steps done before the change.
    pub done: usize,
    /// Steps that the plan had until then.
    pub of: usize,
}

/// Consecutive steps on one subnet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WidthRun {
    /// The subnet.
    pub subnet: SubnetName,
    /// How many steps, at least 1.
    pub steps: usize,
}

/// How one step is taken from its noise level to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Solver {
    /// Second order, two denoiser calls a step but for the last (Karras et al. 2022, algorithms 1 and 2).
    Heun,
    /// First order, one call a step: DDIM (Song et al. 2021) in sigma space.
    Euler,
    /// DPM-Solver++(2M): second order, one call a step (Lu et al. 2022, algorithm 2).
    DpmPp2m,
    /// DDIM (Song et al. 2021) as it was published, of a process in steps: [`Self::Euler`], but it ends at the process's first step.
    Ddim,
    /// PLMS (Liu et al. 2022, PNDM without its Runge-Kutta steps), of a process in steps: Adams-Bashforth up to order four, one call a
    /// step but two in the first.
    Pndm,
}

impl Solver {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Heun, Self::Euler, Self::DpmPp2m, Self::Ddim, Self::Pndm];

    /// The name in a plan's text and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Heun => "heun",
            Self::Euler => "euler",
            Self::DpmPp2m => "dpmpp2m",
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
        }
    }

    /// How levels are spread where a plan does not say it.
    pub fn spacing(self) -> Spacing {
        match self {
            Self::Heun | Self::Euler | Self::DpmPp2m => Spacing::Karras,
            Self::Ddim | Self::Pndm => Spacing::Leading,
        }
    }

    /// How it takes the times of a process in steps.
    fn times(self) -> Times {
        Times { are_whole: !matches!(self, Self::Heun | Self::Euler), one_more: self == Self::DpmPp2m }
    }

    /// Whether it ends at the first step of a process in steps, rather than at no noise.
    pub(super) fn ends_at_first_step(self) -> bool {
        matches!(self, Self::Ddim | Self::Pndm)
    }
}

impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Solver {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|solver| solver.as_str() == text);
        let names = Self::ALL.map(Self::as_str).join(", ");
        found.ok_or_else(|| wrong(format!("solver {text:?} is not one of {names}")))
    }
}

impl Plan {
    /// Every step on one subnet, with the solver's usual spacing and no churn.
    ///
    /// # Errors
    /// If `steps` is out of [`STEPS`] or `subnet` is no subnet name.
    pub fn constant(solver: Solver, steps: usize, subnet: &str) -> Result<Self> {
        let widths = vec![WidthRun { subnet: subnet.parse()?, steps }];
        let plan = Self {
            solver,
            spacing: solver.spacing(),
            steps,
            churn: 0.0,
            eta: 0.0,
            last: None,
            strength: 1.0,
            widths,
            guide: None,
            decode: SubnetName::full(),
            respacings: Vec::new(),
        };
        plan.check()?;
        Ok(plan)
    }

    /// The same plan of an image that starts from a picture. A strength counts in thousandths, of which it is at least one.
    pub fn started(&self, strength: f64) -> Self {
        let strength = ((strength * 1e3).round() / 1e3).clamp(*STRENGTH.start(), *STRENGTH.end());
        Self { strength, ..self.clone() }
    }

    /// Whether it is `other`, or that at another strength.
    pub fn differs_in_strength_alone(&self, other: &Self) -> bool {
        self == other || (self.strength != other.strength && self.started(other.strength) == *other)
    }

    /// The steps that are made: all but the first ones of an image that starts from a picture, and at least one. Of as many as it had
    /// at the start they are the share [`Self::strength`], rounded down (as `StableDiffusionImg2ImgPipeline.get_timesteps` of diffusers).
    pub fn made(&self) -> Range<usize> {
        let all = self.respacings.first().map_or(self.steps, |respacing| respacing.of);
        let made = ((all as f64 * self.strength) as usize).clamp(1, all);
        all - made..self.steps
    }

    /// The noise levels of its steps, and the one that the last of them ends at: those of [`Spacing::levels`], spread anew over what is
    /// left at each of its respacings. Those of steps that are not made mean nothing.
    ///
    /// Where a spacing is in time, the steps of an image that starts from a picture are the last of all, as diffusers has it. Where it is in
    /// the noise level, they are spread from the level at the share `1 - strength` of the way, so that how much of the picture
    /// is kept does not depend on how many steps there are.
    ///
    /// Spacings are uniform in a function of the level, so spreading as many steps as were left changes nothing but roundings.
    pub fn levels(&self, process: &Process) -> Vec<Level> {
        let totals = self.respacings.iter().map(|respacing| respacing.of).chain([self.steps]);
        let cuts = self.respacings.iter().map(|respacing| respacing.done);
        let mut levels: Vec<Level> = Vec::new();
        let spread = |steps, first| self.spacing.levels(process, steps, first, self.last, self.solver.times());
        for (done, total) in [0].into_iter().chain(cuts).zip(totals) {
            let first = levels.get(done).copied();
            levels.truncate(done);
            levels.extend(spread(total - done, first));
            if first.is_none() && self.strength < 1.0 && !self.spacing.is_in_time() {
                let start = self.made().start;
                let first = self.spacing.level(1.0 - self.strength, process, self.last, self.solver.times());
                levels.truncate(start);
                levels.extend(spread(total - start, Some(first)));
            }
        }
        levels.push(Level::from(if self.solver.ends_at_first_step() { process.range.min } else { 0.0 }));
        levels
    }

    /// Whether a network that was trained on this process can be run by it.
    ///
    /// # Errors
    /// What of the plan it cannot.
    pub fn check_for(&self, process: &Process) -> std::result::Result<(), String> {
        let steps = process.steps();
        if steps == 0 && (self.spacing.is_in_time() || self.solver.ends_at_first_step()) {
            let of = if self.spacing.is_in_time() { self.spacing.as_str() } else { self.solver.as_str() };
            return Err(format!(
                "{of} is of networks that were trained on a process in steps, which the model was not"
            ));
        }
        // The last step may end where it begins: at the first step of the process.
        let levels = self.levels(process);
        if !levels[self.made()].windows(2).all(|pair| pair[0].sigma > pair[1].sigma) {
            return Err(format!("{} steps are too many for {steps} steps of training, spread so", self.steps));
        }
        Ok(())
    }

    /// The subnet of a step, counted from 0.
    ///
    /// # Panics
    /// If `step` is not below `steps`.
    pub fn subnet_at(&self, step: usize) -> &SubnetName {
        let mut end = 0;
        let run = self.widths.iter().find(|run| {
            end += run.steps;
            step < end
        });
        &run.expect("a step below the plan's number of steps").subnet
    }

    /// The same where there is nothing but noise to start from.
    ///
    /// # Errors
    /// As [`Self::check_for`], and that it starts from a picture.
    pub fn check_from_noise(&self, process: &Process) -> std::result::Result<(), String> {
        if self.strength < 1.0 {
            return Err("~strength starts from a picture, and here images are drawn from noise".to_owned());
        }
        self.check_for(process)
    }

    /// The subnet that guides a step, and the scale of the guidance: `given` is that of the request, where it is guided. None where nothing
    /// guides.
    pub fn guide_at(&self, step: usize, given: Option<f64>) -> Option<(&SubnetName, f64)> {
        let own = self.subnet_at(step);
        let Some(PlannedGuide { subnet, auto }) = &self.guide else { return Some((own, given?)) };
        match given {
            Some(scale) => Some((subnet, scale)),
            // A network says nothing of itself.
            None => Some((subnet, (*auto)?)).filter(|_| subnet != own),
        }
    }

    /// All subnets of the denoiser that it names.
    pub fn subnets(&self) -> impl Iterator<Item = &SubnetName> {
        self.widths.iter().map(|run| &run.subnet).chain(self.guide.iter().map(|guide| &guide.subnet))
    }

    /// The denoiser calls of a step that is made, counted from 0; guidance doubles them.
    pub fn evaluations_at(&self, step: usize) -> usize {
        let first = self.made().start;
        match self.solver {
            Solver::Heun if step + 1 < self.steps => 2,
            Solver::Pndm if step == first && first + 1 < self.steps => 2,
            _ => 1,
        }
    }

    /// The denoiser calls of one image: one a step, but 2 steps - 1 for Heun and steps + 1 for PNDM; guidance doubles them.
    pub fn evaluations(&self) -> usize {
        self.made().map(|step| self.evaluations_at(step)).sum()
    }

    /// The steps that are done after so many denoiser calls, those that are not made among them, and whether the next call begins a step.
    pub fn position(&self, evaluations: usize) -> (usize, bool) {
        let (left_out, made) = (self.made().start, self.made().len());
        let (done, at_boundary) = match self.solver {
            Solver::Heun if evaluations + 1 < 2 * made => (evaluations / 2, evaluations.is_multiple_of(2)),
            Solver::Pndm if made > 1 && evaluations > 0 => ((evaluations - 1).min(made), evaluations > 1),
            _ => (evaluations.min(made), true),
        };
        (left_out + done, at_boundary)
    }

    /// This plan with what follows `done` steps replaced: so many more steps, on the subnets of `widths`.
    ///
    /// Its first `done` steps are those of this plan to the bit, so a trajectory may change over between two steps.
    /// `None` where that cannot be: nothing is left to change, churn depends on the number of steps, or the steps do not
    /// fit what is left of the noise.
    pub fn continued(&self, done: usize, widths: &[WidthRun]) -> Option<Self> {
        let more: usize = widths.iter().map(|run| run.steps).sum();
        // Of how many steps a strength is a share is said where they change, which the first cannot.
        let is_unsaid = self.strength < 1.0 && done == 0 && more != self.steps;
        if self.churn > 0.0 || done >= self.steps || is_unsaid {
            return None;
        }
        let mut plan = Self { steps: done + more, widths: Vec::new(), ..self.clone() };
        let mut left = done;
        for run in &self.widths {
            let steps = run.steps.min(left);
            left -= steps;
            plan.push(&run.subnet, steps);
        }
        widths.iter().for_each(|run| plan.push(&run.subnet, run.steps));
        if plan.steps != self.steps && done > 0 {
            plan.respacings.push(Respacing { done, of: self.steps });
        }
        plan.check().ok()?;
        Some(plan)
    }

    fn push(&mut self, subnet: &SubnetName, steps: usize) {
        match self.widths.last_mut() {
            _ if steps == 0 => {}
            Some(last) if last.subnet == *subnet => last.steps += steps,
            _ => self.widths.push(WidthRun { subnet: subnet.clone(), steps }),
        }
    }

    fn check(&self) -> Result<()> {
        let Self { solver, spacing, steps, churn, eta, last, strength, widths, guide, decode: _, respacings } = self;
        if !STEPS.contains(steps) {
            return Err(wrong(format!("steps are {steps}, but must be {} to {}", STEPS.start(), STEPS.end())));
        }
        if !CHURN.contains(churn) {
            return Err(wrong(format!("churn is {churn}, but must be {} to {}", CHURN.start(), CHURN.end())));
        }
        if *churn > 0.0 && *solver != Solver::Heun {
            return Err(wrong(format!("churn needs the solver heun, not {solver}")));
        }
        if !ETA.contains(eta) {
            return Err(wrong(format!("eta is {eta}, but must be {} to {}", ETA.start(), ETA.end())));
        }
        if *eta > 0.0 && *solver != Solver::DpmPp2m {
            return Err(wrong(format!("eta needs the solver dpmpp2m, not {solver}")));
        }
        if let Some(last) = last.filter(|last| !LAST.contains(last)) {
            return Err(wrong(format!("the last level is {last}, but must be {} to {}", LAST.start(), LAST.end())));
        }
        if !STRENGTH.contains(strength) {
            let (least, most) = (STRENGTH.start(), STRENGTH.end());
            return Err(wrong(format!("the strength is {strength}, but must be {least} to {most}")));
        }
        if let Some(scale) = guide.as_ref().and_then(|guide| guide.auto).filter(|scale| !AUTO_SCALE.contains(scale)) {
            let (least, most) = (AUTO_SCALE.start(), AUTO_SCALE.end());
            return Err(wrong(format!("the scale of auto is {scale}, but must be {least} to {most}")));
        }
        if last.is_some() && spacing.is_in_time() {
            return Err(wrong(format!(
                "last needs a spacing in the noise level, karras or logsnr, not {}",
                spacing.as_str()
            )));
        }
        if *solver == Solver::Pndm && !spacing.is_in_time() {
            return Err(wrong(format!(
                "pndm needs a spacing in time, leading, trailing or linspace, not {}",
                spacing.as_str()
            )));
        }
        if *solver == Solver::Pndm && !respacings.is_empty() {
            return Err(wrong("pndm cannot be respaced: its steps are of one size".to_owned()));
        }
        let counted: usize = widths.iter().map(|run| run.steps).sum();
        if counted != *steps {
            return Err(wrong(format!("the widths count {counted} steps, but the plan has {steps}")));
        }
        if *churn > 0.0 && !respacings.is_empty() {
            return Err(wrong(
                "churn cannot be respaced: how much noise it adds depends on the number of steps".to_owned(),
            ));
        }
        // What is spread anew may be all that is made, but nothing of what is left out.
        let mut before = self.made().start.saturating_sub(1);
        for (index, &Respacing { done, of }) in respacings.iter().enumerate() {
            let next = respacings.get(index + 1).map_or(*steps, |next| next.of);
            // At the level before the last there is nothing left to divide but the step to 0.
            let divisible = done + 2 <= of || next == done + 1;
            if done <= before || done >= of || done >= next || !divisible || !STEPS.contains(&of) {
                return Err(wrong(format!("respace {done}/{of} does not fit a plan of {next} steps")));
            }
            before = done;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}@", self.solver, self.steps)?;
        match self.widths.as_slice() {
            [run] => f.write_str(&run.subnet)?,
            runs => {
                for (i, run) in runs.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma}{}*{}", run.subnet, run.steps)?;
                }
            }
        }
        if let Some(guide) = &self.guide {
            write!(f, "{guide}")?;
        }
        if self.spacing != self.solver.spacing() {
            write!(f, "~{}", self.spacing.as_str())?;
        }
        if let Some(last) = self.last {
            write!(f, "~last={last}")?;
        }
        if self.eta > 0.0 {
            write!(f, "~eta={}", self.eta)?;
        }
        if self.churn > 0.0 {
            write!(f, "~churn={}", self.churn)?;
        }
        if self.strength < 1.0 {
            write!(f, "~strength={}", self.strength)?;
        }
        if !self.decode.is_full() {
            write!(f, "~decode={}", self.decode)?;
        }
        for (index, Respacing { done, of }) in self.respacings.iter().enumerate() {
            let start = if index == 0 { "~respace=" } else { "," };
            write!(f, "{start}{done}/{of}")?;
        }
        Ok(())
    }
}

impl FromStr for Plan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let shape = || wrong(format!("{text:?} is not <solver>-<steps>@<widths>, such as heun-18@full"));
        let mut parts = text.split('~');
        let (head, widths) = parts.next().and_then(|part| part.split_once('@')).ok_or_else(shape)?;
        let (solver, steps) = head.split_once('-').ok_or_else(shape)?;
        let solver: Solver = solver.parse()?;
        let steps = count(steps)?;
        let (widths, guide) = widths.split_once('^').map_or((widths, None), |(widths, guide)| (widths, Some(guide)));
        let (widths, guide) = (parse_widths(widths, steps)?, guide.map(str::parse).transpose()?);

        let mut spacing = None;
        let (mut churn, mut eta, mut last, mut strength) = (None, None, None, None);
        let (mut decode, mut respacings) = (None, None);
        for option in parts {
            let repeated = match option.split_once('=') {
                None if spacing_named(option).is_some() => {
                    std::mem::replace(&mut spacing, spacing_named(option)).is_some()
                }
                Some(("churn", amount)) => churn.replace(number("churn", amount, CHURN)?).is_some(),
                Some(("eta", amount)) => eta.replace(number("eta", amount, ETA)?).is_some(),
                Some(("last", level)) => last.replace(number("last", level, LAST)?).is_some(),
                Some(("strength", share)) => strength.replace(number("strength", share, STRENGTH)?).is_some(),
                Some(("decode", subnet)) => decode.replace(subnet.parse()?).is_some(),
                Some(("respace", list)) => respacings.replace(parse_respacings(list)?).is_some(),
                _ => {
                    return Err(wrong(format!(
                        "option {option:?} is not one of {}, last=<level>, eta=<number>, churn=<number>, strength=<share>, \
                         decode=<subnet>, respace=<done>/<of>",
                        Spacing::ALL.map(Spacing::as_str).join(", ")
                    )));
                }
            };
            if repeated {
                return Err(wrong(format!("option {option:?} repeats an earlier one")));
            }
        }
        let spacing = spacing.unwrap_or(solver.spacing());
        let (decode, respacings) = (decode.unwrap_or(SubnetName::full()), respacings.unwrap_or_default());
        let (churn, eta, strength) = (churn.unwrap_or(0.0), eta.unwrap_or(0.0), strength.unwrap_or(1.0));
        let plan = Self { solver, spacing, steps, churn, eta, last, strength, widths, guide, decode, respacings };
        plan.check()?;
        Ok(plan)
    }
}

impl TryFrom<String> for Plan {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Plan> for String {
    fn from(plan: Plan) -> Self {
        plan.to_string()
    }
}

/// One subnet for all `steps`, or counted runs; neighbours with the same subnet become one.
fn parse_widths(text: &str, steps: usize) -> Result<Vec<WidthRun>> {
    if !text.contains(['*', ',']) {
        return Ok(vec![WidthRun { subnet: text.parse()?, steps }]);
    }
    let mut runs: Vec<WidthRun> = Vec::new();
    for run in text.split(',') {
        let (subnet, steps) = run
            .split_once('*')
            .ok_or_else(|| wrong(format!("width {run:?} is not <subnet>*<steps>, such as 0.250*8")))?;
        let (subnet, steps): (SubnetName, usize) = (subnet.parse()?, count(steps)?);
        match runs.last_mut() {
            Some(last) if last.subnet == subnet => last.steps += steps,
            _ => runs.push(WidthRun { subnet, steps }),
        }
    }
    Ok(runs)
}

fn spacing_named(name: &str) -> Option<Spacing> {
    Spacing::ALL.into_iter().find(|spacing| spacing.as_str() == name)
}

/// The number of an option, with at most three decimals.
fn number(option: &str, text: &str, accepted: RangeInclusive<f64>) -> Result<f64> {
    let number = thousandths(text).filter(|number| accepted.contains(number));
    number.ok_or_else(|| {
        wrong(format!("{option} {text:?} is not a number from {} to {}", accepted.start(), accepted.end()))
    })
}

fn parse_respacings(text: &str) -> Result<Vec<Respacing>> {
    let one = |part: &str| {
        let (done, of) =
            part.split_once('/').ok_or_else(|| wrong(format!("respace {part:?} is not <done>/<of>, such as 5/12")))?;
        Ok(Respacing { done: count(done)?, of: count(of)? })
    };
    text.split(',').map(one).collect()
}

/// A number of steps.
fn count(text: &str) -> Result<usize> {
    // `usize::from_str` would also take a plus sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|steps| digits && STEPS.contains(steps)).ok_or_else(|| {
        wrong(format!("steps {text:?} are not a whole number from {} to {}", STEPS.start(), STEPS.end()))
    })
}

fn wrong(problem: String) -> Error {
    Error::input("plan", problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::SigmaRange;
    use crate::diffusion::schedule::sigmas_to_zero;
    use proptest::prelude::*;

    /// The noise levels of a plan for a network without steps.
    fn levels_of(text: &str, range: SigmaRange) -> Vec<f64> {
        parse(text).levels(&Process::edm(range)).iter().map(|level| level.sigma).collect()
    }

    fn parse(text: &str) -> Plan {
        text.parse().unwrap()
    }

    fn refusal(text: &str) -> String {
        text.parse::<Plan>().unwrap_err().to_string()
    }

    #[test]
    fn a_width_schedule_is_read_as_runs_of_steps() {
        let plan = parse("dpmpp2m-12@0.250*8,full*4");
        assert_eq!(
            plan,
            Plan {
                solver: Solver::DpmPp2m,
                spacing: Spacing::Karras,
                steps: 12,
                churn: 0.0,
                eta: 0.0,
                last: None,
                strength: 1.0,
                widths: vec![
                    WidthRun { subnet: SubnetName::of(0.25), steps: 8 },
                    WidthRun { subnet: SubnetName::full(), steps: 4 }
                ],
                guide: None,
                decode: SubnetName::full(),
                respacings: vec![],
            }
        );
        let subnets: Vec<&str> = (0..12).map(|step| &**plan.subnet_at(step)).collect();
        assert_eq!(subnets, [vec!["0.250"; 8], vec!["full"; 4]].concat());
    }

    #[test]
    fn options_are_read_in_any_order_and_written_in_one() {
        let plan = parse("heun-18@full~churn=40~logsnr");
        assert_eq!((plan.churn, plan.spacing), (40.0, Spacing::LogSnr));
        assert_eq!(plan.to_string(), "heun-18@full~logsnr~churn=40");
    }

    #[test]
    fn loose_spellings_become_canonical() {
        for (loose, canonical) in [
            ("heun-018@full*18", "heun-18@full"),
            ("heun-8@0.5", "heun-8@0.500"),
            ("heun-8@0.33333333333333333333333*3,1*5", "heun-8@0.333*3,full*5"),
            ("euler-8@0.25*3,0.250*1,full*4", "euler-8@0.250*4,full*4"),
            ("euler-2@full~churn=0", "euler-2@full"),
            ("heun-2@full~churn=2.50", "heun-2@full~churn=2.5"),
            ("dpmpp2m-4@full~eta=0.50~last=0.020", "dpmpp2m-4@full~last=0.02~eta=0.5"),
            ("dpmpp2m-4@full~eta=0", "dpmpp2m-4@full"),
            ("dpmpp2m-4@full~karras", "dpmpp2m-4@full"),
            ("ddim-4@full~leading", "ddim-4@full"),
            ("ddim-4@full~karras", "ddim-4@full~karras"),
        ] {
            assert_eq!(parse(loose).to_string(), canonical);
        }
    }

    #[test]
    fn a_constant_plan_is_the_parsed_one() {
        assert_eq!(Plan::constant(Solver::Heun, 18, "0.5").unwrap(), parse("heun-18@0.500"));
        assert!(Plan::constant(Solver::Heun, 0, "full").is_err());
        assert!(Plan::constant(Solver::Heun, 1001, "full").is_err());
        assert!(Plan::constant(Solver::Heun, 8, "half").is_err());
    }

    #[test]
    fn evaluations_are_one_a_step_but_for_heun_and_pndm() {
        let counts = ["heun-18@full", "heun-1@full", "euler-18@full", "dpmpp2m-18@full", "pndm-18@full", "pndm-1@full"]
            .map(|t| parse(t).evaluations());
        assert_eq!(counts, [35, 1, 18, 18, 19, 1]);
    }

    #[test]
    fn a_plan_in_a_file_is_its_text() {
        let plan = parse("dpmpp2m-12@0.250*8,full*4~logsnr");
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(text, r#""dpmpp2m-12@0.250*8,full*4~logsnr""#);
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn an_error_names_the_wrong_part_and_what_is_accepted() {
        for (text, message) in [
            ("", r#"plan: "" is not <solver>-<steps>@<widths>, such as heun-18@full"#),
            ("heun@full", r#"plan: "heun@full" is not <solver>-<steps>@<widths>, such as heun-18@full"#),
            ("ipndm-8@full", r#"plan: solver "ipndm" is not one of heun, euler, dpmpp2m, ddim, pndm"#),
            ("heun-0@full", r#"plan: steps "0" are not a whole number from 1 to 1000"#),
            ("heun-1001@full", r#"plan: steps "1001" are not a whole number from 1 to 1000"#),
            ("heun-+8@full", r#"plan: steps "+8" are not a whole number from 1 to 1000"#),
            ("heun-8@half", r#"plan: subnet "half" is not full or a ratio from 0.001 to 1, such as 0.250"#),
            ("heun-8@full*5,0.5*2", "plan: the widths count 7 steps, but the plan has 8"),
            ("heun-8@full*5,0.5", r#"plan: width "0.5" is not <subnet>*<steps>, such as 0.250*8"#),
            ("heun-8@full*0,0.5*8", r#"plan: steps "0" are not a whole number from 1 to 1000"#),
            ("euler-8@full~churn=4", "plan: churn needs the solver heun, not euler"),
            ("heun-8@full~churn=-1", r#"plan: churn "-1" is not a number from 0 to 1000"#),
            (
                "heun-8@full~linear",
                r#"plan: option "linear" is not one of karras, logsnr, linspace, leading, trailing, last=<level>, eta=<number>, churn=<number>, strength=<share>, decode=<subnet>, respace=<done>/<of>"#,
            ),
            ("heun-8@full~eta=1", "plan: eta needs the solver dpmpp2m, not heun"),
            ("dpmpp2m-8@full~eta=2", r#"plan: eta "2" is not a number from 0 to 1"#),
            ("heun-8@full~last=0", r#"plan: last "0" is not a number from 0.001 to 1"#),
            ("heun-8@full^half", r#"plan: subnet "half" is not full or a ratio from 0.001 to 1, such as 0.250"#),
            ("heun-8@full^auto:0.25*0.5", r#"plan: the scale of auto "0.5" is not a number from 1 to 20"#),
            (
                "heun-8@full^0.25^0.5",
                r#"plan: subnet "0.25^0.5" is not full or a ratio from 0.001 to 1, such as 0.250"#,
            ),
            ("heun-8@full~strength=0", r#"plan: strength "0" is not a number from 0.001 to 1"#),
            ("heun-8@full~strength=1.5", r#"plan: strength "1.5" is not a number from 0.001 to 1"#),
            ("heun-8@full~strength=0.5~respace=3/12", "plan: respace 3/12 does not fit a plan of 8 steps"),
            ("heun-8@full~respace=5", r#"plan: respace "5" is not <done>/<of>, such as 5/12"#),
            ("heun-8@full~respace=8/12", "plan: respace 8/12 does not fit a plan of 8 steps"),
            ("heun-8@full~respace=5/5", "plan: respace 5/5 does not fit a plan of 8 steps"),
            ("heun-8@full~respace=5/6", "plan: respace 5/6 does not fit a plan of 8 steps"),
            ("heun-8@full~respace=3/12,3/9", "plan: respace 3/9 does not fit a plan of 8 steps"),
            (
                "heun-8@full~respace=5/12~churn=1",
                "plan: churn cannot be respaced: how much noise it adds depends on the number of steps",
            ),
            ("heun-8@full~logsnr~logsnr", r#"plan: option "logsnr" repeats an earlier one"#),
            ("heun-8@full~logsnr~trailing", r#"plan: option "trailing" repeats an earlier one"#),
            ("ddim-8@full~last=0.1", "plan: last needs a spacing in the noise level, karras or logsnr, not leading"),
            ("pndm-8@full~karras", "plan: pndm needs a spacing in time, leading, trailing or linspace, not karras"),
            ("pndm-8@full~respace=5/12", "plan: pndm cannot be respaced: its steps are of one size"),
        ] {
            assert_eq!(refusal(text), message);
        }
    }

    #[test]
    fn a_last_level_of_its_own_ends_the_levels_of_a_plan_also_where_they_are_spread_anew() {
        let range = SigmaRange::new(0.002, 80.0).unwrap();
        let levels = |text: &str| levels_of(text, range);
        assert_eq!(
            levels("heun-6@full~last=0.1"),
            sigmas_to_zero(Spacing::Karras, 6, SigmaRange { min: 0.1, ..range })
        );
        let respaced = levels("heun-6@full~last=0.1~respace=3/12");
        assert_eq!(respaced[..=3], levels("heun-12@full~last=0.1")[..=3]);
        assert_eq!(respaced[5..], [0.1, 0.0]);
    }

    #[test]
    fn a_respaced_plan_keeps_the_levels_that_are_done_and_divides_what_is_left() {
        let range = SigmaRange::new(0.002, 80.0).unwrap();
        let levels = |text: &str| levels_of(text, range);
        let twelve = levels("dpmpp2m-12@full");
        assert_eq!(twelve, sigmas_to_zero(Spacing::Karras, 12, range));
        let respaced = levels("dpmpp2m-8@full~respace=5/12");
        assert_eq!(respaced.len(), 9);
        assert_eq!(respaced[..=5], twelve[..=5]);
        assert_eq!(respaced[5..], sigmas_to_zero(Spacing::Karras, 3, SigmaRange { max: twelve[5], ..range }));
        let twice = levels("dpmpp2m-7@full~respace=5/12,6/8");
        assert_eq!((&twice[..=6], twice[7]), (&respaced[..=6], 0.0));
        let whole = levels("euler-12@full~logsnr");
        for (again, whole) in levels("euler-12@full~respace=5/12~logsnr").iter().zip(&whole) {
            assert!((again - whole).abs() <= 1e-14 * whole, "{again} is not {whole}");
        }
    }

    fn any_plan() -> impl Strategy<Value = Plan> {
        let name = prop_oneof![Just(SubnetName::full()), (1..=999u32).prop_map(|p| SubnetName::of(f64::from(p) / 1e3))];
        let scale = prop::option::of((1000..=20_000u32).prop_map(|scale| f64::from(scale) / 1e3));
        let guide = prop::option::of((name.clone(), scale).prop_map(|(subnet, auto)| PlannedGuide { subnet, auto }));
        let decode = name.clone();
        let run = (name, 1..=100usize).prop_map(|(subnet, steps)| WidthRun { subnet, steps });
        let solver = prop::sample::select(Solver::ALL.to_vec());
        let spacing = prop::sample::select(Spacing::ALL.to_vec());
        let last = prop::option::of((1..=1000u32).prop_map(|last| f64::from(last) / 1e3));
        let strength = prop_oneof![Just(1.0), (1..=1000u32).prop_map(|share| f64::from(share) / 1e3)];
        (solver, spacing, (0..=1_000_000u32, last, strength, guide, decode), prop::collection::vec(run, 1..=10))
            .prop_map(|(solver, spacing, (amount, last, strength, guide, decode), runs)| {
                let mut widths = runs;
                widths.dedup_by(|a, b| a.subnet == b.subnet);
                let steps = widths.iter().map(|run| run.steps).sum();
                let churn = if solver == Solver::Heun { f64::from(amount) / 1e3 } else { 0.0 };
                let eta = if solver == Solver::DpmPp2m { f64::from(amount / 1000) / 1e3 } else { 0.0 };
                let spacing = if solver == Solver::Pndm && !spacing.is_in_time() { Spacing::Trailing } else { spacing };
                let last = last.filter(|_| !spacing.is_in_time());
                Plan { solver, spacing, steps, churn, eta, last, strength, widths, guide, decode, respacings: vec![] }
            })
    }

    #[test]
    fn a_plan_fits_the_process_that_a_network_was_trained_on() {
        let preconditioning = crate::diffusion::preconditioning::Preconditioning::STABLE_DIFFUSION;
        let steps = Process { preconditioning, range: SigmaRange::of(&preconditioning) };
        let none = Process::edm(SigmaRange::new(0.002, 80.0).unwrap());
        let problem = |text: &str, process| parse(text).check_for(&process).err().unwrap_or_default();
        for text in ["heun-8@full", "dpmpp2m-8@full~last=0.1", "euler-1000@full"] {
            assert_eq!([none, steps].map(|process| problem(text, process)), [""; 2], "{text}");
        }
        for text in
            ["ddim-999@full", "pndm-25@full", "dpmpp2m-300@full~linspace", "heun-1@full~trailing", "ddim-5@full~karras"]
        {
            assert_eq!(problem(text, steps), "", "{text}");
            assert!(problem(text, none).ends_with("trained on a process in steps, which the model was not"), "{text}");
        }
        assert!(problem("euler-8@full~linspace", none).starts_with("linspace is of"));
        assert!(problem("ddim-8@full~logsnr", none).starts_with("ddim is of"));
        for text in ["dpmpp2m-1000@full~leading", "ddim-1000@full"] {
            assert_eq!(problem(text, steps), "1000 steps are too many for 1000 steps of training, spread so", "{text}");
        }
    }

    #[test]
    fn a_plan_in_time_goes_on_from_where_it_is() {
        let preconditioning = crate::diffusion::preconditioning::Preconditioning::STABLE_DIFFUSION;
        let process = Process { preconditioning, range: SigmaRange::of(&preconditioning) };
        let times = |text: &str| -> Vec<f64> {
            let levels = parse(text).levels(&process);
            assert!(parse(text).check_for(&process).is_ok());
            levels[..levels.len() - 1].iter().map(|level| level.time.unwrap()).collect()
        };
        assert_eq!(times("ddim-5@full~respace=2/10"), [901.0, 801.0, 701.0, 351.0, 1.0]);
        assert_eq!(times("dpmpp2m-5@full~linspace~respace=2/10"), [999.0, 899.0, 799.0, 533.0, 266.0]);
        assert_eq!(times("euler-5@full~trailing~respace=2/10"), [999.0, 899.0, 799.0, 532.0, 266.0]);
        assert_eq!(times("euler-4@full~linspace~respace=2/10"), [999.0, 888.0, 777.0, 0.0]);
        assert_eq!(times("ddim-3@full~respace=2/10"), [901.0, 801.0, 701.0]);
    }

    #[test]
    fn a_plan_that_goes_on_otherwise_says_where_and_reads_back() {
        let run = |subnet: &str, steps| WidthRun { subnet: subnet.parse().unwrap(), steps };
        let plan = parse("dpmpp2m-12@full");
        let shorter = plan.continued(5, &[run("0.250", 2), run("full", 1)]).unwrap();
        assert_eq!(shorter.to_string(), "dpmpp2m-8@full*5,0.250*2,full*1~respace=5/12");
        let again = shorter.continued(6, &[run("0.250", 1)]).unwrap();
        assert_eq!(again.to_string(), "dpmpp2m-7@full*5,0.250*2~respace=5/12,6/8");
        for plan in [&shorter, &again] {
            assert_eq!(&parse(&plan.to_string()), plan);
        }
        assert_eq!(plan.continued(5, &[run("0.250", 7)]).unwrap().to_string(), "dpmpp2m-12@full*5,0.250*7");
        assert_eq!(plan.continued(0, &[run("0.250", 4)]).unwrap().to_string(), "dpmpp2m-4@0.250");
        assert_eq!(plan.continued(12, &[run("0.250", 4)]), None);
        assert_eq!(plan.continued(11, &[run("0.250", 4)]), None, "the last step cannot be divided");
        assert_eq!(plan.continued(4, &[]), None);
        assert_eq!(parse("heun-8@full~churn=4").continued(4, &[run("full", 2)]), None);
    }

    #[test]
    fn the_second_call_of_a_guided_step_may_be_of_a_subnet_of_its_own() {
        let guide = |text: &str, given| {
            let plan = parse(text);
            plan.guide_at(0, given).map(|(subnet, scale)| (subnet.to_string(), scale))
        };
        let is = |subnet: &str, scale| Some((subnet.to_owned(), scale));
        assert_eq!([guide("euler-2@full", None), guide("euler-2@full", Some(3.0))], [None, is("full", 3.0)]);
        assert_eq!([guide("euler-2@full^0.25", None), guide("euler-2@full^0.25", Some(3.0))], [None, is("0.250", 3.0)]);
        let auto = "euler-2@full^auto:0.25";
        assert_eq!([guide(auto, None), guide(auto, Some(3.0))], [is("0.250", 1.5), is("0.250", 3.0)]);
        assert_eq!(guide("euler-2@full*1,0.250*1^auto:0.25*2", None), is("0.250", 2.0));
        assert_eq!(parse("euler-2@0.250*1,full*1^auto:0.25*2").guide_at(0, None), None, "by itself");
        for (loose, canonical) in [
            ("euler-2@1^0.25~linspace", "euler-2@full^0.250~linspace"),
            ("euler-2@full^auto:0.25*1.5", "euler-2@full^auto:0.250"),
            ("euler-2@full^auto:0.25*2.0~logsnr", "euler-2@full^auto:0.250*2~logsnr"),
        ] {
            assert_eq!(parse(loose).to_string(), canonical);
        }
        let run = |subnet: &str, steps| WidthRun { subnet: subnet.parse().unwrap(), steps };
        let shorter = parse("dpmpp2m-12@full^0.250").continued(5, &[run("0.500", 3)]).unwrap();
        assert_eq!(shorter.to_string(), "dpmpp2m-8@full*5,0.500*3^0.250~respace=5/12");
    }

    #[test]
    fn a_narrower_decoder_is_a_part_of_the_plan_and_stays_where_steps_change() {
        assert_eq!(parse("ddim-4@full").decode, SubnetName::full());
        for (loose, canonical) in [
            ("ddim-4@full~decode=0.5", "ddim-4@full~decode=0.500"),
            ("ddim-4@full~decode=full", "ddim-4@full"),
            ("ddim-4@full~decode=1", "ddim-4@full"),
            ("ddim-4@full~decode=0.25~strength=0.5~trailing", "ddim-4@full~trailing~strength=0.5~decode=0.250"),
        ] {
            assert_eq!(parse(loose).to_string(), canonical);
        }
        assert!(refusal("ddim-4@full~decode=half").contains("subnet \"half\" is not full or a ratio"));
        assert!(refusal("ddim-4@full~decode=0.5~decode=0.5").contains("repeats an earlier one"));
        let run = |subnet: &str, steps| WidthRun { subnet: subnet.parse().unwrap(), steps };
        let shorter = parse("dpmpp2m-12@full~decode=0.5").continued(5, &[run("0.500", 3)]).unwrap();
        assert_eq!(shorter.to_string(), "dpmpp2m-8@full*5,0.500*3~decode=0.500~respace=5/12");
        assert_eq!(parse(&shorter.to_string()), shorter);
    }

    #[test]
    fn an_image_that_starts_from_a_picture_makes_the_last_steps_alone() {
        let made = |text: &str| (parse(text).made(), parse(text).evaluations());
        assert_eq!(made("heun-10@full~strength=0.5"), (5..10, 9));
        assert_eq!(made("pndm-10@full~strength=0.59"), (5..10, 6));
        assert_eq!(made("ddim-10@full~strength=0.01"), (9..10, 1));
        assert_eq!(made("euler-1@full~strength=0.5"), (0..1, 1));
        let positions = |text: &str| {
            let plan = parse(text);
            (0..=plan.evaluations()).map(|calls| plan.position(calls)).collect::<Vec<_>>()
        };
        assert_eq!(positions("heun-4@full~strength=0.5"), [(2, true), (2, false), (3, true), (4, true)]);
        assert_eq!(positions("pndm-4@full~strength=0.5"), [(2, true), (2, false), (3, true), (4, true)]);
        assert_eq!(parse("ddim-20@full").started(0.6004).to_string(), "ddim-20@full~strength=0.6");
        assert_eq!(parse("ddim-20@full").started(1e-9).strength, 0.001);
        let run = |subnet: &str, steps| WidthRun { subnet: subnet.parse().unwrap(), steps };
        let shorter = parse("dpmpp2m-20@full~strength=0.6").continued(12, &[run("0.250", 4)]).unwrap();
        assert_eq!(shorter.to_string(), "dpmpp2m-16@full*12,0.250*4~strength=0.6~respace=12/20");
        assert_eq!((shorter.made(), &parse(&shorter.to_string())), (8..16, &shorter));
        let at_once = parse("dpmpp2m-20@full~strength=0.6").continued(8, &[run("0.250", 4)]).unwrap();
        assert_eq!((at_once.made(), &parse(&at_once.to_string())), (8..12, &at_once));
    }

    #[test]
    fn how_much_of_a_picture_is_kept_does_not_depend_on_the_number_of_steps_where_levels_are_spread_in_the_noise() {
        let range = SigmaRange::new(0.002, 80.0).unwrap();
        let half = sigmas_to_zero(Spacing::Karras, 3, range)[1];
        for steps in [1, 2, 3, 8, 40] {
            let plan = parse(&format!("dpmpp2m-{steps}@full~strength=0.5"));
            let levels = levels_of(&plan.to_string(), range);
            assert_eq!(levels.len(), steps + 1);
            assert_eq!(
                levels[plan.made().start..],
                sigmas_to_zero(Spacing::Karras, plan.made().len(), SigmaRange { max: half, ..range })
            );
        }
        let respaced = levels_of("dpmpp2m-8@full~strength=0.5~respace=6/12", range);
        assert_eq!(respaced[6..], sigmas_to_zero(Spacing::Karras, 2, SigmaRange { max: half, ..range }));
    }

    #[test]
    fn a_position_counts_heun_s_calls_in_pairs_but_for_the_last_and_pndm_s_first() {
        let positions = |text: &str| {
            let plan = parse(text);
            (0..=plan.evaluations()).map(|calls| plan.position(calls)).collect::<Vec<_>>()
        };
        assert_eq!(positions("heun-3@full"), [(0, true), (0, false), (1, true), (1, false), (2, true), (3, true)]);
        assert_eq!(positions("euler-2@full"), [(0, true), (1, true), (2, true)]);
        assert_eq!(positions("pndm-3@full"), [(0, true), (0, false), (1, true), (2, true), (3, true)]);
        assert_eq!(positions("pndm-1@full"), [(0, true), (1, true)]);
    }

    proptest! {
        #[test]
        fn every_plan_is_read_back_from_its_text(plan in any_plan()) {
            let text = plan.to_string();
            prop_assert_eq!(&parse(&text), &plan);
            prop_assert_eq!(parse(&text).to_string(), text);
        }

        #[test]
        fn any_text_is_a_canonical_plan_or_one_sentence(text in any::<String>()) {
            check_any(&text)?;
        }

        #[test]
        fn text_that_resembles_a_plan_is_a_canonical_plan_or_one_sentence(
            text in "(heun|euler|dpmpp2m|ddim|pndm|h)?-?[0-9]{0,4}@?((full|[01]?\\.?[0-9]{0,4})\\*?[0-9]{0,2},?){0,3}(\\^(auto:)?[0-9.]{0,4}(\\*[0-9]{0,2})?)?(~(logsnr|leading|churn=?[0-9.e-]{0,5}|decode=?[0-9.]{0,4}|respace=?([0-9]{0,2}/?[0-9]{0,2},?){0,2})){0,2}"
        ) {
            check_any(&text)?;
        }
    }

    fn check_any(text: &str) -> std::result::Result<(), TestCaseError> {
        match text.parse::<Plan>() {
            Ok(plan) => {
                prop_assert!(plan.check().is_ok());
                prop_assert!((0..plan.steps).all(|step| !plan.subnet_at(step).is_empty()));
                prop_assert_eq!(&parse(&plan.to_string()), &plan);
            }
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
        Ok(())
    }
}
