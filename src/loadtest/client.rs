//! An HTTP client for measuring: connections that are open before the first request, and no hidden retries.

use crate::{Error, Result};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode, Uri, header};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The largest answer that is read: far above an image of the largest model.
const MOST_BYTES: usize = 64 << 20;

/// The address of a server on this machine from its URL, such as `http://127.0.0.1:8080`.
///
/// # Errors
/// One sentence for any other host: a load test must not reach a machine that somebody else uses.
pub fn loopback(url: &str) -> std::result::Result<SocketAddr, String> {
    let refused = || {
        format!("`{url}` is not accepted: it must be http://127.0.0.1:PORT, http://[::1]:PORT or http://localhost:PORT")
    };
    let uri: Uri = url.parse().map_err(|_| refused())?;
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(refused)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let host: Option<IpAddr> = if host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { host.parse().ok() };
    let plain = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
    match (host, authority.port_u16()) {
        (Some(host), Some(port)) if plain && host.is_loopback() => Ok(SocketAddr::new(host, port)),
        _ => Err(refused()),
    }
}

/// A request that can be sent more than once.
#[derive(Clone, Debug)]
pub struct Call {
    /// `GET` without a body, `POST` with one.
    pub body: Option<Bytes>,
    /// Path and query.
    pub path: String,
}

impl Call {
    /// `GET path`.
    pub fn get(path: &str) -> Self {
        Self { body: None, path: path.to_owned() }
    }

    /// `POST path` with a JSON body.
    pub fn post(path: String, body: String) -> Self {
        Self { body: Some(body.into()), path }
    }

    fn request(&self, host: SocketAddr) -> std::result::Result<Request<Body>, String> {
        let request = Request::builder().uri(&self.path).header(header::HOST, host.to_string());
        let request = match &self.body {
            None => request.body(Body::empty()),
            Some(body) => {
                request.method("POST").header(header::CONTENT_TYPE, "application/json").body(body.clone().into())
            }
        };
        request.map_err(|error| error.to_string())
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// When its request went out.
    pub sent: Instant,
    /// When its last byte was here.
    pub received: Instant,
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The code of an error's body, else the status.
    pub fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["error"]["code"].as_str().map_or_else(|| self.status.as_u16().to_string(), str::to_owned)
    }
}

/// Connections to one server. A request takes one that is idle, or opens one.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    idle: Mutex<Vec<SendRequest<Body>>>,
}

impl Client {
    /// A client with so many open connections.
    ///
    /// # Errors
    /// One sentence with the address when a connection cannot be made.
    pub async fn connect(address: SocketAddr, connections: usize) -> Result<Self> {
        let mut idle = Vec::new();
        for _ in 0..connections {
            let opened = open(address).await;
            idle.push(opened.map_err(|error| Error::input(address, format!("no connection could be made: {error}")))?);
        }
        Ok(Self { address, idle: Mutex::new(idle) })
    }

    /// Sends a request and reads the whole answer. Dropping the future closes the connection.
    ///
    /// # Errors
    /// What broke, in a few words.
    pub async fn send(&self, call: &Call) -> std::result::Result<Reply, String> {
        let mut request = call.request(self.address)?;
        loop {
            let pooled = self.take();
            let fresh = pooled.is_none();
            let mut connection = match pooled {
                Some(connection) => connection,
                None => open(self.address).await.map_err(|error| error.to_string())?,
            };
            let sent = Instant::now();
            let response = match connection.try_send_request(request).await {
                Ok(response) => response,
                // The server closed an idle connection, and has not seen the request: this is no retry of ours.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => {
                        request = unsent;
                        continue;
                    }
                    _ => return Err(error.into_error().to_string()),
                },
            };
            let (head, body) = response.into_parts();
            let body = axum::body::to_bytes(Body::new(body), MOST_BYTES).await.map_err(|error| error.to_string())?;
            let received = Instant::now();
            // Not ready means closed by the server: the connection is dropped.
            if connection.ready().await.is_ok() {
                self.lock().push(connection);
            }
            return Ok(Reply { sent, received, status: head.status, headers: head.headers, body });
        }
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.lock();
        std::iter::from_fn(|| idle.pop()).find(|connection| !connection.is_closed())
    }

    /// A list of connections is sound even if a holder panicked.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SendRequest<Body>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open(address: SocketAddr) -> std::io::Result<SendRequest<Body>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    // Ends when the sender is dropped; its errors reach the sender too.
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_this_machine_is_accepted_and_any_other_refused() {
        for (url, address) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://127.9.0.1:80/", "127.9.0.1:80"),
            ("http://localhost:8080", "127.0.0.1:8080"),
            ("http://[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(loopback(url).unwrap().to_string(), address, "{url}");
        }
        for url in [
            "http://example.com:80",
            "http://10.0.0.1:8080",
            "http://0.0.0.0:8080",
            "http://[::]:8080",
            "https://127.0.0.1:8080",
            "http://127.0.0.1",
            "http://127.0.0.1:8080/generate",
            "http://127.0.0.1:8080?x=1",
            "http://127.0.0.1:8080@example.com:80",
            "http://localhost.example.com:80",
            "127.0.0.1:8080",
            "",
        ] {
            let message = loopback(url).unwrap_err();
            assert!(message.contains("is not accepted: it must be http://127.0.0.1:PORT"), "{message}");
        }
    }
}
