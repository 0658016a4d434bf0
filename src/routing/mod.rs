//! Budgets, the plans that they afford, admission and the order of work. Pure: testable without a model.

mod budget;
mod budgets;
mod demand;
mod error;
mod ladder;
mod policies;
mod runs;
#[cfg(test)]
mod simulation;
mod times;

pub use budget::{Budget, MinQuality};
pub use budgets::{Budgets, NamedBudget, Resolved, require_known};
pub use error::RoutingError;
pub use ladder::{Ladder, Rung};
pub use policies::{Elastic, Fixed, PolicyChoice, SlackFit};
pub use times::StepTimes;
