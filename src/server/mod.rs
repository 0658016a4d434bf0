//! axum: routes, wire types, error mapping, metrics.

mod agent;
mod answering;
mod auth;
mod catalogue;
mod config;
mod deficit;
mod draw;
mod error;
mod events;
mod generate;
mod guards;
mod handover;
mod head_timer;
mod host;
mod identity;
mod kept;
mod linger;
mod listen;
mod load;
mod loaded;
mod metrics;
mod models;
mod negotiate;
mod open;
mod openai;
mod openapi;
mod orca;
mod original;
#[cfg(feature = "otlp")]
mod otlp;
mod playground;
mod probes;
mod process;
mod refusal;
mod reload;
mod rest;
mod router;
mod spans;
mod state;
mod subject;
#[cfg(test)]
mod tests;
mod trace_context;
mod wire;
mod write_timeout;

pub use agent::answer_agents;
pub use auth::{Auth, KeyHash, KeyHashes};
pub use config::{Limits, LogFormat, ServeConfig};
pub use error::ApiError;
pub use host::Host;
pub use listen::{Signals, hung_up, serve, stopped, terminated};
pub use load::Load;
pub use loaded::{Loaded, Measured, Origin};
pub use open::open;
#[cfg(feature = "otlp")]
pub use otlp::Collector;
pub use process::{raise_descriptors, registry as process_registry};
pub use reload::reload;
pub use router::router;
pub use state::{AppState, Room};
