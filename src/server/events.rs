//! Answers as server-sent events: steps and previews while the images are drawn, the images last.

use crate::ImageShape;
use crate::digits::to_decimals;
use crate::engine::Step;
use crate::engine::image::{Format, Raster};
use crate::server::draw::{Drawn, Taken};
use crate::server::generate::file_of;
use crate::server::handover::Waits;
use crate::server::kept::{File, Keeper, Parcel};
use crate::server::metrics::{Observation, Timings};
use crate::server::openai::streaming::Streaming;
use crate::server::{ApiError, AppState};
use axum::http::{HeaderName, header};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::ImageResult;
use serde_json::json;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use tracing::Instrument;
use utoipa::ToSchema;

/// Steps that a listener may be behind before it misses some.
pub(super) const EVENTS: usize = 64;
/// Events that a client may be behind. Beyond it the sender waits, and steps are left out.
const BEHIND: usize = 16;

/// One of the events of an answer.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only the document is made of it")]
pub(super) struct ServerSentEvent {
    /// What it is.
    event: String,
    /// A JSON object.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// What the events are called, and what is in them.
pub(super) enum Voice {
    /// Those of `POST /generate`, with files of this format.
    Own(Format),
    /// The OpenAI API's.
    OpenAi(Streaming),
}

/// The events of an order. When the client goes away the order is dropped, which cancels its work, unless its images are
/// to be kept.
pub(super) fn stream(
    state: Arc<AppState>,
    taken: Taken,
    voice: Voice,
    steps: mpsc::Receiver<Step>,
    observation: Observation,
    keeper: Option<Keeper>,
) -> Response {
    let (told, events) = mpsc::channel(BEHIND);
    let draw = async move {
        let is_kept = keeper.is_some();
        tokio::select! {
            // The client has gone: what is in the other branch is dropped, the ticket with it.
            () = told.closed(), if !is_kept => {}
            () = tell(&state, taken, voice, steps, &told, observation, keeper) => {}
        }
    };
    tokio::spawn(draw.in_current_span());
    // A proxy that buffers an answer would deliver all events at its end.
    let at_once = [(HeaderName::from_static("x-accel-buffering"), "no"), (header::CACHE_CONTROL, "no-store")];
    let events = Events { told: events, parcel: None };
    (at_once, Sse::new(events).keep_alive(KeepAlive::default())).into_response()
}

/// An event, and with the last one the images that are in it.
struct Told {
    event: Event,
    parcel: Option<Parcel>,
}

/// The body of the answer.
struct Events {
    told: mpsc::Receiver<Told>,
    parcel: Option<Parcel>,
}

impl futures_core::Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match ready!(self.told.poll_recv(context)) {
            Some(Told { event, parcel }) => {
                self.parcel = parcel;
                Poll::Ready(Some(Ok(event)))
            }
            None => {
                if let Some(parcel) = self.parcel.take() {
                    parcel.handed_over();
                }
                Poll::Ready(None)
            }
        }
    }
}

async fn tell(
    state: &AppState,
    taken: Taken,
    mut voice: Voice,
    mut steps: mpsc::Receiver<Step>,
    told: &mpsc::Sender<Told>,
    mut observation: Observation,
    keeper: Option<Keeper>,
) {
    // Sending fails only when the client has gone.
    let send = async |event, parcel| drop(told.send(Told { event, parcel }).await);
    let shape = taken.shape;
    if let Voice::Own(_) = voice {
        let planned = json!({ "plan": taken.planned.to_string(), "seed": taken.seed });
        send(event("planned", &planned), None).await;
    }
    let drawn = {
        let mut drawn = std::pin::pin!(taken.drawn(state, &mut observation));
        loop {
            tokio::select! {
                biased;
                Some(step) = steps.recv() => {
                    // Nobody looks at the previews of what is only kept.
                    if told.is_closed() {
                        continue;
                    }
                    let told_of = match &mut voice {
                        Voice::Own(_) => progress(shape, step).await,
                        Voice::OpenAi(streaming) => streaming.step(shape, step).await,
                    };
                    for event in told_of {
                        send(event, None).await;
                    }
                }
                drawn = &mut drawn => break drawn,
            }
        }
    };
    let last = match (drawn, &voice) {
        (Ok(drawn), Voice::Own(format)) => {
            images(state, drawn, *format, &mut observation).await.map(|(event, file)| (vec![event], Some(file)))
        }
        (Ok(drawn), Voice::OpenAi(streaming)) => {
            streaming.images(state, &drawn, &mut observation).await.map(|events| (events, None))
        }
        (Err(error), _) => Err(error),
    };
    match last {
        Ok((mut events, file)) => {
            let last = events.pop();
            for event in events {
                send(event, None).await;
            }
            if let Some(last) = last {
                send(last, Some(Parcel::new(observation, keeper.zip(file)))).await;
            }
        }
        Err(error) => {
            observation.fail(&error);
            error.log();
            let event = match voice {
                Voice::Own(_) => {
                    let (_, code) = error.contract();
                    event("error", &json!({ "code": code, "message": error.to_string() }))
                }
                Voice::OpenAi(_) => event("error", &json!(error.body())),
            };
            send(event, None).await;
        }
    }
}

/// What `file` makes away from the threads that serve connections; None where it fails, and a preview is left out: the images will
/// say why.
pub(super) async fn encoded(file: impl FnOnce() -> ImageResult<Vec<u8>> + Send + 'static) -> Option<Vec<u8>> {
    tokio::task::spawn_blocking(file).await.ok()?.ok()
}

fn event(name: &str, data: &serde_json::Value) -> Event {
    Event::default().event(name).data(data.to_string())
}

/// A step, and what its image would be if the denoiser were right about it now.
async fn progress(shape: ImageShape, step: Step) -> Vec<Event> {
    let Step { image, step, plan, estimate } = step;
    let mut events = vec![event(
        "step",
        &json!({ "image": image, "step": step, "of": plan.made().len(), "plan": plan.to_string() }),
    )];
    let preview = move || Raster { shape, bytes: estimate }.encode(Format::Png);
    if let Some(file) = encoded(preview).await {
        let url = Format::Png.data_url(&STANDARD.encode(file));
        events.push(event("preview", &json!({ "image": image, "step": step, "url": url })));
    }
    events
}

async fn images(
    state: &AppState,
    drawn: Drawn,
    format: Format,
    observation: &mut Observation,
) -> Result<(Event, File), ApiError> {
    let (file, Timings { queue, denoise, encode }) = file_of(state, &drawn, format, observation).await?;
    let ms = |took: std::time::Duration| to_decimals(took.as_secs_f64() * 1e3, 3);
    let event = event(
        "image",
        &json!({
            "plan": drawn.served(),
            "planned": drawn.planned.to_string(),
            "quality": drawn.quality,
            "seed": drawn.seed,
            "truncated": drawn.truncated,
            "media_type": format.media_type(),
            "b64_json": STANDARD.encode(&file.bytes),
            "timings": { "queue_ms": ms(queue), "denoise_ms": ms(denoise), "encode_ms": ms(encode) },
        }),
    );
    Ok((event, file))
}
