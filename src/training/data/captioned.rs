//! A folder of pictures with captions: `metadata.jsonl` as Hugging Face's imagefolder has it, or a `.txt` beside each picture.

use super::folder::{is_image, skipped, visible_entries};
use super::{Background, Colour};
use crate::ImageShape;
use crate::files::{listed, read_text};
use crate::picture::Opened;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// What the captions of all pictures are in, where it is there.
const METADATA: &str = "metadata.jsonl";
/// The most pixels of a picture: photographs are scaled down, but memory is not given on the word of a damaged header.
const MOST_PIXELS: u64 = 1 << 28;

/// Pictures and what is to be seen on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captioned {
    /// The files, at least one.
    pub files: Vec<PathBuf>,
    /// By file: the index of its caption.
    pub labels: Vec<usize>,
    /// Every caption once.
    pub captions: Vec<String>,
}

/// A line of the metadata; it may have more fields.
#[derive(Deserialize)]
struct Line {
    /// The picture, from the folder of the metadata.
    file_name: PathBuf,
    text: String,
}

impl Captioned {
    /// Finds the pictures of `root` and of the folders in it. Where `root` has a `metadata.jsonl`, they are those that it names, in its
    /// order; else all, in the order of their names, each with a caption in a file of its name that ends in `.txt`. Names that begin
    /// with a dot are ignored, and one warning says what is skipped.
    ///
    /// # Errors
    /// [`Error::Io`] if a folder or a file cannot be read; [`Error::Input`] with the file, if a caption or a picture is missing, or a line
    /// is not what it must be.
    pub fn list(root: &Path) -> Result<Self> {
        let (pictures, others) = pictures(root)?;
        let metadata = root.join(METADATA);
        let captioned = if metadata.exists() { described(root, &metadata)? } else { beside(&pictures)? };
        if captioned.is_empty() {
            let problem = format!(
                "has no picture: accepted are pictures with captions, in {METADATA} or each in a .txt beside it"
            );
            return Err(Error::input(root.display(), problem));
        }
        let used: HashSet<&Path> = captioned.iter().map(|(file, _)| file.as_path()).collect();
        let undescribed: Vec<PathBuf> = pictures.into_iter().filter(|file| !used.contains(file.as_path())).collect();
        if !undescribed.is_empty() {
            let names: Vec<_> =
                undescribed.iter().map(|file| file.strip_prefix(root).unwrap_or(file).display()).collect();
            tracing::warn!("{}: skipped pictures that {METADATA} does not name: {}", root.display(), listed(&names));
        }
        let is_caption = |file: &PathBuf| file == &metadata || file.extension().is_some_and(|ending| ending == "txt");
        let foreign: Vec<PathBuf> = others.into_iter().filter(|file| !is_caption(file)).collect();
        if let Some(warning) = skipped(root, &foreign) {
            tracing::warn!("{warning}");
        }
        Ok(Self::of(captioned))
    }

    fn of(captioned: Vec<(PathBuf, String)>) -> Self {
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut found = Self { files: Vec::with_capacity(captioned.len()), labels: Vec::new(), captions: Vec::new() };
        for (file, caption) in captioned {
            let label = *places.entry(caption).or_insert_with_key(|caption| {
                found.captions.push(caption.clone());
                found.captions.len() - 1
            });
            found.labels.push(label);
            found.files.push(file);
        }
        found
    }
}

/// The picture in the bytes of `file`, scaled until it covers this size, and what sticks out on two sides cut off evenly:
/// `[height, width, channels]` row-major.
///
/// # Errors
/// [`Error::Input`] with the file if it is no intact picture.
pub fn fitted(file: &Path, bytes: &[u8], shape: ImageShape, background: Option<Background>) -> Result<Vec<u8>> {
    let colour = if shape.channels == 1 { Colour::Grey } else { Colour::Rgb };
    let opened = Opened::new(bytes, MOST_PIXELS).map_err(|problem| Error::input(file.display(), problem))?;
    let background = background.unwrap_or(Background::of(colour));
    Ok(opened.covering(shape.width, shape.height).picture(colour, background).bytes)
}

/// The pictures that the metadata names, with their captions.
fn described(root: &Path, metadata: &Path) -> Result<Vec<(PathBuf, String)>> {
    let text = read_text(metadata, "a file of JSON lines")?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let line = |(index, line): (usize, &str)| {
        let place = || format!("{}, line {}", metadata.display(), index + 1);
        let Line { file_name, text } = serde_json::from_str(line)
            .map_err(|error| Error::input(place(), format!("is not an object with `file_name` and `text`: {error}")))?;
        let file = root.join(&file_name);
        match file.is_file() {
            true => Ok((file, text)),
            false => Err(Error::input(place(), format!("names {}, which is not there", file.display()))),
        }
    };
    lines.map(line).collect()
}

/// The captions in the files beside pictures.
fn beside(pictures: &[PathBuf]) -> Result<Vec<(PathBuf, String)>> {
    let caption = |file: &PathBuf| {
        let beside = file.with_extension("txt");
        if !beside.exists() {
            let problem = format!(
                "has no caption: there is no {} beside it, and no {METADATA} in the folder",
                beside.file_name().unwrap_or_default().to_string_lossy()
            );
            return Err(Error::input(file.display(), problem));
        }
        Ok((file.clone(), read_text(&beside, "a caption")?.trim().to_owned()))
    };
    pictures.iter().map(caption).collect()
}

/// The pictures of a folder and of those in it, by name, and what else there is.
fn pictures(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut pictures, mut others) = (Vec::new(), Vec::new());
    for entry in visible_entries(folder)? {
        if entry.is_dir() {
            let (inner, foreign) = self::pictures(&entry)?;
            pictures.extend(inner);
            others.extend(foreign);
        } else if is_image(&entry) {
            pictures.push(entry);
        } else {
            others.push(entry);
        }
    }
    Ok((pictures, others))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};
    use tempfile::TempDir;

    /// A folder with pictures of these names and texts of these names.
    fn folder(pictures: &[&str], texts: &[(&str, &str)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in pictures {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            RgbImage::from_pixel(3, 2, Rgb([9, 8, 7])).save(path).unwrap();
        }
        texts.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    fn found(dir: &TempDir) -> Vec<(String, String)> {
        let found = Captioned::list(dir.path()).unwrap();
        let name = |file: &PathBuf| file.strip_prefix(dir.path()).unwrap().display().to_string();
        let caption = |label: &usize| found.captions[*label].clone();
        found.files.iter().map(name).zip(found.labels.iter().map(caption)).collect()
    }

    #[test]
    fn captions_stand_in_one_file_or_beside_each_picture() {
        let rows = "{\"file_name\": \"in/b.png\", \"text\": \"a boat\", \"more\": 1}\n\n{\"text\": \"a cat\", \"file_name\": \"a.png\"}\n\
                    {\"file_name\": \"a.png\", \"text\": \"a boat\"}";
        let dir = folder(&["a.png", "in/b.png", "unnamed.png"], &[("metadata.jsonl", rows), ("notes.md", "")]);
        let pairs =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<Vec<_>>();
        assert_eq!(found(&dir), pairs(&[("in/b.png", "a boat"), ("a.png", "a cat"), ("a.png", "a boat")]));
        assert_eq!(Captioned::list(dir.path()).unwrap().captions, ["a boat", "a cat"], "each once");

        let dir = folder(&["b.png", "a.JPG", "in/c.webp"], &[("b.txt", " two\n"), ("a.txt", "one"), ("in/c.txt", "")]);
        assert_eq!(found(&dir), pairs(&[("a.JPG", "one"), ("b.png", "two"), ("in/c.webp", "")]));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (pictures, texts, says) in [
            (
                &["a.png", "b.png"][..],
                &[("a.txt", "one")][..],
                "b.png: has no caption: there is no b.txt beside it, and no metadata.jsonl in the folder",
            ),
            (
                &[],
                &[("a.txt", "one")],
                "has no picture: accepted are pictures with captions, in metadata.jsonl or each in a .txt beside it",
            ),
            (
                &["a.png"],
                &[("metadata.jsonl", "\n{\"file_name\": \"z.png\", \"text\": \"x\"}")],
                "metadata.jsonl, line 2: names ",
            ),
            (
                &["a.png"],
                &[("metadata.jsonl", "{\"file_name\": \"a.png\"}")],
                "line 1: is not an object with `file_name` and `text`: missing field `text`",
            ),
            (
                &["a.png"],
                &[("metadata.jsonl", "a.png, a cat")],
                "line 1: is not an object with `file_name` and `text`: ",
            ),
        ] {
            let dir = folder(pictures, texts);
            let refusal = Captioned::list(dir.path()).unwrap_err().to_string();
            assert!(refusal.contains(says), "{refusal}");
        }
    }

    #[test]
    fn a_picture_is_scaled_until_it_covers_the_size_and_cut_evenly() {
        // Left and right quarters are red and blue; the middle is green. At a quarter of the columns only that is left.
        let image = RgbImage::from_fn(64, 16, |x, _| {
            Rgb(match x {
                ..16 => [255, 0, 0],
                48.. => [0, 0, 255],
                _ => [0, 255, 0],
            })
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let shape = |height, width| ImageShape { height, width, channels: 3 };
        let fit = |height, width| fitted(Path::new("x"), bytes.get_ref(), shape(height, width), None).unwrap();
        assert_eq!(fit(16, 64), *image.as_raw(), "of the size it is as it was");
        assert!(fit(8, 8).chunks(3).all(|pixel| pixel == [0, 255, 0]));
        let wide = fit(8, 32);
        assert_eq!((&wide[..3], &wide[31 * 3..32 * 3]), (&[255, 0, 0][..], &[0, 0, 255][..]));
        let grey = fitted(Path::new("x"), bytes.get_ref(), ImageShape { channels: 1, ..shape(4, 4) }, None).unwrap();
        assert_eq!(grey, [182; 16], "Rec. 709");
        let refusal = fitted(Path::new("x.png"), b"no", shape(4, 4), None).unwrap_err().to_string();
        assert!(refusal.starts_with("x.png: is not an intact png, jpeg or webp image"), "{refusal}");
    }
}
