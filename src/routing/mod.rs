//! Budgets, and the plan that each one affords. Pure: testable without a model.

mod budget;
mod budgets;
mod error;

pub use budget::Budget;
pub use budgets::{Budgets, Overrides, require_subnets};
pub use error::RoutingError;
