//! From pixels to an encoded image.

use super::settings::{KEYWORD, Settings};
use crate::ImageShape;
use image::error::EncodingError;
use image::{ImageEncoder, ImageError, ImageFormat};
use std::str::FromStr;

/// Pixels between the images of a grid.
const GRID_GAP: usize = 2;
/// What shows between them, and where the last row has no image.
const GRID_COLOUR: u8 = 255;
/// JPEG's usual quality, of 100: no visible loss on small images.
pub const JPEG_QUALITY: u8 = 95;

/// JPEG's other name.
pub const JPG: &str = "jpg";

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// PNG, lossless.
    Png,
    /// WebP, lossless.
    Webp,
    /// JPEG, lossy.
    Jpeg,
}

impl Format {
    /// Every format, the preferred one first.
    pub const ALL: [Self; 3] = [Self::Png, Self::Webp, Self::Jpeg];

    /// The name in requests, flags, file names and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Webp => "webp",
            Self::Jpeg => "jpeg",
        }
    }

    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Webp => "image/webp",
            Self::Jpeg => "image/jpeg",
        }
    }

    /// A file in base 64 as a URL that holds it.
    pub fn data_url(self, base64: &str) -> String {
        format!("data:{};base64,{base64}", self.media_type())
    }
}

impl FromStr for Format {
    type Err = String;

    /// The name or the usual ending of files, in any mixture of capitals and small letters.
    ///
    /// # Errors
    /// One sentence that lists the accepted names.
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|format| format.as_str().eq_ignore_ascii_case(text));
        let known = known.or_else(|| text.eq_ignore_ascii_case(JPG).then_some(Self::Jpeg));
        known.ok_or_else(|| format!("format `{text}` is unknown: accepted are png, webp and jpeg (or jpg)"))
    }
}

/// An image of bytes: `[height, width, channels]` row-major, one or three channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raster {
    /// Its size.
    pub shape: ImageShape,
    /// Its values.
    pub bytes: Vec<u8>,
}

impl Raster {
    /// One image alone, or several in a near-square grid, row by row, with a gap of 2 pixels.
    ///
    /// Each of `images` is `[height, width, channels]` of `shape`.
    pub fn grid(shape: ImageShape, images: &[Vec<u8>]) -> Self {
        let columns = columns(images.len());
        Self::lay_out(grid_shape(shape, images.len()), shape, images, |index| (index / columns, index % columns))
    }

    /// As [`Self::grid`], in so many rows: image i, of images that take turns, goes to the end of row i modulo `rows`.
    pub fn rows(shape: ImageShape, images: &[Vec<u8>], rows: usize) -> Self {
        let columns = images.len().div_ceil(rows);
        let size = size_of(shape, rows.min(images.len()), columns);
        Self::lay_out(size, shape, images, |index| (index % rows, index / rows))
    }

    /// Images of `shape` in a grid of `size`, each in the row and column that `place` gives its index.
    fn lay_out(
        size: ImageShape,
        shape: ImageShape,
        images: &[Vec<u8>],
        place: impl Fn(usize) -> (usize, usize),
    ) -> Self {
        let mut bytes = vec![GRID_COLOUR; size.elements()];
        let (row, grid_row) = (shape.width * shape.channels, size.width * size.channels);
        for (index, image) in images.iter().enumerate() {
            let (down, across) = place(index);
            let (top, left) = (down * (shape.height + GRID_GAP), across * (shape.width + GRID_GAP));
            for (y, source) in image.chunks_exact(row).enumerate() {
                let start = (top + y) * grid_row + left * shape.channels;
                bytes[start..start + row].copy_from_slice(source);
            }
        }
        Self { shape: size, bytes }
    }

    /// The image as a file's bytes.
    ///
    /// # Errors
    /// A size that the format cannot hold (WebP: 16383 pixels a side, JPEG: 65535), or a number of channels other than
    /// 1 and 3.
    pub fn encode(&self, format: Format) -> image::ImageResult<Vec<u8>> {
        self.encode_with(format, JPEG_QUALITY, None)
    }

    /// The same with what it was drawn with, where the format is one that holds texts: PNG. JPEG is of a quality from 1, the smallest
    /// file, to 100.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with(
        &self,
        format: Format,
        jpeg_quality: u8,
        settings: Option<&Settings>,
    ) -> image::ImageResult<Vec<u8>> {
        let (width, height, colour) = self.dimensions();
        let mut file = Vec::new();
        match format {
            Format::Png => {
                let unfit = |error| ImageError::Encoding(EncodingError::new(ImageFormat::Png.into(), error));
                self.encode_png(&mut file, settings).map_err(unfit)?;
            }
            Format::Webp => {
                image::codecs::webp::WebPEncoder::new_lossless(&mut file).write_image(
                    &self.bytes,
                    width,
                    height,
                    colour,
                )?;
            }
            Format::Jpeg => {
                image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, jpeg_quality).write_image(
                    &self.bytes,
                    width,
                    height,
                    colour,
                )?;
            }
        }
        Ok(file)
    }

    fn encode_png(&self, file: &mut Vec<u8>, settings: Option<&Settings>) -> Result<(), png::EncodingError> {
        let (width, height, _) = self.dimensions();
        let mut encoder = png::Encoder::new(file, width, height);
        encoder.set_color(if self.shape.channels == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        encoder.set_filter(png::Filter::Adaptive);
        if let Some(settings) = settings {
            encoder.add_itxt_chunk(KEYWORD.to_owned(), settings.text())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.bytes)?;
        writer.finish()
    }

    /// The size and the kind of pixels as the encoders want them; a size that is too large stays too large.
    fn dimensions(&self) -> (u32, u32, image::ExtendedColorType) {
        let ImageShape { height, width, channels } = self.shape;
        let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
        let colour = if channels == 1 { image::ExtendedColorType::L8 } else { image::ExtendedColorType::Rgb8 };
        (side(width), side(height), colour)
    }
}

/// The size of the grid of `images` images.
pub fn grid_shape(shape: ImageShape, images: usize) -> ImageShape {
    let columns = columns(images);
    size_of(shape, images.div_ceil(columns), columns)
}

fn size_of(shape: ImageShape, rows: usize, columns: usize) -> ImageShape {
    let side = |count: usize, pixels: usize| count.max(1) * (pixels + GRID_GAP) - GRID_GAP;
    ImageShape { height: side(rows, shape.height), width: side(columns, shape.width), channels: shape.channels }
}

fn columns(images: usize) -> usize {
    let root = images.isqrt();
    (root + usize::from(root * root < images)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ImageShape = ImageShape { height: 2, width: 3, channels: 1 };

    #[test]
    fn one_image_is_its_own_grid() {
        let raster = Raster::grid(SHAPE, &[vec![0, 128, 255, 255, 128, 0]]);
        assert_eq!(raster.shape, SHAPE);
        assert_eq!(raster.bytes, [0, 128, 255, 255, 128, 0]);
    }

    #[test]
    fn several_images_lie_row_by_row_in_a_near_square_grid_with_gaps() {
        let raster = Raster::grid(SHAPE, &[vec![0; 6], vec![128; 6], vec![191; 6]]);
        assert_eq!(raster.shape, ImageShape { height: 6, width: 8, channels: 1 });
        let pixel = |y: usize, x: usize| raster.bytes[y * 8 + x];
        assert_eq!(
            [pixel(0, 0), pixel(1, 2), pixel(0, 5), pixel(1, 7), pixel(4, 0), pixel(5, 2)],
            [0, 0, 128, 128, 191, 191]
        );
        for gap in [pixel(0, 3), pixel(1, 4), pixel(2, 0), pixel(3, 7), pixel(5, 5), pixel(4, 7)] {
            assert_eq!(gap, GRID_COLOUR);
        }
    }

    #[test]
    fn images_that_take_turns_lie_in_a_row_for_each_turn() {
        let shape = ImageShape { height: 1, width: 1, channels: 1 };
        let images: Vec<Vec<u8>> = (0..5).map(|value| vec![value]).collect();
        let grid = Raster::rows(shape, &images, 2);
        assert_eq!(grid.shape, ImageShape { height: 4, width: 7, channels: 1 });
        let gap = GRID_COLOUR;
        assert_eq!(grid.bytes[..7], [0, gap, gap, 2, gap, gap, 4]);
        assert_eq!(grid.bytes[21..], [1, gap, gap, 3, gap, gap, gap]);
        assert_eq!(Raster::rows(shape, &images[..2], 3).shape, ImageShape { height: 4, width: 1, channels: 1 });
    }

    #[test]
    fn a_grid_has_at_least_as_many_columns_as_rows_and_room_for_all() {
        let size = |n| {
            let shape = grid_shape(ImageShape { height: 1, width: 1, channels: 3 }, n);
            ((shape.width + GRID_GAP) / 3, (shape.height + GRID_GAP) / 3)
        };
        assert_eq!(
            [1, 2, 4, 5, 9, 12, 16, 17].map(size),
            [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4), (5, 4)]
        );
    }

    #[test]
    fn the_lossless_formats_give_back_the_pixels_and_jpeg_nearly() {
        for channels in [1, 3] {
            let shape = ImageShape { height: 9, width: 7, channels };
            let bytes: Vec<u8> = (0..shape.elements()).map(|i| (i * 255 / shape.elements()) as u8).collect();
            let raster = Raster { shape, bytes };
            for format in Format::ALL {
                let decoded = image::load_from_memory(&raster.encode(format).unwrap()).unwrap();
                let decoded =
                    if channels == 1 { decoded.into_luma8().into_raw() } else { decoded.into_rgb8().into_raw() };
                let worst = raster.bytes.iter().zip(&decoded).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                let allowed = if format == Format::Jpeg { 12 } else { 0 };
                assert!(decoded.len() == raster.bytes.len() && worst <= allowed, "{format:?} {channels}: {worst}");
            }
        }
    }

    #[test]
    fn a_misspelt_format_is_refused_with_the_accepted_ones() {
        for text in ["gif", "", "jp", " png", "png "] {
            let message = text.parse::<Format>().unwrap_err();
            assert!(message.contains("accepted are png, webp and jpeg (or jpg)"), "{message}");
        }
    }

    #[test]
    fn a_format_is_known_by_its_name_or_its_ending_in_any_case() {
        for (text, format) in [
            ("png", Format::Png),
            ("PNG", Format::Png),
            ("WebP", Format::Webp),
            ("jpeg", Format::Jpeg),
            ("jpg", Format::Jpeg),
            ("JPG", Format::Jpeg),
        ] {
            assert_eq!(text.parse(), Ok(format), "{text}");
        }
        assert!(Format::ALL.iter().all(|format| format.as_str().parse() == Ok(*format)));
    }
}
