//! A denoiser of texts as one of classes, each of which is an example of a prompt: what measures plans knows classes alone.

use crate::Result;
use crate::nets::{About, Condition, Denoiser, Rows};
use crate::text::Contexts;

/// What plans are measured on, where a model draws texts.
pub const EXAMPLES: [&str; 4] = [
    "a photo of a red bicycle in front of a brick wall",
    "an oil painting of a wooden boat at sunset, highly detailed",
    "a small cat that sleeps on a blue chair",
    "the map of an island, drawn with ink",
];

/// Texts, encoded; none for a model that draws none.
#[derive(Clone, Debug, Default)]
pub struct Examples {
    /// What images are of.
    prompts: Vec<Condition>,
    /// What guidance leads them away from: the empty text.
    nothing: Condition,
}

impl Examples {
    /// [`EXAMPLES`].
    ///
    /// # Errors
    /// As [`Contexts::of`].
    pub fn encoded(contexts: Option<&Contexts>) -> Result<Self> {
        let Some(contexts) = contexts else { return Ok(Self::default()) };
        let encode = |prompt: &str| Ok(Condition::Text(contexts.of(prompt)?.values));
        Ok(Self { prompts: EXAMPLES.iter().map(|prompt| encode(prompt)).collect::<Result<_>>()?, nothing: encode("")? })
    }
}

/// A denoiser that is told an example where it is called for a class, and calls as they are where there are no examples.
pub struct Prompted<'a> {
    denoiser: &'a mut dyn Denoiser,
    about: About,
    examples: &'a Examples,
}

impl<'a> Prompted<'a> {
    /// The denoiser with these examples for its classes.
    pub fn new(denoiser: &'a mut dyn Denoiser, examples: &'a Examples) -> Self {
        let mut about = denoiser.about().clone();
        if !examples.prompts.is_empty() {
            about.classes = crate::classes::numbers(examples.prompts.len());
        }
        Self { denoiser, about, examples }
    }
}

impl Denoiser for Prompted<'_> {
    fn about(&self) -> &About {
        &self.about
    }

    fn activation_bytes(&self) -> usize {
        self.denoiser.activation_bytes()
    }

    fn picture(&mut self, decoder: usize, image: &[f64]) -> Result<Vec<f64>> {
        self.denoiser.picture(decoder, image)
    }

    fn denoise(&mut self, subnet: usize, rows: &Rows) -> Result<Vec<f32>> {
        let Examples { prompts, nothing } = self.examples;
        let told = |condition: &Condition| match condition {
            Condition::Class(class) => prompts.get(*class).unwrap_or(condition).clone(),
            Condition::None => nothing.clone(),
            Condition::Text(_) => condition.clone(),
        };
        let conditions: Vec<Condition> = rows.conditions.iter().map(told).collect();
        self.denoiser.denoise(subnet, &Rows { conditions: &conditions, ..*rows })
    }
}
