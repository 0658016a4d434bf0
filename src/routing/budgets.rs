//! What the named budgets mean, and what a request's budget and floor mean on a measured frontier.

use crate::diffusion::plan::Plan;
use crate::engine::policy::Wish;
use crate::routing::{Budget, Ladder, MinQuality, RoutingError, StepTimes};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// The points of the frontier that have names.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budgets {
    /// `budget=fast`.
    #[serde(deserialize_with = "fast")]
    pub fast: NamedBudget,
    /// `budget=balanced`.
    #[serde(deserialize_with = "balanced")]
    pub balanced: NamedBudget,
    /// `budget=best`.
    #[serde(deserialize_with = "best")]
    pub best: NamedBudget,
}

/// A point of the frontier: the fastest plan of a quality. In a file: `quality = 0.9`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NamedBudget {
    /// The quality that it asks for, as a share of the best plan's, from 0 to 1.
    pub quality: f64,
    /// By when its images must be there under load, in milliseconds.
    pub within_ms: u64,
    /// The share below which it is refused rather than served; a request's `min_quality` outdoes it.
    pub min_quality: f64,
}

/// A table of a file: what it leaves out is the default of its budget.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Partial {
    quality: Option<f64>,
    within_ms: Option<u64>,
    min_quality: Option<f64>,
}

fn over<'de, D: serde::Deserializer<'de>>(default: NamedBudget, from: D) -> Result<NamedBudget, D::Error> {
    let Partial { quality, within_ms, min_quality } = Partial::deserialize(from)?;
    Ok(NamedBudget {
        quality: quality.unwrap_or(default.quality),
        within_ms: within_ms.unwrap_or(default.within_ms),
        min_quality: min_quality.unwrap_or(default.min_quality),
    })
}

fn fast<'de, D: serde::Deserializer<'de>>(from: D) -> Result<NamedBudget, D::Error> {
    over(Budgets::default().fast, from)
}

fn balanced<'de, D: serde::Deserializer<'de>>(from: D) -> Result<NamedBudget, D::Error> {
    over(Budgets::default().balanced, from)
}

fn best<'de, D: serde::Deserializer<'de>>(from: D) -> Result<NamedBudget, D::Error> {
    over(Budgets::default().best, from)
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            fast: NamedBudget { quality: 0.8, within_ms: 2_000, min_quality: 0.0 },
            balanced: NamedBudget { quality: 0.95, within_ms: 10_000, min_quality: 0.0 },
            best: NamedBudget { quality: 1.0, within_ms: 60_000, min_quality: 0.0 },
        }
    }
}

/// What a budget comes to on a ladder.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// What the request may run.
    pub wish: Wish,
    /// The time that it has.
    pub within: Duration,
    /// The quality that it would have on an idle machine, where it is known.
    pub asked: Option<f64>,
}

impl Budgets {
    /// The named budgets with their names, in order of cost.
    pub fn named(&self) -> [(&'static str, &NamedBudget); 3] {
        [("fast", &self.fast), ("balanced", &self.balanced), ("best", &self.best)]
    }

    /// What `budget` comes to. An exact plan has `longest` to be drawn: it has no deadline of its own.
    ///
    /// # Errors
    /// [`RoutingError::Contradiction`] for an exact plan with a `min_quality`, [`RoutingError::InvalidMinQuality`] for a
    /// plan that is not of the frontier; as [`require_known`].
    pub fn resolve(
        &self,
        budget: &Budget,
        min_quality: Option<&MinQuality>,
        ladder: &Ladder,
        times: &StepTimes,
        longest: Duration,
    ) -> Result<Resolved, RoutingError> {
        let best = ladder.best().quality;
        let floor = match min_quality {
            None => None,
            Some(MinQuality::Share(share)) => Some(share * best),
            Some(MinQuality::Plan(plan)) => {
                require_known(plan, times)?;
                let unknown = || RoutingError::InvalidMinQuality(format!("`{plan}` is not of the frontier"));
                Some(ladder.quality(plan).ok_or_else(unknown)?)
            }
        };
        let (named, within) = match budget {
            Budget::Exact(plan) => {
                if floor.is_some() {
                    let problem = "an exact plan has the quality that it has: leave out `min_quality`";
                    return Err(RoutingError::Contradiction(problem.to_owned()));
                }
                require_known(plan, times)?;
                let asked = ladder.quality(plan);
                return Ok(Resolved { wish: Wish::Exact(Arc::new(plan.clone())), within: longest, asked });
            }
            Budget::Within(within) => {
                (NamedBudget { quality: 1.0, within_ms: 0, min_quality: 0.0 }, (*within).min(longest))
            }
            Budget::Fast => (self.fast, Duration::from_millis(self.fast.within_ms)),
            Budget::Balanced => (self.balanced, Duration::from_millis(self.balanced.within_ms)),
            Budget::Best => (self.best, Duration::from_millis(self.best.within_ms)),
        };
        let floor = floor.unwrap_or(named.min_quality * best);
        let target = (named.quality * best).max(floor);
        let affordable = match budget {
            // What an idle machine would draw in the time.
            Budget::Within(within) => {
                let fits = ladder.rungs().iter().rev().find(|rung| rung.alone <= within.as_secs_f64());
                fits.unwrap_or(&ladder.rungs()[0]).quality
            }
            _ => ladder.rungs()[ladder.at_least(target)].quality,
        };
        Ok(Resolved { wish: Wish::Quality { floor, target }, within: within.min(longest), asked: Some(affordable) })
    }
}

/// Checks that every subnet of `plan`, and that of its decoder, is one whose `times` are known.
///
/// # Errors
/// [`RoutingError::UnknownSubnet`] and [`RoutingError::UnknownDecoder`], with those that are; [`RoutingError::NoDecoder`].
pub fn require_known(plan: &Plan, times: &StepTimes) -> Result<(), RoutingError> {
    if let Some(subnet) = plan.subnets().find(|subnet| times.subnet(subnet).is_none()) {
        return Err(RoutingError::UnknownSubnet { name: subnet.to_string(), accepted: times.subnets().to_vec() });
    }
    if times.finish(plan).is_some() {
        return Ok(());
    }
    let accepted: Vec<String> = times.decoders().map(str::to_owned).collect();
    match accepted.is_empty() {
        true => Err(RoutingError::NoDecoder),
        false => Err(RoutingError::UnknownDecoder { name: plan.decode.to_string(), accepted }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::ladder::tests::{ladder, times};

    const HOUR: Duration = Duration::from_secs(3600);

    fn resolve(budget: &str, min_quality: Option<&str>) -> Result<Resolved, RoutingError> {
        resolve_with(&times(), budget, min_quality)
    }

    fn resolve_with(times: &StepTimes, budget: &str, min_quality: Option<&str>) -> Result<Resolved, RoutingError> {
        let min_quality = min_quality.map(str::parse).transpose()?;
        Budgets::default().resolve(&budget.parse()?, min_quality.as_ref(), &ladder(), times, HOUR)
    }

    fn quality(budget: &str, min_quality: Option<&str>) -> (f64, f64) {
        let Wish::Quality { floor, target } = resolve(budget, min_quality).unwrap().wish else { panic!("exact") };
        (floor, target)
    }

    #[test]
    fn each_named_budget_is_a_share_of_the_best_quality() {
        assert_eq!(quality("fast", None), (0.0, 0.8));
        assert_eq!(quality("balanced", None), (0.0, 0.95));
        assert_eq!(quality("best", None), (0.0, 1.0));
        assert_eq!(resolve("fast", None).unwrap().within, Duration::from_secs(2));
        assert_eq!(resolve("balanced", None).unwrap().asked, Some(0.96));
    }

    #[test]
    fn a_deadline_asks_for_the_best_that_fits() {
        let resolved = resolve("40ms", None).unwrap();
        assert_eq!(resolved.within, Duration::from_millis(40));
        assert_eq!(resolved.wish, Wish::Quality { floor: 0.0, target: 1.0 });
        assert_eq!(resolved.asked, Some(0.96));
    }

    #[test]
    fn a_floor_is_a_share_or_a_plan_of_the_frontier_and_lifts_the_target() {
        assert_eq!(quality("balanced", Some("0.5")), (0.5, 0.95));
        assert_eq!(quality("fast", Some("0.9")), (0.9, 0.9));
        assert_eq!(quality("250ms", Some("dpmpp2m-6@0.500")), (0.9, 1.0));
        let message = resolve("fast", Some("euler-3@full")).unwrap_err().to_string();
        assert!(message.contains("`euler-3@full` is not of the frontier"), "{message}");
        assert!(matches!(resolve("fast", Some("euler-3@0.75")), Err(RoutingError::UnknownSubnet { .. })));
    }

    #[test]
    fn an_exact_plan_is_taken_as_it_is() {
        let resolved = resolve("exact:euler-3@0.25*2,full*1", None).unwrap();
        let Wish::Exact(plan) = resolved.wish else { panic!("not exact") };
        assert_eq!((plan.to_string().as_str(), resolved.asked), ("euler-3@0.250*2,full*1", None));
        assert!(matches!(resolve("exact:heun-4@full", Some("0.5")), Err(RoutingError::Contradiction(_))));
        let message = resolve("exact:heun-4@0.750", None).unwrap_err().to_string();
        assert!(message.contains("accepted are 0.250, 0.500, full"), "{message}");
    }

    #[test]
    fn a_plan_s_decoder_is_one_that_the_model_has() {
        let decoders = [("0.500", 0.01), ("full", 0.02)].map(|(name, seconds)| (name.to_owned(), seconds));
        let latents = times().with_codec(0.0, decoders.to_vec());
        let refusal = |times: &StepTimes, plan: &str| resolve_with(times, plan, None).unwrap_err().to_string();
        assert!(resolve_with(&latents, "exact:euler-3@full~decode=0.5", None).is_ok());
        let message = refusal(&latents, "exact:euler-3@full~decode=0.25");
        assert_eq!(message, "decoder `0.250` is unknown: accepted are 0.500, full");
        let message = refusal(&times(), "exact:euler-3@full~decode=0.5");
        assert_eq!(message, "~decode is of models that draw latents, but this one draws pictures itself");
    }

    #[test]
    fn a_table_says_what_differs_from_the_defaults_and_nothing_unknown() {
        let budgets: Budgets = toml::from_str("[fast]\nquality = 0.5").unwrap();
        assert_eq!(budgets.fast, NamedBudget { quality: 0.5, ..Budgets::default().fast });
        assert_eq!(budgets.best, Budgets::default().best);
        for text in
            ["[fats]\nquality = 0.5", "[fast]\nqualty = 0.5", "fast = \"heun-18@full\"", "[fast]\nquality = \"x\""]
        {
            assert!(toml::from_str::<Budgets>(text).is_err(), "{text}");
        }
    }
}
