//! `/livez`, `/readyz` and `/metrics`.

use crate::engine::EngineError;
use crate::server::{ApiError, AppState};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use std::sync::Arc;

/// Fails once the engine's thread has died: only a restart helps then.
pub(super) async fn livez(State(state): State<Arc<AppState>>) -> Result<&'static str, ApiError> {
    if state.fleet.is_alive() { Ok("ok") } else { Err(EngineError::Dead.into()) }
}

/// Fails while the server drains, so that a balancer looks elsewhere, and once the engine has died.
pub(super) async fn readyz(state: State<Arc<AppState>>) -> Result<&'static str, ApiError> {
    if state.is_draining() {
        return Err(ApiError::Draining);
    }
    livez(state).await
}

pub(super) async fn metrics(State(state): State<Arc<AppState>>) -> Result<impl IntoResponse, ApiError> {
    let page = state.metrics.render().map_err(|e| ApiError::Internal(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], page))
}
