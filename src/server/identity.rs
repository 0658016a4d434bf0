//! Who a request is: its id and its place in a trace, in the log and in the answer.

use crate::server::probes::is_probe;
use crate::server::spans::Span;
use crate::server::trace_context::{TRACEPARENT, TraceContext};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use std::time::Instant;
use tracing::Instrument;

const REQUEST_ID: &str = "x-request-id";
/// Longer ids would be a way to fill the log.
const MAX_ID_CHARS: usize = 128;

/// Names the request, writes its line in the log, and puts both names into the answer.
pub(super) async fn identify(mut request: Request, next: Next) -> Response {
    let id = given_id(request.headers()).unwrap_or_else(made_id);
    let span = Span::start(&request, TraceContext::of(request.headers()));
    let context = span.context();
    let names = [(REQUEST_ID, &id), (TRACEPARENT, &context.to_string())];
    // ASCII by their making.
    let names = names.map(|(name, text)| (name, HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("-"))));
    // Handlers find the id where a client would have put it.
    request.headers_mut().insert(REQUEST_ID, names[0].1.clone());
    // Part of every line that is written on the way; at this level only where nothing is logged it is missing.
    let named = tracing::error_span!("request", id, trace = format!("{:032x}", context.trace));
    // Without the query, where somebody may have put a key.
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let line = Line { method, path, start: Instant::now(), span, named: named.clone(), written: false };
    let mut response = next.run(request).instrument(named).await;
    line.answered(&response);
    for (name, value) in names {
        response.headers_mut().insert(name, value);
    }
    response
}

/// The client's id, if it is at most 128 visible ASCII characters.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.as_bytes();
    let is_accepted = (1..=MAX_ID_CHARS).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    is_accepted.then(|| id.iter().copied().map(char::from).collect())
}

/// A random UUID (RFC 9562, version 4).
fn made_id() -> String {
    let bits = u128::from(random()) << 64 | u128::from(random());
    let bits = bits & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// For names only: when the system gives nothing random, 0 does, and images, which need it, fail by themselves.
pub(super) fn random() -> u64 {
    getrandom::u64().unwrap_or_default()
}

/// The log's line of one request, written also when its client goes away before the answer.
struct Line {
    method: Method,
    path: String,
    start: Instant,
    /// Ends, and is exported, with the line.
    span: Span,
    named: tracing::Span,
    written: bool,
}

impl Line {
    fn answered(mut self, response: &Response) {
        self.span.answered(response.status());
        let plan = response.headers().get("x-accordion-plan").and_then(|plan| plan.to_str().ok());
        self.write(Some(response.status()), plan);
        self.written = true;
    }

    fn write(&self, status: Option<StatusCode>, plan: Option<&str>) {
        let _named = self.named.enter();
        let (method, path, ms) = (&self.method, self.path.as_str(), self.start.elapsed().as_secs_f64() * 1e3);
        let plan = plan.unwrap_or("-");
        match status.map(|status| status.as_u16()) {
            // Probes and scrapes come every few seconds and say nothing new.
            Some(status @ 200..300) if is_probe(path) => {
                tracing::debug!(%method, path, status, ms, plan, "answered");
            }
            Some(status) => tracing::info!(%method, path, status, ms, plan, "answered"),
            None => tracing::info!(%method, path, ms, "the client went away"),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.written {
            self.write(None, None);
        }
    }
}
