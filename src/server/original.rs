//! The picture that a client wants images to be made from.

use crate::diffusion::plan::STRENGTH;
use crate::engine::Original;
use crate::engine::original::{Part, Refused};
use crate::files::sha256_of;
use crate::nets::Canvas;
use crate::server::ApiError;
use crate::server::draw::canvas_of;

/// What a file may have beside its pixels: profiles of colours, thumbnails.
const BESIDE_PIXELS: usize = 64 << 10;
/// The most bytes that a pixel takes in a file: four channels of 16 bits.
const PIXEL_BYTES: usize = 8;

/// What a client sends of it: files as they are, and how much of the picture is made anew.
#[derive(Default)]
pub(super) struct Given {
    pub image: Option<Vec<u8>>,
    pub mask: Option<Vec<u8>>,
    pub strength: Option<f64>,
}

/// What the engine is told of it.
pub(super) struct Started {
    pub original: Option<Original>,
    /// 1 where nothing is started from.
    pub strength: f64,
    /// The index of the images' size.
    pub canvas: usize,
    /// The SHA-256 of the picture and of the mask.
    pub files: [Option<String>; 2],
}

/// The most bytes of a file that can be a picture of the model.
pub(super) fn most_bytes(canvases: &[Canvas]) -> usize {
    let pixels = |canvas: &Canvas| canvas.picture.height * canvas.picture.width;
    BESIDE_PIXELS + PIXEL_BYTES * canvases.iter().map(pixels).max().unwrap_or(0)
}

impl Given {
    /// Reads the files, away from the threads that serve connections, and holds them against each other, the sizes of the model, and the
    /// columns and rows that are asked for.
    ///
    /// # Errors
    /// The field that is missing, that is no picture, of another size, or out of its range.
    pub async fn started(self, canvases: &[Canvas], size: [Option<usize>; 2]) -> Result<Started, ApiError> {
        let Self { image, mask, strength } = self;
        let Some(image) = image else {
            for (field, is_given) in [("mask", mask.is_some()), ("strength", strength.is_some())] {
                if is_given {
                    return Err(ApiError::Unsupported { field, problem: "needs an `image` to start from" });
                }
            }
            return Ok(Started {
                original: None,
                strength: 1.0,
                canvas: canvas_of(canvases, size)?,
                files: [None, None],
            });
        };
        if let Some(strength) = strength.filter(|strength| !(*strength > 0.0 && *strength <= 1.0)) {
            let accepted = "above 0 and at most 1".to_owned();
            return Err(ApiError::OutOfRange { field: "strength", value: strength.to_string(), accepted });
        }
        let asked = size.iter().any(Option::is_some).then(|| canvas_of(canvases, size)).transpose()?;
        let known = canvases.to_vec();
        let read = move || {
            let (original, canvas) = Original::read(&known, asked, &image, mask.as_deref())?;
            Ok((original, canvas, [Some(sha256_of(&image)), mask.as_deref().map(sha256_of)]))
        };
        let read = tokio::task::spawn_blocking(read).await.map_err(|e| ApiError::Internal(e.to_string()))?;
        let (original, canvas, files) = read.map_err(|refused: Refused| {
            let field = match refused.file {
                Part::Image => "image",
                Part::Mask => "mask",
            };
            ApiError::InvalidImage { field, problem: refused.problem }
        })?;
        let strength = strength.unwrap_or(original.usual_strength()).max(*STRENGTH.start());
        Ok(Started { original: Some(original), strength, canvas, files })
    }
}
