//! What a request says of itself: the type and coding of its body, the types that it accepts, its path.

use crate::engine::image::Format;
use crate::server::ApiError;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderName, header};

/// The media type of most bodies.
pub(super) const JSON: &str = "application/json";
/// That of bodies with files.
pub(super) const FORM: &str = "multipart/form-data";

/// Checks that the body says it is of this type, as it stands: what is large in one is compressed already, and decoding it would only be
/// another way to attack.
///
/// # Errors
/// [`ApiError::UnsupportedMediaType`] and [`ApiError::EncodedBody`].
pub(super) fn require_type(headers: &HeaderMap, accepted: &'static str) -> Result<(), ApiError> {
    let is_accepted = |value: &str| {
        let media_type = value.split(';').next().unwrap_or_default();
        media_type.trim().eq_ignore_ascii_case(accepted)
    };
    let mut types = texts(headers, &header::CONTENT_TYPE).peekable();
    if types.peek().is_none() || !types.all(is_accepted) {
        return Err(ApiError::UnsupportedMediaType(accepted));
    }
    let mut codings = elements(headers, &header::CONTENT_ENCODING);
    match codings.find(|coding| !coding.eq_ignore_ascii_case("identity")) {
        Some(coding) => Err(ApiError::EncodedBody(coding.to_owned())),
        None => Ok(()),
    }
}

/// A part of the path as text. One that is no UTF-8 is nobody's name: it becomes one that nothing has.
pub(super) fn text_of(part: Result<Path<String>, PathRejection>) -> String {
    part.map_or_else(|_| char::REPLACEMENT_CHARACTER.to_string(), |Path(text)| text)
}

/// What is sent of the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A file, in the format that `Accept` likes best; `None` where it allows none.
    File(Option<Format>),
    /// Server-sent events, and the file in the last of them.
    Events(Format),
}

/// What `Accept` asks for: events where it names them and likes them no less than any image.
pub(super) fn accepted_shape(headers: &HeaderMap) -> Shape {
    let ranges: Vec<Range> = elements(headers, &header::ACCEPT).filter_map(Range::parse).collect();
    // No range is no preference.
    if ranges.is_empty() {
        return Shape::File(Some(Format::ALL[0]));
    }
    let mut best = None;
    for format in Format::ALL {
        let weight = weight(&ranges, format.media_type(), &[]);
        if weight > best.map_or(0, |(_, best)| best) {
            best = Some((format, weight));
        }
    }
    let names_them = |range: &Range| range.media_type == EVENTS && range.matches(EVENTS, &EVENTS_PARAMETERS).is_some();
    let named = ranges.iter().any(names_them);
    let events = weight(&ranges, EVENTS, &EVENTS_PARAMETERS);
    match best {
        None if named && events > 0 => Shape::Events(Format::ALL[0]),
        Some((format, weight)) if named && events > 0 && events >= weight => Shape::Events(format),
        _ => Shape::File(best.map(|(format, _)| format)),
    }
}

/// The media type of server-sent events.
const EVENTS: &str = "text/event-stream";
/// Events are UTF-8 by their definition.
const EVENTS_PARAMETERS: [(&str, &str); 1] = [("charset", "utf-8")];

/// A media range of `Accept` (RFC 9110, 12.5.1). All in small letters.
struct Range {
    /// Such as `image/png`, `image/*` or `*/*`.
    media_type: String,
    parameters: Vec<(String, String)>,
    /// In thousandths.
    weight: u16,
}

impl Range {
    /// `None` for what the RFC's grammar does not know: it says nothing, and the other ranges count.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = split(text, ';').map(|part| part.trim().to_ascii_lowercase());
        let media_type = parts.next()?;
        let (kind, subtype) = media_type.split_once('/')?;
        if !is_token(kind) || !is_token(subtype) || (kind == "*" && subtype != "*") {
            return None;
        }
        let (mut parameters, mut weight) = (Vec::new(), None);
        for part in parts.filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=')?;
            match name {
                // A second weight contradicts the first.
                "q" => weight = Some(thousandths(value).filter(|_| weight.is_none())?),
                name if is_token(name) => parameters.push((name.to_owned(), value.trim_matches('"').to_owned())),
                _ => return None,
            }
        }
        Some(Self { media_type, parameters, weight: weight.unwrap_or(1000) })
    }

    /// How closely it describes a type, the closest last; `None` where it does not.
    fn matches(&self, media_type: &str, parameters: &[(&str, &str)]) -> Option<usize> {
        let kind = media_type.split('/').next().unwrap_or_default();
        let closeness = match self.media_type.as_str() {
            "*/*" => 0,
            range if range == media_type => 2,
            range if range.strip_suffix("/*") == Some(kind) => 1,
            _ => return None,
        };
        let has = |(name, value): &(String, String)| parameters.contains(&(name, value));
        self.parameters.iter().all(has).then_some(closeness + self.parameters.len())
    }
}

/// The weight of a type: that of the closest range that matches, and the highest of several that are as close.
fn weight(ranges: &[Range], media_type: &str, parameters: &[(&str, &str)]) -> u16 {
    let matching = ranges.iter().filter_map(|range| Some((range.matches(media_type, parameters)?, range.weight)));
    matching.max().map_or(0, |(_, weight)| weight)
}

/// A weight of RFC 9110 (12.4.2), from 0 to 1 with at most three decimals, in thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let are_digits = decimals.len() <= 3 && decimals.bytes().all(|byte| byte.is_ascii_digit());
    let weight =
        (matches!(whole, "0" | "1") && are_digits).then(|| format!("{whole}{decimals:0<3}").parse().ok())??;
    (weight <= 1000).then_some(weight)
}

/// A name in the sense of RFC 9110 (5.6.2), in small letters.
fn is_token(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token)
}

/// The elements of a header that is a list (RFC 9110, 5.6.1), of all its lines, without the empty ones.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    texts(headers, name).flat_map(|line| split(line, ',')).map(str::trim).filter(|element| !element.is_empty())
}

/// The parts of `text` between separators; what stands between quotes separates nothing.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => {}
        }
        c == separator && !quoted
    })
}

fn texts<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("\u{fffd}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    fn accepted(accept: &str) -> Shape {
        accepted_shape(&of(header::ACCEPT, &[accept]))
    }

    #[test]
    fn accept_picks_the_format_that_it_likes_best() {
        assert_eq!(accepted_shape(&HeaderMap::new()), Shape::File(Some(Format::Png)));
        for (accept, format) in [
            ("*/*", Some(Format::Png)),
            ("image/*", Some(Format::Png)),
            ("image/webp", Some(Format::Webp)),
            ("IMAGE/JPEG", Some(Format::Jpeg)),
            ("image/png;q=0.5, image/webp", Some(Format::Webp)),
            ("image/png;q=0.5, image/webp; Q=0.501", Some(Format::Webp)),
            ("image/avif,image/webp,image/apng,*/*;q=0.8", Some(Format::Webp)),
            ("image/png;q=0, */*;q=0.1", Some(Format::Webp)),
            ("image/*;q=0.2, image/jpeg;q=0.3, */*", Some(Format::Jpeg)),
            ("*/*;q=1, image/*;q=0, image/jpeg;q=0.001", Some(Format::Jpeg)),
            ("image/png;q=0.1, image/jpeg;q=0.2, image/png;q=0.3", Some(Format::Png)),
            ("text/html", None),
            ("image/png;q=0", None),
            ("image/png;q=0.000", None),
            ("text/*, application/json", None),
            // A type without parameters is not described by a range that has some.
            ("image/png;level=1, image/jpeg;q=0.1", Some(Format::Jpeg)),
            ("image/png;q=0.1;level=9;q=0.2, image/jpeg;q=0.05", Some(Format::Jpeg)),
            // No quoted text parts a list.
            (r#"x/y;z="a, image/webp;q=1, \", b";q=0.9, image/jpeg;q=0.1"#, Some(Format::Jpeg)),
        ] {
            assert_eq!(accepted(accept), Shape::File(format), "{accept}");
        }
    }

    #[test]
    fn what_is_no_range_says_nothing() {
        for accept in
            ["", ",", "image", "image/", "/png", "*/png", "image/p ng", "image/webp;q=x", "image/webp;charset"]
        {
            assert_eq!(accepted(accept), Shape::File(Some(Format::Png)), "{accept}");
            let (accept, format) = (format!("{accept}, image/jpeg;q=0.1"), Shape::File(Some(Format::Jpeg)));
            assert_eq!(accepted(&accept), format, "{accept}");
        }
        for q in ["-0", "+1", "1.1", "1.001", "0.1234", "2", "01", ".5", "1e0", "", " 1", "0,5", "\"1\"", "inf", "NaN"]
        {
            let accept = format!("image/webp;q={q}, image/jpeg;q=0.1");
            assert_eq!(accepted(&accept), Shape::File(Some(Format::Jpeg)), "{accept}");
        }
        for (q, weight) in
            [("0", 0), ("0.", 0), ("0.5", 500), ("0.05", 50), ("0.999", 999), ("1", 1000), ("1.000", 1000)]
        {
            assert_eq!(thousandths(q), Some(weight), "{q}");
        }
    }

    #[test]
    fn events_are_sent_to_who_names_them_and_likes_no_image_better() {
        let (png, jpeg) = (Shape::File(Some(Format::Png)), Shape::File(Some(Format::Jpeg)));
        for (accept, shape) in [
            ("text/event-stream", Shape::Events(Format::Png)),
            ("Text/Event-Stream; charset=UTF-8", Shape::Events(Format::Png)),
            ("text/event-stream, */*", Shape::Events(Format::Png)),
            ("text/event-stream, image/webp", Shape::Events(Format::Webp)),
            ("image/webp;q=0.4, text/event-stream;q=0.4", Shape::Events(Format::Webp)),
            ("text/event-stream;q=0.001", Shape::Events(Format::Png)),
            ("text/event-stream;q=0", Shape::File(None)),
            ("text/event-stream;q=0, */*", png),
            ("text/event-stream;q=0.0, image/jpeg", jpeg),
            ("text/event-stream;q=0.3, image/jpeg;q=0.4", jpeg),
            ("text/event-stream;q=0.9, */*", png),
            ("text/event-stream;charset=utf-8;q=0, text/event-stream, */*;q=0.5", png),
            ("text/event-stream;charset=latin-1, */*;q=0.5", png),
            ("text/*, image/jpeg;q=0.1", jpeg),
            ("*/*", png),
        ] {
            assert_eq!(accepted(accept), shape, "{accept}");
        }
        let lines = of(header::ACCEPT, &["image/webp;q=0.5", "text/event-stream"]);
        assert_eq!(accepted_shape(&lines), Shape::Events(Format::Webp), "lines are one list");
    }

    #[test]
    fn a_body_must_say_that_it_is_json() {
        let check = |values: &[&str]| require_type(&of(header::CONTENT_TYPE, values), JSON);
        assert!(check(&["application/json"]).is_ok() && check(&["Application/JSON; charset=utf-8"]).is_ok());
        for values in [&["text/plain"][..], &[""], &[], &["application/json", "text/plain"]] {
            assert!(matches!(check(values), Err(ApiError::UnsupportedMediaType(JSON))), "{values:?}");
        }
    }

    #[test]
    fn a_body_must_come_as_it_stands() {
        let check = |codings: &[&str]| {
            let mut headers = of(header::CONTENT_ENCODING, codings);
            headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
            require_type(&headers, JSON).map_err(|error| error.to_string())
        };
        for codings in [&[][..], &[""], &["identity"], &["Identity, identity"]] {
            assert_eq!(check(codings), Ok(()), "{codings:?}");
        }
        for (codings, named) in
            [(&["gzip"][..], "`gzip`"), (&["identity, br"], "`br`"), (&["identity", "zstd"], "`zstd`"), (&["x"], "`x`")]
        {
            let refusal = check(codings).unwrap_err();
            assert!(refusal.contains(named) && refusal.contains("identity"), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn no_accept_makes_the_reader_panic(accept in "[ -~]{0,40}") {
            accepted(&accept);
        }
    }
}
