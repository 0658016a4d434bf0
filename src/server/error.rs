//! The one place where errors become responses.

use crate::engine::EngineError;
use crate::routing::RoutingError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

/// Models load in seconds.
const RETRY_WHEN_STARTING_S: u64 = 5;
/// Other connections end at any time.
const RETRY_WHEN_FULL_S: u64 = 1;

/// Why a request got no image. The body is an [`ErrorBody`]; codes are stable.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// `unknown_budget`, `invalid_deadline`, `invalid_plan`, `invalid_min_quality`, `unknown_subnet`, `contradiction`.
    /// -> 400
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// `unfit` -> 400, `infeasible` -> 422 with the fastest plan, `overloaded` and `queue_full` -> 429 with Retry-After,
    /// `draining` -> 503, `engine_failed` -> 500.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// `unknown_class`. -> 400
    #[error("class `{asked}` is unknown: accepted are {}, or their index from 0", accepted.join(", "))]
    UnknownClass {
        /// What was asked.
        asked: String,
        /// The classes of the model.
        accepted: Vec<String>,
    },
    /// `class_not_supported`: the model is unconditional. -> 400
    #[error("this model draws without classes: leave out `class`")]
    ClassNotSupported,
    /// `guidance_without_class`: guidance pulls towards a class. -> 400
    #[error("`guidance` needs a `class`")]
    GuidanceWithoutClass,
    /// `unsupported_field`: one that is of no use with this model. -> 400
    #[error("`{field}`: {problem}")]
    Unsupported {
        /// The field of the body.
        field: &'static str,
        /// Why, and what to do.
        problem: &'static str,
    },
    /// `invalid_image`: a file that is no image, damaged, or of no use. -> 400
    #[error("`{field}` {problem}")]
    InvalidImage {
        /// The field of the body.
        field: &'static str,
        /// What is wrong with it, and what is accepted.
        problem: String,
    },
    /// `missing_image`: there is nothing to edit. -> 400
    #[error("`image` is missing: send the picture to start from, a png, jpeg or webp file")]
    MissingImage,
    /// `missing_prompt`: of a model that draws texts. -> 400
    #[error("`prompt` is missing or empty: say what the image is to show")]
    MissingPrompt,
    /// `unknown_format`. -> 400
    #[error("{0}")]
    UnknownFormat(String),
    /// `out_of_range`: a field's value. -> 400
    #[error("`{field}` is {value}, but must be {accepted}")]
    OutOfRange {
        /// The field of the body.
        field: &'static str,
        /// What was asked.
        value: String,
        /// The range.
        accepted: String,
    },
    /// `invalid_query`: unknown, repeated or broken query parameters. -> 400
    #[error("query: {0}")]
    InvalidQuery(String),
    /// `empty_body`. -> 400
    #[error("the body is empty: send a JSON object, {{}} for an image with every default")]
    EmptyBody,
    /// `broken_body`: the connection broke before the body was complete. -> 400
    #[error("the body could not be read: {0}")]
    BrokenBody(String),
    /// `invalid_form`: a body that is no form, or a field that stands in it twice. -> 400
    #[error("the form could not be read: {0}")]
    InvalidForm(String),
    /// `invalid_json`. -> 400
    #[error("the body is not JSON: {0}")]
    InvalidJson(String),
    /// `wrong_type`: a field's type, or a body that is no object. -> 400
    #[error("{}: {problem}", field.as_ref().map_or("the body".to_owned(), |field| format!("`{field}`")))]
    WrongType {
        /// The field of the body; `None` is the body itself.
        field: Option<String>,
        /// What is wrong with it.
        problem: String,
    },
    /// `unknown_field`. -> 400
    #[error("unknown fields {}: accepted are {}", unknown.join(", "), accepted.join(", "))]
    UnknownField {
        /// The fields that we do not know.
        unknown: Vec<String>,
        /// Those that we do.
        accepted: &'static [&'static str],
    },
    /// `invalid_host`: HTTP/1.1 without a Host, with several, or with one that is no host. -> 400
    #[error("{0}: a request needs exactly one, such as `Host: example.com:8080`")]
    InvalidHost(String),
    /// `unauthorized`: no key came along. -> 401
    #[error("an API key is needed: send `Authorization: Bearer <key>`")]
    NoKey,
    /// `unauthorized`: the key is none of ours. -> 401
    #[error("the API key is not accepted")]
    WrongKey,
    /// `unknown_class`: a prompt without the name of a class. -> 400
    #[error("the prompt names no class of this model: accepted are {}, alone or as a word of the prompt", .0.join(", "))]
    NoClass(Vec<String>),
    /// `ambiguous_prompt`: an image is of one class. -> 400
    #[error("the prompt names several classes, {}: name one", .0.join(" and "))]
    AmbiguousPrompt(Vec<String>),
    /// `model_not_found`: a model that is not loaded. -> 404
    #[error("model `{asked}` is not loaded: accepted {} {}", if loaded.len() == 1 { "is" } else { "are" }, loaded.join(", "))]
    UnknownModel {
        /// What was asked.
        asked: String,
        /// The names of the loaded models, the usual one first.
        loaded: Vec<String>,
    },
    /// `not_found`. -> 404
    #[error("nothing is at {0}: POST /generate draws an image")]
    NotFound(String),
    /// `not_kept`: no answer waits under this id. -> 404
    #[error("no answer is kept under the request id `{0}`: it was never kept, was fetched, or was kept too long ago")]
    NotKept(String),
    /// `method_not_allowed`. -> 405
    #[error("{0} is not accepted here")]
    MethodNotAllowed(String),
    /// `not_acceptable`: `Accept` allows none of our formats. -> 406
    #[error("Accept allows none of image/png, image/webp and image/jpeg, nor names text/event-stream")]
    NotAcceptable,
    /// `body_timeout`: the body came too slowly. -> 408
    #[error("the body did not arrive within {0} s")]
    BodyTimeout(u64),
    /// `body_too_large`. -> 413
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    /// `unsupported_media_type`. -> 415
    #[error("the content type must be {0}")]
    UnsupportedMediaType(&'static str),
    /// `unsupported_content_encoding`: the body is compressed. -> 415 with Accept-Encoding
    #[error("the body is encoded as `{0}`: accepted is identity, the body as it stands, without `content-encoding`")]
    EncodedBody(String),
    /// `internal`: a bug of ours. -> 500
    #[error("internal error: {0}")]
    Internal(String),
    /// `engine_stalled`: one call of the denoiser takes longer than that many seconds. -> 500
    #[error("the engine has not finished a step for more than {0} s")]
    Stalled(u64),
    /// `starting`: the models are not loaded yet. -> 503 with Retry-After
    #[error("the server is starting: the model is not ready yet")]
    Starting,
    /// `draining`: the server is shutting down. -> 503
    #[error("the server is shutting down")]
    Draining,
    /// `too_many_connections`: all places are taken, and this connection is for probes. -> 503 with Retry-After
    #[error("the server has no place for another connection: ask again")]
    Full,
    /// `timeout`: the images were not ready in time. -> 504
    #[error("the images were not ready within {0} s")]
    Timeout(u64),
}

/// The body of every refusal and failure. Clients of the OpenAI API read the same shape.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

/// What every request for images may be refused with.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only the document is made of it")]
pub(super) enum Refusals<'a> {
    /// The body, the query or one of their fields is not what is accepted.
    #[response(status = 400)]
    Invalid(ErrorBody<'a>),
    /// The body came too slowly.
    #[response(status = 408)]
    BodyTimeout(ErrorBody<'a>),
    /// The body is too large.
    #[response(status = 413)]
    BodyTooLarge(ErrorBody<'a>),
    /// The content type is another than the one that is accepted, or the body is compressed.
    #[response(status = 415, headers(("accept-encoding" = String, description = "Where it is compressed: what is accepted.")))]
    NotJson(ErrorBody<'a>),
    /// `infeasible`: no plan meets the budget, even on an idle machine.
    #[response(status = 422)]
    Infeasible(ErrorBody<'a>),
    /// `queue_full` or `overloaded`: feasible, but not now.
    #[response(status = 429, headers(("retry-after" = u64, description = "Seconds until there should be room.")))]
    Overloaded(ErrorBody<'a>),
    /// The images were not ready in time.
    #[response(status = 504)]
    Timeout(ErrorBody<'a>),
}

/// What any request may end in.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only the document is made of it")]
pub(super) enum Failures<'a> {
    /// A bug or a broken device.
    #[response(status = 500)]
    Failed(ErrorBody<'a>),
    /// The server is starting or shutting down, or has no place for another connection.
    #[response(status = 503, headers(("retry-after" = u64, description = "Seconds until it should be back.")))]
    Away(ErrorBody<'a>),
}

/// What a request that needs a key may be refused with, where the server asks for keys.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only the document is made of it")]
pub(super) enum Locked<'a> {
    /// No key came along, or none of the server's.
    #[response(status = 401, headers(("www-authenticate" = String, description = "What to send.")))]
    Unauthorized(ErrorBody<'a>),
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorDetail<'a> {
    /// Stable: for programs.
    #[schema(example = "unknown_class")]
    code: &'static str,
    /// One sentence: for people.
    #[schema(example = "class `boot` is unknown: accepted are sneaker, ankle boot, or their index from 0")]
    message: String,
    /// The OpenAI API's: `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    #[schema(example = "invalid_request_error")]
    kind: &'static str,
    /// The field or query parameter that is to blame.
    #[schema(example = "class")]
    param: Option<&'a str>,
    /// With `infeasible`: the plan that takes least.
    #[serde(skip_serializing_if = "Option::is_none")]
    fastest: Option<Fastest>,
}

/// A plan and its time.
#[derive(Serialize, ToSchema)]
struct Fastest {
    plan: String,
    /// Milliseconds of an image alone on the idle machine.
    ms: f64,
}

impl ApiError {
    /// The status and the stable code.
    pub fn contract(&self) -> (StatusCode, &'static str) {
        let bad = |code| (StatusCode::BAD_REQUEST, code);
        match self {
            Self::Routing(RoutingError::UnknownBudget(_)) => bad("unknown_budget"),
            Self::Routing(RoutingError::InvalidDeadline(_)) => bad("invalid_deadline"),
            Self::Routing(RoutingError::InvalidPlan(_)) => bad("invalid_plan"),
            Self::Routing(RoutingError::InvalidMinQuality(_)) => bad("invalid_min_quality"),
            Self::Routing(RoutingError::UnknownSubnet { .. }) => bad("unknown_subnet"),
            Self::Routing(RoutingError::UnknownDecoder { .. } | RoutingError::NoDecoder) => bad("unknown_decoder"),
            Self::Routing(RoutingError::Contradiction(_)) => bad("contradiction"),
            Self::Engine(EngineError::Unfit(_)) => bad("unfit"),
            Self::Engine(EngineError::Infeasible { .. }) => (StatusCode::UNPROCESSABLE_ENTITY, "infeasible"),
            Self::Engine(EngineError::Overloaded { .. }) => (StatusCode::TOO_MANY_REQUESTS, "overloaded"),
            Self::Engine(EngineError::QueueFull { .. }) => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Self::Engine(EngineError::Denoiser(_) | EngineError::Dead) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "engine_failed")
            }
            Self::UnknownClass { .. } => bad("unknown_class"),
            Self::ClassNotSupported => bad("class_not_supported"),
            Self::GuidanceWithoutClass => bad("guidance_without_class"),
            Self::Unsupported { .. } => bad("unsupported_field"),
            Self::InvalidImage { .. } => bad("invalid_image"),
            Self::MissingImage => bad("missing_image"),
            Self::MissingPrompt => bad("missing_prompt"),
            Self::UnknownFormat(_) => bad("unknown_format"),
            Self::OutOfRange { .. } => bad("out_of_range"),
            Self::InvalidQuery(_) => bad("invalid_query"),
            Self::EmptyBody => bad("empty_body"),
            Self::BrokenBody(_) => bad("broken_body"),
            Self::InvalidForm(_) => bad("invalid_form"),
            Self::InvalidJson(_) => bad("invalid_json"),
            Self::WrongType { .. } => bad("wrong_type"),
            Self::UnknownField { .. } => bad("unknown_field"),
            Self::InvalidHost(_) => bad("invalid_host"),
            Self::NoKey | Self::WrongKey => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::NoClass(_) => bad("unknown_class"),
            Self::AmbiguousPrompt(_) => bad("ambiguous_prompt"),
            Self::UnknownModel { .. } => (StatusCode::NOT_FOUND, "model_not_found"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Self::NotKept(_) => (StatusCode::NOT_FOUND, "not_kept"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NotAcceptable => (StatusCode::NOT_ACCEPTABLE, "not_acceptable"),
            Self::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::EncodedBody(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::Stalled(_) => (StatusCode::INTERNAL_SERVER_ERROR, "engine_stalled"),
            Self::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
            Self::Draining | Self::Engine(EngineError::Draining) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, "too_many_connections"),
            Self::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
        }
    }
}

impl ApiError {
    /// Writes into the log what is no fault of the client's.
    pub(super) fn log(&self) {
        let (status, code) = self.contract();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(code, error = %self, "a request failed");
        }
    }

    /// The field or query parameter that is to blame, if it is one.
    fn param(&self) -> Option<&str> {
        match self {
            Self::Routing(
                RoutingError::UnknownBudget(_) | RoutingError::InvalidDeadline(_) | RoutingError::InvalidPlan(_),
            )
            | Self::Engine(EngineError::Infeasible { .. }) => Some("budget"),
            Self::Routing(RoutingError::InvalidMinQuality(_)) => Some("min_quality"),
            Self::UnknownClass { .. } | Self::ClassNotSupported => Some("class"),
            Self::GuidanceWithoutClass => Some("guidance"),
            Self::UnknownFormat(_) => Some("format"),
            Self::OutOfRange { field, .. } | Self::Unsupported { field, .. } | Self::InvalidImage { field, .. } => {
                Some(field)
            }
            Self::MissingImage => Some("image"),
            Self::MissingPrompt => Some("prompt"),
            Self::WrongType { field, .. } => field.as_deref(),
            Self::UnknownField { unknown, .. } => unknown.first().map(String::as_str),
            Self::NoClass(_) | Self::AmbiguousPrompt(_) => Some("prompt"),
            Self::UnknownModel { .. } => Some("model"),
            _ => None,
        }
    }
}

/// The kinds of error that clients of the OpenAI API tell apart.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "server_error",
    }
}

impl ApiError {
    /// What clients are told.
    pub(super) fn body(&self) -> ErrorBody<'_> {
        let (status, code) = self.contract();
        let fastest = match self {
            Self::Engine(EngineError::Infeasible { fastest, takes }) => {
                Some(Fastest { plan: fastest.to_string(), ms: takes.as_secs_f64() * 1e3 })
            }
            _ => None,
        };
        let error = ErrorDetail { code, message: self.to_string(), kind: kind(status), param: self.param(), fastest };
        ErrorBody { error }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, _) = self.contract();
        self.log();
        let mut response = (status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self {
            Self::Engine(EngineError::QueueFull { retry_after, .. } | EngineError::Overloaded { retry_after }) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after.as_secs()));
            }
            Self::Starting => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_WHEN_STARTING_S));
            }
            Self::Full => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_WHEN_FULL_S));
            }
            // RFC 9110, 15.5.16: so that a client can tell it from a wrong media type.
            Self::EncodedBody(_) => {
                headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            // RFC 6750, section 3: the error is named only where a key was given.
            Self::NoKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="accordion""#));
            }
            Self::WrongKey => {
                let challenge = r#"Bearer realm="accordion", error="invalid_token""#;
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
            _ => {}
        }
        response
    }
}
