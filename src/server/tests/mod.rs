//! The HTTP contract, on a denoiser known in closed form. A gate holds its calls, so no test waits for the clock.

mod access;
mod connections;
mod draining;
mod edits;
mod events;
mod identity;
mod images;
mod load;
mod openai;
mod operations;
mod pages;
mod refusals;
mod settings;
mod several;

use crate::engine::gaussian::{Gate, Gaussian};
use crate::engine::{Engine, Fleet, Job};
use crate::nets::{Denoiser, HostSampler};
use crate::routing::{Ladder, StepTimes};
use crate::server::{AppState, Host, Loaded, Measured, Origin, Room, ServeConfig, router, serve};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::response::Response;
use prometheus::Registry;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tower::ServiceExt;

/// A server without a socket.
struct Server {
    state: Arc<AppState>,
    router: Router,
    gate: Arc<Gate>,
}

struct Listening {
    address: SocketAddr,
    stop: mpsc::Sender<()>,
    serving: JoinHandle<crate::Result<()>>,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Server {
    fn new(config: &ServeConfig) -> Self {
        Self::of(Gaussian::conditional(), config)
    }

    fn of((denoiser, gate): (Box<Gaussian>, Arc<Gate>), config: &ServeConfig) -> Self {
        let room = Room::new(config).unwrap();
        let model = loaded("gaussian", denoiser, &room, config);
        let state = AppState::new(vec![model], room, config, Registry::new()).unwrap();
        Self { router: router(state.clone()), state, gate }
    }

    /// What draws the images of the usual model.
    fn fleet(&self) -> Arc<Fleet> {
        self.state.models()[0].fleet.clone()
    }

    /// What listens, with this model in it.
    fn host(&self, config: &ServeConfig) -> Arc<Host> {
        let host = Host::new(config, Registry::new()).unwrap();
        host.ready(self.state.clone());
        host
    }

    /// Serves on a socket until the sender, which stops it, has stopped it.
    async fn listen(&self, config: &ServeConfig) -> Listening {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, signals) = mpsc::channel(2);
        Listening { address, stop, serving: tokio::spawn(serve(listener, self.host(config), signals.into())) }
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        Reply::of(response).await
    }

    async fn get(&self, uri: &str) -> Reply {
        self.send(Request::get(uri).body(Body::empty()).unwrap()).await
    }

    async fn generate(&self, query: &str, body: &str) -> Reply {
        self.send(generate(query, body)).await
    }

    /// Puts a job in the engine past the server; blocks when the gate is closed and `calls` is not reached.
    fn occupy(&self, images: u32, calls: usize) -> crate::engine::Ticket {
        let plan = Arc::new("euler-2@full".parse().unwrap());
        let ticket = self.fleet().submit(Job { images, ..Job::exact(plan, 0) }).unwrap();
        self.gate.wait_for_calls(calls);
        ticket
    }
}

/// The closed-form denoiser takes no time worth mentioning; the policy believes in these milliseconds a sample.
fn measured() -> Measured {
    let row = |name: &str, ms: f64| (name.to_owned(), vec![(1, ms / 1e3), (16, 8.0 * ms / 1e3)]);
    let times = StepTimes::new([row("0.250", 1.0), row("0.500", 2.0), row("full", 4.0)], 16);
    let plans = [("dpmpp2m-8@0.250", 0.8), ("dpmpp2m-12@0.500", 0.96), ("heun-18@full", 1.0)];
    let plans = plans.map(|(plan, quality)| (plan.parse().unwrap(), quality));
    Measured { ladder: Ladder::new(plans, &times).unwrap(), times, metric: "mse-to-reference".to_owned() }
}

/// A model of this name.
fn loaded(name: &str, denoiser: Box<Gaussian>, room: &Room, config: &ServeConfig) -> Loaded {
    assert_eq!(denoiser.about().subnets.len(), 3);
    let Measured { ladder, times, .. } = measured();
    let policy = config.policy.build(ladder, times, config.max_batch);
    let sampler = Box::new(HostSampler::new(denoiser));
    let fleet = Fleet::new(vec![("cpu".to_owned(), Engine::start(sampler, room.place(0), policy).unwrap())]);
    Loaded::new(name, Origin::default(), fleet, None, measured())
}

impl Reply {
    async fn of(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec();
        Self { status, headers, body }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().unwrap()
    }

    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The code and the message of an error.
    fn error(&self) -> (String, String) {
        let json = self.json();
        let text = |field: &str| json["error"][field].as_str().unwrap().to_owned();
        assert_eq!(json.as_object().unwrap().len(), 1);
        (text("code"), text("message"))
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

fn generate(query: &str, body: &str) -> Request<Body> {
    post(&format!("/generate{query}"), body)
}

fn post(uri: &str, body: &str) -> Request<Body> {
    Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap()
}

/// Sends raw bytes, and reads until the server closes on a thread of its own.
fn exchange(address: SocketAddr, bytes: &'static str) -> oneshot::Receiver<String> {
    let (answer, received) = oneshot::channel();
    // On this thread, so that all is there before a paused clock can run ahead.
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        // A reset ends the answer as well as a close does.
        let _ = stream.read_to_end(&mut text);
        let _ = answer.send(String::from_utf8_lossy(&text).into_owned());
    });
    received
}

const REQUEST: &str = "POST /generate?budget=fast HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{\"seed\":1}";
