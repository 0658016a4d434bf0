//! `POST /generate` with `Accept: text/event-stream`: steps and previews while the images are drawn, the images last.

use crate::engine::Step;
use crate::engine::image::{Format, Raster};
use crate::server::draw::{Drawn, Taken};
use crate::server::metrics::{Observation, Timings};
use crate::server::{ApiError, AppState};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Sse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Events that a client may be behind. Beyond it the sender waits, and steps are left out.
const BEHIND: usize = 16;

/// The events of an order. When the client goes away the order is dropped, which cancels its work.
pub(super) fn stream(
    state: Arc<AppState>,
    taken: Taken,
    format: Format,
    steps: mpsc::Receiver<Step>,
    observation: Observation,
) -> impl IntoResponse {
    let (told, events) = mpsc::channel(BEHIND);
    tokio::spawn(async move {
        let mut observation = observation;
        tokio::select! {
            // The client has gone: what is in the other branch is dropped, the ticket with it.
            () = told.closed() => {}
            () = tell(&state, taken, format, steps, &told, &mut observation) => {}
        }
    });
    Sse::new(Events(events)).keep_alive(KeepAlive::default())
}

/// The body of the answer.
struct Events(mpsc::Receiver<Event>);

impl futures_core::Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}

async fn tell(
    state: &AppState,
    taken: Taken,
    format: Format,
    mut steps: mpsc::Receiver<Step>,
    told: &mpsc::Sender<Event>,
    observation: &mut Observation,
) {
    // Sending fails only when the client has gone, which ends all of this.
    let send = async |event| drop(told.send(event).await);
    let planned = json!({ "plan": taken.planned.to_string(), "seed": taken.seed });
    send(event("planned", &planned)).await;
    let drawn = {
        let mut drawn = std::pin::pin!(taken.drawn(state, observation));
        loop {
            tokio::select! {
                biased;
                Some(step) = steps.recv() => {
                    for event in progress(state, step).await {
                        send(event).await;
                    }
                }
                drawn = &mut drawn => break drawn,
            }
        }
    };
    let last = match drawn {
        Ok(drawn) => images(state, drawn, format, observation).await,
        Err(error) => Err(error),
    };
    let last = last.unwrap_or_else(|error| {
        observation.fail(&error);
        let (_, code) = error.contract();
        event("error", &json!({ "code": code, "message": error.to_string() }))
    });
    send(last).await;
}

fn event(name: &str, data: &serde_json::Value) -> Event {
    Event::default().event(name).data(data.to_string())
}

/// A step, and what its image would be if the denoiser were right about it now.
async fn progress(state: &AppState, step: Step) -> Vec<Event> {
    let Step { image, step, plan, estimate } = step;
    let mut events =
        vec![event("step", &json!({ "image": image, "step": step, "of": plan.steps, "plan": plan.to_string() }))];
    let shape = state.fleet.any().image();
    let preview = move || Raster { shape, bytes: estimate }.encode(Format::Png);
    // Away from the threads that serve connections. A preview that fails is left out: the images will say why.
    if let Ok(Ok(file)) = tokio::task::spawn_blocking(preview).await {
        let url = format!("data:{};base64,{}", Format::Png.media_type(), STANDARD.encode(file));
        events.push(event("preview", &json!({ "image": image, "step": step, "url": url })));
    }
    events
}

async fn images(
    state: &AppState,
    drawn: Drawn,
    format: Format,
    observation: &mut Observation,
) -> Result<Event, ApiError> {
    let shape = state.fleet.any().image();
    let file = move |raster: &Raster| raster.encode(format);
    let (files, timings) = drawn.encode(state, file, |images| vec![Raster::grid(shape, images)]).await?;
    observation.succeed(&timings, &drawn, format);
    let Timings { queue, denoise, encode } = timings;
    let ms = |took: std::time::Duration| took.as_secs_f64() * 1e3;
    Ok(event(
        "image",
        &json!({
            "plan": drawn.served(),
            "planned": drawn.planned.to_string(),
            "quality": drawn.quality,
            "seed": drawn.seed,
            "media_type": format.media_type(),
            "b64_json": STANDARD.encode(&files[0]),
            "timings": { "queue_ms": ms(queue), "denoise_ms": ms(denoise), "encode_ms": ms(encode) },
        }),
    ))
}
