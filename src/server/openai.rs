//! `POST /v1/images/generations`: the OpenAI API's shape, so that its clients work unchanged.

pub(super) mod edits;
pub(super) mod prompt;
pub(super) mod streaming;
pub(super) mod wire;

use crate::diffusion::plan::STEPS;
use crate::diffusion::{Plan, Solver};
use crate::engine::Step;
use crate::engine::image::Format;
use crate::nets::Canvas;
use crate::routing::Budget;
use crate::server::draw::{Order, Taken, most_images, take};
use crate::server::error::{ErrorBody, Failures, Locked, Refusals};
use crate::server::events::{self, EVENTS, ServerSentEvent, Voice};
use crate::server::generate::{headers, read_body};
use crate::server::handover::hand_over;
use crate::server::kept::Parcel;
use crate::server::metrics::Observation;
use crate::server::negotiate::{JSON, require_type};
use crate::server::original::Given;
use crate::server::state::seconds_since_1970;
use crate::server::subject::Subject;
use crate::server::wire::{ClassChoice, parse};
use crate::server::{ApiError, AppState, Loaded};
use crate::subnet_name::FULL;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{AppendHeaders, IntoResponse, Response};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use streaming::{Kind, Streaming};
use tokio::sync::mpsc;
use utoipa::ToResponse;
use wire::{
    BACKGROUNDS, BEST_COMPRESSION, Carrier, FORMATS, ImageEntry, ImagesAnswer, ImagesBody, MAX_N, MAX_PARTIAL,
    MODERATIONS, QUALITIES, RESPONSE_FORMATS, Usage,
};

/// The images; with `stream` their events.
#[derive(ToResponse)]
#[response(headers(
    ("x-accordion-plan" = String, description = "What ran: replay it with `budget=exact:` of /generate."),
    ("x-accordion-planned" = String, description = "What was planned when the request came."),
    ("x-accordion-quality" = f64, description = "The quality of what ran, from 0 to 1, where it is known."),
    ("x-seed" = u64, description = "The seed of the images."),
    ("server-timing" = String, description = "Milliseconds that the images waited, were drawn and encoded."),
))]
#[allow(dead_code, reason = "only the document is made of it")]
enum Answered {
    Whole(#[content("application/json")] ImagesAnswer),
    Streamed(#[content("text/event-stream")] ServerSentEvent),
}

/// Draw images in the shape of the OpenAI API.
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    tag = "images",
    request_body(content = ImagesBody, example = json!({ "prompt": "a photo of a sneaker", "n": 2, "quality": "low" })),
    responses(
        (status = 200, response = inline(Answered)),
        (status = 404, description = "`model` is not loaded.", body = ErrorBody),
        Refusals,
        Locked,
        Failures,
    )
)]
pub(super) async fn images(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let mut observation = state.metrics.observe(&request);
    let accepted = accept(&state, request, &mut observation).await;
    respond(state, accepted, observation).await
}

/// Draws what was accepted, and answers with the images or, as they come about, with events.
async fn respond(
    state: Arc<AppState>,
    accepted: Result<Accepted, ApiError>,
    mut observation: Observation,
) -> Result<Response, ApiError> {
    let answered = match accepted {
        Ok(Accepted { taken, streaming, steps: Some(steps), .. }) => {
            return Ok(events::stream(state, taken, Voice::OpenAi(streaming), steps, observation, None));
        }
        Ok(accepted) => answer(&state, accepted, &mut observation).await,
        Err(error) => Err(error),
    };
    match answered {
        Ok(answer) => Ok(hand_over(answer, Parcel::new(observation, None))),
        Err(error) => {
            observation.fail(&error);
            Err(error)
        }
    }
}

/// A request that the engine draws for.
struct Accepted {
    taken: Taken,
    carrier: Option<Carrier>,
    streaming: Streaming,
    /// Where steps are heard of, if the client streams.
    steps: Option<mpsc::Receiver<Step>>,
}

async fn accept(state: &AppState, request: Request, observation: &mut Observation) -> Result<Accepted, ApiError> {
    let arrived = Instant::now();
    if state.is_draining() {
        return Err(ApiError::Draining);
    }
    require_type(request.headers(), JSON)?;
    let body: ImagesBody = parse(&read_body(state, request).await?, ImagesBody::FIELDS)?;
    accept_body(state, arrived, body, Kind::Generation, Given::default(), observation).await
}

/// As [`accept`], of a body and what its images start from.
async fn accept_body(
    state: &AppState,
    arrived: Instant,
    body: ImagesBody,
    kind: Kind,
    given: Given,
    observation: &mut Observation,
) -> Result<Accepted, ApiError> {
    let (budget, quality) = chosen("quality", body.quality.as_deref(), &QUALITIES)?;
    let budget = body.num_inference_steps.map_or(Ok(budget), steps)?;
    observation.set_budget(&budget);
    let model = state.catalogue.choose(body.model.as_deref())?;
    let (format, jpeg_quality, size) = checked(state, &model, &body)?;
    let carrier = body.response_format.as_deref();
    let carrier = carrier.map(|asked| chosen("response_format", Some(asked), &RESPONSE_FORMATS)).transpose()?;
    let (guidance, negative_prompt) = (body.guidance_scale, body.negative_prompt);
    let classes = &model.about().classes;
    let subject = match (&model.texts, classes.is_empty()) {
        (Some(_), _) => Subject { class: None, prompt: Some(body.prompt), negative_prompt, guidance },
        (None, true) => Subject { negative_prompt, guidance, ..Subject::default() },
        (None, false) => {
            let class = Some(ClassChoice::Index(prompt::class_of(&body.prompt, classes)? as u64));
            Subject { class, prompt: None, negative_prompt, guidance }
        }
    };
    let order = Order { arrived, budget, min_quality: None, subject, given, size, seed: body.seed, n: body.n };
    let (told, steps) = body.stream.unwrap_or(false).then(|| mpsc::channel(EVENTS)).unzip();
    let partial_images = body.partial_images.unwrap_or(0);
    // Whoever sees nothing on the way shall not have the engine make previews of every step.
    let taken = take(state, model, order, told.filter(|_| partial_images > 0), observation).await?;
    let streaming = Streaming { kind, format, jpeg_quality, quality, partial_images, shown: HashMap::new() };
    Ok(Accepted { taken, carrier, streaming, steps })
}

/// Waits for the images and answers with all of them.
async fn answer(state: &AppState, accepted: Accepted, observation: &mut Observation) -> Result<Response, ApiError> {
    let Accepted { taken, carrier, streaming: Streaming { format, jpeg_quality, quality, .. }, .. } = accepted;
    let drawn = taken.drawn(state, observation).await?;
    let (files, timings) = drawn.encode_each(state, format, jpeg_quality).await?;
    observation.succeed(&timings, drawn.served(), files.len(), drawn.late, format);
    let answer = ImagesAnswer {
        created: seconds_since_1970(),
        data: files.iter().map(|file| ImageEntry::new(format, file, carrier)).collect(),
        background: "opaque",
        output_format: format.as_str(),
        quality,
        size: drawn.shape.size().to_string(),
        usage: Usage::default(),
    };
    Ok((AppendHeaders(headers(&drawn, &timings)), Json(answer)).into_response())
}

/// The budget of so many steps.
fn steps(steps: usize) -> Result<Budget, ApiError> {
    let plan = Plan::constant(Solver::DpmPp2m, steps, FULL);
    let (first, last) = (STEPS.start(), STEPS.end());
    plan.map(Budget::Exact).map_err(|_| ApiError::OutOfRange {
        field: "num_inference_steps",
        value: steps.to_string(),
        accepted: format!("{first} to {last}"),
    })
}

/// Checks the fields that have to do with neither budget nor subject; the file format, its quality if it is JPEG, and columns and rows.
fn checked(state: &AppState, model: &Loaded, body: &ImagesBody) -> Result<(Format, u8, [Option<usize>; 2]), ApiError> {
    let most = MAX_N.min(most_images(state, model));
    if let Some(n) = body.n.filter(|n| !(1..=most).contains(n)) {
        return Err(ApiError::OutOfRange { field: "n", value: n.to_string(), accepted: format!("1 to {most}") });
    }
    let sizes: Vec<(String, [Option<usize>; 2])> = sizes(model).collect();
    let auto = [("auto", [None; 2])].into_iter();
    let sizes: Vec<_> = auto.chain(sizes.iter().map(|(name, size)| (name.as_str(), *size))).collect();
    let size = chosen("size", body.size.as_deref(), &sizes)?;
    chosen("background", body.background.as_deref(), &BACKGROUNDS)?;
    chosen("moderation", body.moderation.as_deref(), &MODERATIONS)?;
    if let Some(often) = body.partial_images.filter(|often| *often > MAX_PARTIAL) {
        let accepted = format!("0 to {MAX_PARTIAL}");
        return Err(ApiError::OutOfRange { field: "partial_images", value: often.to_string(), accepted });
    }
    let format = chosen("output_format", body.output_format.as_deref(), &FORMATS)?;
    Ok((format, compression(format, body.output_compression)?, size))
}

/// The sizes that a model draws, by the OpenAI API's texts of them: columns and rows.
pub(super) fn sizes(model: &Loaded) -> impl Iterator<Item = (String, [Option<usize>; 2])> {
    let of =
        |Canvas { picture, .. }: &Canvas| (picture.size().to_string(), [Some(picture.width), Some(picture.height)]);
    model.about().canvases.iter().map(of)
}

/// What a field's value means, whatever its case; the first of `accepted` when nothing is said.
fn chosen<T: Clone>(field: &'static str, asked: Option<&str>, accepted: &[(&str, T)]) -> Result<T, ApiError> {
    let Some(asked) = asked else { return Ok(accepted[0].1.clone()) };
    let found = accepted.iter().find(|(name, _)| name.eq_ignore_ascii_case(asked)).map(|(_, meaning)| meaning.clone());
    found.ok_or_else(|| {
        let names: Vec<&str> = accepted.iter().map(|&(name, _)| name).collect();
        ApiError::OutOfRange { field, value: format!("`{asked}`"), accepted: format!("one of {}", names.join(", ")) }
    })
}

/// The quality of a JPEG file. The API's 0 is the least that the encoder knows.
fn compression(format: Format, asked: Option<u8>) -> Result<u8, ApiError> {
    let quality = asked.unwrap_or(BEST_COMPRESSION);
    let accepted = match format {
        Format::Jpeg if quality <= BEST_COMPRESSION => return Ok(quality.max(1)),
        Format::Png | Format::Webp if quality == BEST_COMPRESSION => return Ok(quality),
        Format::Jpeg => "0 to 100",
        Format::Png | Format::Webp => "100 with png and webp, which are lossless here",
    };
    Err(ApiError::OutOfRange { field: "output_compression", value: quality.to_string(), accepted: accepted.to_owned() })
}
