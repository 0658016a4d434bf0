//! Budgets, and the plan that each one affords. Pure: testable without a model.
