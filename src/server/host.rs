//! What listens before a model is loaded, and what it becomes then.

use crate::server::guards::Guards;
use crate::server::playground::{file, page};
use crate::server::probes::{probe, well};
use crate::server::refusal::Refusal;
use crate::server::router::{guarded, router};
use crate::server::{ApiError, AppState, Limits, ServeConfig, rest};
use crate::{Error, Result};
use axum::Router;
use axum::http::Request;
use axum::response::Response;
use axum::routing::get;
use hyper::body::Incoming;
use prometheus::Registry;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The server from its first connection to its last. Until [`Self::ready`] it answers probes and refuses the rest.
#[derive(Debug)]
pub struct Host {
    pub(super) limits: Limits,
    starting: Router,
    loaded: OnceLock<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    state: Arc<AppState>,
    router: Router,
}

impl Host {
    /// A server without a model; `/metrics` shows `registry` already.
    ///
    /// # Errors
    /// [`Error::Input`] for a `config` that contradicts itself.
    pub fn new(config: &ServeConfig, registry: Registry) -> Result<Arc<Self>> {
        config.check().map_err(|(field, problem)| Error::input(field, problem))?;
        let starting = guarded(starting(registry), &Guards::new(config));
        Ok(Arc::new(Self { limits: config.limits.clone(), starting, loaded: OnceLock::new() }))
    }

    /// Serves `state` from here on. A second one is ignored.
    pub fn ready(&self, state: Arc<AppState>) {
        let router = router(state.clone());
        self.loaded.get_or_init(|| Loaded { state, router });
    }

    /// `None` until it is ready.
    pub fn state(&self) -> Option<&Arc<AppState>> {
        self.loaded.get().map(|loaded| &loaded.state)
    }

    /// Answers a request; `is_spare` says that its connection is beyond `limits.max_connections`.
    pub(super) async fn answer(&self, mut request: Request<Incoming>, is_spare: bool) -> Response {
        if let Some(refusal) = Refusal::of(&request, is_spare) {
            request.extensions_mut().insert(refusal);
        }
        rest::answer(self.router(), request, Duration::from_secs(self.limits.body_timeout_s)).await
    }

    /// What answers a request that comes now: a connection outlives the loading of the model.
    pub(super) fn router(&self) -> Router {
        self.loaded.get().map_or(&self.starting, |loaded| &loaded.router).clone()
    }
}

fn starting(registry: Registry) -> Router {
    let metrics = async move || super::probes::page(&registry);
    Router::new()
        // The page waits for the model as its visitors do.
        .route("/", get(page))
        .route("/playground/{file}", get(file))
        .route("/livez", probe(async || well()))
        .route("/metrics", get(metrics))
        .fallback(async || ApiError::Starting)
}
