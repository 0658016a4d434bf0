//! What is compared: policies of the same server.

use crate::diffusion::plan::Plan;
use crate::loadtest::target::{Loaded, LoadedSubnet};
use crate::routing::PolicyChoice;
use crate::server::ServeConfig;
use crate::subnet_name::FULL;
use crate::{Error, Result};
use std::time::Duration;

/// How a server chooses the plans of its requests, under a name for reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Contestant {
    /// The name.
    pub name: String,
    /// The policy; `None` is whatever the config says.
    pub policy: Option<PolicyChoice>,
}

impl Contestant {
    /// The names of what is compared when nothing else is asked.
    pub const NAMES: [&str; 5] = ["ours", "slackfit", "fixed-widest", "fixed-middle", "fixed-narrowest"];

    /// A server that runs already, whatever its policy.
    pub fn running() -> Self {
        Self { name: "server".to_owned(), policy: None }
    }

    /// `steps`, such as `heun-18`, on the whole network, for every request.
    ///
    /// # Errors
    /// One sentence when `steps` make no plan.
    pub fn widest(steps: &str) -> Result<Self> {
        Self::fixed("fixed-widest", steps, FULL)
    }

    /// One of [`Self::NAMES`], or a policy as `serve.toml` spells it. The fixed ones take `steps` on a subnet of `model`.
    ///
    /// # Errors
    /// One sentence for another name, for `steps` that make no plan, or a model without a subnet between two others.
    pub fn named(name: &str, steps: &str, model: &Loaded) -> Result<Self> {
        let on = |subnet: Option<&LoadedSubnet>| {
            let lacking = || Error::input("--policies", format!("{name}: {} has no such subnet", model.model));
            Self::fixed(name, steps, &subnet.ok_or_else(lacking)?.name)
        };
        let policy = match name {
            "ours" => PolicyChoice::Elastic,
            "fixed-widest" => return Self::widest(steps),
            "fixed-middle" => return on(middle(&model.subnets)),
            "fixed-narrowest" => return on(model.subnets.first()),
            _ => name.parse().map_err(|_| {
                let known = Self::NAMES.join(", ");
                Error::input("--policies", format!("`{name}` is none of {known} and no policy of serve.toml"))
            })?,
        };
        Ok(Self { name: name.to_owned(), policy: Some(policy) })
    }

    fn fixed(name: &str, steps: &str, subnet: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), policy: Some(PolicyChoice::Fixed(plan(steps, subnet)?)) })
    }

    /// The config of its server, which differs from `config` in the policy alone.
    pub fn configure(&self, config: &ServeConfig) -> ServeConfig {
        let policy = self.policy.clone().unwrap_or_else(|| config.policy.clone());
        ServeConfig { policy, ..config.clone() }
    }
}

/// The budget that asks for an image within `deadline`.
pub fn within(deadline: Duration) -> String {
    format!("{}ms", deadline.as_millis())
}

/// The budget that asks for `plan` and no other.
pub fn exact(plan: &Plan) -> String {
    format!("exact:{plan}")
}

/// The plan of `steps`, such as `heun-18`, on a subnet.
///
/// # Errors
/// One sentence when that is no plan.
pub fn plan(steps: &str, subnet: &str) -> Result<Plan> {
    format!("{steps}@{subnet}").parse().map_err(|error| Error::input("--fixed-plan", error))
}

/// Of the subnets between the narrowest and the widest, that of the ratio nearest to a half.
fn middle(subnets: &[LoadedSubnet]) -> Option<&LoadedSubnet> {
    let between = subnets.get(1..subnets.len().saturating_sub(1))?;
    between.iter().min_by(|a, b| (a.ratio - 0.5).abs().total_cmp(&(b.ratio - 0.5).abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(ratios: &[f64]) -> Loaded {
        let name = |ratio: f64| if ratio == 1.0 { "full".to_owned() } else { format!("{ratio:.3}") };
        let subnets = ratios.iter().map(|&ratio| LoadedSubnet { name: name(ratio), ratio });
        Loaded {
            model: "tiny".to_owned(),
            classes: Vec::new(),
            prompts: false,
            subnets: subnets.collect(),
            metric: "mse-to-reference".to_owned(),
        }
    }

    #[test]
    fn fixed_policies_run_their_steps_on_the_ends_and_the_middle_of_the_model() {
        let model = model(&[0.25, 0.375, 0.5, 0.625, 0.75, 1.0]);
        let policy = |name| Contestant::named(name, "heun-18", &model).unwrap().policy.unwrap().to_string();
        let fixed = ["fixed:heun-18@full", "fixed:heun-18@0.500", "fixed:heun-18@0.250"];
        assert_eq!(Contestant::NAMES.map(policy), [&["elastic", "slackfit"][..], &fixed].concat()[..]);
        assert_eq!(policy("fixed:euler-4@0.75"), "fixed:euler-4@0.750");
    }

    #[test]
    fn servers_differ_in_their_policy_alone() {
        let config = ServeConfig { max_batch: 3, ..ServeConfig::default() };
        let widest = Contestant::widest("heun-9").unwrap().configure(&config);
        assert_eq!(widest.policy.to_string(), "fixed:heun-9@full");
        assert_eq!(ServeConfig { policy: config.policy.clone(), ..widest }, config);
        assert_eq!(Contestant::running().configure(&config), config);
    }

    #[test]
    fn what_is_no_policy_of_the_model_is_refused() {
        for (name, steps, ratios, says) in [
            ("best", "heun-18", &[0.5, 1.0][..], "--policies: `best` is none of ours, slackfit, fixed-widest"),
            ("fixed-middle", "heun-18", &[0.5, 1.0], "--policies: fixed-middle: tiny has no such subnet"),
            ("fixed-middle", "heun-18", &[], "--policies: fixed-middle: tiny has no such subnet"),
            ("fixed-widest", "heun-18@full", &[0.5, 1.0], "--fixed-plan: "),
        ] {
            let message = Contestant::named(name, steps, &model(ratios)).unwrap_err().to_string();
            assert!(message.starts_with(says), "{message}");
        }
    }
}
