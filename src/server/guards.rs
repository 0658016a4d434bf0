//! What stands before every route: keys and origins.

use crate::server::ServeConfig;
use crate::server::auth::KeyHashes;
use axum::http::{HeaderValue, Method};
use std::sync::Arc;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};
use url::Url;

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
        some => {
            // The config's check has refused what is no origin.
            let known: Vec<String> = some.iter().filter_map(|origin| canonical(origin)).collect();
            AllowOrigin::predicate(move |origin: &HeaderValue, _| {
                origin.to_str().ok().and_then(canonical).is_some_and(|origin| known.contains(&origin))
            })
        }
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
    if origin == ANY || canonical(origin).is_some() {
        return Ok(());
    }
    Err(format!("`{origin}` is not accepted: it must be \"*\" or an origin such as \"https://example.com\""))
}

/// An origin as browsers write it, whoever wrote it: lower case, the host in ASCII, no default port and no slash at the
/// end. `None` for what is no origin of a page on the web, patterns among it.
fn canonical(origin: &str) -> Option<String> {
    let url = Url::parse(origin).ok().filter(|_| origin.contains("://") && !origin.contains(['*', '@']))?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    (matches!(url.scheme(), "http" | "https") && is_bare).then(|| url.origin().ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_one_form_however_it_is_written() {
        for (written, form) in [
            ("https://example.com", Some("https://example.com")),
            ("HTTPS://Example.COM:443/", Some("https://example.com")),
            ("http://localhost:80", Some("http://localhost")),
            ("http://localhost:3000", Some("http://localhost:3000")),
            ("http://example.com:443", Some("http://example.com:443")),
            ("https://b\u{fc}cher.example", Some("https://xn--bcher-kva.example")),
            ("https://xn--bcher-kva.example", Some("https://xn--bcher-kva.example")),
            ("http://[::1]:8080", Some("http://[::1]:8080")),
            ("https://example.com/app", None),
            ("https://example.com?", None),
            ("https://me@example.com", None),
            ("https://*.example.com", None),
            ("https:example.com", None),
            ("https://", None),
            ("example.com", None),
            ("ftp://example.com", None),
            ("null", None),
            ("", None),
        ] {
            assert_eq!(canonical(written).as_deref(), form, "{written}");
        }
    }
}
