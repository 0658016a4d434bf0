//! What a client still sends of a request that is answered already.

use axum::Router;
use axum::body::{Bytes, HttpBody};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::oneshot;
use tower::ServiceExt;

/// So much of a body is read for nothing, to keep its connection; a longer one ends it.
const MAX_REST_BYTES: u64 = 16 << 20;

/// The answer of `router`. What it leaves of the body is read and dropped within `limit` while the answer is on its way:
/// most clients read no answer before they have sent everything. Where that is too much, the answer is the connection's
/// last, and [`super::linger`] sees it through.
pub(super) async fn answer(router: Router, request: Request<Incoming>, limit: Duration) -> Response {
    let (left, rest) = oneshot::channel();
    let is_asked_for = !request.headers().contains_key(header::EXPECT);
    let request = request.map(|body| Lent { body: Some(body), is_asked_for, left: Some(left) });
    let Ok(mut response) = router.oneshot(request).await;
    // Nothing is sent of a body that was read to its end.
    if let Ok(rest) = { rest }.try_recv() {
        let is_late = response.status() == StatusCode::REQUEST_TIMEOUT;
        match rest.filter(|rest| rest.size_hint().lower() <= MAX_REST_BYTES && !is_late) {
            Some(rest) => drop(tokio::spawn(tokio::time::timeout(limit, drop_all(rest)))),
            None => {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
    }
    response
}

/// Reads a body to its end, or to more than [`MAX_REST_BYTES`].
async fn drop_all(mut rest: Incoming) {
    let mut left = Some(MAX_REST_BYTES);
    while let (Some(most), Some(Ok(frame))) = (left, poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await) {
        left = most.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
    }
}

/// A request's body, which goes back where it came from when it is dropped before its end.
struct Lent {
    body: Option<Incoming>,
    /// A client that expects `100 Continue` sends nothing before it gets that, which is where somebody reads.
    is_asked_for: bool,
    left: Option<oneshot::Sender<Option<Incoming>>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.is_asked_for = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| !body.is_end_stream());
        if let (Some(rest), Some(left)) = (rest, self.left.take()) {
            // Nobody waits for it where the connection has gone.
            let _ = left.send(Some(rest).filter(|_| self.is_asked_for));
        }
    }
}
