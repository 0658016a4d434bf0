//! What a connection refuses before any route sees it.

use crate::server::ApiError;
use crate::server::probes::is_probe;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Comes with the request to [`refuse`], which is where an answer gets what every answer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// What is wrong with the Host header.
    Host(String),
    /// The connection is a spare one, and the request no probe.
    Full,
}

impl Refusal {
    /// What stands against a request; `is_spare` says that its connection has no place of its own.
    pub fn of<B>(request: &axum::http::Request<B>, is_spare: bool) -> Option<Self> {
        let host = host_problem(request).map(Self::Host);
        host.or_else(|| (is_spare && !is_probe(request.uri().path())).then_some(Self::Full))
    }
}

/// RFC 9112, section 3.2: no Host is an error since HTTP/1.1; two, or one that is no host, always are.
fn host_problem<B>(request: &axum::http::Request<B>) -> Option<String> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.count()) {
        (None, _) => (request.version() >= Version::HTTP_11).then(|| "there is no Host header".to_owned()),
        (Some(host), 0) => {
            let is_host =
                host.is_empty() || !host.as_bytes().contains(&b'@') && Authority::try_from(host.as_bytes()).is_ok();
            (!is_host).then(|| format!("{host:?} is not a host"))
        }
        (Some(_), more) => Some(format!("there are {} Host headers", more + 1)),
    }
}

/// Answers what its connection has refused.
pub(super) async fn refuse(mut request: Request, next: Next) -> Response {
    match request.extensions_mut().remove() {
        Some(Refusal::Host(problem)) => ApiError::InvalidHost(problem).into_response(),
        Some(Refusal::Full) => ApiError::Full.into_response(),
        None => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(version: Version, hosts: &[&str]) -> Option<String> {
        let request = axum::http::Request::get("/").version(version);
        let request = hosts.iter().fold(request, |request, host| request.header("host", *host));
        host_problem(&request.body(()).unwrap())
    }

    #[test]
    fn a_request_has_one_host_and_an_old_one_may_have_none() {
        for host in ["example.com", "EXAMPLE.com:8080", "127.0.0.1:80", "[::1]:8080", "a_service", ""] {
            assert_eq!(problem(Version::HTTP_11, &[host]), None, "{host}");
        }
        assert_eq!(problem(Version::HTTP_10, &[]), None);
        for (version, hosts, says) in [
            (Version::HTTP_11, &[][..], "there is no Host header"),
            (Version::HTTP_11, &["a", "a"], "there are 2 Host headers"),
            (Version::HTTP_10, &["a", "b", "c"], "there are 3 Host headers"),
            (Version::HTTP_11, &["a b"], "\"a b\" is not a host"),
            (Version::HTTP_11, &["a/b"], "\"a/b\" is not a host"),
            (Version::HTTP_11, &["me@a"], "\"me@a\" is not a host"),
        ] {
            assert_eq!(problem(version, hosts).as_deref(), Some(says));
        }
    }
}
