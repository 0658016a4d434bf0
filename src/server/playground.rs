//! `/`: a page to try the model on, part of the binary.

use crate::server::ApiError;
use crate::server::error::{ErrorBody, Failures};
use crate::server::negotiate::text_of;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::header;
use axum::response::{IntoResponse, Response};

/// Nothing from elsewhere, nothing inline, in nobody's frame. Images come as data (previews) and blobs (plain answers).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const PAGE: &str = include_str!("playground/index.html");
const SCRIPT: &str = "text/javascript; charset=utf-8";
/// What the page loads: name, media type, content.
const FILES: [(&str, &str, &str); 9] = [
    ("style.css", "text/css; charset=utf-8", include_str!("playground/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("playground/icon.svg")),
    ("app.js", SCRIPT, include_str!("playground/app.js")),
    ("card.js", SCRIPT, include_str!("playground/card.js")),
    ("draw.js", SCRIPT, include_str!("playground/draw.js")),
    ("easel.js", SCRIPT, include_str!("playground/easel.js")),
    ("plan.js", SCRIPT, include_str!("playground/plan.js")),
    ("plot.js", SCRIPT, include_str!("playground/plot.js")),
    ("words.js", SCRIPT, include_str!("playground/words.js")),
];

/// A page to try the model on.
#[utoipa::path(
    get,
    path = "/",
    tag = "playground",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html"), Failures)
)]
pub(super) async fn page() -> Response {
    answer("text/html; charset=utf-8", PAGE)
}

/// What the page loads.
#[utoipa::path(
    get,
    path = "/playground/{file}",
    tag = "playground",
    params(("file" = String, Path, description = "The name of a file.", example = "app.js")),
    responses(
        (status = 200, description = "The file.", content(
            (String = "text/javascript"),
            (String = "text/css"),
            (String = "image/svg+xml"),
        )),
        (status = 404, description = "The page has no such file.", body = ErrorBody),
        Failures,
    )
)]
pub(super) async fn file(name: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    let name = text_of(name);
    let found = FILES.iter().find(|(known, ..)| *known == name);
    let &(_, media_type, content) = found.ok_or_else(|| ApiError::NotFound(format!("/playground/{name}")))?;
    Ok(answer(media_type, content))
}

fn answer(media_type: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the server brings another page.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content).into_response()
}
