//! A picture that images are made from, and the mask that says where.

use crate::nets::Canvas;
use crate::picture::{Background, Colour, Opened};
use std::fmt;

/// The most pixels of a file, where no picture of the model has more: what is larger is refused before memory is given for it.
const MOST_PIXELS: usize = 1 << 22;
/// How much of a picture is made anew where nothing is said (diffusers' default).
const USUAL_STRENGTH: f64 = 0.8;

/// A picture that images are made from.
#[derive(Clone, PartialEq, Eq)]
pub struct Original {
    /// `[height, width, channels]` row-major, of the size of the job's canvas.
    pub bytes: Vec<u8>,
    /// By pixel, whether it is drawn anew; the others are as they were in what is drawn. None: all are.
    pub mask: Option<Vec<bool>>,
}

/// One of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The picture.
    Image,
    /// The mask.
    Mask,
}

/// A file that is no picture to start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which one.
    pub file: Part,
    /// What is wrong with it, and what is accepted.
    pub problem: String,
}

impl Original {
    /// The picture of these files, and the index of its size: `asked`, or else that of the picture. Where it is transparent, which is by
    /// half or more, and there is no mask, that is what is drawn anew; a mask says it by where it is transparent, or else by where it is
    /// white.
    ///
    /// # Errors
    /// For a file that is no intact picture, or of another size, and for a mask that marks nothing.
    pub fn read(
        canvases: &[Canvas],
        asked: Option<usize>,
        image: &[u8],
        mask: Option<&[u8]>,
    ) -> Result<(Self, usize), Refused> {
        let pixels = |canvas: &Canvas| canvas.picture.height * canvas.picture.width;
        let most = canvases.iter().map(pixels).max().unwrap_or(0).max(MOST_PIXELS) as u64;
        let refuse = |file, problem| Refused { file, problem };
        let open = |file, bytes: &[u8]| Opened::new(bytes, most).map_err(|problem| refuse(file, problem));
        let image = open(Part::Image, image)?;
        let [width, height] = image.size();
        let is_of = |canvas: &Canvas| [canvas.picture.width, canvas.picture.height] == [width, height];
        let canvas = match asked {
            Some(asked) if is_of(&canvases[asked]) => asked,
            Some(asked) => {
                let size = canvases[asked].picture.size();
                let problem = format!("has {width}x{height} pixels, but must have those of what is drawn, {size}");
                return Err(refuse(Part::Image, problem));
            }
            None => canvases.iter().position(is_of).ok_or_else(|| {
                let sizes: Vec<String> = canvases.iter().map(|canvas| canvas.picture.size().to_string()).collect();
                let sizes = sizes.join(", ");
                refuse(
                    Part::Image,
                    format!("has {width}x{height} pixels, but must have those of one of the model's sizes, {sizes}"),
                )
            })?,
        };
        let picture = canvases[canvas].picture;
        let colour = if picture.channels == 1 { Colour::Grey } else { Colour::Rgb };
        let bytes = image.picture(colour, Background::of(colour)).bytes;
        let Some(mask) = mask else { return Ok((Self { bytes, mask: image.transparent() }, canvas)) };
        let mask = open(Part::Mask, mask)?;
        if mask.size() != image.size() {
            let [columns, rows] = mask.size();
            let problem = format!("has {columns}x{rows} pixels, but must have those of the picture, {width}x{height}");
            return Err(refuse(Part::Mask, problem));
        }
        let marked = mask.transparent().unwrap_or_else(|| mask.bright());
        if !marked.contains(&true) {
            let problem = "marks nothing to be drawn anew, by being transparent there, or else white".to_owned();
            return Err(refuse(Part::Mask, problem));
        }
        Ok((Self { bytes, mask: Some(marked) }, canvas))
    }

    /// How much of it is made anew where nothing is said: all that a mask marks.
    pub fn usual_strength(&self) -> f64 {
        if self.mask.is_some() { 1.0 } else { USUAL_STRENGTH }
    }
}

impl fmt::Debug for Original {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Original").field("has_mask", &self.mask.is_some()).finish_non_exhaustive()
    }
}
