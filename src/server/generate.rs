//! `POST /generate`: wire type -> budget -> plan -> engine -> encoded bytes.

use crate::diffusion::plan::Plan;
use crate::engine::image::{Format, Raster, grid_shape};
use crate::engine::{Finished, Job};
use crate::nets::ImageShape;
use crate::routing::{Budget, Overrides};
use crate::server::metrics::{Observation, Timings};
use crate::server::negotiate::{accepted_format, require_json};
use crate::server::wire::{ClassChoice, GenerateBody, GenerateQuery};
use crate::server::{ApiError, AppState};
use axum::body::Bytes;
use axum::extract::{FromRequest, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The largest body: hundreds of times what the fields need.
pub(super) const MAX_BODY_BYTES: usize = 64 << 10;
/// The accepted scales of classifier-free guidance.
const GUIDANCE: RangeInclusive<f64> = 0.0..=20.0;
/// Drawn seeds fit the integers that a double holds, so that no JSON reader changes them.
const DRAWN_SEED_BITS: u32 = 53;

pub(super) async fn generate(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let mut observation = state.metrics.observe();
    let answer = answer(&state, request, &mut observation).await;
    if let Err(error) = &answer {
        observation.fail(error);
    }
    answer
}

/// What a valid request asks for.
struct Order {
    job: Job,
    format: Format,
}

async fn answer(state: &AppState, request: Request, observation: &mut Observation<'_>) -> Result<Response, ApiError> {
    if state.is_draining() {
        return Err(ApiError::Draining);
    }
    let budget = budget(&request)?;
    observation.set_budget(&budget);
    require_json(request.headers())?;
    let headers = request.headers().clone();
    let body = GenerateBody::parse(&read_body(state, request).await?)?;
    let Order { job, format } = order(state, &budget, body, &headers)?;
    observation.set_subnet(match job.plan.widths.as_slice() {
        [only] => &only.subnet,
        _ => "mixed",
    });

    let (plan, seed, images) = (job.plan.clone(), job.seed, job.images);
    let ticket = state.engine.submit(job)?;
    let limit = state.limits.request_timeout_s;
    // Dropping the ticket, here or with this whole future when the client goes away, cancels the job.
    let finished = tokio::time::timeout(Duration::from_secs(limit), ticket.wait());
    let finished = finished.await.map_err(|_| ApiError::Timeout(limit))??;
    let (file, timings) = encode(state.engine.image(), finished, format).await?;
    observation.succeed(&timings, images, format);

    let headers = [
        (header::CONTENT_TYPE.as_str(), format.media_type().to_owned()),
        ("x-accordion-plan", plan.to_string()),
        ("x-seed", seed.to_string()),
        ("server-timing", timings.header()),
    ];
    Ok((headers, file).into_response())
}

fn budget(request: &Request) -> Result<Budget, ApiError> {
    let Query(GenerateQuery { budget }) =
        Query::try_from_uri(request.uri()).map_err(|rejection| ApiError::InvalidQuery(rejection.body_text()))?;
    Ok(budget.map_or(Ok(Budget::DEFAULT), |text| text.parse())?)
}

async fn read_body(state: &AppState, request: Request) -> Result<Bytes, ApiError> {
    let limit = state.limits.body_timeout_s;
    let body = tokio::time::timeout(Duration::from_secs(limit), Bytes::from_request(request, &()));
    body.await.map_err(|_| ApiError::BodyTimeout(limit))?.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLarge(MAX_BODY_BYTES),
        _ => ApiError::BrokenBody(rejection.body_text()),
    })
}

/// Checks everything that the body and the headers ask against the model and the limits.
fn order(state: &AppState, budget: &Budget, body: GenerateBody, headers: &HeaderMap) -> Result<Order, ApiError> {
    let GenerateBody { class, seed, n, steps, guidance, subnet, format } = body;
    let format = match format {
        Some(name) => name.parse().map_err(ApiError::UnknownFormat)?,
        None => accepted_format(headers)?,
    };
    let class = class.map(|choice| class_index(state.engine.classes(), choice)).transpose()?;
    let guidance = guidance_scale(guidance, class)?;
    let images = image_count(state, n)?;
    let overrides = Overrides { steps, subnet };
    if let Some(steps) = steps {
        require_steps(state, steps)?;
    }
    let plan: Plan = state.budgets.plan(budget, &overrides, &state.subnets)?;
    require_steps(state, plan.steps)?;
    let seed = match seed {
        Some(seed) => seed,
        None => getrandom::u64().map_err(|e| ApiError::Internal(e.to_string()))? >> (u64::BITS - DRAWN_SEED_BITS),
    };
    Ok(Order { job: Job { plan: Arc::new(plan), seed, images, class, guidance }, format })
}

fn class_index(classes: &[String], choice: ClassChoice) -> Result<usize, ApiError> {
    if classes.is_empty() {
        return Err(ApiError::ClassNotSupported);
    }
    let (found, asked) = match choice {
        ClassChoice::Index(index) => (usize::try_from(index).ok().filter(|&i| i < classes.len()), index.to_string()),
        ClassChoice::Name(name) => (classes.iter().position(|class| *class == name), name),
    };
    found.ok_or_else(|| ApiError::UnknownClass { asked, accepted: classes.to_vec() })
}

fn guidance_scale(asked: Option<f64>, class: Option<usize>) -> Result<f64, ApiError> {
    let scale = asked.unwrap_or(1.0);
    if !GUIDANCE.contains(&scale) {
        let accepted = format!("{} to {}", GUIDANCE.start(), GUIDANCE.end());
        return Err(ApiError::OutOfRange { field: "guidance", value: scale.to_string(), accepted });
    }
    if scale != 1.0 && class.is_none() {
        return Err(ApiError::GuidanceWithoutClass);
    }
    Ok(scale)
}

fn image_count(state: &AppState, asked: Option<u32>) -> Result<u32, ApiError> {
    let images = asked.unwrap_or(1);
    let out_of_range = |accepted| Err(ApiError::OutOfRange { field: "n", value: images.to_string(), accepted });
    if !(1..=state.limits.max_n).contains(&images) {
        return out_of_range(format!("1 to {}", state.limits.max_n));
    }
    let grid = grid_shape(state.engine.image(), images as usize);
    if grid.height * grid.width > state.limits.max_pixels {
        return out_of_range(format!("so few that their grid has at most {} pixels", state.limits.max_pixels));
    }
    Ok(images)
}

fn require_steps(state: &AppState, steps: usize) -> Result<(), ApiError> {
    let most = state.limits.max_steps;
    if (1..=most).contains(&steps) {
        return Ok(());
    }
    Err(ApiError::OutOfRange { field: "steps", value: steps.to_string(), accepted: format!("1 to {most}") })
}

/// Lays out and encodes the images, away from the threads that serve connections and from the engine's.
async fn encode(shape: ImageShape, finished: Finished, format: Format) -> Result<(Vec<u8>, Timings), ApiError> {
    let work = move || {
        let start = Instant::now();
        let file = Raster::grid(shape, &finished.images).encode(format);
        file.map(|file| (file, Timings::new(&finished, start.elapsed())))
    };
    let encoded = tokio::task::spawn_blocking(work).await.map_err(|e| ApiError::Internal(e.to_string()))?;
    encoded.map_err(|e| ApiError::Internal(format!("the image could not be encoded: {e}")))
}
