//! What follows a product.

/// An activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `x / (1 + e^-x)` (Elfwing et al. 2017).
    Silu,
    /// `x * Phi(x)`, exact, with the normal distribution's Phi (Hendrycks and Gimpel 2016).
    Gelu,
    /// `max(x, 0)`.
    Relu,
}
