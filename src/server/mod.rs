//! axum: routes, wire types, error mapping, metrics.

mod answering;
mod auth;
mod config;
mod deficit;
mod draw;
mod error;
mod events;
mod generate;
mod kept;
mod guards;
mod listen;
mod metrics;
mod models;
mod negotiate;
mod open;
mod probes;
mod router;
mod state;
#[cfg(test)]
mod tests;
mod wire;

pub use auth::{Auth, KeyHash, KeyHashes};
pub use config::{Limits, ServeConfig};
pub use error::ApiError;
pub use listen::{serve, signalled};
pub use open::open;
pub use router::router;
pub use state::{AppState, Measured};
