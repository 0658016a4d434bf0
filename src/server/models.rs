//! `GET /subnets` and `GET /v1/models`: what is loaded.

use crate::server::AppState;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Serialize)]
pub(super) struct LoadedModel {
    model: String,
    image: Size,
    /// Empty for an unconditional model.
    classes: Vec<String>,
    /// From the narrowest to the widest.
    subnets: Vec<LoadedSubnet>,
    /// The plan of each named budget.
    budgets: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Size {
    height: usize,
    width: usize,
    channels: usize,
}

#[derive(Serialize)]
struct LoadedSubnet {
    name: String,
    ratio: f64,
    parameters: u64,
    macs: u64,
}

pub(super) async fn subnets(State(state): State<Arc<AppState>>) -> Json<LoadedModel> {
    let image = state.engine.image();
    let subnet = |subnet: &crate::supernet::Subnet| LoadedSubnet {
        name: subnet.name.clone(),
        ratio: subnet.ratio,
        parameters: subnet.parameters,
        macs: subnet.macs,
    };
    Json(LoadedModel {
        model: state.model.clone(),
        image: Size { height: image.height, width: image.width, channels: image.channels },
        classes: state.engine.classes().to_vec(),
        subnets: state.engine.subnets().iter().map(subnet).collect(),
        budgets: state.budgets.named().map(|(name, plan)| (name, plan.to_string())).into(),
    })
}

/// The list of the OpenAI API.
#[derive(Serialize)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    /// Seconds since 1970; when it was loaded.
    created: u64,
    owned_by: &'static str,
}

pub(super) async fn models(State(state): State<Arc<AppState>>) -> Json<ModelList> {
    let model = Model { id: state.model.clone(), object: "model", created: state.started, owned_by: "accordion" };
    Json(ModelList { object: "list", data: vec![model] })
}
