//! Connections: accept, serve, drain.

use crate::engine::EngineError;
use crate::server::head_timer::HeadTimer;
use crate::server::linger::{Lingering, UnderWay};
use crate::server::process::ignores;
use crate::server::write_timeout::WriteTimeout;
use crate::server::{AppState, Host, Limits, Loaded};
use crate::{Error, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// After a failed accept (out of file descriptors, mostly): long enough for one to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections beyond `limits.max_connections`, for one request each: a balancer has to hear that a server is well also
/// when it is full, and everybody else that it is full.
pub(super) const SPARE_CONNECTIONS: usize = 16;
/// For a head on one of them, whether it has begun or not: there are few.
const SPARE_HEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until the first of `signals`, then stops in three phases: readiness fails, but for `limits.drain_grace_s`
/// requests are still served; then nothing new is accepted, and idle connections are closed; what was accepted is
/// finished within `limits.drain_timeout_s`. A second signal ends it at once.
///
/// `axum::serve` has neither a limit on connections nor time-outs for heads and for writing, hence the loop of our own.
///
/// # Errors
/// [`Error::Input`] when requests were left unfinished, [`Error::Engine`] when the engine's thread had died.
pub async fn serve(listener: TcpListener, host: Arc<Host>, mut signals: Signals) -> Result<()> {
    let connections = GracefulShutdown::new();
    let mut accepting = Box::pin(accept(listener, &host, &connections));
    tokio::select! {
        () = &mut accepting => {}
        () = signals.next() => {}
    }
    let Some(state) = host.state() else {
        tracing::info!("stopped before the models were loaded");
        return Ok(());
    };
    state.leave();
    let Limits { drain_grace_s: grace, drain_timeout_s: limit, .. } = host.limits;
    tracing::info!(grace_s = grace, "leaving: not ready, still serving");
    tokio::select! {
        () = &mut accepting => {}
        () = tokio::time::sleep(Duration::from_secs(grace)) => {}
        () = signals.next() => return cut_off(state),
    }
    // Closes the listener.
    drop(accepting);
    state.drain();
    tracing::info!(connections = connections.count(), "draining");
    let finish = async {
        connections.shutdown().await;
        ended(state.catalogue.alive()).await
    };
    let unfinished =
        |_| Error::input("limits.drain_timeout_s", format!("requests were left unfinished after {limit} s"));
    tokio::select! {
        finished = tokio::time::timeout(Duration::from_secs(limit), finish) => Ok(finished.map_err(unfinished)??),
        () = signals.next() => cut_off(state),
    }
}

/// The end at a second signal. Fails if somebody loses by it.
fn cut_off(state: &AppState) -> Result<()> {
    let models = state.catalogue.alive();
    let engines = models.iter().flat_map(|model| model.fleet.engines());
    match engines.map(|(_, engine)| engine.waiting() + engine.stats().active()).sum::<usize>() {
        0 => Ok(()),
        images => Err(Error::input("a second signal", format!("{images} images were left unfinished"))),
    }
}

/// Waits for the engines' end on a thread of its own: the runtime would wait for its blocking threads before the
/// process may exit, also for one that a stuck device holds.
async fn ended(models: Vec<Arc<Loaded>>) -> std::result::Result<(), EngineError> {
    let (answer, ended) = oneshot::channel();
    std::thread::spawn(move || {
        answer.send(models.iter().map(|model| model.fleet.join()).fold(Ok(()), std::result::Result::and))
    });
    ended.await.unwrap_or(Err(EngineError::Dead))
}

/// Requests from outside, such as to stop.
#[derive(Debug)]
pub struct Signals(mpsc::Receiver<()>);

impl Signals {
    /// Waits for the next; for ever once there can be none.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// Whoever holds the sender stops the server.
impl From<mpsc::Receiver<()>> for Signals {
    fn from(signals: mpsc::Receiver<()>) -> Self {
        Self(signals)
    }
}

/// What ends a process, but for a hangup.
const ENDS: [SignalKind; 2] = [SignalKind::terminate(), SignalKind::interrupt()];

/// SIGTERM and SIGINT, from here on.
///
/// # Errors
/// When the system refuses to register the handlers.
pub fn terminated() -> io::Result<Signals> {
    arriving(&ENDS)
}

/// SIGHUP, from here on: also where whoever started the process has it ignored, as `nohup` does, since it ends nothing.
///
/// # Errors
/// As [`terminated`].
pub fn hung_up() -> io::Result<Signals> {
    arriving(&[SignalKind::hangup()])
}

/// All three, of which each ends what is done, from here on. A hangup that whoever started the process has it ignore, as `nohup` does,
/// stays ignored: otherwise work would end with the terminal that it was started to outlive.
///
/// # Errors
/// As [`terminated`].
pub fn stopped() -> io::Result<Signals> {
    match SignalKind::hangup() {
        hangup if ignores(hangup) => terminated(),
        hangup => arriving(&[ENDS[0], ENDS[1], hangup]),
    }
}

fn arriving(kinds: &[SignalKind]) -> io::Result<Signals> {
    let (send, signals) = mpsc::channel(2);
    for &kind in kinds {
        let (mut arriving, send) = (signal(kind)?, send.clone());
        tokio::spawn(async move { while arriving.recv().await.is_some() && send.send(()).await.is_ok() {} });
    }
    Ok(Signals(signals))
}

/// Accepts and spawns connections for ever. Dropping it closes the listener.
async fn accept(listener: TcpListener, host: &Arc<Host>, connections: &GracefulShutdown) {
    let places = Arc::new(Semaphore::new(host.limits.max_connections));
    let spares = Arc::new(Semaphore::new(SPARE_CONNECTIONS));
    loop {
        // The semaphores are never closed. Whether there is a place is asked when somebody has come for it.
        let Ok(spare) = spares.clone().acquire_owned().await else { return };
        let stream = next_stream(&listener).await;
        let place = match places.clone().try_acquire_owned() {
            Ok(permit) => Place { permit, is_spare: false },
            Err(_) => Place { permit: spare, is_spare: true },
        };
        tokio::spawn(converse(stream, place, host.clone(), connections.watcher()));
    }
}

/// What a connection holds as long as it lasts.
struct Place {
    permit: OwnedSemaphorePermit,
    is_spare: bool,
}

/// Answers on one connection until it ends.
async fn converse(stream: TcpStream, place: Place, host: Arc<Host>, watcher: Watcher) {
    let Place { permit, is_spare } = place;
    let Limits { header_timeout_s, idle_timeout_s, write_timeout_s, .. } = host.limits;
    let [head, idle, write] = [header_timeout_s, idle_timeout_s, write_timeout_s].map(Duration::from_secs);
    let (head, idle) = if is_spare { (SPARE_HEAD_TIMEOUT, SPARE_HEAD_TIMEOUT) } else { (head, idle) };
    let request = UnderWay::default();
    let stream = Lingering::new(WriteTimeout::new(stream, write), request.clone());
    let mut builder = http1::Builder::new();
    builder.timer(HeadTimer { limit: head, request }).header_read_timeout(idle).keep_alive(!is_spare);
    let answer = service_fn(async |request| Ok::<_, Infallible>(host.answer(request, is_spare).await));
    if let Err(error) = watcher.watch(builder.serve_connection(TokioIo::new(stream), answer)).await {
        tracing::debug!(%error, "a connection broke");
    }
    drop(permit);
}

pub(super) async fn next_stream(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Responses are small and complete: waiting to fill packets only delays them. Best effort.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
