//! `POST /v1/images/edits`: images that are made from a picture, in the OpenAI API's shape.

use super::streaming::Kind;
use super::wire::ImagesBody;
use super::{Accepted, Answered, accept_body, chosen, respond};
use crate::server::error::{ErrorBody, Failures, Locked, Refusals};
use crate::server::generate::read_body;
use crate::server::metrics::Observation;
use crate::server::negotiate::{FORM, require_type};
use crate::server::original::Given;
use crate::server::wire::parse;
use crate::server::{ApiError, AppState};
use axum::body::{Body, Bytes};
use axum::extract::multipart::MultipartError;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::response::Response;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// Fields of a form that are texts here and something else in JSON.
const TYPED: [&str; 8] = [
    "n",
    "output_compression",
    "stream",
    "partial_images",
    "seed",
    "guidance_scale",
    "num_inference_steps",
    "strength",
];
/// How closely a picture is followed is what `strength` says.
pub(in crate::server) const FIDELITIES: [(&str, ()); 2] = [("low", ()), ("high", ())];

/// The body of `POST /v1/images/edits`: a form of files, and of the other fields as texts.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only the document is made of it")]
pub(super) struct EditsForm {
    /// The picture to start from: a PNG, JPEG or WebP file of a size that the model draws. Where it is transparent and there is no mask,
    /// that is what is drawn anew.
    #[schema(value_type = String, format = Binary)]
    image: Bytes,
    /// What is drawn anew: a picture of its size that is transparent there, or else white. The rest stays as it is.
    #[schema(value_type = Option<String>, format = Binary)]
    mask: Option<Bytes>,
    /// An extension: how much of the picture is made anew, above 0. 0.8 when nothing is said, and 1 with a mask.
    strength: Option<f64>,
    /// Changes nothing.
    input_fidelity: Option<String>,
    // The fields of `ImagesBody` beside these: server/openapi/bounds.rs adds them, without null, which no form has.
}

/// Draw images from a picture, or into it, in the shape of the OpenAI API.
#[utoipa::path(
    post,
    path = "/v1/images/edits",
    tag = "images",
    request_body(content = EditsForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, response = inline(Answered)),
        (status = 404, description = "`model` is not loaded.", body = ErrorBody),
        Refusals,
        Locked,
        Failures,
    )
)]
pub(in crate::server) async fn edits(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut observation = state.metrics.observe(&request);
    let accepted = accept(&state, request, &mut observation).await;
    respond(state, accepted, observation).await
}

async fn accept(state: &AppState, request: Request, observation: &mut Observation) -> Result<Accepted, ApiError> {
    let arrived = Instant::now();
    if state.is_draining() {
        return Err(ApiError::Draining);
    }
    require_type(request.headers(), FORM)?;
    let headers = request.headers().clone();
    let mut whole = Request::new(Body::from(read_body(state, request).await?));
    *whole.headers_mut() = headers;
    let (body, given) = Form::read(whole).await?.parsed()?;
    accept_body(state, arrived, body, Kind::Edit, given, observation).await
}

/// The fields of a form.
#[derive(Default)]
struct Form {
    image: Option<Bytes>,
    mask: Option<Bytes>,
    texts: Map<String, Value>,
}

impl Form {
    async fn read(request: Request) -> Result<Self, ApiError> {
        let broken = |error: MultipartError| ApiError::InvalidForm(error.body_text());
        let parts = Multipart::from_request(request, &()).await;
        let mut parts = parts.map_err(|rejection| ApiError::InvalidForm(rejection.body_text()))?;
        let mut form = Self::default();
        while let Some(part) = parts.next_field().await.map_err(broken)? {
            let name = part.name().unwrap_or_default().to_owned();
            let bytes = part.bytes().await.map_err(broken)?;
            let stands_twice = match name.as_str() {
                // What clients call several pictures, of which one is accepted.
                "image" | "image[]" => form.image.replace(bytes).is_some(),
                "mask" => form.mask.replace(bytes).is_some(),
                text => form.texts.insert(text.to_owned(), value(text, &bytes)?).is_some(),
            };
            if stands_twice {
                return Err(ApiError::InvalidForm(format!("`{name}` stands in it twice: one is accepted")));
            }
        }
        Ok(form)
    }

    /// Its fields, checked as those of a body of JSON are.
    fn parsed(mut self) -> Result<(ImagesBody, Given), ApiError> {
        const ACCEPTED: &[&str] = &accepted();
        let is_unknown = |name: &&String| !ACCEPTED.contains(&name.as_str());
        let unknown: Vec<String> = self.texts.keys().filter(is_unknown).cloned().collect();
        if !unknown.is_empty() {
            return Err(ApiError::UnknownField { unknown, accepted: ACCEPTED });
        }
        let mut text = |name: &str| self.texts.remove(name);
        let wrong =
            |problem: &str| ApiError::WrongType { field: Some("strength".to_owned()), problem: problem.to_owned() };
        let strength = text("strength").map(|value| value.as_f64().ok_or_else(|| wrong("expected a number")));
        let strength = strength.transpose()?;
        let fidelity = text("input_fidelity");
        chosen("input_fidelity", fidelity.as_ref().and_then(Value::as_str), &FIDELITIES)?;
        let body = parse(Value::Object(self.texts).to_string().as_bytes(), ImagesBody::FIELDS)?;
        let [image, mask] = [self.image, self.mask].map(|file| file.map(Vec::from));
        if image.is_none() {
            return Err(ApiError::MissingImage);
        }
        Ok((body, Given { image, mask, strength }))
    }
}

/// A field's text as what it is in JSON.
fn value(name: &str, bytes: &[u8]) -> Result<Value, ApiError> {
    let not_text = || ApiError::InvalidForm(format!("`{name}` is not a text in UTF-8"));
    let text = std::str::from_utf8(bytes).map_err(|_| not_text())?;
    let typed = if TYPED.contains(&name) { serde_json::from_str(text.trim()).ok() } else { None };
    Ok(typed.unwrap_or_else(|| text.into()))
}

/// The names of all fields.
const fn accepted() -> [&'static str; ImagesBody::FIELDS.len() + 4] {
    let mut names = ["image", "mask", "strength", "input_fidelity"].as_slice();
    let mut all = [""; ImagesBody::FIELDS.len() + 4];
    let (mut at, mut from) = (0, 0);
    while at < all.len() {
        if from == names.len() {
            (names, from) = (ImagesBody::FIELDS, 0);
        }
        all[at] = names[from];
        (at, from) = (at + 1, from + 1);
    }
    all
}
