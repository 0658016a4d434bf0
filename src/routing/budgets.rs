//! The table from budgets to plans, and what a request may change in a plan.

use crate::diffusion::plan::{Plan, STEPS, WidthRun, subnet_name};
use crate::routing::{Budget, RoutingError};
use serde::Deserialize;

/// The plan of each named budget. In a file: `fast = "dpmpp2m-8@0.250"`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budgets {
    /// The plan of `budget=fast`.
    pub fast: Plan,
    /// The plan of `budget=balanced`.
    pub balanced: Plan,
    /// The plan of `budget=best`.
    pub best: Plan,
}

impl Default for Budgets {
    fn default() -> Self {
        let plan = |text: &str| text.parse().expect("a plan of the default table parses");
        Self { fast: plan("dpmpp2m-8@0.250"), balanced: plan("dpmpp2m-12@0.500"), best: plan("heun-18@full") }
    }
}

/// What a request changes in the plan of its budget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Solver steps instead of the plan's.
    pub steps: Option<usize>,
    /// One subnet for every step instead of the plan's.
    pub subnet: Option<String>,
}

impl Budgets {
    /// The named plans with their names, in order of cost.
    pub fn named(&self) -> [(&'static str, &Plan); 3] {
        [("fast", &self.fast), ("balanced", &self.balanced), ("best", &self.best)]
    }

    /// The plan that `budget` affords on a model with these `subnets`, with the request's `overrides` applied.
    ///
    /// # Errors
    /// [`RoutingError::Contradiction`] for overrides that the plan cannot take, [`RoutingError::InvalidPlan`] for a
    /// number of steps that no plan takes, [`RoutingError::UnknownSubnet`] for a subnet that the model lacks.
    pub fn plan(&self, budget: &Budget, overrides: &Overrides, subnets: &[String]) -> Result<Plan, RoutingError> {
        let plan = match budget {
            Budget::Fast => &self.fast,
            Budget::Balanced => &self.balanced,
            Budget::Best => &self.best,
            Budget::Exact(plan) if *overrides == Overrides::default() => plan,
            Budget::Exact(_) => {
                return Err(RoutingError::Contradiction(
                    "an exact plan already says its steps and its subnet: leave out `steps` and `subnet`".to_owned(),
                ));
            }
        };
        let plan = overrides.apply(plan.clone(), subnets)?;
        require_subnets(&plan, subnets)?;
        Ok(plan)
    }
}

impl Overrides {
    fn apply(&self, mut plan: Plan, subnets: &[String]) -> Result<Plan, RoutingError> {
        let subnet = match &self.subnet {
            None => None,
            // Any text that is no subnet's name is refused like a subnet that the model lacks.
            Some(text) => Some(subnet_name(text).map_err(|_| unknown(text, subnets))?),
        };
        let steps = self.steps.unwrap_or(plan.steps);
        if !STEPS.contains(&steps) {
            let (least, most) = (STEPS.start(), STEPS.end());
            return Err(RoutingError::InvalidPlan(format!("steps are {steps}, but must be {least} to {most}")));
        }
        match (subnet, plan.widths.as_slice()) {
            (Some(subnet), _) => plan.widths = vec![WidthRun { subnet, steps }],
            (None, [only]) => plan.widths = vec![WidthRun { subnet: only.subnet.clone(), steps }],
            (None, _) if steps == plan.steps => {}
            (None, _) => {
                return Err(RoutingError::Contradiction(format!(
                    "`steps` cannot change the plan {plan}, which uses several subnets: give `subnet` too"
                )));
            }
        }
        plan.steps = steps;
        Ok(plan)
    }
}

/// Checks that every subnet of `plan` is one of `subnets`.
///
/// # Errors
/// [`RoutingError::UnknownSubnet`], listing `subnets`.
pub fn require_subnets(plan: &Plan, subnets: &[String]) -> Result<(), RoutingError> {
    match plan.widths.iter().find(|run| !subnets.contains(&run.subnet)) {
        Some(run) => Err(unknown(&run.subnet, subnets)),
        None => Ok(()),
    }
}

fn unknown(name: &str, subnets: &[String]) -> RoutingError {
    RoutingError::UnknownSubnet { name: name.to_owned(), accepted: subnets.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets() -> Vec<String> {
        ["0.250", "0.500", "full"].map(str::to_owned).to_vec()
    }

    fn routed(budget: &str, steps: Option<usize>, subnet: Option<&str>) -> Result<String, RoutingError> {
        let overrides = Overrides { steps, subnet: subnet.map(str::to_owned) };
        Budgets::default().plan(&budget.parse()?, &overrides, &subnets()).map(|plan| plan.to_string())
    }

    #[test]
    fn each_named_budget_gets_its_plan_of_the_table() {
        assert_eq!(routed("fast", None, None).unwrap(), "dpmpp2m-8@0.250");
        assert_eq!(routed("balanced", None, None).unwrap(), "dpmpp2m-12@0.500");
        assert_eq!(routed("best", None, None).unwrap(), "heun-18@full");
    }

    #[test]
    fn a_request_may_change_the_steps_and_the_subnet() {
        assert_eq!(routed("fast", Some(5), None).unwrap(), "dpmpp2m-5@0.250");
        assert_eq!(routed("fast", None, Some("0.5")).unwrap(), "dpmpp2m-8@0.500");
        assert_eq!(routed("best", Some(2), Some("full")).unwrap(), "heun-2@full");
    }

    #[test]
    fn a_number_of_steps_that_no_plan_takes_is_refused() {
        for steps in [0, 1001] {
            assert!(matches!(routed("fast", Some(steps), None), Err(RoutingError::InvalidPlan(_))));
        }
    }

    #[test]
    fn an_exact_plan_takes_no_overrides() {
        assert_eq!(routed("exact:euler-3@0.25*2,full*1", None, None).unwrap(), "euler-3@0.250*2,full*1");
        assert!(matches!(routed("exact:heun-4@full", Some(5), None), Err(RoutingError::Contradiction(_))));
    }

    #[test]
    fn steps_alone_cannot_stretch_a_plan_of_several_subnets() {
        let budgets = Budgets { fast: "dpmpp2m-12@0.250*8,full*4".parse().unwrap(), ..Budgets::default() };
        let plan = |steps, subnet: Option<&str>| {
            let overrides = Overrides { steps, subnet: subnet.map(str::to_owned) };
            budgets.plan(&Budget::Fast, &overrides, &subnets())
        };
        assert!(matches!(plan(Some(6), None), Err(RoutingError::Contradiction(_))));
        assert_eq!(plan(Some(6), Some("full")).unwrap().to_string(), "dpmpp2m-6@full");
        assert_eq!(plan(Some(12), None).unwrap(), budgets.fast);
    }

    #[test]
    fn a_subnet_that_the_model_lacks_is_refused_with_those_it_has() {
        for result in [
            routed("exact:heun-4@0.750", None, None),
            routed("fast", None, Some("0.75")),
            routed("fast", None, Some("x")),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains("accepted are 0.250, 0.500, full"), "{message}");
        }
    }

    #[test]
    fn a_table_with_a_broken_plan_or_an_unknown_budget_is_refused() {
        assert!(toml::from_str::<Budgets>("fast = \"heun\"").is_err());
        assert!(toml::from_str::<Budgets>("fats = \"heun-18@full\"").is_err());
        let table: Budgets = toml::from_str("fast = \"euler-4@full\"").unwrap();
        assert_eq!(table.fast.to_string(), "euler-4@full");
        assert_eq!(table.best, Budgets::default().best);
    }
}
