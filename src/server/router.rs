//! The routes, and what every request passes through.

use crate::server::generate::{MAX_BODY_BYTES, generate};
use crate::server::kept::kept;
use crate::server::models::{models, subnets};
use crate::server::probes::{livez, metrics, readyz};
use crate::server::{ApiError, AppState};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, Method, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The whole HTTP surface.
pub fn router(state: Arc<AppState>) -> Router {
    Router::new()
        .route("/generate", post(generate))
        .route("/generate/{id}", get(kept))
        .route("/subnets", get(subnets))
        .route("/v1/models", get(models))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async |uri: Uri| ApiError::NotFound(uri.path().to_owned()))
        .method_not_allowed_fallback(async |method: Method| ApiError::MethodNotAllowed(method.to_string()))
        .with_state(state)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(CatchPanicLayer::custom(answer_panic))
        // The id is made before the log line that names it, and copied into the response after it.
        .layer(from_fn(log))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
}

fn answer_panic(payload: Box<dyn Any + Send>) -> Response {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
    ApiError::Internal(format!("a handler panicked: {text}")).into_response()
}

/// One line a request.
async fn log(request: Request, next: Next) -> Response {
    let start = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let id = request.headers().get(REQUEST_ID).cloned();
    let response = next.run(request).await;
    let text = |value: Option<&axum::http::HeaderValue>| value.and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
    let (id, plan) = (text(id.as_ref()), text(response.headers().get("x-accordion-plan")));
    let (status, ms) = (response.status().as_u16(), start.elapsed().as_secs_f64() * 1e3);
    // Probes and scrapes come every few seconds and say nothing new.
    if response.status().is_success() && matches!(uri.path(), "/livez" | "/readyz" | "/metrics") {
        tracing::debug!(%method, %uri, status, ms, id, "request");
    } else {
        tracing::info!(%method, %uri, status, ms, id, plan, "request");
    }
    response
}
