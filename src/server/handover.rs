//! The end of an answer: when the last byte of its body has been handed to the connection, or when its client went away.

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// A body goes in pieces, so that one that is no longer read does not count as handed over because the first byte was.
const PIECE_BYTES: usize = 64 << 10;

/// What waits for the end of an answer. It is dropped where the client goes away before.
pub(super) trait Waits: Send + Unpin + 'static {
    /// All of the answer has been handed over.
    fn handed_over(self);
}

/// `response`, whose end `waits` will hear of.
pub(super) fn hand_over(response: Response, waits: impl Waits) -> Response {
    response.map(|body| Body::new(Handover { body, piece_of: Bytes::new(), waits: Some(waits) }))
}

struct Handover<W: Waits> {
    body: Body,
    /// What is left of the frame under way.
    piece_of: Bytes,
    waits: Option<W>,
}

impl<W: Waits> Handover<W> {
    fn end(&mut self) {
        if let Some(waits) = self.waits.take() {
            waits.handed_over();
        }
    }
}

impl<W: Waits> HttpBody for Handover<W> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.piece_of.is_empty() {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)?) else {
                self.end();
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => self.piece_of = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let bytes = self.piece_of.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.piece_of.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.piece_of.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, left) = (self.body.size_hint(), self.piece_of.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + left);
        }
        hint.set_lower(rest.lower() + left);
        hint
    }
}

impl<W: Waits> Drop for Handover<W> {
    /// Who knows that nothing comes any more does not ask for it.
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;
    use http_body_util::BodyExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    struct Flag(Arc<AtomicBool>);

    impl Waits for Flag {
        fn handed_over(self) {
            self.0.store(true, Relaxed);
        }
    }

    fn watched(body: Vec<u8>) -> (Body, Arc<AtomicBool>) {
        let over = Arc::new(AtomicBool::new(false));
        (hand_over(body.into_response(), Flag(over.clone())).into_body(), over)
    }

    #[tokio::test]
    async fn an_answer_ends_with_its_last_piece_and_keeps_its_length_and_content() {
        let content: Vec<u8> = (0..PIECE_BYTES * 2 + 5).map(|index| index as u8).collect();
        let (mut body, over) = watched(content.clone());
        let mut read = Vec::new();
        while read.len() < content.len() {
            assert_eq!(body.size_hint().exact(), Some((content.len() - read.len()) as u64));
            assert!(!body.is_end_stream() && !over.load(Relaxed));
            read.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        assert!(read == content && body.is_end_stream());
        drop(body);
        assert!(over.load(Relaxed), "nobody asks for more than there is");
    }

    #[tokio::test]
    async fn an_answer_that_is_dropped_on_the_way_has_not_been_handed_over() {
        let (body, over) = watched(vec![7]);
        drop(body);
        assert!(!over.load(Relaxed));
        let (mut body, over) = watched(vec![7; PIECE_BYTES + 1]);
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert!(!over.load(Relaxed));
        let (body, over) = watched(vec![]);
        drop(body);
        assert!(over.load(Relaxed), "of nothing everything was handed over");
    }
}
