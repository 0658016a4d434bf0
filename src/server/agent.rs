//! HAProxy's agent-check: a port that answers a connection with one line and closes it.

use crate::server::Host;
use crate::server::listen::next_stream;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Far more balancers than ask one server at once.
pub(super) const MAX_CONNECTIONS: usize = 16;
/// An answer fits a packet; whoever does not take it in this time has gone.
const TIMEOUT: Duration = Duration::from_secs(2);
/// What `agent-send` may say: it is read and ignored.
const MAX_GREETING_BYTES: u64 = 1024;

/// Answers for ever.
pub async fn answer_agents(listener: TcpListener, host: Arc<Host>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let place = places.clone().acquire_owned().await.ok();
        let stream = next_stream(&listener).await;
        let line = line(&host);
        tokio::spawn(async move {
            match tokio::time::timeout(TIMEOUT, answer(stream, &line)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an agent-check broke"),
                Err(_) => tracing::debug!("an agent-check was not read"),
            }
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, line: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with something unread would reset the connection, and the line could be lost.
    tokio::io::copy(&mut stream.take(MAX_GREETING_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// `ready` takes back an earlier `drain`, and `up` an earlier `down`; the share is that of the balancer's weight.
pub(super) fn line(host: &Host) -> String {
    match host.state() {
        None => "down\n".to_owned(),
        Some(state) if state.is_leaving() => "drain\n".to_owned(),
        Some(state) if state.health().is_err() => "down\n".to_owned(),
        Some(state) => {
            let free = 1.0 - state.load().utilization;
            // A share of 0 would be a `drain`.
            format!("ready {}% up\n", (100.0 * free).round().clamp(1.0, 100.0))
        }
    }
}
