//! `GET /openapi.json`: the contract, generated from the handlers and their types, with the bounds of this server and
//! the names of its model.

mod bounds;

use crate::server::error::Failures;
use crate::server::{ApiError, AppState, generate, kept, models, openai, playground, probes};
use axum::Json;
use axum::extract::State;
use serde_json::Value;
use std::sync::Arc;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Accordion",
        description = "Images from one supernet at many widths: each request gets the best that its budget affords. \
            Every answer carries `x-request-id`, the request's own or a new one."
    ),
    paths(
        generate::generate,
        kept::kept,
        openai::images,
        openai::edits::edits,
        models::models,
        models::model,
        models::subnets,
        probes::livez,
        probes::readyz,
        probes::health,
        probes::metrics,
        openapi,
        playground::page,
        playground::file,
    ),
    // Of a response that paths share, which does not bring it.
    components(schemas(openai::wire::ImagesAnswer)),
    tags(
        (name = "images", description = "Drawing."),
        (name = "models", description = "What is loaded."),
        (name = "operations", description = "For balancers, scrapers and generators of clients."),
        (name = "playground", description = "For people."),
    )
)]
struct Api;

/// Describe this interface.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "operations",
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = Value), Failures)
)]
pub(super) async fn openapi(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    let mut document = serde_json::to_value(Api::openapi()).map_err(|e| ApiError::Internal(e.to_string()))?;
    bounds::fill(&mut document, &state);
    Ok(Json(document))
}
