//! How a connection ends while its client may still be sending.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A client that has sent nothing for so long has read its answer, or never will.
const QUIET: Duration = Duration::from_secs(2);
/// However much a client sends, it is not listened to any longer: its connection holds a place.
const LINGER: Duration = Duration::from_secs(10);
/// Read at a time, to be forgotten.
const SCRATCH_BYTES: usize = 8 << 10;

/// Whether a request is under way on a connection: from its first byte until the next one is waited for.
#[derive(Clone, Debug, Default)]
pub(super) struct UnderWay(Arc<AtomicBool>);

impl UnderWay {
    pub fn get(&self) -> bool {
        self.0.load(Relaxed)
    }

    pub fn set(&self, under_way: bool) {
        self.0.store(under_way, Relaxed);
    }
}

/// A connection that is closed in two steps. Closing with something unread would reset it, and a client that is still
/// sending would lose the answer. So our side is closed first, and what the client sends is dropped until it closes its
/// own, is quiet for [`QUIET`], or [`LINGER`] is over.
pub(super) struct Lingering<S> {
    stream: S,
    /// Nobody needs to be waited for on a connection without a request.
    request: UnderWay,
    closing: Option<Closing>,
}

/// From when our side is closed.
struct Closing {
    until: Instant,
    quiet: Pin<Box<Sleep>>,
}

impl<S> Lingering<S> {
    pub fn new(stream: S, request: UnderWay) -> Self {
        Self { stream, request, closing: None }
    }
}

impl<S: AsyncRead + Unpin> Lingering<S> {
    /// Reads and drops. Ready when there is nothing more to wait for.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let new = || Closing { until: Instant::now() + LINGER, quiet: Box::pin(sleep(QUIET)) };
        let closing = self.closing.get_or_insert_with(new);
        let mut scratch = [0; SCRATCH_BYTES];
        while Instant::now() < closing.until {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    closing.quiet.as_mut().reset((Instant::now() + QUIET).min(closing.until));
                }
                // The client's end, or a broken connection.
                Poll::Ready(_) => break,
                Poll::Pending => return closing.quiet.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.request.set(true);
        }
        outcome
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        if self.request.get() {
            ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// A connection on which a request has begun, and its client.
    async fn begun() -> (Lingering<DuplexStream>, DuplexStream) {
        let (ours, mut theirs) = duplex(64);
        let mut stream = Lingering::new(ours, UnderWay::default());
        theirs.write_u8(b'P').await.unwrap();
        stream.read_u8().await.unwrap();
        (stream, theirs)
    }

    /// Closes the connection; the seconds that it took.
    async fn close(stream: &mut Lingering<DuplexStream>) -> u64 {
        let start = Instant::now();
        stream.shutdown().await.unwrap();
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_is_closed_at_once() {
        let (ours, _theirs) = duplex(64);
        assert_eq!(close(&mut Lingering::new(ours, UnderWay::default())).await, 0);
        let (mut stream, _theirs) = begun().await;
        stream.request.set(false);
        assert_eq!(close(&mut stream).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_still_sending_gets_the_answer_and_the_end_and_can_finish() {
        let (mut stream, mut theirs) = begun().await;
        stream.write_all(b"413").await.unwrap();
        let client = tokio::spawn(async move {
            let mut answer = String::new();
            theirs.write_all(&[0; 100_000]).await.unwrap();
            theirs.read_to_string(&mut answer).await.unwrap();
            answer
        });
        assert_eq!(close(&mut stream).await, 0);
        assert_eq!(client.await.unwrap(), "413");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_quiet_or_never_ends_is_given_up() {
        let (mut stream, _theirs) = begun().await;
        assert_eq!(close(&mut stream).await, 2);

        let (mut stream, mut theirs) = begun().await;
        let client = tokio::spawn(async move {
            while theirs.write_u8(0).await.is_ok() {
                sleep(QUIET / 2).await;
            }
        });
        assert_eq!(close(&mut stream).await, 10);
        drop(stream);
        client.await.unwrap();
    }
}
