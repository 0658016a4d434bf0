//! What the client asked.

use crate::diffusion::plan::Plan;
use crate::routing::RoutingError;
use std::str::FromStr;

/// How much time a request may take, in the client's words.
#[derive(Clone, Debug, PartialEq)]
pub enum Budget {
    /// The quickest plan worth showing.
    Fast,
    /// The plan for most requests; what is meant when nothing is said.
    Balanced,
    /// The best image that the model can draw.
    Best,
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
            Self::Exact(_) => "exact",
        }
    }
}

impl FromStr for Budget {
    type Err = RoutingError;

    /// # Errors
    /// [`RoutingError::UnknownBudget`] for an unknown word, [`RoutingError::InvalidPlan`] for a plan that does not parse.
    fn from_str(text: &str) -> Result<Self, RoutingError> {
        match text {
            "fast" => Ok(Self::Fast),
            "balanced" => Ok(Self::Balanced),
            "best" => Ok(Self::Best),
            _ => match text.strip_prefix("exact:") {
                Some(plan) => plan.parse().map(Self::Exact).map_err(|e| RoutingError::InvalidPlan(format!("{e}"))),
                None => Err(RoutingError::UnknownBudget(text.to_owned())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_named_budget_parses_to_itself() {
        for name in ["fast", "balanced", "best"] {
            assert_eq!(name.parse::<Budget>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn an_exact_budget_carries_its_plan() {
        let Budget::Exact(plan) = "exact:heun-18@full".parse().unwrap() else { panic!("not exact") };
        assert_eq!(plan.to_string(), "heun-18@full");
    }

    #[test]
    fn a_misspelt_budget_is_refused_with_the_accepted_ones() {
        for text in ["fsat", "", "Fast", "250ms", "exact"] {
            let message = text.parse::<Budget>().unwrap_err().to_string();
            assert!(message.contains("fast, balanced, best and exact:<plan>"), "{message}");
        }
    }

    #[test]
    fn an_exact_budget_with_a_broken_plan_says_what_is_wrong_with_the_plan() {
        let error = "exact:heun".parse::<Budget>().unwrap_err();
        assert!(matches!(error, RoutingError::InvalidPlan(_)), "{error:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_budget_parser_panic(text in ".*") {
            let _ = text.parse::<Budget>();
        }

        #[test]
        fn no_plan_like_text_makes_the_plan_parser_panic(
            text in "exact:(heun|dpmpp2m|euler|x)?-?[0-9]{0,24}@?(full|0\\.[0-9]{0,5}|[*,~=.@-]|churn=[0-9e.+-]{0,9}){0,6}",
        ) {
            if let Ok(Budget::Exact(plan)) = text.parse::<Budget>() {
                prop_assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan);
            }
        }
    }
}
