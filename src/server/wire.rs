//! What clients send.

use crate::server::ApiError;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use utoipa::{IntoParams, ToSchema};

/// The query of `POST /generate`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct GenerateQuery {
    /// What the images may take: `fast`, `balanced`, `best`, a deadline such as `250ms` or `1.5s`, or `exact:` and a plan.
    /// A plan may change its width, as in `exact:dpmpp2m-12@0.250*8,full*4`.
    pub budget: Option<String>,
    /// The quality below which a refusal is preferred: a share of the best, or a plan of the frontier. An exact plan takes
    /// none.
    pub min_quality: Option<String>,
    /// Whether the images are drawn also if the client goes away.
    pub keep: Option<bool>,
}

/// The body of `POST /generate`.
#[derive(Debug, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerateBody {
    /// A class by its name or its index. Absent: the unconditional call.
    pub class: Option<ClassChoice>,
    /// Absent: drawn at random.
    #[serde(default, deserialize_with = "whole")]
    pub seed: Option<u64>,
    /// Images; several come as one grid.
    #[serde(default, deserialize_with = "whole")]
    pub n: Option<u32>,
    /// Classifier-free guidance towards the class; 1 is off.
    pub guidance: Option<f64>,
    /// The file format. Absent: the one that `Accept` likes best.
    pub format: Option<String>,
}

/// A class by its name or its index.
#[derive(Debug, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected the name or the index of a class")]
pub(super) enum ClassChoice {
    Index(#[serde(deserialize_with = "whole_index")] u64),
    Name(String),
}

/// Reads a whole number. JSON knows one kind of number and calls 3.0 whole, so we do.
///
/// # Errors
/// What serde says of a number that is not whole, or that `T` does not hold.
pub(super) fn whole<'de, T: DeserializeOwned, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    let Some(mut number) = Option::<serde_json::Number>::deserialize(from)? else { return Ok(None) };
    // Beyond 2^53 a double has lost digits that somebody wrote.
    if let Some(float) = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= (1u64 << 53) as f64)
        && number.is_f64()
    {
        number = (float as i64).into();
    }
    T::deserialize(number).map(Some).map_err(D::Error::custom)
}

fn whole_index<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    whole(from)?.ok_or_else(|| D::Error::custom("null is no index"))
}

impl GenerateBody {
    pub const FIELDS: &[&str] = &["class", "seed", "n", "guidance", "format"];

    /// # Errors
    /// As [`parse`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        parse(bytes, Self::FIELDS)
    }
}

/// Reads a body that is one JSON object with `fields`.
///
/// # Errors
/// [`ApiError::EmptyBody`], [`ApiError::InvalidJson`], [`ApiError::WrongType`] or [`ApiError::UnknownField`].
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], fields: &'static [&'static str]) -> Result<T, ApiError> {
    if bytes.trim_ascii().is_empty() {
        return Err(ApiError::EmptyBody);
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let body = serde_path_to_error::deserialize(&mut json).map_err(|error| refusal(bytes, fields, &error))?;
    json.end().map_err(|error| ApiError::InvalidJson(error.to_string()))?;
    Ok(body)
}

fn refusal(
    bytes: &[u8],
    accepted: &'static [&'static str],
    error: &serde_path_to_error::Error<serde_json::Error>,
) -> ApiError {
    let problem = error.inner();
    if problem.classify() != Category::Data {
        return ApiError::InvalidJson(problem.to_string());
    }
    // serde stops at the first unknown field: look again for all of them.
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes).unwrap_or_default();
    let unknown: Vec<String> = fields.keys().filter(|key| !accepted.contains(&key.as_str())).cloned().collect();
    if !unknown.is_empty() {
        return ApiError::UnknownField { unknown, accepted };
    }
    let problem = problem.to_string();
    match error.path().to_string().as_str() {
        // serde_path_to_error's name for the body itself.
        "." => ApiError::WrongType { field: None, problem },
        field => ApiError::WrongType { field: Some(field.to_owned()), problem },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &str) -> (&'static str, String) {
        let error = GenerateBody::parse(body.as_bytes()).unwrap_err();
        (error.contract().1, error.to_string())
    }

    #[test]
    fn every_field_is_read_and_listed_as_accepted() {
        let text = r#"{"class":"low","seed":18446744073709551615,"n":2,"guidance":2,"format":"png"}"#;
        let body = GenerateBody::parse(text.as_bytes()).unwrap();
        assert_eq!(body.seed, Some(u64::MAX));
        assert_eq!((body.class, body.guidance), (Some(ClassChoice::Name("low".to_owned())), Some(2.0)));
        let written: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap();
        assert!(written.len() == GenerateBody::FIELDS.len());
        assert!(GenerateBody::FIELDS.iter().all(|field| written.contains_key(*field)));
    }

    #[test]
    fn absent_and_null_fields_are_the_same() {
        assert_eq!(GenerateBody::parse(b"{}").unwrap(), GenerateBody::default());
        assert_eq!(GenerateBody::parse(br#"{"class":null,"seed":null}"#).unwrap(), GenerateBody::default());
    }

    #[test]
    fn a_whole_number_may_be_written_with_a_point() {
        let body = GenerateBody::parse(br#"{"class":1.0,"seed":3.0,"n":2e0}"#).unwrap();
        assert_eq!((body.class, body.seed, body.n), (Some(ClassChoice::Index(1)), Some(3), Some(2)));
    }

    #[test]
    fn a_wrong_type_names_the_field() {
        for (body, field) in [
            (r#"{"seed":-1}"#, "`seed`"),
            (r#"{"seed":1.5}"#, "`seed`"),
            (r#"{"seed":"7"}"#, "`seed`"),
            (r#"{"seed":18446744073709551616}"#, "`seed`"),
            (r#"{"seed":1e16}"#, "`seed`"),
            (r#"{"n":-1.0}"#, "`n`"),
            (r#"{"class":0.5}"#, "`class`"),
            (r#"{"n":4294967296}"#, "`n`"),
            (r#"{"n":"8"}"#, "`n`"),
            (r#"{"guidance":"1"}"#, "`guidance`"),
            (r#"{"class":[1]}"#, "`class`: expected the name or the index"),
            (r#"{"format":0.5}"#, "`format`"),
            (r#"{"n":1,"n":2}"#, "duplicate field `n`"),
            ("[]", "the body"),
            ("\"fast\"", "the body"),
            ("null", "the body"),
        ] {
            let (code, message) = code(body);
            assert!(code == "wrong_type" && message.contains(field), "{body}: {code} {message}");
        }
    }

    #[test]
    fn unknown_fields_are_all_named() {
        let (code, message) = code(r#"{"sede":1,"seed":2,"prompt":"x"}"#);
        assert_eq!(code, "unknown_field");
        assert!(message.contains("prompt, sede: accepted are class, seed, n,"), "{message}");
    }

    #[test]
    fn what_is_not_json_is_told_from_what_is_empty() {
        assert_eq!(code("").0, "empty_body");
        assert_eq!(code(" \n").0, "empty_body");
        for body in ["{", "{}}", "{} {}", "{\"seed\":}", "seed=1", "{\"guidance\":1e999}", "\u{0}"] {
            assert_eq!(code(body).0, "invalid_json", "{body}");
        }
    }
}
