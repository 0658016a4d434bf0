//! `/livez`, `/readyz`, `/health` and `/metrics`.

use crate::server::error::Failures;
use crate::server::{ApiError, AppState};
use axum::extract::State;
use axum::handler::Handler;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{MethodFilter, MethodRouter, on};
use prometheus::{Registry, TextEncoder};
use std::sync::Arc;

/// What machines ask every few seconds: without a key, beside the log, and also when all connections are taken.
pub(super) fn is_probe(path: &str) -> bool {
    ["/livez", "/readyz", "/health", "/metrics"].contains(&path)
}

/// What a probe answers when all is well. `Allow` is for those that ask with OPTIONS.
pub(super) type Well = ([(header::HeaderName, &'static str); 1], &'static str);

pub(super) fn well() -> Well {
    ([(header::ALLOW, "GET,HEAD,OPTIONS")], "ok")
}

/// The methods of a probe: HAProxy asks with OPTIONS where it is told no other, and means what others mean by GET.
pub(super) fn probe<H: Handler<T, S>, T: 'static, S: Clone + Send + Sync + 'static>(handler: H) -> MethodRouter<S> {
    on(MethodFilter::GET.or(MethodFilter::OPTIONS), handler)
}

/// Say whether a restart is needed.
///
/// Fails once the engine's thread has died or hangs: only a restart helps then.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "operations",
    responses((status = 200, description = "`ok`", body = String, content_type = "text/plain"), Failures)
)]
pub(super) async fn livez(State(state): State<Arc<AppState>>) -> Result<Well, ApiError> {
    state.health().map(|()| well())
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
pub(super) async fn readyz(state: State<Arc<AppState>>) -> Result<Well, ApiError> {
    if state.is_leaving() {
        return Err(ApiError::Draining);
    }
    livez(state).await
}

/// Say the same as `/readyz`.
///
/// For clients that know only this name.
#[utoipa::path(
    get,
    path = "/health",
    tag = "operations",
    responses((status = 200, description = "`ok`", body = String, content_type = "text/plain"), Failures)
)]
pub(super) async fn health(state: State<Arc<AppState>>) -> Result<Well, ApiError> {
    readyz(state).await
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
