//! Why a request has no plan.

/// A request that cannot be planned. Every variant is the client's to mend; each message is one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    /// The budget is none that we know. -> 400
    #[error("budget `{0}` is unknown: accepted are fast, balanced, best and exact:<plan>, as in exact:heun-18@full")]
    UnknownBudget(String),
    /// The plan of `exact:<plan>` does not parse. -> 400
    #[error("{0}")]
    InvalidPlan(String),
    /// The model has no such subnet. -> 400
    #[error("subnet `{name}` is unknown: accepted are {}", accepted.join(", "))]
    UnknownSubnet {
        /// What was asked.
        name: String,
        /// The subnets of the model, from the narrowest to the widest.
        accepted: Vec<String>,
    },
    /// `steps` or `subnet` contradict the budget. -> 400
    #[error("{0}")]
    Contradiction(String),
}
