//! What a request says of itself: the type of its body, the types that it accepts, its path.

use crate::engine::image::Format;
use crate::server::ApiError;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderName, header};

/// Checks that the body says it is JSON.
///
/// # Errors
/// [`ApiError::UnsupportedMediaType`].
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let media_type = text(headers, &header::CONTENT_TYPE).and_then(|value| value.split(';').next());
    match media_type {
        Some(media_type) if media_type.trim().eq_ignore_ascii_case("application/json") => Ok(()),
        _ => Err(ApiError::UnsupportedMediaType),
    }
}

/// Whether the client asks for server-sent events.
pub(super) fn wants_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|part| range(part).0 == "text/event-stream")
}

/// A part of the path as text. One that is no UTF-8 is nobody's name: it becomes one that nothing has.
pub(super) fn text_of(part: Result<Path<String>, PathRejection>) -> String {
    part.map_or_else(|_| char::REPLACEMENT_CHARACTER.to_string(), |Path(text)| text)
}

/// The format that `Accept` likes best; the first of [`Format::ALL`] among equals, and where there is no preference.
///
/// # Errors
/// [`ApiError::NotAcceptable`] when it excludes all of them.
pub(super) fn accepted_format(headers: &HeaderMap) -> Result<Format, ApiError> {
    if !headers.contains_key(header::ACCEPT) {
        return Ok(Format::ALL[0]);
    }
    let ranges: Vec<(String, f64)> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(range)
        .collect();
    let mut best = None;
    for format in Format::ALL {
        let quality = quality(&ranges, format);
        if quality > best.map_or(0.0, |(_, best)| best) {
            best = Some((format, quality));
        }
    }
    best.map(|(format, _)| format).ok_or(ApiError::NotAcceptable)
}

/// A media range and its quality value (RFC 9110, 12.4.2).
fn range(text: &str) -> (String, f64) {
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    (media_type, quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
}

/// The quality of the most specific range that matches.
fn quality(ranges: &[(String, f64)], format: Format) -> f64 {
    let of = |media_type: &str| ranges.iter().find(|(range, _)| range == media_type).map(|&(_, quality)| quality);
    of(format.media_type()).or_else(|| of("image/*")).or_else(|| of("*/*")).unwrap_or(0.0)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(accept: &str) -> Option<Format> {
        let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
        accepted_format(&headers).ok()
    }

    #[test]
    fn accept_picks_the_format_that_it_likes_best() {
        assert_eq!(accepted_format(&HeaderMap::new()).ok(), Some(Format::Png));
        for (accept, format) in [
            ("*/*", Some(Format::Png)),
            ("image/*", Some(Format::Png)),
            ("image/webp", Some(Format::Webp)),
            ("IMAGE/JPEG", Some(Format::Jpeg)),
            ("image/png;q=0.5, image/webp", Some(Format::Webp)),
            ("image/avif,image/webp,image/apng,*/*;q=0.8", Some(Format::Webp)),
            ("image/png;q=0, */*;q=0.1", Some(Format::Webp)),
            ("text/html", None),
            ("image/png;q=0", None),
            ("image/png;q=x", None),
            ("", None),
        ] {
            assert_eq!(accepted(accept), format, "{accept}");
        }
    }

    #[test]
    fn a_body_must_say_that_it_is_json() {
        let check = |value: &str| require_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]));
        assert!(check("application/json").is_ok() && check("Application/JSON; charset=utf-8").is_ok());
        assert!(check("text/plain").is_err() && check("").is_err() && require_json(&HeaderMap::new()).is_err());
    }
}
