//! What the client asked.

use crate::diffusion::plan::Plan;
use crate::routing::RoutingError;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// The accepted deadlines.
const WITHIN_MS: RangeInclusive<f64> = 1.0..=3_600_000.0;

/// How much time a request may take, in the client's words.
#[derive(Clone, Debug, PartialEq)]
pub enum Budget {
    /// The quickest plan worth showing.
    Fast,
    /// The plan for most requests; what is meant when nothing is said.
    Balanced,
    /// The best image that the model can draw.
    Best,
    /// The best image that can be had in this time, waiting and encoding included.
    Within(Duration),
    /// This plan and no other: reproducible.
    Exact(Plan),
}

impl Budget {
    /// What a request without a budget gets.
    pub const DEFAULT: Self = Self::Balanced;

    /// The label in metrics and logs: a closed set, so the plan of an exact budget is not in it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Balanced => "balanced",
            Self::Best => "best",
            Self::Within(_) => "deadline",
            Self::Exact(_) => "exact",
        }
    }
}

impl FromStr for Budget {
    type Err = RoutingError;

    /// # Errors
    /// [`RoutingError::UnknownBudget`] for an unknown word, [`RoutingError::InvalidPlan`] for a plan that does not parse,
    /// [`RoutingError::InvalidDeadline`] for a time out of range.
    fn from_str(text: &str) -> Result<Self, RoutingError> {
        let named = [Self::Fast, Self::Balanced, Self::Best].into_iter();
        if let Some(named) = named.into_iter().find(|budget| text.eq_ignore_ascii_case(budget.as_str())) {
            return Ok(named);
        }
        if let Some(plan) = text.strip_prefix("exact:") {
            return plan.parse().map(Self::Exact).map_err(|e| RoutingError::InvalidPlan(format!("{e}")));
        }
        let (number, ms) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
            (Some(number), _) => (number, 1.0),
            (None, Some(number)) => (number, 1e3),
            (None, None) => return Err(RoutingError::UnknownBudget(text.to_owned())),
        };
        let ms = decimal(number).ok_or_else(|| RoutingError::UnknownBudget(text.to_owned()))? * ms;
        if !WITHIN_MS.contains(&ms) {
            return Err(RoutingError::InvalidDeadline(text.to_owned()));
        }
        Ok(Self::Within(Duration::from_secs_f64(ms / 1e3)))
    }
}

/// The quality below which the client prefers a refusal.
#[derive(Clone, Debug, PartialEq)]
pub enum MinQuality {
    /// That of this plan of the frontier.
    Plan(Plan),
    /// This share of the best plan's, from 0 to 1.
    Share(f64),
}

impl FromStr for MinQuality {
    type Err = RoutingError;

    /// # Errors
    /// [`RoutingError::InvalidMinQuality`] for a text that is neither.
    fn from_str(text: &str) -> Result<Self, RoutingError> {
        let refused = |why: String| RoutingError::InvalidMinQuality(format!("`{text}` {why}"));
        if text.contains('@') {
            return text.parse().map(Self::Plan).map_err(|e| refused(format!("is no plan ({e})")));
        }
        let share = decimal(text).filter(|share| (0.0..=1.0).contains(share)).map(Self::Share);
        share.ok_or_else(|| refused("is no share of the best quality".to_owned()))
    }
}

/// A plain decimal number. `f64::from_str` would also take a sign, an exponent, `inf` and `nan`.
fn decimal(text: &str) -> Option<f64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.len() <= 12 && part.bytes().all(|byte| byte.is_ascii_digit());
    (digits(whole) && digits(fraction)).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_named_budget_parses_to_itself() {
        for name in ["fast", "balanced", "best"] {
            assert_eq!(name.parse::<Budget>().unwrap().as_str(), name);
            assert_eq!(name.to_uppercase().parse::<Budget>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_time_is_a_deadline() {
        for (text, ms) in [("250ms", 250), ("1.5s", 1500), ("1ms", 1), ("3600s", 3_600_000), ("0.5s", 500)] {
            assert_eq!(text.parse::<Budget>().unwrap(), Budget::Within(Duration::from_millis(ms)), "{text}");
        }
        for text in ["0ms", "0.5ms", "3601s", "999999999999s"] {
            let error = text.parse::<Budget>().unwrap_err();
            assert!(matches!(error, RoutingError::InvalidDeadline(_)), "{text}: {error}");
        }
    }

    #[test]
    fn an_exact_budget_carries_its_plan() {
        let Budget::Exact(plan) = "exact:heun-18@full".parse().unwrap() else { panic!("not exact") };
        assert_eq!(plan.to_string(), "heun-18@full");
    }

    #[test]
    fn a_misspelt_budget_is_refused_with_the_accepted_ones() {
        for text in ["fsat", "", " fast", "250", "ms", "s", "-1s", "1e3ms", "infs", "exact", "1.ms", ".5s", "٣s"] {
            let message = text.parse::<Budget>().unwrap_err().to_string();
            assert!(message.contains("fast, balanced, best, a time such as 250ms and exact:<plan>"), "{message}");
        }
    }

    #[test]
    fn an_exact_budget_with_a_broken_plan_says_what_is_wrong_with_the_plan() {
        let error = "exact:heun".parse::<Budget>().unwrap_err();
        assert!(matches!(error, RoutingError::InvalidPlan(_)), "{error:?}");
    }

    #[test]
    fn a_least_quality_is_a_plan_or_a_share() {
        assert_eq!("0.9".parse(), Ok(MinQuality::Share(0.9)));
        assert_eq!("1".parse(), Ok(MinQuality::Share(1.0)));
        assert_eq!("euler-2@full".parse(), Ok(MinQuality::Plan("euler-2@full".parse().unwrap())));
        for text in ["", "1.01", "-0.5", "90%", "NaN", "good", "euler@full"] {
            let message = text.parse::<MinQuality>().unwrap_err().to_string();
            assert!(message.contains("a plan of the frontier or a share"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = (text.parse::<Budget>(), text.parse::<MinQuality>());
        }

        #[test]
        fn no_plan_like_text_makes_the_plan_parser_panic(
            text in "exact:(heun|dpmpp2m|euler|x)?-?[0-9]{0,24}@?(full|0\\.[0-9]{0,5}|[*,~=./@-]|churn=[0-9e.+-]{0,9}|respace=){0,6}",
        ) {
            if let Ok(Budget::Exact(plan)) = text.parse::<Budget>() {
                prop_assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan);
            }
        }

        #[test]
        fn no_time_like_text_makes_the_parser_panic(text in "[0-9.]{0,30}(m|ms|s|)") {
            if let Ok(Budget::Within(within)) = text.parse::<Budget>() {
                prop_assert!((Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&within));
            }
        }
    }
}
