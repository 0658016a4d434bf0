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

/// [`EXAMPLES`], encoded; none for a model that draws no texts.
///
/// # Errors
/// As [`Contexts::of`].
pub fn examples(contexts: Option<&Contexts>) -> Result<Vec<Condition>> {
    let Some(contexts) = contexts else { return Ok(Vec::new()) };
    EXAMPLES.iter().map(|prompt| Ok(Condition::Text(contexts.of(prompt)?.values))).collect()
}

/// A denoiser that is told an example where it is called for a class, and calls as they are where there are no examples.
pub struct Prompted<'a> {
    denoiser: &'a mut dyn Denoiser,
    about: About,
    examples: &'a [Condition],
}

impl<'a> Prompted<'a> {
    /// The denoiser with these examples for its classes.
    pub fn new(denoiser: &'a mut dyn Denoiser, examples: &'a [Condition]) -> Self {
        let mut about = denoiser.about().clone();
        if !examples.is_empty() {
            about.classes = crate::classes::numbers(examples.len());
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

    fn denoise(&mut self, subnet: usize, rows: &Rows) -> Result<Vec<f32>> {
        let told = |condition: &Condition| match condition.class().and_then(|class| self.examples.get(class)) {
            Some(example) => example.clone(),
            None => condition.clone(),
        };
        let conditions: Vec<Condition> = rows.conditions.iter().map(told).collect();
        self.denoiser.denoise(subnet, &Rows { conditions: &conditions, ..*rows })
    }
}
