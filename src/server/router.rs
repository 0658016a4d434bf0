//! The routes, and what every request passes through.

use crate::server::auth::require_key;
use crate::server::generate::{MAX_BODY_BYTES, generate};
use crate::server::kept::kept;
use crate::server::guards::Guards;
use crate::server::models::{models, subnets};
use crate::server::probes::{livez, metrics, readyz};
use crate::server::{ApiError, AppState};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderName, Method, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The whole HTTP surface of a loaded model.
pub fn router(state: Arc<AppState>) -> Router {
    let guards = state.guards.clone();
    let routes = Router::new()
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
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    guarded(routes, &guards)
}

/// Puts around routes what every request passes through, whether a model is loaded or not.
pub(super) fn guarded(routes: Router, guards: &Guards) -> Router {
    routes
        .layer(CatchPanicLayer::custom(answer_panic))
        .layer(from_fn_with_state(guards.keys.clone(), require_key))
        // Outside the keys: a browser's preflight carries none, and a page may read why it was refused.
        .layer(option_layer(guards.cors.clone()))
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
    // Without the query, where somebody may have put a key.
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let id = request.headers().get(REQUEST_ID).cloned();
    let response = next.run(request).await;
    let text = |value: Option<&axum::http::HeaderValue>| value.and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
    let (id, plan) = (text(id.as_ref()), text(response.headers().get("x-accordion-plan")));
    let (status, ms) = (response.status().as_u16(), start.elapsed().as_secs_f64() * 1e3);
    // Probes and scrapes come every few seconds and say nothing new.
    if response.status().is_success() && matches!(path.as_str(), "/livez" | "/readyz" | "/metrics") {
        tracing::debug!(%method, path, status, ms, id, "request");
    } else {
        tracing::info!(%method, path, status, ms, id, plan, "request");
    }
    response
}
