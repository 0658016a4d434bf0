//! What clients of the OpenAI API send and get.

use crate::engine::image::{Format, JPG};
use crate::routing::Budget;
use crate::server::wire::{seed, whole};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Images in one request, by the OpenAI API; the server's own limit may be lower.
pub(in crate::server) const MAX_N: u32 = 10;
/// How often an image may be shown on its way, by the OpenAI API.
pub(in crate::server) const MAX_PARTIAL: u32 = 3;
/// What each `quality` means, and what the answer calls it.
pub(in crate::server) const QUALITIES: [(&str, (Budget, &str)); 6] = [
    ("auto", (Budget::Balanced, "medium")),
    ("low", (Budget::Fast, "low")),
    ("medium", (Budget::Balanced, "medium")),
    ("high", (Budget::Best, "high")),
    ("standard", (Budget::Balanced, "medium")),
    ("hd", (Budget::Best, "high")),
];
pub(in crate::server) const FORMATS: [(&str, Format); 4] =
    [("png", Format::Png), ("webp", Format::Webp), ("jpeg", Format::Jpeg), (JPG, Format::Jpeg)];
pub(in crate::server) const BACKGROUNDS: [(&str, ()); 2] = [("auto", ()), ("opaque", ())];
pub(in crate::server) const MODERATIONS: [(&str, ()); 2] = [("auto", ()), ("low", ())];
pub(in crate::server) const RESPONSE_FORMATS: [(&str, Carrier); 2] =
    [("b64_json", Carrier::Base64), ("url", Carrier::Url)];
/// The largest, and usual, `output_compression`.
pub(in crate::server) const BEST_COMPRESSION: u8 = 100;

/// The body of `POST /v1/images/generations`: the fields of the OpenAI API that this server has a use for, and `seed`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::server) struct ImagesBody {
    /// What the images are to show. A model of classes wants the name of one, alone or as a word of a sentence; an unconditional one
    /// ignores it.
    pub prompt: String,
    /// The model, by its name; the first of `/v1/models` when nothing is said.
    pub model: Option<String>,
    /// How many images; each is an entry of its own.
    #[serde(default, deserialize_with = "whole")]
    pub n: Option<u32>,
    /// One of the model's sizes; `auto` is the first.
    pub size: Option<String>,
    /// The budget: `low` is fast, `medium`, `standard` and `auto` are balanced, `high` and `hd` are best.
    pub quality: Option<String>,
    /// The field that carries an image: `b64_json` or `url`, a `data:` URL, since the server keeps no files to link to. Both
    /// when nothing is said: clients that say nothing read the one or the other.
    pub response_format: Option<String>,
    /// The images' file format, in capitals too; PNG when nothing is said.
    pub output_format: Option<String>,
    /// The quality of JPEG, 100 when nothing is said. PNG and WebP are lossless and accept 100 alone.
    #[serde(default, deserialize_with = "whole")]
    pub output_compression: Option<u8>,
    /// No image is transparent.
    pub background: Option<String>,
    /// Changes nothing.
    pub moderation: Option<String>,
    /// Changes nothing.
    #[allow(dead_code, reason = "read to be checked alone")]
    pub user: Option<String>,
    /// Changes nothing.
    #[allow(dead_code, reason = "read to be checked alone")]
    pub safety_identifier: Option<String>,
    /// Whether the answer is a stream of server-sent events: `image_generation.partial_image`, and at last
    /// `image_generation.completed` for each image.
    pub stream: Option<bool>,
    /// How often each image is shown on its way to whoever streams.
    #[serde(default, deserialize_with = "whole")]
    pub partial_images: Option<u32>,
    /// An extension: the same seed draws the same images; a decimal text is its number. Drawn at random when nothing is
    /// said, or -1.
    #[serde(default, deserialize_with = "seed")]
    pub seed: Option<u64>,
    /// An extension: what the images are not to show.
    pub negative_prompt: Option<String>,
    /// An extension: classifier-free guidance.
    pub guidance_scale: Option<f64>,
    /// An extension: so many steps of DPM-Solver++(2M) at full width, whatever `quality` says.
    #[serde(default, deserialize_with = "whole")]
    pub num_inference_steps: Option<usize>,
}

impl ImagesBody {
    pub const FIELDS: &[&str] = &[
        "prompt",
        "model",
        "n",
        "size",
        "quality",
        "response_format",
        "output_format",
        "output_compression",
        "background",
        "moderation",
        "user",
        "safety_identifier",
        "stream",
        "partial_images",
        "seed",
        "negative_prompt",
        "guidance_scale",
        "num_inference_steps",
    ];
}

/// The images of a request.
#[derive(Serialize, ToSchema)]
pub(in crate::server) struct ImagesAnswer {
    /// Seconds since 1970.
    pub created: u64,
    /// In the order of the seed's images.
    pub data: Vec<ImageEntry>,
    pub background: &'static str,
    pub output_format: &'static str,
    pub quality: &'static str,
    #[schema(example = "28x28")]
    pub size: String,
    pub usage: Usage,
}

/// Which field carries an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Carrier {
    Base64,
    Url,
}

/// One image.
#[derive(Serialize, ToSchema)]
pub(in crate::server) struct ImageEntry {
    /// The file in base 64. Absent with `response_format` `url`.
    #[schema(content_encoding = "base64")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b64_json: Option<String>,
    /// The file as a `data:` URL. Absent with `response_format` `b64_json`.
    #[schema(example = "data:image/png;base64,iVBORw0KGgo=")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

impl ImageEntry {
    /// A file, in the one field that is asked for or in both.
    pub fn new(format: Format, file: &[u8], asked: Option<Carrier>) -> Self {
        let base64 = STANDARD.encode(file);
        let url = (asked != Some(Carrier::Base64)).then(|| format.data_url(&base64));
        Self { b64_json: (asked != Some(Carrier::Url)).then_some(base64), url }
    }
}

/// An event of a stream: an image, drawn or on its way.
#[derive(Serialize)]
pub(in crate::server) struct ImageEvent {
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// An extension: which of the request's images.
    pub image_index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial_image_index: Option<u32>,
    pub b64_json: String,
    /// Seconds since 1970.
    pub created_at: u64,
    pub size: String,
    pub quality: &'static str,
    pub background: &'static str,
    pub output_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Tokens: nothing here has any.
#[derive(Default, Serialize, ToSchema)]
pub(in crate::server) struct Usage {
    input_tokens: u32,
    input_tokens_details: TokenDetails,
    output_tokens: u32,
    output_tokens_details: TokenDetails,
    total_tokens: u32,
}

/// Tokens by kind.
#[derive(Default, Serialize, ToSchema)]
pub(in crate::server) struct TokenDetails {
    image_tokens: u32,
    text_tokens: u32,
}
