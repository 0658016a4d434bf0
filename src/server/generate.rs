//! `POST /generate`: wire type -> order -> engine -> encoded bytes.

use crate::engine::Step;
use crate::engine::image::{Format, JPEG_QUALITY, Raster};
use crate::routing::RoutingError;
use crate::server::draw::{Drawn, Order, Taken, take};
use crate::server::error::{ErrorBody, Failures, Locked, Refusals};
use crate::server::events::{self, EVENTS, ServerSentEvent, Voice};
use crate::server::handover::hand_over;
use crate::server::kept::{File, Keeper, Parcel};
use crate::server::metrics::{Observation, Timings};
use crate::server::negotiate::{JSON, Shape, accepted_shape, require_type};
use crate::server::original::{self, Given};
use crate::server::subject::Subject;
use crate::server::wire::{GenerateBody, GenerateQuery};
use crate::server::{ApiError, AppState};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

/// The largest body without its pictures: hundreds of times what the fields need.
const MAX_BODY_BYTES: usize = 64 << 10;

/// The largest body of a request for images: with two pictures of any model in base 64.
pub(super) fn most_body_bytes(state: &AppState) -> usize {
    let most = state.models().iter().map(|model| original::most_bytes(&model.about().canvases)).max();
    MAX_BODY_BYTES + 2 * most.unwrap_or(0) / 3 * 4
}

/// Draw an image, or a grid of `n`.
///
/// Where `Accept` names `text/event-stream`, and weighs it no less than any image, the answer is a stream of server-sent
/// events: `planned` {plan, seed}, then for each step `step` {image, step, of, plan} and `preview` {image, step, url}, at
/// last `image` {plan, planned, quality, seed, media_type, b64_json, timings} or `error` {code, message}.
#[utoipa::path(
    post,
    path = "/generate",
    tag = "images",
    params(GenerateQuery),
    request_body(content = GenerateBody, example = json!({ "seed": 7 })),
    responses(
        (status = 200, description = "The image, in the format of `format` or else of `Accept`.",
            content(
                (Vec<u8> = "image/png"),
                (Vec<u8> = "image/webp"),
                (Vec<u8> = "image/jpeg"),
                (ServerSentEvent = "text/event-stream"),
            ),
            headers(
                ("x-accordion-plan" = String, description = "What ran: replay it with `budget=exact:`. Where images of one \
                    request had different plans, their texts are joined by `; `."),
                ("x-accordion-planned" = String, description = "What was planned when the request came."),
                ("x-accordion-quality" = f64, description = "The quality of what ran, from 0 to 1, where it is known."),
                ("x-accordion-truncated" = String, description = "The fields with more text than the model reads, of which it \
                    read the beginning."),
                ("x-seed" = u64, description = "The seed of the images."),
                ("server-timing" = String, description = "Milliseconds that the images waited, were drawn and encoded."),
            )),
        (status = 404, description = "`model` is not loaded.", body = ErrorBody),
        (status = 406, description = "`Accept` allows no format that there is.", body = ErrorBody),
        Refusals,
        Locked,
        Failures,
    )
)]
pub(super) async fn generate(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let mut observation = state.metrics.observe(&request);
    match accept(&state, request, &mut observation).await {
        Ok(Accepted { taken, format, steps: Some(steps), keeper }) => {
            Ok(events::stream(state, taken, Voice::Own(format), steps, observation, keeper))
        }
        Ok(Accepted { taken, format, steps: None, keeper: None }) => {
            whole(&state, taken, format, observation, None).await
        }
        Ok(Accepted { taken, format, steps: None, keeper }) => outlive(state, taken, format, observation, keeper).await,
        Err(error) => {
            observation.fail(&error);
            Err(error)
        }
    }
}

/// A request that the engine draws for.
struct Accepted {
    taken: Taken,
    format: Format,
    /// Where steps are heard of, if the client wants to know.
    steps: Option<mpsc::Receiver<Step>>,
    /// Who keeps the images, which are then drawn whether the client waits for them or not.
    keeper: Option<Keeper>,
}

async fn accept(state: &AppState, request: Request, observation: &mut Observation) -> Result<Accepted, ApiError> {
    let arrived = Instant::now();
    if state.is_draining() {
        return Err(ApiError::Draining);
    }
    let GenerateQuery { model: named, budget, min_quality, keep } = query(&request)?;
    let budget = budget.map_or(Ok(crate::routing::Budget::DEFAULT), |text| text.parse())?;
    observation.set_budget(&budget);
    let min_quality = min_quality.map(|text| text.parse()).transpose()?;
    require_type(request.headers(), JSON)?;
    let headers = request.headers().clone();
    let body = GenerateBody::parse(&read_body(state, request).await?)?;
    let GenerateBody {
        model,
        class,
        prompt,
        negative_prompt,
        seed,
        n,
        guidance,
        width,
        height,
        image,
        mask,
        strength,
        format,
    } = body;
    let model = state.catalogue.choose(one_of(named.as_deref(), model.as_deref())?)?;
    let format = format.map(|name| name.parse().map_err(ApiError::UnknownFormat)).transpose()?;
    let (events, accepted) = match accepted_shape(&headers) {
        Shape::Events(accepted) => (true, Some(accepted)),
        Shape::File(accepted) => (false, accepted),
    };
    let format = format.or(accepted).ok_or(ApiError::NotAcceptable)?;
    let subject = Subject { class, prompt, negative_prompt, guidance };
    let [image, mask] = [image, mask].map(|file| file.map(|file| file.0));
    let given = Given { image, mask, strength };
    let order = Order { arrived, budget, min_quality, subject, given, size: [width, height], seed, n };
    let (told, steps) = events.then(|| mpsc::channel(EVENTS)).unzip();
    let taken = take(state, model, order, told, observation).await?;
    let keeper = keep.unwrap_or(false).then(|| {
        let id = headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        Keeper { kept: state.kept.clone(), id }
    });
    Ok(Accepted { taken, format, steps, keeper })
}

/// Waits for the images and answers with one file.
async fn whole(
    state: &AppState,
    taken: Taken,
    format: Format,
    mut observation: Observation,
    keeper: Option<Keeper>,
) -> Result<Response, ApiError> {
    let drawn = async {
        let drawn = taken.drawn(state, &mut observation).await?;
        file_of(state, &drawn, format, &mut observation).await
    };
    match drawn.await {
        Ok((file, _)) => {
            let keep = keeper.map(|keeper| (keeper, file.clone()));
            Ok(hand_over(file.into_response(), Parcel::new(observation, keep)))
        }
        Err(error) => {
            observation.fail(&error);
            Err(error)
        }
    }
}

/// Images as one file: one alone, or a grid of several.
pub(super) async fn file_of(
    state: &AppState,
    drawn: &Drawn,
    format: Format,
    observation: &mut Observation,
) -> Result<(File, Timings), ApiError> {
    let shape = drawn.shape;
    let settings = drawn.settings(state);
    let file = move |_, raster: &Raster| raster.encode_with(format, JPEG_QUALITY, settings.as_ref());
    let (mut files, timings) = drawn.encode(state, file, |images| vec![Raster::grid(shape, images)]).await?;
    observation.succeed(&timings, drawn.served(), drawn.finished.images.len(), drawn.late, format);
    let bytes = files.pop().unwrap_or_default().into();
    Ok((File { media_type: format.media_type(), headers: headers(drawn, &timings), bytes }, timings))
}

/// What is said about the images beside them.
pub(super) fn headers(drawn: &Drawn, timings: &Timings) -> Vec<(header::HeaderName, String)> {
    let name = header::HeaderName::from_static;
    let mut headers = vec![
        (name("x-accordion-plan"), drawn.served()),
        (name("x-accordion-planned"), drawn.planned.to_string()),
        (name("x-seed"), drawn.seed.to_string()),
        (name("server-timing"), timings.header()),
    ];
    if let Some(quality) = drawn.quality {
        headers.push((name("x-accordion-quality"), format!("{quality:.4}")));
    }
    if !drawn.truncated.is_empty() {
        headers.push((name("x-accordion-truncated"), drawn.truncated.join(", ")));
    }
    headers
}

/// As [`whole`], in a task that outlives the client.
async fn outlive(
    state: Arc<AppState>,
    taken: Taken,
    format: Format,
    observation: Observation,
    keeper: Option<Keeper>,
) -> Result<Response, ApiError> {
    let (deliver, delivered) = oneshot::channel();
    let draw = async move {
        let answer = whole(&state, taken, format, observation, keeper).await;
        // An answer without a client is dropped, which keeps its images.
        if let Err(Err(error)) = deliver.send(answer) {
            error.log();
        }
    };
    tokio::spawn(draw.in_current_span());
    delivered.await.map_err(|_| ApiError::Internal("the task that draws has ended".to_owned()))?
}

fn query(request: &Request) -> Result<GenerateQuery, ApiError> {
    let Query(query) =
        Query::try_from_uri(request.uri()).map_err(|rejection| ApiError::InvalidQuery(rejection.body_text()))?;
    Ok(query)
}

/// The model that the query or the body names.
///
/// # Errors
/// [`RoutingError::Contradiction`] where they name different ones.
fn one_of<'a>(query: Option<&'a str>, body: Option<&'a str>) -> Result<Option<&'a str>, ApiError> {
    match (query, body) {
        (Some(one), Some(other)) if one != other => {
            let problem = format!("the query asks for model {one} and the body for {other}: leave one of them out");
            Err(RoutingError::Contradiction(problem).into())
        }
        _ => Ok(query.or(body)),
    }
}

pub(super) async fn read_body(state: &AppState, mut request: Request) -> Result<Bytes, ApiError> {
    let limit = state.limits.body_timeout_s;
    let most = most_body_bytes(state);
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let is_small = length.is_some_and(|length: usize| length <= MAX_BODY_BYTES);
    DefaultBodyLimit::max(most).apply(&mut request);
    let read = async {
        // Never closed: there is a place in the end.
        let _place = if is_small { None } else { state.large_bodies.acquire().await.ok() };
        Bytes::from_request(request, &()).await
    };
    let body = tokio::time::timeout(Duration::from_secs(limit), read);
    body.await.map_err(|_| ApiError::BodyTimeout(limit))?.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLarge(most),
        _ => ApiError::BrokenBody(rejection.body_text()),
    })
}
