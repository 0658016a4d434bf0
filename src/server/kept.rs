//! Answers to `keep=true` whose clients went away: kept for a while under the request's id, given out once.

use crate::server::error::{ErrorBody, Failures, Locked};
use crate::server::handover::{Waits, hand_over};
use crate::server::metrics::Observation;
use crate::server::negotiate::text_of;
use crate::server::{ApiError, AppState};
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderName, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long.
const AGE: Duration = Duration::from_secs(600);
/// Bytes of all files together; the oldest go first.
const BYTES: usize = 64 << 20;

/// An image file with what is said about it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct File {
    pub media_type: &'static str,
    pub headers: Vec<(HeaderName, String)>,
    pub bytes: Bytes,
}

impl IntoResponse for File {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, self.media_type)], AppendHeaders(self.headers), self.bytes).into_response()
    }
}

/// Images on the way to their client.
pub(super) struct Parcel {
    /// `None` where they are fetched.
    observation: Option<Observation>,
    /// Where they go if it goes away before it has them, if anywhere.
    keep: Option<(Keeper, File)>,
}

/// Keeps a file under the id of its request.
#[derive(Clone, Debug)]
pub(super) struct Keeper {
    pub kept: Arc<Kept>,
    pub id: String,
}

impl Parcel {
    pub fn new(observation: Observation, keep: Option<(Keeper, File)>) -> Self {
        Self { observation: Some(observation), keep }
    }
}

impl Waits for Parcel {
    fn handed_over(mut self) {
        self.keep = None;
        self.observation.iter_mut().for_each(Observation::handed_over);
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        if let Some((Keeper { kept, id }, file)) = self.keep.take() {
            kept.put(id, file, Instant::now());
            self.observation.iter_mut().for_each(Observation::kept);
        }
    }
}

/// The files that nobody has come for.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<VecDeque<(String, Instant, File)>>);

impl Kept {
    /// Keeps a file under `id`.
    pub fn put(&self, id: String, file: File, now: Instant) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((id, now, file));
        kept.retain(|(_, since, _)| now.saturating_duration_since(*since) < AGE);
        while kept.iter().map(|(_, _, file)| file.bytes.len()).sum::<usize>() > BYTES {
            kept.pop_front();
        }
    }

    /// Gives out the file under `id`.
    pub fn take(&self, id: &str, now: Instant) -> Option<File> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place =
            kept.iter().position(|(known, since, _)| known == id && now.saturating_duration_since(*since) < AGE)?;
        kept.remove(place).map(|(_, _, file)| file)
    }
}

/// Fetch the images of a request with `keep=true` whose client went away.
///
/// They are given out once, wholly, as a file also where a stream of events was asked for, under the request's `x-request-id`, and kept for ten minutes.
#[utoipa::path(
    get,
    path = "/generate/{id}",
    tag = "images",
    params(("id" = String, Path, description = "The request's id.")),
    responses(
        (status = 200, description = "What the request would have got.", content(
            (Vec<u8> = "image/png"),
            (Vec<u8> = "image/webp"),
            (Vec<u8> = "image/jpeg"),
        )),
        (status = 404, description = "Nothing is kept under this id.", body = ErrorBody),
        Locked,
        Failures,
    )
)]
pub(super) async fn kept(
    State(state): State<Arc<AppState>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let id = text_of(id);
    let Some(file) = state.kept.take(&id, Instant::now()) else { return Err(ApiError::NotKept(id)) };
    let keep = Some((Keeper { kept: state.kept.clone(), id }, file.clone()));
    Ok(hand_over(file.into_response(), Parcel { observation: None, keep }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: usize) -> File {
        File { media_type: "image/png", headers: vec![], bytes: vec![7; bytes].into() }
    }

    #[test]
    fn a_file_is_given_out_once_and_not_after_its_time() {
        let (kept, now) = (Kept::default(), Instant::now());
        kept.put("a".to_owned(), file(1), now);
        kept.put("b".to_owned(), file(2), now);
        assert_eq!(kept.take("b", now), Some(file(2)));
        assert_eq!(kept.take("b", now), None);
        assert_eq!(kept.take("a", now + AGE), None);
        kept.put("c".to_owned(), file(3), now + AGE);
        assert_eq!(kept.0.lock().unwrap().len(), 1, "what is too old takes no memory");
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go_first() {
        let (kept, now) = (Kept::default(), Instant::now());
        (0..5).for_each(|id| kept.put(id.to_string(), file(BYTES / 4), now));
        let left: Vec<bool> = (0..5).map(|id| kept.take(&id.to_string(), now).is_some()).collect();
        assert_eq!(left, [false, true, true, true, true]);
    }
}
