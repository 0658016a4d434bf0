//! How long a connection waits for a request.

use crate::server::linger::UnderWay;
use hyper::rt::{self, Timer};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep_until};

/// The timer of one connection's heads. hyper's time-out of a head begins where the connection begins to wait for one,
/// and is the time that nothing may come in; from the first byte on, the head has this timer's own.
pub(super) struct HeadTimer {
    /// Of a head that has begun.
    pub limit: Duration,
    /// Set by whoever reads, and taken back here.
    pub request: UnderWay,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn rt::Sleep>> {
        self.request.set(false);
        let sleep = Box::pin(sleep_until(deadline.into()));
        Box::pin(HeadSleep { sleep, limit: self.limit, request: self.request.clone(), has_begun: false })
    }

    /// By the clock that the sleeps are of.
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// Ready when the head is late.
struct HeadSleep {
    sleep: Pin<Box<Sleep>>,
    limit: Duration,
    request: UnderWay,
    has_begun: bool,
}

impl rt::Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    /// Polled whenever something has come and the head is not complete.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_begun && self.request.get() {
            self.has_begun = true;
            let limit = self.limit;
            self.sleep.as_mut().reset(tokio::time::Instant::now() + limit);
        }
        self.sleep.as_mut().poll(cx)
    }
}
