//! `/livez`, `/readyz` and `/metrics`.

use crate::server::{ApiError, AppState};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus::{Registry, TextEncoder};
use std::sync::Arc;

/// Fails once the engine's thread has died or hangs: only a restart helps then.
pub(super) async fn livez(State(state): State<Arc<AppState>>) -> Result<&'static str, ApiError> {
    state.health().map(|()| "ok")
}

/// Fails from the first signal to stop, so that a balancer looks elsewhere, and where `/livez` does.
pub(super) async fn readyz(state: State<Arc<AppState>>) -> Result<&'static str, ApiError> {
    if state.is_leaving() {
        return Err(ApiError::Draining);
    }
    livez(state).await
}

pub(super) async fn metrics(State(state): State<Arc<AppState>>) -> Result<impl IntoResponse, ApiError> {
    in_prometheus_s_format(state.metrics.render())
}

/// The page of `registry` alone: what there is before a model is loaded.
pub(super) fn page(registry: &Registry) -> Result<impl IntoResponse + use<>, ApiError> {
    in_prometheus_s_format(TextEncoder::new().encode_to_string(&registry.gather()))
}

fn in_prometheus_s_format(page: prometheus::Result<String>) -> Result<impl IntoResponse, ApiError> {
    let page = page.map_err(|e| ApiError::Internal(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], page))
}
