//! `/livez`, `/readyz` and `/metrics`.

use crate::server::error::Failures;
use crate::server::{ApiError, AppState};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus::{Registry, TextEncoder};
use std::sync::Arc;

/// Say whether a restart is needed.
///
/// Fails once the engine's thread has died or hangs: only a restart helps then.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "operations",
    responses((status = 200, description = "`ok`", body = String, content_type = "text/plain"), Failures)
)]
pub(super) async fn livez(State(state): State<Arc<AppState>>) -> Result<&'static str, ApiError> {
    state.health().map(|()| "ok")
}

/// Say whether requests are welcome.
///
/// Fails from the first signal to stop, so that a balancer looks elsewhere, and where `/livez` does.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "operations",
    responses((status = 200, description = "`ok`", body = String, content_type = "text/plain"), Failures)
)]
pub(super) async fn readyz(state: State<Arc<AppState>>) -> Result<&'static str, ApiError> {
    if state.is_leaving() {
        return Err(ApiError::Draining);
    }
    livez(state).await
}

/// Report metrics for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses((status = 200, description = "Text of version 0.0.4.", body = String, content_type = "text/plain"), Failures)
)]
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
