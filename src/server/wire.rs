//! What clients send.

use crate::server::ApiError;
use base64::alphabet;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, Engine, GeneralPurposeConfig};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_json::{Number, Value};
use utoipa::{IntoParams, ToSchema};

/// The query of `POST /generate`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct GenerateQuery {
    /// The model, by its name; the first of `/v1/models` when nothing is said, here or in the body.
    pub model: Option<String>,
    /// What the images may take: `fast`, `balanced`, `best`, a deadline such as `250ms` or `1.5s`, or `exact:` and a plan.
    /// A plan may change its width, as in `exact:dpmpp2m-12@0.250*8,full*4`.
    pub budget: Option<String>,
    /// The quality below which a refusal is preferred: a share of the best, or a plan of the frontier. An exact plan takes
    /// none.
    pub min_quality: Option<String>,
    /// Whether the images are drawn also if the client goes away; `GET /generate/{id}` fetches them then.
    #[serde(default, deserialize_with = "truth")]
    pub keep: Option<bool>,
}

/// The body of `POST /generate`.
#[derive(Debug, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerateBody {
    /// The model, by its name; the first of `/v1/models` when nothing is said, here or in the query.
    pub model: Option<String>,
    /// A class by its name, in any spelling that reads the same, or by its index. Absent: the unconditional call.
    pub class: Option<ClassChoice>,
    /// What the image is to show, of a model that draws texts. What is longer than it reads is cut, and the answer says so.
    pub prompt: Option<String>,
    /// What it is not to show.
    pub negative_prompt: Option<String>,
    /// The same seed draws the same images; a decimal text is its number. Absent, or -1: drawn at random.
    #[serde(default, deserialize_with = "seed")]
    pub seed: Option<u64>,
    /// Images; several come as one grid.
    #[serde(default, deserialize_with = "whole")]
    pub n: Option<u32>,
    /// Classifier-free guidance towards the class or the prompt; 1 is off.
    pub guidance: Option<f64>,
    /// Columns, of one of the sizes that the model draws. Absent: of the first that has the rows that are given.
    #[serde(default, deserialize_with = "whole")]
    pub width: Option<usize>,
    /// Rows.
    #[serde(default, deserialize_with = "whole")]
    pub height: Option<usize>,
    /// The picture that the images start from: a PNG, JPEG or WebP file in base 64, or a `data:` URL, of a size that the model draws. Where
    /// it is transparent and there is no mask, that is what is drawn anew.
    pub image: Option<File>,
    /// What is drawn anew of it: a picture of its size that is transparent there, or else white. The rest stays as it is.
    pub mask: Option<File>,
    /// How much of `image` is made anew, above 0: the share of a plan's steps that are made. Absent: 0.8, and 1 with a mask.
    pub strength: Option<f64>,
    /// The file format, in capitals too. Absent: the one that `Accept` likes best.
    pub format: Option<String>,
}

/// A file in base 64, with or without padding, or a `data:` URL of it.
#[derive(PartialEq, Deserialize, ToSchema)]
#[serde(try_from = "String")]
#[schema(value_type = String)]
pub(super) struct File(pub Vec<u8>);

impl TryFrom<String> for File {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let base64 = match text.strip_prefix("data:").map(|url| url.split_once(";base64,")) {
            None => Some(&*text),
            Some(url) => url.map(|(_, base64)| base64),
        };
        let padded = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let file =
            base64.and_then(|base64| GeneralPurpose::new(&alphabet::STANDARD, padded).decode(base64.trim()).ok());
        file.map(Self).ok_or("expected a file in base 64, or a data: URL of it")
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
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
    let Some(number) = Option::<Number>::deserialize(from)? else { return Ok(None) };
    T::deserialize(integral(number)).map(Some).map_err(D::Error::custom)
}

fn integral(number: Number) -> Number {
    // Beyond 2^53 a double has lost digits that somebody wrote.
    match number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= (1u64 << 53) as f64) {
        Some(float) if number.is_f64() => (float as i64).into(),
        _ => number,
    }
}

/// Reads a seed as clients mean it: -1, which draws at random elsewhere, does so here, and a decimal text, which keeps
/// large numbers whole on their way through JavaScript, is its number.
///
/// # Errors
/// What is accepted.
pub(super) fn seed<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let given = match Option::<Value>::deserialize(from)? {
        None => return Ok(None),
        Some(Value::Number(number)) => integral(number).to_string(),
        Some(Value::String(text)) => text,
        Some(_) => String::new(),
    };
    let is_number = given.bytes().all(|byte| byte.is_ascii_digit());
    match given.parse().ok().filter(|_| is_number) {
        None if given == RANDOM => Ok(None),
        None => Err(D::Error::custom(format!(
            "expected a whole number from 0 to {}, as a number or a decimal text, or -1 or null for a random one",
            u64::MAX
        ))),
        seed => Ok(seed),
    }
}

/// The seed that stands for a random one.
pub(super) const RANDOM: &str = "-1";

/// Reads a truth from a query, where it is text: Python writes `True`, C `1`.
fn truth<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    let text = String::deserialize(from)?;
    let known = [("true", true), ("1", true), ("false", false), ("0", false)];
    let found = known.into_iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
    found
        .map(|(_, truth)| Some(truth))
        .ok_or_else(|| D::Error::custom(format!("`{text}` is neither true (1) nor false (0)")))
}

fn whole_index<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    whole(from)?.ok_or_else(|| D::Error::custom("null is no index"))
}

impl GenerateBody {
    pub const FIELDS: &[&str] = &[
        "model",
        "class",
        "prompt",
        "negative_prompt",
        "seed",
        "n",
        "guidance",
        "width",
        "height",
        "image",
        "mask",
        "strength",
        "format",
    ];

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
    let fields: serde_json::Map<String, Value> = serde_json::from_slice(bytes).unwrap_or_default();
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
        let text = r#"{"model":"m","class":"low","prompt":"a","negative_prompt":"b","seed":18446744073709551615,"n":2,"guidance":2,
            "width":3,"height":4,"image":"AAE","mask":"data:image/png;base64,Ag==","strength":0.5,"format":"png"}"#;
        let body = GenerateBody::parse(text.as_bytes()).unwrap();
        assert_eq!(body.seed, Some(u64::MAX));
        assert_eq!([body.image, body.mask], [vec![0, 1], vec![2]].map(|bytes| Some(File(bytes))));
        assert_eq!((body.class, body.guidance), (Some(ClassChoice::Name("low".to_owned())), Some(2.0)));
        let written: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap();
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
    fn a_seed_is_what_clients_mean_by_it() {
        for (seed, meant) in [
            ("-1", None),
            ("-1.0", None),
            ("\"-1\"", None),
            ("null", None),
            ("0", Some(0)),
            ("\"7\"", Some(7)),
            ("\"007\"", Some(7)),
            ("\"18446744073709551615\"", Some(u64::MAX)),
        ] {
            let body = GenerateBody::parse(format!("{{\"seed\":{seed}}}").as_bytes()).unwrap();
            assert_eq!(body.seed, meant, "{seed}");
        }
    }

    #[test]
    fn a_wrong_type_names_the_field() {
        for (body, field) in [
            (r#"{"seed":-2}"#, "`seed`: expected a whole number from 0 to 18446744073709551615, as a number or"),
            (r#"{"seed":1.5}"#, "`seed`: expected a whole number"),
            (r#"{"seed":18446744073709551616}"#, "`seed`: expected a whole number"),
            (r#"{"seed":"18446744073709551616"}"#, "`seed`: expected a whole number"),
            (r#"{"seed":1e16}"#, "`seed`: expected a whole number"),
            (r#"{"seed":""}"#, "or -1 or null for a random one"),
            (r#"{"seed":"+7"}"#, "`seed`: expected a whole number"),
            (r#"{"seed":" 7"}"#, "`seed`: expected a whole number"),
            (r#"{"seed":"7.0"}"#, "`seed`: expected a whole number"),
            (r#"{"seed":"random"}"#, "`seed`: expected a whole number"),
            (r#"{"seed":true}"#, "`seed`: expected a whole number"),
            (r#"{"seed":[7]}"#, "`seed`: expected a whole number"),
            (r#"{"n":-1.0}"#, "`n`"),
            (r#"{"class":0.5}"#, "`class`"),
            (r#"{"n":4294967296}"#, "`n`"),
            (r#"{"n":"8"}"#, "`n`"),
            (r#"{"guidance":"1"}"#, "`guidance`"),
            (r#"{"class":[1]}"#, "`class`: expected the name or the index"),
            (r#"{"format":0.5}"#, "`format`"),
            (r#"{"image":"a picture"}"#, "`image`: expected a file in base 64, or a data: URL of it"),
            (r#"{"image":"data:image/png,AAAA"}"#, "`image`: expected a file in base 64"),
            (r#"{"mask":["AAAA"]}"#, "`mask`"),
            (r#"{"strength":"0.5"}"#, "`strength`"),
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
        let (code, message) = code(r#"{"sede":1,"seed":2,"text":"x"}"#);
        assert_eq!(code, "unknown_field");
        assert!(message.contains("sede, text: accepted are model, class, prompt,"), "{message}");
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
