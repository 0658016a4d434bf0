//! Which network of a model a command is about.

/// A network with widths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// What denoises.
    #[default]
    Denoiser,
    /// What makes pictures of latents, of a model that draws latents.
    Decoder,
}
