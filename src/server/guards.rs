//! What stands before every route: keys and origins.

use crate::server::ServeConfig;
use crate::server::auth::KeyHashes;
use axum::http::{HeaderValue, Method};
use std::sync::Arc;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

/// The origin that stands for all of them.
const ANY: &str = "*";

/// Who may ask.
#[derive(Clone, Debug)]
pub(super) struct Guards {
    pub keys: Arc<KeyHashes>,
    /// `None` lets no page of another origin read an answer.
    pub cors: Option<CorsLayer>,
}

impl Guards {
    pub fn new(config: &ServeConfig) -> Self {
        Self { keys: Arc::new(config.auth.key_hashes.clone()), cors: cors(&config.cors_origins) }
    }
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    let origins = match origins {
        [] => return None,
        some if some.iter().any(|origin| origin == ANY) => AllowOrigin::any(),
        // The config's check has refused what is no header value.
        some => AllowOrigin::list(some.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    // Keys travel in a header, never in a cookie, so credentials in the sense of CORS are not allowed, and `*` is safe.
    Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(ExposeHeaders::any()),
    )
}

/// Checks an entry of `cors_origins`.
///
/// # Errors
/// What is wrong with it and what is accepted.
pub(super) fn check_origin(origin: &str) -> Result<(), String> {
    let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")).unwrap_or_default();
    let is_authority =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@".contains(&b));
    if origin == ANY || is_authority(authority) {
        return Ok(());
    }
    Err(format!("`{origin}` is not accepted: it must be \"*\" or an origin such as \"https://example.com\""))
}
