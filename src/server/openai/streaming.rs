//! The OpenAI API's events: images on their way, and then the images.

use super::wire::{ImageEvent, Usage};
use crate::ImageShape;
use crate::engine::Step;
use crate::engine::image::{Format, Raster};
use crate::server::draw::Drawn;
use crate::server::events::encoded;
use crate::server::metrics::Observation;
use crate::server::state::seconds_since_1970;
use crate::server::{ApiError, AppState};
use axum::response::sse::Event;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::HashMap;

/// What a client wants to hear, and what it has heard.
pub(in crate::server) struct Streaming {
    pub kind: Kind,
    pub format: Format,
    /// Of JPEG.
    pub jpeg_quality: u8,
    /// What the answer calls it.
    pub quality: &'static str,
    /// How often an image is shown on its way.
    pub partial_images: u32,
    /// By image, how often it has been.
    pub shown: HashMap<u32, u32>,
}

impl Streaming {
    /// The event of a step, where its image is to be shown then: between the first step and the last at equal distances, or as soon
    /// after as a step is heard of.
    pub async fn step(&mut self, shape: ImageShape, step: Step) -> Vec<Event> {
        let Step { image, step, plan, estimate } = step;
        let (index, of) = (self.shown.get(&image).copied().unwrap_or(0), self.partial_images);
        let steps = plan.made().len();
        let is_time = step * (of + 1) as usize >= (index + 1) as usize * steps;
        if index == of || step >= steps || !is_time {
            return Vec::new();
        }
        let (format, jpeg_quality) = (self.format, self.jpeg_quality);
        let file = move || Raster { shape, bytes: estimate }.encode_with(format, jpeg_quality, None);
        let Some(file) = encoded(file).await else { return Vec::new() };
        self.shown.insert(image, index + 1);
        let event =
            ImageEvent { partial_image_index: Some(index), ..self.event(self.kind.partial(), image, shape, &file) };
        vec![event.into()]
    }

    /// The events of the images.
    ///
    /// # Errors
    /// As [`Drawn::encode`].
    pub async fn images(
        &self,
        state: &AppState,
        drawn: &Drawn,
        observation: &mut Observation,
    ) -> Result<Vec<Event>, ApiError> {
        let (files, timings) = drawn.encode_each(state, self.format, self.jpeg_quality).await?;
        observation.succeed(&timings, drawn.served(), files.len(), drawn.late, self.format);
        let completed = |(image, file): (u32, &Vec<u8>)| {
            let event = self.event(self.kind.completed(), image, drawn.shape, file);
            ImageEvent { usage: Some(Usage::default()), ..event }.into()
        };
        Ok((0..).zip(&files).map(completed).collect())
    }

    fn event(&self, kind: &'static str, image: u32, shape: ImageShape, file: &[u8]) -> ImageEvent {
        ImageEvent {
            kind,
            image_index: image,
            partial_image_index: None,
            b64_json: STANDARD.encode(file),
            created_at: seconds_since_1970(),
            size: shape.size().to_string(),
            quality: self.quality,
            background: "opaque",
            output_format: self.format.as_str(),
            usage: None,
        }
    }
}

/// What a client asked for, as the OpenAI API's events are called after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Kind {
    Generation,
    Edit,
}

impl Kind {
    fn partial(self) -> &'static str {
        match self {
            Self::Generation => "image_generation.partial_image",
            Self::Edit => "image_edit.partial_image",
        }
    }

    fn completed(self) -> &'static str {
        match self {
            Self::Generation => "image_generation.completed",
            Self::Edit => "image_edit.completed",
        }
    }
}

impl From<ImageEvent> for Event {
    fn from(event: ImageEvent) -> Self {
        let data = serde_json::to_string(&event).expect("an event is plain data");
        Self::default().event(event.kind).data(data)
    }
}
