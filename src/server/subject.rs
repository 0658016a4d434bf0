//! What images are to be of: a class, or a prompt, which is encoded here.

use crate::labels;
use crate::nets::{About, Condition};
use crate::server::wire::ClassChoice;
use crate::server::{ApiError, Loaded};
use crate::text::Context;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// The accepted scales of classifier-free guidance.
pub(super) const GUIDANCE: RangeInclusive<f64> = 0.0..=20.0;
/// Characters of a prompt, at most: far more than an encoder reads.
pub(super) const MAX_PROMPT: usize = 4096;

/// What a client asks for.
#[derive(Default)]
pub(super) struct Subject {
    /// Absent: the unconditional call.
    pub class: Option<ClassChoice>,
    pub prompt: Option<String>,
    pub negative_prompt: Option<String>,
    pub guidance: Option<f64>,
}

/// What the engine is told of it.
pub(super) struct Told {
    pub condition: Condition,
    /// What guidance leads away from.
    pub negative: Condition,
    pub guidance: f64,
    /// The fields with more text than the encoder reads.
    pub truncated: Vec<&'static str>,
}

impl Subject {
    /// Checks it against the model, and encodes its prompts away from the threads that serve connections.
    ///
    /// # Errors
    /// The field that the model cannot honour, that is missing, or that is out of its range.
    pub async fn told(self, model: &Loaded) -> Result<Told, ApiError> {
        match &model.texts {
            None => self.of_class(model.about(), model.usual_guidance()),
            Some(texts) => {
                let Self { class, prompt, negative_prompt, guidance } = self;
                if class.is_some() {
                    let problem = "this model draws what a text says: give `prompt`";
                    return Err(ApiError::Unsupported { field: "class", problem });
                }
                let prompt = prompt.filter(|prompt| !prompt.is_empty()).ok_or(ApiError::MissingPrompt)?;
                let negative_prompt = negative_prompt.unwrap_or_default();
                check_length("prompt", &prompt)?;
                check_length("negative_prompt", &negative_prompt)?;
                let guidance = scale(guidance, model.usual_guidance())?;
                let texts = Arc::clone(texts);
                let encode = move || Ok([texts.of(&prompt)?, texts.of(&negative_prompt)?]);
                let encoded = tokio::task::spawn_blocking(encode).await;
                let encoded: crate::Result<[Context; 2]> = encoded.map_err(|e| ApiError::Internal(e.to_string()))?;
                let [of_prompt, of_negative] = encoded.map_err(|e| ApiError::Internal(e.to_string()))?;
                let cut = [("prompt", of_prompt.is_cut), ("negative_prompt", of_negative.is_cut)];
                Ok(Told {
                    condition: Condition::Text(of_prompt.values),
                    negative: Condition::Text(of_negative.values),
                    guidance,
                    truncated: cut.into_iter().filter(|(_, is_cut)| *is_cut).map(|(field, _)| field).collect(),
                })
            }
        }
    }

    fn of_class(self, about: &About, usual: f64) -> Result<Told, ApiError> {
        let Self { class, prompt, negative_prompt, guidance } = self;
        for (field, is_given) in [("prompt", prompt.is_some()), ("negative_prompt", negative_prompt.is_some())] {
            if is_given {
                let problem = "this model draws no texts: leave it out";
                return Err(ApiError::Unsupported { field, problem });
            }
        }
        let class = class.map(|choice| class_index(&about.classes, choice)).transpose()?;
        let guidance = scale(guidance, usual)?;
        if guidance != 1.0 && class.is_none() {
            return Err(ApiError::GuidanceWithoutClass);
        }
        Ok(Told { condition: class.into(), negative: Condition::None, guidance, truncated: Vec::new() })
    }
}

fn check_length(field: &'static str, text: &str) -> Result<(), ApiError> {
    match text.chars().count() {
        count if count > MAX_PROMPT => Err(ApiError::OutOfRange {
            field,
            value: format!("{count} characters long"),
            accepted: format!("of at most {MAX_PROMPT}"),
        }),
        _ => Ok(()),
    }
}

fn class_index(classes: &[String], choice: ClassChoice) -> Result<usize, ApiError> {
    if classes.is_empty() {
        return Err(ApiError::ClassNotSupported);
    }
    let (found, asked) = match choice {
        ClassChoice::Index(index) => (usize::try_from(index).ok().filter(|&i| i < classes.len()), index.to_string()),
        ClassChoice::Name(name) => (labels::find(classes, &name), name),
    };
    found.ok_or_else(|| ApiError::UnknownClass { asked, accepted: classes.to_vec() })
}

fn scale(asked: Option<f64>, usual: f64) -> Result<f64, ApiError> {
    let scale = asked.unwrap_or(usual);
    if GUIDANCE.contains(&scale) {
        return Ok(scale);
    }
    let accepted = format!("{} to {}", GUIDANCE.start(), GUIDANCE.end());
    Err(ApiError::OutOfRange { field: "guidance", value: scale.to_string(), accepted })
}
