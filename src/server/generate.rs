//! `POST /generate`: wire type -> order -> engine -> encoded bytes.

use crate::engine::image::{Format, Raster};
use crate::server::draw::{Drawn, Order, Taken, take};
use crate::server::error::{ErrorBody, Failures, Locked, Refusals};
use crate::server::kept::File;
use crate::server::metrics::{Observation, Timings};
use crate::server::negotiate::{accepted_format, require_json, wants_events};
use crate::server::wire::{GenerateBody, GenerateQuery};
use crate::server::{ApiError, AppState, events};
use axum::body::Bytes;
use axum::extract::{FromRequest, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// The largest body: hundreds of times what the fields need.
pub(super) const MAX_BODY_BYTES: usize = 64 << 10;
/// Steps that a listener may be behind before it misses some.
const EVENTS: usize = 64;

/// Draw an image, or a grid of `n`.
///
/// With `Accept: text/event-stream` the answer is a stream of server-sent events: `planned` {plan, seed}, then for each
/// step `step` {image, step, of, plan} and `preview` {image, step, url}, at last `image` {plan, planned, quality, seed,
/// media_type, b64_json, timings} or `error` {code, message}.
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
                (String = "text/event-stream"),
            ),
            headers(
                ("x-accordion-plan" = String, description = "What ran: replay it with `budget=exact:`. Where images of one \
                    request had different plans, their texts are joined by `; `."),
                ("x-accordion-planned" = String, description = "What was planned when the request came."),
                ("x-accordion-quality" = f64, description = "The quality of what ran, from 0 to 1, where it is known."),
                ("x-seed" = u64, description = "The seed of the images."),
                ("server-timing" = String, description = "Milliseconds that the images waited, were drawn and encoded."),
            )),
        (status = 406, description = "`Accept` allows no format that there is.", body = ErrorBody),
        Refusals,
        Locked,
        Failures,
    )
)]
pub(super) async fn generate(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let mut observation = state.metrics.observe();
    match answer(&state, request, &mut observation).await {
        Ok(Answer::Whole(file)) => Ok(file.into_response()),
        Ok(Answer::Stream { taken, format, steps }) => {
            Ok(events::stream(state.clone(), taken, format, steps, observation).into_response())
        }
        Ok(Answer::Kept { taken, format, id }) => keep(state, taken, format, id, observation).await,
        Err(error) => {
            observation.fail(&error);
            Err(error)
        }
    }
}

enum Answer {
    Whole(File),
    /// Steps are told as they are made; the images come last.
    Stream {
        taken: Taken,
        format: Format,
        steps: mpsc::Receiver<crate::engine::Step>,
    },
    /// The images are drawn whether the client waits for them or not.
    Kept {
        taken: Taken,
        format: Format,
        id: String,
    },
}

async fn answer(state: &AppState, request: Request, observation: &mut Observation) -> Result<Answer, ApiError> {
    let arrived = Instant::now();
    if state.is_draining() {
        return Err(ApiError::Draining);
    }
    let GenerateQuery { budget, min_quality, keep } = query(&request)?;
    let budget = budget.map_or(Ok(crate::routing::Budget::DEFAULT), |text| text.parse())?;
    observation.set_budget(&budget);
    let min_quality = min_quality.map(|text| text.parse()).transpose()?;
    require_json(request.headers())?;
    let headers = request.headers().clone();
    let body = GenerateBody::parse(&read_body(state, request).await?)?;
    let GenerateBody { class, seed, n, guidance, format } = body;
    let streams = wants_events(&headers);
    let format = match format {
        Some(name) => name.parse().map_err(ApiError::UnknownFormat)?,
        None if streams => Format::Png,
        None => accepted_format(&headers)?,
    };
    let order = Order { arrived, budget, min_quality, class, seed, n, guidance };
    if streams {
        let (told, steps) = mpsc::channel(EVENTS);
        let taken = take(state, order, Some(told), observation)?;
        return Ok(Answer::Stream { taken, format, steps });
    }
    let taken = take(state, order, None, observation)?;
    if keep.unwrap_or(false) {
        let id = headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        return Ok(Answer::Kept { taken, format, id });
    }
    Ok(Answer::Whole(whole(state, taken, format, observation).await?))
}

/// Waits for the images and answers with one file: an image, or a grid of several.
async fn whole(
    state: &AppState,
    taken: Taken,
    format: Format,
    observation: &mut Observation,
) -> Result<File, ApiError> {
    let drawn = taken.drawn(state, observation).await?;
    let shape = state.fleet.any().image();
    let file = move |raster: &Raster| raster.encode(format);
    let (mut files, timings) = drawn.encode(state, file, |images| vec![Raster::grid(shape, images)]).await?;
    observation.succeed(&timings, &drawn, format);
    let bytes = files.pop().unwrap_or_default();
    Ok(File { media_type: format.media_type(), headers: headers(&drawn, &timings), bytes })
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
    headers
}

/// As [`whole`], in a task that outlives the client: what it cannot deliver it keeps.
async fn keep(
    state: Arc<AppState>,
    taken: Taken,
    format: Format,
    id: String,
    mut observation: Observation,
) -> Result<Response, ApiError> {
    let (deliver, delivered) = oneshot::channel();
    tokio::spawn(async move {
        let answer = whole(&state, taken, format, &mut observation).await;
        if let Err(error) = &answer {
            observation.fail(error);
        }
        if let Err(Ok(file)) = deliver.send(answer) {
            state.kept.put(id, file, Instant::now());
        }
    });
    let file = delivered.await.map_err(|_| ApiError::Internal("the task that draws has ended".to_owned()))??;
    Ok(file.into_response())
}

fn query(request: &Request) -> Result<GenerateQuery, ApiError> {
    let Query(query) =
        Query::try_from_uri(request.uri()).map_err(|rejection| ApiError::InvalidQuery(rejection.body_text()))?;
    Ok(query)
}

pub(super) async fn read_body(state: &AppState, request: Request) -> Result<Bytes, ApiError> {
    let limit = state.limits.body_timeout_s;
    let body = tokio::time::timeout(Duration::from_secs(limit), Bytes::from_request(request, &()));
    body.await.map_err(|_| ApiError::BodyTimeout(limit))?.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLarge(MAX_BODY_BYTES),
        _ => ApiError::BrokenBody(rejection.body_text()),
    })
}
