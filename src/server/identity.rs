//! Who a request is: its id and its place in a trace, in the log and in the answer.

use crate::digits;
use crate::server::handover::{Waits, hand_over};
use crate::server::probes::is_probe;
use crate::server::spans::Span;
use crate::server::trace_context::{TRACEPARENT, TraceContext, random};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tracing::Instrument;

const REQUEST_ID: &str = "x-request-id";
/// Longer ids would be a way to fill the log.
const MAX_ID_CHARS: usize = 128;

/// Names the request, puts both names into the answer, and writes its line in the log when all has ended.
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
    let line = Line {
        method,
        path,
        start: Instant::now(),
        span,
        named: named.clone(),
        status: None,
        plan: None,
        end: End::Left,
    };
    let record = Record(Arc::new(Mutex::new(line)));
    request.extensions_mut().insert(record.clone());
    let mut response = next.run(request).instrument(named).await;
    record.line().status = Some(response.status());
    for (name, value) in names {
        response.headers_mut().insert(name, value);
    }
    hand_over(response, record)
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

/// What is noted of a request: its line in the log and its span, which end when nobody who has to do with it is left.
#[derive(Clone)]
pub(super) struct Record(Arc<Mutex<Line>>);

impl Record {
    /// The record of a request that was identified.
    pub fn of(request: &Request) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// The plan that the images run by, as far as it is known.
    pub fn plan(&self, plan: String) {
        self.line().plan = Some(plan);
    }

    /// The images wait for the client to ask for them.
    pub fn kept(&self) {
        self.line().end = End::Kept;
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits for Record {
    fn handed_over(self) {
        self.line().end = End::HandedOver;
    }
}

/// What became of an answer.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// The client went away before it had all of it.
    Left,
    /// The same, and its images are kept.
    Kept,
    HandedOver,
}

/// The log's line of one request, written when it is dropped.
struct Line {
    method: Method,
    path: String,
    start: Instant,
    /// Ends, and is exported, with the line.
    span: Span,
    named: tracing::Span,
    /// `None` until the answer's head.
    status: Option<StatusCode>,
    plan: Option<String>,
    end: End,
}

impl Drop for Line {
    fn drop(&mut self) {
        let Self { method, path, start, span, named, status, plan, end } = self;
        span.ended(*status, plan.as_deref(), *end == End::HandedOver);
        let _named = named.enter();
        let (ms, status, plan) = (digits::ms(start.elapsed()), status.map(|status| status.as_u16()), plan.as_deref());
        let plan = plan.unwrap_or("-");
        match (*end, status) {
            // Probes and scrapes come every few seconds and say nothing new.
            (End::HandedOver, Some(200..300)) if is_probe(path) => {
                tracing::debug!(%method, path, status, ms, plan, "answered");
            }
            (End::HandedOver, _) => tracing::info!(%method, path, status, ms, plan, "answered"),
            (End::Kept, _) => {
                tracing::info!(%method, path, status, ms, plan, "the client went away: its images are kept")
            }
            (End::Left, _) => tracing::info!(%method, path, status, ms, plan, "the client went away"),
        }
    }
}
