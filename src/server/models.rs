//! `GET /subnets` and `GET /v1/models`: what is loaded.

use crate::routing::{NamedBudget, Rung};
use crate::server::error::{ErrorBody, Failures, Locked};
use crate::server::negotiate::text_of;
use crate::server::openai::sizes;
use crate::server::{ApiError, AppState, Loaded};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

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

/// The query of `GET /subnets`.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SubnetsQuery {
    /// The model, by its name; the first of `/v1/models` when nothing is said.
    model: Option<String>,
}

/// Describe a model: its classes, its subnets, and what budgets mean.
#[utoipa::path(
    get,
    path = "/subnets",
    tag = "models",
    params(SubnetsQuery),
    responses(
        (status = 200, description = "The model.", body = LoadedModel),
        (status = 400, description = "The query has other parameters.", body = ErrorBody),
        (status = 404, description = "`model` is not loaded.", body = ErrorBody),
        Locked,
        Failures,
    )
)]
pub(super) async fn subnets(
    State(state): State<Arc<AppState>>,
    query: Result<Query<SubnetsQuery>, QueryRejection>,
) -> Result<Json<LoadedModel>, ApiError> {
    let Query(SubnetsQuery { model }) = query.map_err(|rejection| ApiError::InvalidQuery(rejection.body_text()))?;
    let model = state.catalogue.choose(model.as_deref())?;
    let about = model.about();
    let image = about.picture();
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
        let rung = &model.ladder.rungs()[model.ladder.at_least(budget.quality * model.ladder.best().quality)];
        LoadedBudget { plan: rung.plan.to_string(), quality: rung.quality, within_ms: budget.within_ms }
    };
    Ok(Json(LoadedModel {
        model: model.name.clone(),
        image: Size { height: image.height, width: image.width, channels: image.channels },
        sizes: sizes(&model).map(|(name, _)| name).collect(),
        classes: about.classes.clone(),
        prompts: model.texts.is_some(),
        guidance: model.usual_guidance(),
        subnets: about.subnets.iter().map(subnet).collect(),
        decoders: about.decoders.iter().map(subnet).collect(),
        metric: model.metric.clone(),
        frontier: model.ladder.rungs().iter().map(frontier).collect(),
        budgets: state.budgets.named().map(|(name, budget)| (name, loaded(budget))).into(),
    }))
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

impl From<&Loaded> for Model {
    fn from(model: &Loaded) -> Self {
        Self { id: model.name.clone(), object: "model", created: model.since, owned_by: "accordion" }
    }
}

/// List the loaded models in the shape of the OpenAI API, the usual one first.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "models",
    responses((status = 200, description = "The list of the loaded models.", body = ModelList), Locked, Failures)
)]
pub(super) async fn models(State(state): State<Arc<AppState>>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: state.models().iter().map(|model| Model::from(&**model)).collect() })
}

/// Describe a model in the shape of the OpenAI API.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "models",
    params(("id" = String, Path, description = "The model's name.")),
    responses(
        (status = 200, description = "The model.", body = Model),
        (status = 404, description = "`id` is not loaded.", body = ErrorBody),
        Locked,
        Failures,
    )
)]
pub(super) async fn model(
    State(state): State<Arc<AppState>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let model = state.catalogue.choose(Some(&text_of(id)))?;
    Ok(Json(Model::from(&*model)))
}
