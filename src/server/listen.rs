//! Connections: accept, serve, drain.

use crate::engine::{EngineError, Fleet};
use crate::server::{AppState, router};
use crate::{Error, Result};
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, oneshot};
use tower::ServiceExt;

/// After a failed accept (out of file descriptors, mostly): long enough for one to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is ready, then drains: readiness fails, nothing new is accepted, and what was accepted is
/// finished within `limits.drain_timeout_s`.
///
/// `axum::serve` has neither a limit on connections nor a time-out for request heads, hence the loop of our own.
///
/// # Errors
/// [`Error::Input`] when requests were left unfinished, [`Error::Tensor`] when the engine's thread had died.
pub async fn serve(listener: TcpListener, state: Arc<AppState>, shutdown: impl Future<Output = ()>) -> Result<()> {
    let connections = GracefulShutdown::new();
    tokio::select! {
        () = accept(listener, &state, &connections) => {}
        () = shutdown => {}
    }
    state.drain();
    tracing::info!(connections = connections.count(), "draining");
    let limit = state.limits.drain_timeout_s;
    let finish = async {
        connections.shutdown().await;
        ended(&state.fleet).await
    };
    let unfinished =
        |_| Error::input("limits.drain_timeout_s", format!("requests were left unfinished after {limit} s"));
    Ok(tokio::time::timeout(Duration::from_secs(limit), finish).await.map_err(unfinished)??)
}

/// Waits for the engines' end on a thread of its own: the runtime would wait for its blocking threads before the
/// process may exit, also for one that a stuck device holds.
async fn ended(fleet: &Arc<Fleet>) -> std::result::Result<(), EngineError> {
    let (answer, ended) = oneshot::channel();
    let fleet = fleet.clone();
    std::thread::spawn(move || answer.send(fleet.join()));
    ended.await.unwrap_or(Err(EngineError::Dead))
}

/// Ready at SIGTERM or SIGINT.
///
/// # Errors
/// When the system refuses to register the handlers.
pub fn signalled() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Accepts and spawns connections for ever. Dropping it closes the listener.
async fn accept(listener: TcpListener, state: &Arc<AppState>, connections: &GracefulShutdown) {
    let app = router(state.clone());
    let service =
        TowerToHyperService::new(app.map_request(|request: Request<Incoming>| request.map(axum::body::Body::new)));
    let places = Arc::new(Semaphore::new(state.limits.max_connections));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(state.limits.header_timeout_s));
    loop {
        // The semaphore is never closed, so it always gives a place in the end.
        let place = places.clone().acquire_owned().await.ok();
        let stream = next_stream(&listener).await;
        let connection = connections.watch(builder.serve_connection(TokioIo::new(stream), service.clone()));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
            drop(place);
        });
    }
}

async fn next_stream(listener: &TcpListener) -> TcpStream {
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
