//! The server under test: one of our own in this process, or one that runs already.

use crate::loadtest::client::{Call, Client};
use crate::loadtest::images::Kinds;
use crate::server::{AppState, Auth, Host, Limits, ServeConfig, Signals, open, serve};
use crate::{Error, Result};
use prometheus::Registry;
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// A server in this process, on a port of its own and a runtime of its own.
#[derive(Debug)]
pub struct LocalServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it serves.
    pub state: Arc<AppState>,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl LocalServer {
    /// Opens the model of `config` and serves it on a free port, whatever `config.listen` says, to anybody on this
    /// machine.
    ///
    /// # Errors
    /// Those of [`open`]; [`Error::Io`] when the system gives no port or no thread.
    pub fn start(config: &ServeConfig) -> Result<Self> {
        // When it is told to stop, nobody looks for it any more.
        let limits = Limits { drain_grace_s: 0, ..config.limits.clone() };
        let config = ServeConfig { auth: Auth::default(), limits, ..config.clone() };
        let registry = Registry::new();
        let host = Host::new(&config, registry.clone())?;
        let state = open(&config, registry)?;
        host.ready(state.clone());
        let io = |source| Error::Io { path: PathBuf::from("127.0.0.1:0"), source };
        let runtime = Runtime::new().map_err(io)?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let (stop, stopped) = mpsc::channel(1);
        let thread = std::thread::Builder::new().name("accordion-server".to_owned()).spawn(move || {
            let served = runtime.block_on(serve(listener, host, Signals::from(stopped)));
            runtime.shutdown_background();
            served
        });
        Ok(Self { address, state, stop, thread: thread.map_err(io)? })
    }

    /// Drains it and waits for its end.
    ///
    /// # Errors
    /// Those of [`serve`].
    pub fn stop(self) -> Result<()> {
        // It may have ended by itself: then its own error says why.
        let _ = self.stop.try_send(());
        let dead = |_| Error::input("server", "its thread panicked");
        self.thread.join().map_err(dead)?
    }
}

/// What `GET /subnets` says, as far as a load test needs it.
#[derive(Clone, Debug, Deserialize)]
pub struct Loaded {
    /// The model's name.
    pub model: String,
    /// Its classes; empty for an unconditional model.
    pub classes: Vec<String>,
    /// Whether it draws what a prompt says.
    #[serde(default)]
    pub prompts: bool,
    /// From the narrowest to the widest.
    pub subnets: Vec<LoadedSubnet>,
    /// What the qualities of its frontier are made of.
    pub metric: String,
}

/// A subnet of it.
#[derive(Clone, Debug, Deserialize)]
pub struct LoadedSubnet {
    /// Its name in plans.
    pub name: String,
    /// What it was allocated for.
    pub ratio: f64,
}

impl Loaded {
    /// What it is asked for in turn.
    pub fn kinds(&self) -> Kinds {
        if self.prompts { Kinds::Prompts } else { Kinds::Classes(self.classes.len()) }
    }

    /// Asks a server about a model; about the usual one where none is named.
    ///
    /// # Errors
    /// One sentence when it does not answer as an Accordion server does that has it.
    pub async fn ask(client: &Client, model: Option<&str>) -> Result<Self> {
        let refused = |problem: String| Error::input("GET /subnets", problem);
        let path = match model {
            Some(model) => format!("/subnets?model={}", escaped(model)),
            None => "/subnets".to_owned(),
        };
        let reply = client.send(&Call::get(&path)).await.map_err(refused)?;
        serde_json::from_slice(&reply.body)
            .map_err(|error| refused(format!("the answer ({}) is not Accordion's: {error}", reply.status.as_u16())))
    }
}

/// A text as the value of a query.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn any_name_can_stand_in_a_query() {
        assert_eq!(escaped("sd-1.5_x"), "sd-1.5_x");
        assert_eq!(escaped("a&b=c é"), "a%26b%3Dc%20%C3%A9");
    }
}
