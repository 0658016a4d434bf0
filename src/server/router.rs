//! The routes, and what every request passes through.

use crate::server::auth::require_key;
use crate::server::generate::generate;
use crate::server::guards::Guards;
use crate::server::identity::identify;
use crate::server::kept::kept;
use crate::server::models::{model, models, subnets};
use crate::server::openai::edits::edits;
use crate::server::openai::images;
use crate::server::openapi::openapi;
use crate::server::orca::report_load;
use crate::server::playground::{file, page};
use crate::server::probes::{health, livez, metrics, probe, readyz};
use crate::server::refusal::refuse;
use crate::server::{ApiError, AppState};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::any::Any;
use std::sync::Arc;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;

/// The whole HTTP surface, once models are loaded.
pub fn router(state: Arc<AppState>) -> Router {
    let guards = state.guards.clone();
    let routes = Router::new()
        .route("/generate", post(generate))
        .route("/generate/{id}", get(kept))
        .route("/subnets", get(subnets))
        .route("/v1/images/generations", post(images))
        .route("/v1/images/edits", post(edits))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/openapi.json", get(openapi))
        .route("/", get(page))
        .route("/playground/{file}", get(file))
        .route("/livez", probe(livez))
        .route("/readyz", probe(readyz))
        .route("/health", probe(health))
        .route("/metrics", get(metrics))
        .fallback(nowhere)
        .method_not_allowed_fallback(other_method)
        .with_state(state.clone());
    guarded(routes.layer(from_fn_with_state(state, report_load)), &guards)
}

/// Puts around routes what every request passes through, whether a model is loaded or not.
pub(super) fn guarded(routes: Router, guards: &Guards) -> Router {
    let locked = routes
        .layer(CatchPanicLayer::custom(answer_panic))
        .layer(from_fn_with_state(guards.keys.clone(), require_key))
        .layer(from_fn(refuse));
    let shared = match &guards.cors {
        None => locked,
        Some(cors) => {
            let plain = locked.clone();
            // Outside the keys: a browser's preflight carries none, and a page may read why it was refused.
            locked.layer(cors.clone()).layer(from_fn_with_state(plain, past_cors))
        }
    };
    shared
        // What is answered is of this moment: also that nothing is kept under an id.
        .layer(SetResponseHeaderLayer::if_not_present(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .layer(from_fn(identify))
}

/// The layer of CORS takes every OPTIONS for a browser's preflight; one that is none, such as a balancer's check, has to
/// reach its route.
async fn past_cors(State(plain): State<Router>, request: Request, next: Next) -> Response {
    let is_preflight = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if request.method() != Method::OPTIONS || is_preflight {
        return next.run(request).await;
    }
    let Ok(response) = plain.oneshot(request).await;
    response
}

/// What is at no path. `OPTIONS *` asks whether there is a server at all.
async fn nowhere(method: Method, uri: Uri) -> Result<StatusCode, ApiError> {
    match (method, uri.path()) {
        (Method::OPTIONS, "*") => Ok(StatusCode::NO_CONTENT),
        (_, path) => Err(ApiError::NotFound(path.to_owned())),
    }
}

/// What is at a path, but not with this method. The answer gets an `Allow`, which is what OPTIONS asks for.
async fn other_method(method: Method) -> Result<StatusCode, ApiError> {
    match method {
        Method::OPTIONS => Ok(StatusCode::NO_CONTENT),
        other => Err(ApiError::MethodNotAllowed(other.to_string())),
    }
}

fn answer_panic(payload: Box<dyn Any + Send>) -> Response {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
    ApiError::Internal(format!("a handler panicked: {text}")).into_response()
}
