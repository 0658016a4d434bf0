//! From a checked request to pixels: budget -> wish -> engine. What all routes that draw images share.

use crate::ImageShape;
use crate::diffusion::plan::Plan;
use crate::engine::image::{Format, Raster, grid_shape};
use crate::engine::settings::Settings;
use crate::engine::{Finished, Job, Step, Ticket};
use crate::nets::Canvas;
use crate::routing::{Budget, MinQuality, Resolved, RoutingError};
use crate::server::metrics::{Observation, Timings};
use crate::server::original::{Given, Started};
use crate::server::subject::{Subject, Told};
use crate::server::{ApiError, AppState, Loaded};
use image::ImageResult;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Drawn seeds fit the integers that a double holds, so that no JSON reader changes them.
const DRAWN_SEED_BITS: u32 = 53;

/// What a client asks for, as it says it.
pub(super) struct Order {
    pub arrived: Instant,
    pub budget: Budget,
    pub min_quality: Option<MinQuality>,
    pub subject: Subject,
    /// What the images start from.
    pub given: Given,
    /// Columns and rows; absent are those of the usual size.
    pub size: [Option<usize>; 2],
    /// Absent: drawn at random.
    pub seed: Option<u64>,
    pub n: Option<u32>,
}

/// An order that an engine has taken. Dropping it cancels the work within one step.
pub(super) struct Taken {
    /// Who draws it.
    model: Arc<Loaded>,
    ticket: Ticket,
    pub planned: Arc<Plan>,
    pub seed: u64,
    images: u32,
    /// The quality that an idle machine would have given, where it is known.
    asked: Option<f64>,
    arrived: Instant,
    within: Duration,
    /// The size of each.
    pub shape: ImageShape,
    truncated: Vec<&'static str>,
    /// But for the plan that will run.
    settings: Settings,
}

/// The images of an order, and what is said about them.
pub(super) struct Drawn {
    pub finished: Finished,
    pub planned: Arc<Plan>,
    pub seed: u64,
    /// The mean quality of the images; measured for plans of the frontier, estimated for those that changed on the way.
    pub quality: Option<f64>,
    pub late: bool,
    /// The size of each.
    pub shape: ImageShape,
    /// The fields with more text than the model reads.
    pub truncated: Vec<&'static str>,
    settings: Settings,
}

/// Checks an order against a model and the limits, and puts it into the queue.
///
/// # Errors
/// Everything that a request can be refused for after its syntax.
pub(super) async fn take(
    state: &AppState,
    model: Arc<Loaded>,
    order: Order,
    events: Option<mpsc::Sender<Step>>,
    observation: &mut Observation,
) -> Result<Taken, ApiError> {
    let Order { arrived, budget, min_quality, subject, given, size, seed, n } = order;
    let canvases = &model.about().canvases;
    let given = Given { strength: strength_of(&given, &budget)?, ..given };
    let Started { original, strength, canvas, files: [image, mask] } = given.started(canvases, size).await?;
    let shape = canvases[canvas].picture;
    let images = image_count(state, shape, n)?;
    let budget = match budget {
        Budget::Exact(plan) => {
            require_steps(state, plan.steps)?;
            Budget::Exact(plan.started(strength))
        }
        budget => budget,
    };
    if let Some(MinQuality::Plan(plan)) = &min_quality {
        require_steps(state, plan.steps)?;
    }
    let longest = Duration::from_secs(state.limits.request_timeout_s);
    let started = (strength < 1.0).then(|| model.ladder.started(strength, &model.times));
    let ladder = started.as_ref().unwrap_or(&model.ladder);
    let resolved = state.budgets.resolve(&budget, min_quality.as_ref(), ladder, &model.times, longest)?;
    let Resolved { wish, within, asked } = resolved;
    let (prompts, negative_prompt) = (Vec::from_iter(subject.prompt.clone()), subject.negative_prompt.clone());
    let Told { condition, negative, guidance, truncated } = subject.told(&model).await?;
    let class = condition.class().map(|class| model.about().classes[class].clone());
    let seed = match seed {
        Some(seed) => seed,
        None => getrandom::u64().map_err(|e| ApiError::Internal(e.to_string()))? >> (u64::BITS - DRAWN_SEED_BITS),
    };
    // The engine's deadline leaves time to encode and to answer.
    let drawn_within = within.saturating_sub(state.answering.reserve(within));
    let original = original.map(Arc::new);
    let job = Job {
        wish,
        arrived,
        within: drawn_within,
        seed,
        images,
        condition,
        negative,
        guidance,
        canvas,
        original,
        strength,
        events,
    };
    let ticket = model.fleet.submit(job)?;
    let planned = ticket.planned().plan.clone();
    observation.set_plan(&planned);
    let settings = Settings {
        images,
        classes: Vec::from_iter(class),
        prompts,
        negative_prompt: negative_prompt.unwrap_or_default(),
        guidance,
        image,
        mask,
        strength,
        ..Settings::new(&model.name, model.about(), planned.to_string(), seed, shape.size())
    };
    Ok(Taken { model, ticket, planned, seed, images, asked, arrived, within, shape, truncated, settings })
}

impl Taken {
    /// Waits for the images.
    ///
    /// # Errors
    /// [`ApiError::Timeout`], or what the engine says.
    pub async fn drawn(self, state: &AppState, observation: &mut Observation) -> Result<Drawn, ApiError> {
        let Self { model, ticket, planned, seed, images, asked, arrived, within, shape, truncated, settings } = self;
        let limit = state.limits.request_timeout_s;
        // Dropping the ticket, here or with this whole future when the client goes away, cancels the job.
        let finished = tokio::time::timeout(Duration::from_secs(limit), ticket.wait());
        let finished = finished.await.map_err(|_| ApiError::Timeout(limit))??;
        finished.plans.iter().for_each(|plan| observation.set_plan(plan));
        // A plan that is neither measured nor what was planned is one of the frontier that changed on the way.
        let changed =
            |plan: &Arc<Plan>| (*plan != planned).then(|| model.ladder.estimate(plan, &model.times)).flatten();
        let of = |plan: &Arc<Plan>| model.ladder.quality(plan).or_else(|| changed(plan));
        let qualities: Option<Vec<f64>> = finished.plans.iter().map(of).collect();
        let quality = qualities.map(|qualities| qualities.iter().sum::<f64>() / qualities.len().max(1) as f64);
        if let (Some(asked), Some(served)) = (asked, quality) {
            state.metrics.compare(asked, served.min(asked), images);
        }
        let late = arrived.elapsed() > within;
        Ok(Drawn { finished, planned, seed, quality, late, shape, truncated, settings })
    }
}

impl Drawn {
    /// The text of the plan that was served; where the images of a request had different ones, one an image in order.
    pub fn served(&self) -> String {
        let plans = &self.finished.plans;
        if plans.windows(2).all(|pair| pair[0] == pair[1]) {
            return plans.first().map_or_else(String::new, |plan| plan.to_string());
        }
        plans.iter().map(|plan| plan.to_string()).collect::<Vec<_>>().join("; ")
    }

    /// What is told in a file of all images; None where the server tells nothing.
    pub fn settings(&self, state: &AppState) -> Option<Settings> {
        state.privacy.embed_settings.then(|| Settings { plan: self.served(), ..self.settings.clone() })
    }

    /// The same in a file of the image of this index alone, whatever was drawn after it.
    pub fn settings_of(&self, state: &AppState, image: usize) -> Option<Settings> {
        let (plan, images) = (self.finished.plans[image].to_string(), image as u32 + 1);
        let settings = Settings { plan, images, only_last: image > 0, ..self.settings.clone() };
        state.privacy.embed_settings.then_some(settings)
    }

    /// Encodes each image as a file of its own, JPEG in this quality.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub async fn encode_each(
        &self,
        state: &AppState,
        format: Format,
        jpeg_quality: u8,
    ) -> Result<(Vec<Vec<u8>>, Timings), ApiError> {
        let (shape, images) = (self.shape, self.finished.images.len());
        let settings: Vec<_> = (0..images).map(|image| self.settings_of(state, image)).collect();
        let file =
            move |index: usize, raster: &Raster| raster.encode_with(format, jpeg_quality, settings[index].as_ref());
        let each = |images: &[Vec<u8>]| images.chunks(1).map(|image| Raster::grid(shape, image)).collect();
        self.encode(state, file, each).await
    }

    /// Encodes `pictures` of these images with `file`, which is told the index of each, away from the threads that serve connections and from the engine's.
    ///
    /// # Errors
    /// [`ApiError::Internal`] if the format cannot hold them.
    pub async fn encode(
        &self,
        state: &AppState,
        file: impl Fn(usize, &Raster) -> ImageResult<Vec<u8>> + Send + 'static,
        pictures: impl FnOnce(&[Vec<u8>]) -> Vec<Raster>,
    ) -> Result<(Vec<Vec<u8>>, Timings), ApiError> {
        let rasters = pictures(&self.finished.images);
        let work = move || {
            let start = Instant::now();
            let files = rasters.iter().enumerate().map(|(index, raster)| file(index, raster));
            let files = files.collect::<Result<Vec<_>, _>>();
            files.map(|files| (files, start.elapsed()))
        };
        let encoded = tokio::task::spawn_blocking(work).await.map_err(|e| ApiError::Internal(e.to_string()))?;
        let (files, took) = encoded.map_err(|e| ApiError::Internal(format!("the image could not be encoded: {e}")))?;
        state.answering.observe(took);
        Ok((files, Timings::new(&self.finished, took)))
    }
}

/// How much of a picture is made anew, as the request or its plan says, if one of them does.
///
/// # Errors
/// [`RoutingError::Contradiction`] where they say different things, or there is no picture that a plan could start from.
fn strength_of(given: &Given, budget: &Budget) -> Result<Option<f64>, ApiError> {
    let Budget::Exact(plan) = budget else { return Ok(given.strength) };
    let contradiction = |problem: &str| Err(RoutingError::Contradiction(problem.to_owned()).into());
    match given.strength {
        _ if plan.strength == 1.0 => Ok(given.strength),
        _ if given.image.is_none() => contradiction("the plan starts from a picture, with ~strength: send `image`"),
        Some(strength) if strength != plan.strength => {
            contradiction("the plan's ~strength is another than `strength`: leave one of them out")
        }
        _ => Ok(Some(plan.strength)),
    }
}

/// The index of the size with so many columns and rows, the first of those where one of them is not said.
pub(super) fn canvas_of(canvases: &[Canvas], [width, height]: [Option<usize>; 2]) -> Result<usize, ApiError> {
    let is = |Canvas { picture, .. }: &Canvas| {
        width.is_none_or(|width| width == picture.width) && height.is_none_or(|height| height == picture.height)
    };
    canvases.iter().position(is).ok_or_else(|| {
        let said = |side: Option<usize>| side.map_or_else(|| "any".to_owned(), |side| side.to_string());
        let sizes: Vec<String> = canvases.iter().map(|canvas| canvas.picture.size().to_string()).collect();
        ApiError::OutOfRange {
            field: if width.is_some() { "width" } else { "height" },
            value: format!("of {}x{}", said(width), said(height)),
            accepted: format!("that of one of the sizes {}", sizes.join(", ")),
        }
    })
}

fn image_count(state: &AppState, shape: ImageShape, asked: Option<u32>) -> Result<u32, ApiError> {
    let images = asked.unwrap_or(1);
    let out_of_range = |accepted| Err(ApiError::OutOfRange { field: "n", value: images.to_string(), accepted });
    if !(1..=state.limits.max_n).contains(&images) {
        return out_of_range(format!("1 to {}", state.limits.max_n));
    }
    let grid = grid_shape(shape, images as usize);
    if grid.height * grid.width > state.limits.max_pixels {
        return out_of_range(format!("so few that their grid has at most {} pixels", state.limits.max_pixels));
    }
    Ok(images)
}

/// The most images that a request may ask of a model: their grid has to be small enough as well.
pub(super) fn most_images(state: &AppState, model: &Loaded) -> u32 {
    let fits = |images: &u32| {
        let grid = grid_shape(model.about().picture(), *images as usize);
        grid.height * grid.width <= state.limits.max_pixels
    };
    (1..=state.limits.max_n).take_while(fits).last().unwrap_or(0)
}

fn require_steps(state: &AppState, steps: usize) -> Result<(), ApiError> {
    let most = state.limits.max_steps;
    if (1..=most).contains(&steps) {
        return Ok(());
    }
    Err(ApiError::OutOfRange { field: "steps", value: steps.to_string(), accepted: format!("1 to {most}") })
}
