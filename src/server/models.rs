//! `GET /subnets` and `GET /v1/models`: what is loaded.

use crate::routing::{NamedBudget, Rung};
use crate::server::error::{ErrorBody, Failures, Locked};
use crate::server::negotiate::text_of;
use crate::server::openai::{require_model, sizes};
use crate::server::{ApiError, AppState};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct LoadedModel {
    model: String,
    image: Size,
    /// The sizes that it draws, columns by rows, the usual one first.
    sizes: Vec<String>,
    /// Empty for a model that knows none.
    classes: Vec<String>,
    /// Whether it draws what a prompt says.
    prompts: bool,
    /// The scale of guidance where a request says none.
    guidance: f64,
    /// From the narrowest to the widest.
    subnets: Vec<LoadedSubnet>,
    /// Those of its decoder, which plans name by `~decode`; empty for a model that draws pictures itself.
    decoders: Vec<LoadedSubnet>,
    /// What `quality` is.
    metric: String,
    /// The plans that no other beats on both time and quality, the fastest first.
    frontier: Vec<FrontierPlan>,
    /// What the named budgets come to.
    budgets: BTreeMap<&'static str, LoadedBudget>,
}

#[derive(Serialize, ToSchema)]
struct FrontierPlan {
    plan: String,
    quality: f64,
    /// Milliseconds of an image alone on the idle machine.
    ms: f64,
}

#[derive(Serialize, ToSchema)]
struct LoadedBudget {
    /// The plan on an idle machine.
    plan: String,
    quality: f64,
    /// By when its images must be there under load.
    within_ms: u64,
}

#[derive(Serialize, ToSchema)]
struct Size {
    height: usize,
    width: usize,
    channels: usize,
}

#[derive(Serialize, ToSchema)]
struct LoadedSubnet {
    name: String,
    ratio: f64,
    parameters: u64,
    macs: u64,
}

/// Describe the model: its classes, its subnets, and what budgets mean.
#[utoipa::path(
    get,
    path = "/subnets",
    tag = "models",
    responses((status = 200, description = "What is loaded.", body = LoadedModel), Locked, Failures)
)]
pub(super) async fn subnets(State(state): State<Arc<AppState>>) -> Json<LoadedModel> {
    let image = state.fleet.any().about().picture();
    let subnet = |subnet: &crate::supernet::Subnet| LoadedSubnet {
        name: subnet.name.to_string(),
        ratio: subnet.ratio,
        parameters: subnet.parameters,
        macs: subnet.macs,
    };
    let frontier = |rung: &Rung| FrontierPlan {
        plan: rung.plan.to_string(),
        quality: rung.quality,
        ms: (rung.alone * 1e6).round() / 1e3,
    };
    let loaded = |budget: &NamedBudget| {
        let rung = &state.ladder.rungs()[state.ladder.at_least(budget.quality * state.ladder.best().quality)];
        LoadedBudget { plan: rung.plan.to_string(), quality: rung.quality, within_ms: budget.within_ms }
    };
    Json(LoadedModel {
        model: state.model.clone(),
        image: Size { height: image.height, width: image.width, channels: image.channels },
        sizes: sizes(&state).map(|(name, _)| name).collect(),
        classes: state.fleet.any().about().classes.to_vec(),
        prompts: state.texts.is_some(),
        guidance: state.usual_guidance(),
        subnets: state.fleet.any().about().subnets.iter().map(subnet).collect(),
        decoders: state.fleet.any().about().decoders.iter().map(subnet).collect(),
        metric: state.metric.clone(),
        frontier: state.ladder.rungs().iter().map(frontier).collect(),
        budgets: state.budgets.named().map(|(name, budget)| (name, loaded(budget))).into(),
    })
}

/// The list of the OpenAI API.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    /// Seconds since 1970; when it was loaded.
    created: u64,
    owned_by: &'static str,
}

impl Model {
    fn loaded(state: &AppState) -> Self {
        Self { id: state.model.clone(), object: "model", created: state.started, owned_by: "accordion" }
    }
}

/// List the loaded model in the shape of the OpenAI API.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "models",
    responses((status = 200, description = "The list of the loaded model.", body = ModelList), Locked, Failures)
)]
pub(super) async fn models(State(state): State<Arc<AppState>>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: vec![Model::loaded(&state)] })
}

/// Describe a model in the shape of the OpenAI API.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "models",
    params(("id" = String, Path, description = "The model's name.")),
    responses(
        (status = 200, description = "The loaded model.", body = Model),
        (status = 404, description = "`id` is not the loaded model.", body = ErrorBody),
        Locked,
        Failures,
    )
)]
pub(super) async fn model(
    State(state): State<Arc<AppState>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    require_model(&state, Some(&text_of(id)))?;
    Ok(Json(Model::loaded(&state)))
}
