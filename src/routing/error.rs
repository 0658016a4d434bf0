//! Why a request has no plan.

use crate::diffusion::plan::NO_DECODER;

/// A request that cannot be planned. Every variant is the client's to mend; each message is one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    /// The budget is none that we know. -> 400
    #[error(
        "budget `{0}` is unknown: accepted are fast, balanced, best, a time such as 250ms and exact:<plan>, as in \
         exact:heun-18@full"
    )]
    UnknownBudget(String),
    /// The budget is a time that no request may take. -> 400
    #[error("budget `{0}` is out of range: accepted are 1ms to 3600s")]
    InvalidDeadline(String),
    /// The plan of `exact:<plan>` does not parse. -> 400
    #[error("{0}")]
    InvalidPlan(String),
    /// `min_quality` is neither a plan of the frontier nor a share. -> 400
    #[error("min_quality {0}: accepted are a plan of the frontier or a share of the best quality from 0 to 1")]
    InvalidMinQuality(String),
    /// The model has no such subnet. -> 400
    #[error("subnet `{name}` is unknown: accepted are {}", accepted.join(", "))]
    UnknownSubnet {
        /// What was asked.
        name: String,
        /// The subnets of the model, from the narrowest to the widest.
        accepted: Vec<String>,
    },
    /// The model's decoder has no such subnet. -> 400
    #[error("decoder `{name}` is unknown: accepted are {}", accepted.join(", "))]
    UnknownDecoder {
        /// What was asked.
        name: String,
        /// The subnets of the decoder, from the narrowest to the widest.
        accepted: Vec<String>,
    },
    /// A plan names a decoder, and the model draws pictures itself. -> 400
    #[error("{NO_DECODER}")]
    NoDecoder,
    /// `min_quality` contradicts the budget. -> 400
    #[error("{0}")]
    Contradiction(String),
}
