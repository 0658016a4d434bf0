//! Pictures from outside, as a viewer shows them: whole or refused, turned upright, transparency laid over a background.

use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, Rgb, RgbImage};
use serde::{Deserialize, Serialize};
use std::io::Cursor;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

/// What is read.
pub const ACCEPTED: &str = "png, jpeg or webp";
/// The most pixels of a picture: memory is not given on the word of a damaged header.
const MOST_PIXELS: u64 = 1 << 26;

/// The colour channels of an image, written as their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub enum Colour {
    /// One channel: luma with the weights of Rec. 709.
    Grey,
    /// Three channels: red, green, blue.
    Rgb,
}

impl Colour {
    /// How many channels these are.
    pub fn channels(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
        }
    }
}

impl TryFrom<i64> for Colour {
    type Error = String;

    fn try_from(channels: i64) -> Result<Self, String> {
        match channels {
            1 => Ok(Self::Grey),
            3 => Ok(Self::Rgb),
            _ => Err(format!("channels is {channels}, but only 1 (grey) and 3 (RGB) are accepted")),
        }
    }
}

impl From<Colour> for i64 {
    fn from(colour: Colour) -> Self {
        match colour {
            Colour::Grey => 1,
            Colour::Rgb => 3,
        }
    }
}

/// The colour behind transparent pixels, in sRGB: `white`, `black` or `#rrggbb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Background(pub [u8; 3]);

impl Background {
    const WHITE: Self = Self([255; 3]);
    const BLACK: Self = Self([0; 3]);

    /// What a data set of this colour has without saying so: white like a page, black like the digits of MNIST.
    pub fn of(colour: Colour) -> Self {
        match colour {
            Colour::Grey => Self::BLACK,
            Colour::Rgb => Self::WHITE,
        }
    }
}

impl TryFrom<String> for Background {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix('#').filter(|hex| hex.len() == 6 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
        match (text.as_str(), digits.and_then(|hex| u32::from_str_radix(hex, 16).ok())) {
            ("white", _) => Ok(Self::WHITE),
            ("black", _) => Ok(Self::BLACK),
            (_, Some(rgb)) => Ok(Self([(rgb >> 16) as u8, (rgb >> 8) as u8, rgb as u8])),
            _ => Err(format!("background is `{text}`, but only white, black and #rrggbb are accepted")),
        }
    }
}

impl From<Background> for String {
    fn from(Background([red, green, blue]): Background) -> Self {
        format!("#{red:02x}{green:02x}{blue:02x}")
    }
}

/// A decoded picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, channels]`, row-major.
    pub bytes: Vec<u8>,
}

/// Decodes the bytes of a PNG, JPEG or WebP file; which of them it is, the content says.
///
/// The picture is turned as its EXIF orientation asks. Where it is transparent, its sRGB values are mixed with those of
/// `background` by alpha, without going to linear light, as viewers do. 16-bit values are scaled to bytes. Of an animation
/// it is the first frame.
///
/// # Errors
/// One sentence if the file is of another kind, damaged, or cut off, even where a viewer would show what is left of it.
pub fn decode(bytes: &[u8], colour: Colour, background: Background) -> Result<Picture, String> {
    Ok(Opened::new(bytes, MOST_PIXELS)?.picture(colour, background))
}

/// An intact image of any kind, upright.
#[derive(Clone, Debug)]
pub struct Opened(DynamicImage);

impl Opened {
    /// Reads the bytes of a file, as [`decode`] does, of at most so many pixels.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn new(bytes: &[u8], most_pixels: u64) -> Result<Self, String> {
        let refused = |error: String| format!("is not an intact {ACCEPTED} image ({error})");
        let image = upright(bytes, most_pixels).map_err(refused)?;
        match image.width() * image.height() {
            0 => Err("has no pixels, but an image must have at least one".to_owned()),
            _ => Ok(Self(image)),
        }
    }

    /// Columns and rows.
    pub fn size(&self) -> [usize; 2] {
        [self.0.width() as usize, self.0.height() as usize]
    }

    /// Scaled, every pixel a mean of what it covers, until it covers this size, and cut to it about the middle.
    pub fn covering(self, width: usize, height: usize) -> Self {
        if self.size() == [width, height] {
            return self;
        }
        Self(self.0.resize_to_fill(width as u32, height as u32, FilterType::Triangle))
    }

    /// Its pixels in this colour.
    pub fn picture(&self, colour: Colour, background: Background) -> Picture {
        let [width, height] = self.size();
        let opaque = if self.0.color().has_alpha() { over(&self.0, background).into() } else { self.0.clone() };
        let bytes = match colour {
            Colour::Grey => opaque.into_luma8().into_raw(),
            Colour::Rgb => opaque.into_rgb8().into_raw(),
        };
        Picture { width, height, bytes }
    }

    /// By pixel, whether it is transparent by half or more; None where none is.
    pub fn transparent(&self) -> Option<Vec<bool>> {
        if !self.0.color().has_alpha() {
            return None;
        }
        let is_transparent: Vec<bool> = self.0.to_rgba8().pixels().map(|pixel| pixel.0[3] < 128).collect();
        is_transparent.contains(&true).then_some(is_transparent)
    }

    /// By pixel, whether it is nearer to white than to black.
    pub fn bright(&self) -> Vec<bool> {
        self.0.to_luma8().into_raw().into_iter().map(|value| value >= 128).collect()
    }
}

fn upright(bytes: &[u8], most_pixels: u64) -> Result<DynamicImage, String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    let (mut image, orientation) = match reader.format() {
        Some(ImageFormat::Jpeg) => jpeg(bytes, most_pixels)?,
        Some(ImageFormat::Png) if !is_whole_png(bytes) => return Err("the file is cut off".to_owned()),
        Some(ImageFormat::WebP) if !is_whole_webp(bytes) => return Err("the file is cut off".to_owned()),
        _ => {
            let mut decoder = reader.into_decoder().map_err(|error| error.to_string())?;
            check_size(decoder.dimensions(), most_pixels)?;
            let orientation = decoder.orientation().map_err(|error| error.to_string())?;
            (DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?, orientation)
        }
    };
    image.apply_orientation(orientation);
    Ok(image)
}

/// As `image` decodes it (with the same crate), but strictly: `image` shows what is there of a damaged file.
fn jpeg(bytes: &[u8], most_pixels: u64) -> Result<(DynamicImage, Orientation), String> {
    if !is_whole_jpeg(bytes) {
        return Err("the file is cut off".to_owned());
    }
    let options = DecoderOptions::default().set_strict_mode(true).set_max_width(usize::MAX).set_max_height(usize::MAX);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| error.to_string())?;
    let info = decoder.info().ok_or("the header says no size")?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    check_size((width, height), most_pixels)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    decoder.set_options(options.jpeg_set_out_colorspace(if grey { ColorSpace::Luma } else { ColorSpace::RGB }));
    let values = decoder.decode().map_err(|error| error.to_string())?;
    let image = match grey {
        true => GrayImage::from_raw(width, height, values).map(DynamicImage::from),
        false => RgbImage::from_raw(width, height, values).map(DynamicImage::from),
    };
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    Ok((image.ok_or("it has too few values")?, orientation.unwrap_or(Orientation::NoTransforms)))
}

fn check_size((width, height): (u32, u32), most_pixels: u64) -> Result<(), String> {
    match u64::from(width) * u64::from(height) <= most_pixels {
        true => Ok(()),
        false => Err(format!("it has {width}x{height} pixels, more than the {most_pixels} that are accepted")),
    }
}

/// Whether the segments of a JPEG file reach its end marker. Thumbnails have one too, inside a segment.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(next) = bytes.get(at..).and_then(|rest| rest.windows(2).position(is_marker)) {
        at += next + 2;
        match bytes[at - 1] {
            0xd9 => return true,
            // Markers without a length.
            0x01 | 0xd0..=0xd8 => {}
            _ => match bytes.get(at..at + 2) {
                Some(length) => at += usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
        }
    }
    false
}

/// Not a value of 0xff in the entropy-coded data, which a zero follows, and not the first of two fill bytes.
fn is_marker(pair: &[u8]) -> bool {
    pair[0] == 0xff && !matches!(pair[1], 0 | 0xff)
}

/// Whether the chunks of a PNG file reach IEND, with its checksum.
fn is_whole_png(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk() {
        let end = (u32::from_be_bytes(*length) as usize).saturating_add(4 + 4);
        match after.get(end..) {
            Some(_) if after.starts_with(b"IEND") => return true,
            Some(next) => rest = next,
            None => return false,
        }
    }
    false
}

/// Whether a WebP file is as long as it says.
fn is_whole_webp(bytes: &[u8]) -> bool {
    let length = bytes.get(4..8).map(|length| u32::from_le_bytes(length.try_into().expect("four bytes")) as usize);
    length.is_some_and(|length| bytes.len() - 8 >= length)
}

/// The image over a background of one colour.
fn over(image: &DynamicImage, Background(background): Background) -> RgbImage {
    let rgba = image.to_rgba8();
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [values @ .., alpha] = rgba.get_pixel(x, y).0;
        let alpha = u32::from(alpha);
        let mixed = |channel: usize| {
            let sum = u32::from(values[channel]) * alpha + u32::from(background[channel]) * (255 - alpha);
            ((sum + 127) / 255) as u8
        };
        Rgb([mixed(0), mixed(1), mixed(2)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgba, RgbaImage};
    use proptest::prelude::*;

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn rgb(bytes: &[u8]) -> Result<Picture, String> {
        decode(bytes, Colour::Rgb, Background::WHITE)
    }

    /// A picture whose values fall from the top left, with a little noise.
    fn slope(width: u32, height: u32, noise: u8) -> DynamicImage {
        let value = |x: u32, y: u32, c: u32| (250 - 3 * x - 4 * y - 5 * c) as u8 ^ (noise & (7 * x + 13 * y + c) as u8);
        RgbImage::from_fn(width, height, |x, y| Rgb([value(x, y, 0), value(x, y, 1), value(x, y, 2)])).into()
    }

    #[test]
    fn a_jpeg_that_is_cut_off_is_refused_whether_baseline_or_progressive() {
        let whole = include_bytes!("../tests/pictures/whole.jpg");
        assert_eq!(rgb(whole).map(|picture| (picture.width, picture.height)), Ok((64, 64)));
        for cut in [
            &include_bytes!("../tests/pictures/cut-at-60-percent.jpg")[..],
            include_bytes!("../tests/pictures/progressive-cut.jpg"),
            &whole[..whole.len() - 1],
        ] {
            let refusal = rgb(cut).unwrap_err();
            assert_eq!(refusal, "is not an intact png, jpeg or webp image (the file is cut off)");
        }
    }

    #[test]
    fn a_jpeg_is_decoded_to_the_values_that_the_image_crate_gives() {
        let whole = include_bytes!("../tests/pictures/whole.jpg");
        assert_eq!(rgb(whole).unwrap().bytes, image::load_from_memory(whole).unwrap().into_rgb8().into_raw());
        let grey = encoded(&slope(13, 9, 0).into_luma8().into(), ImageFormat::Jpeg);
        let wanted = image::load_from_memory(&grey).unwrap().into_luma8().into_raw();
        assert_eq!(decode(&grey, Colour::Grey, Background::BLACK).unwrap().bytes, wanted);
    }

    #[test]
    fn a_jpeg_with_damage_in_its_stream_is_refused_though_a_viewer_would_show_it() {
        let mut damaged = include_bytes!("../tests/pictures/whole.jpg").to_vec();
        damaged[649] = 0;
        assert!(image::load_from_memory(&damaged).is_ok());
        let refusal = rgb(&damaged).unwrap_err();
        assert!(refusal.contains("Bad Huffman Code"), "{refusal}");
    }

    #[test]
    fn a_picture_is_turned_upright_as_its_exif_orientation_asks() {
        let stored = include_bytes!("../tests/pictures/exif-orientation-3.jpg");
        let upside_down = image::load_from_memory(stored).unwrap();
        let picture = rgb(stored).unwrap();
        assert_eq!(picture.bytes, upside_down.rotate180().into_rgb8().into_raw());
        assert_ne!(picture.bytes, upside_down.into_rgb8().into_raw());
    }

    #[test]
    fn a_jpeg_in_the_colours_of_print_shows_them() {
        // Red on the left, cyan on the right, as Pillow writes them: inverted, as Adobe does.
        let picture = rgb(include_bytes!("../tests/pictures/cmyk.jpg")).unwrap();
        assert_eq!((picture.width, picture.height), (16, 8));
        let pixel = |x: usize| &picture.bytes[(2 * 16 + x) * 3..][..3];
        let near = |found: &[u8], wanted: [u8; 3]| found.iter().zip(wanted).all(|(a, b)| a.abs_diff(b) < 16);
        assert!(near(pixel(2), [255, 0, 0]), "{:?}", pixel(2));
        assert!(near(pixel(13), [0, 255, 255]), "{:?}", pixel(13));
    }

    #[test]
    fn transparent_pixels_show_the_background_and_not_their_hidden_colour() {
        let noise = include_bytes!("../tests/pictures/rgba-hidden-noise.png");
        let hidden = image::load_from_memory(noise).unwrap().into_rgba8();
        for (background, shown) in [(Background::WHITE, 255), (Background([9, 9, 9]), 9)] {
            let picture = decode(noise, Colour::Rgb, background).unwrap();
            for (pixel, found) in hidden.pixels().zip(picture.bytes.chunks_exact(3)) {
                match pixel.0 {
                    [.., 0] => assert_eq!(found, [shown; 3]),
                    [values @ .., 255] => assert_eq!(found, values),
                    other => panic!("{other:?} is half transparent"),
                }
            }
        }
        assert!(hidden.pixels().any(|pixel| pixel.0[3] == 0 && pixel.0[0] != 255), "noise is hidden");
    }

    #[test]
    fn half_transparent_pixels_are_mixed_in_srgb_values_and_grey_follows_from_the_mix() {
        let image = RgbaImage::from_pixel(1, 1, Rgba([200, 100, 0, 51])).into();
        let png = encoded(&image, ImageFormat::Png);
        let mixed = decode(&png, Colour::Rgb, Background([0, 50, 255])).unwrap();
        assert_eq!(mixed.bytes, [40, 60, 204]);
        // Rec. 709: 0.2126 * 40 + 0.7152 * 60 + 0.0722 * 204.
        assert_eq!(decode(&png, Colour::Grey, Background([0, 50, 255])).unwrap().bytes, [66]);
    }

    #[test]
    fn a_background_is_a_name_or_six_digits() {
        let background = |text: &str| Background::try_from(text.to_owned());
        assert_eq!(background("white"), Ok(Background::WHITE));
        assert_eq!(background("#0a0B0c").map(String::from), Ok("#0a0b0c".to_owned()));
        for text in ["grey", "#fff", "#+12345", "0a0b0c"] {
            let refusal = format!("background is `{text}`, but only white, black and #rrggbb are accepted");
            assert_eq!(background(text), Err(refusal));
        }
    }

    #[test]
    fn a_header_that_promises_too_many_pixels_is_refused() {
        let mut png = encoded(&slope(2, 2, 0), ImageFormat::Png);
        png[16..24].copy_from_slice(&[0, 0, 0x40, 0, 0, 0, 0x40, 0]);
        let mut crc = flate2::Crc::new();
        crc.update(&png[12..29]);
        png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        let refusal = rgb(&png).unwrap_err();
        assert!(refusal.contains("it has 16384x16384 pixels, more than the 67108864 that are accepted"), "{refusal}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn a_whole_picture_is_read_and_one_cut_at_any_byte_is_refused(
            (width, height) in (1u32..40, 1u32..40),
            noise in prop::sample::select(vec![0u8, 3, 255]),
            format in prop::sample::select(vec![ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP]),
            cut in any::<prop::sample::Index>(),
        ) {
            let whole = encoded(&slope(width, height, noise), format);
            let picture = rgb(&whole).unwrap();
            prop_assert_eq!((picture.width, picture.height), (width as usize, height as usize));
            prop_assert!(rgb(&whole[..cut.index(whole.len())]).is_err());
            // What cameras and archives append is no damage.
            prop_assert!(rgb(&[&whole[..], b"more"].concat()).is_ok());
        }
    }
}
