//! Activation functions.

/// An activation function, element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `x / (1 + exp(-x))` (Elfwing et al. 2017).
    Silu,
    /// The exact one, `x Phi(x)` with the standard normal distribution's Phi (Hendrycks and Gimpel 2016).
    Gelu,
}
