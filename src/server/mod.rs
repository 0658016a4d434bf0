//! axum: routes, wire types, error mapping, metrics.

mod config;
mod error;
mod generate;
mod listen;
mod metrics;
mod models;
mod negotiate;
mod probes;
mod router;
mod state;
#[cfg(test)]
mod tests;
mod wire;

pub use config::{Limits, ServeConfig};
pub use error::ApiError;
pub use listen::{serve, signalled};
pub use router::router;
pub use state::AppState;
