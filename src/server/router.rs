//! The routes, and what every request passes through.

use crate::server::auth::require_key;
use crate::server::generate::{MAX_BODY_BYTES, generate};
use crate::server::guards::Guards;
use crate::server::identity::identify;
use crate::server::kept::kept;
use crate::server::models::{model, models, subnets};
use crate::server::openai::images;
use crate::server::openapi::openapi;
use crate::server::orca::report_load;
use crate::server::playground::{file, page};
use crate::server::probes::{livez, metrics, readyz};
use crate::server::{ApiError, AppState};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::any::Any;
use std::sync::Arc;
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;

/// The whole HTTP surface of a loaded model.
pub fn router(state: Arc<AppState>) -> Router {
    let guards = state.guards.clone();
    let routes = Router::new()
        .route("/generate", post(generate))
        .route("/generate/{id}", get(kept))
        .route("/subnets", get(subnets))
        .route("/v1/images/generations", post(images))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/openapi.json", get(openapi))
        .route("/", get(page))
        .route("/playground/{file}", get(file))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async |uri: Uri| ApiError::NotFound(uri.path().to_owned()))
        .method_not_allowed_fallback(async |method: Method| ApiError::MethodNotAllowed(method.to_string()))
        .with_state(state.clone())
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    guarded(routes.layer(from_fn_with_state(state, report_load)), &guards)
}

/// Puts around routes what every request passes through, whether a model is loaded or not.
pub(super) fn guarded(routes: Router, guards: &Guards) -> Router {
    routes
        .layer(CatchPanicLayer::custom(answer_panic))
        .layer(from_fn_with_state(guards.keys.clone(), require_key))
        // Outside the keys: a browser's preflight carries none, and a page may read why it was refused.
        .layer(option_layer(guards.cors.clone()))
        // What is answered is of this moment: also that nothing is kept under an id.
        .layer(SetResponseHeaderLayer::if_not_present(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .layer(from_fn(identify))
}

fn answer_panic(payload: Box<dyn Any + Send>) -> Response {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
    ApiError::Internal(format!("a handler panicked: {text}")).into_response()
}
