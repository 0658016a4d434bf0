//! Optional API keys. The server knows only their hashes, and neither ever reaches a log or a `Debug` output.

use crate::server::ApiError;
use crate::server::probes::is_probe;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use subtle::{Choice, ConstantTimeEq};

/// What needs no key, beside the probes: the document and the page say nothing of a model.
const OPEN: [&str; 2] = ["/openapi.json", "/"];
/// The files of the page.
const OPEN_FOLDER: &str = "/playground/";
const PREFIX: &str = "sha256:";

/// The SHA-256 of an API key, as text `sha256:<64 hex digits>`.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of `key`.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// The line for `key_hashes`. The only way to read a hash, so that none is printed by accident.
    pub fn line(&self) -> String {
        self.0.iter().fold(PREFIX.to_owned(), |line, byte| line + &format!("{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:<redacted>")
    }
}

impl FromStr for KeyHash {
    type Err = &'static str;

    /// The error does not show `text`: it may be a key that was written in place of its hash.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = "is not `sha256:` and 64 hexadecimal digits, as `accordion hash-key` prints them";
        let digits = text.strip_prefix(PREFIX).filter(|hex| hex.len() == 64 && hex.is_ascii()).ok_or(refused)?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(refused);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Ok(Self(hash))
    }
}

/// The `[auth]` table of the config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The hashes of the keys that open the image routes and the model lists; without any, no key is asked for.
    pub key_hashes: KeyHashes,
}

/// A list of [`KeyHash`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyHashes(pub Vec<KeyHash>);

impl KeyHashes {
    /// Whether no key is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `key` is one of them, in a time that tells nothing of the keys.
    fn accept(&self, key: &str) -> bool {
        let KeyHash(asked) = KeyHash::of(key);
        self.0.iter().fold(Choice::from(0), |found, KeyHash(known)| found | known.ct_eq(&asked)).into()
    }

    /// Without a hash among `lines` somebody meant to lock the server and did not: that is refused.
    fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let hash = |(index, line): (usize, &str)| line.parse().map_err(|problem| format!("entry {index} {problem}"));
        let hashes: Vec<KeyHash> = lines.into_iter().enumerate().map(hash).collect::<Result<_, _>>()?;
        if hashes.is_empty() {
            return Err(
                "holds no key: give a hash that `accordion hash-key` prints, or leave it out for an open server".into(),
            );
        }
        Ok(Self(hashes))
    }
}

/// Hashes with commas between them, as in `ACCORDION_KEY_HASHES`.
impl FromStr for KeyHashes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text.split(',').map(str::trim).filter(|line| !line.is_empty()))
    }
}

impl<'de> Deserialize<'de> for KeyHashes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Serde's own errors show the value, which may be a key.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            List(Vec<String>),
            Other(serde::de::IgnoredAny),
        }
        match Given::deserialize(deserializer)? {
            Given::List(lines) => Self::parse(lines.iter().map(String::as_str)).map_err(serde::de::Error::custom),
            Given::Other(_) => Err(serde::de::Error::custom("is not a list of texts `sha256:<hex>`")),
        }
    }
}

/// Lets a request through that needs no key or carries one of `keys`.
pub(super) async fn require_key(State(keys): State<Arc<KeyHashes>>, mut request: Request, next: Next) -> Response {
    // Whatever prints headers from here on shows `Sensitive`.
    if let Some(value) = request.headers_mut().get_mut(header::AUTHORIZATION) {
        value.set_sensitive(true);
    }
    let path = request.uri().path();
    if keys.is_empty() || is_probe(path) || OPEN.contains(&path) || path.starts_with(OPEN_FOLDER) {
        return next.run(request).await;
    }
    match bearer(request.headers()) {
        Some(key) if keys.accept(key) => next.run(request).await,
        Some(_) => ApiError::WrongKey.into_response(),
        None => ApiError::NoKey.into_response(),
    }
}

/// The key of `Authorization: Bearer <key>`; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    Some(key.trim()).filter(|key| scheme.eq_ignore_ascii_case("bearer") && !key.is_empty())
}
