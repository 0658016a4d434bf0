//! A folder of class folders of images.

use std::path::{Path, PathBuf};

use image::ImageReader;
use rayon::prelude::*;

use super::{Colour, Dataset};
use crate::nets::ImageShape;
use crate::{Error, Result};

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Loads every image of every class folder of `root`, in the order of their names, converted to `colour`.
///
/// An alpha channel is dropped, 16-bit values are scaled to bytes, and an EXIF orientation is not applied. Names that
/// begin with a dot are ignored.
///
/// # Errors
/// `Error::Io` if a folder or a file cannot be read; `Error::Input` if there is no class folder, a class without images,
/// a file that is not an image, or an image of another size than `image_size` (square) or else than the first one.
pub(super) fn load(root: &Path, image_size: Option<usize>, colour: Colour) -> Result<Dataset> {
    if image_size == Some(0) {
        return Err(Error::input("data.image_size", "is 0, but only sizes of at least 1 pixel are accepted"));
    }
    let (mut classes, mut labels, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for folder in visible_entries(root)? {
        let label = u16::try_from(classes.len())
            .map_err(|_| Error::input(root.display(), "has more class folders than the 65536 that are accepted"))?;
        classes.push(class_name(&folder)?);
        files.extend(images_of_class(&folder)?);
        labels.resize(files.len(), label);
    }
    let Some(first) = files.first() else {
        return Err(Error::input(root.display(), "has no class folder; one folder of images a class is accepted"));
    };

    // The first image is decoded twice, so that no memory is allocated on the word of a damaged header.
    let Pixels { width, height, .. } = decode(first, colour)?;
    let wanted = match image_size {
        Some(size) => Wanted { width: size, height: size, by: "data.image_size".into() },
        None => Wanted { width, height, by: first.display().to_string() },
    };
    wanted.check(first, width, height)?;

    let shape = ImageShape { height, width, channels: colour.channels() };
    let mut images = vec![0; files.len() * shape.elements()];
    let failure = images.par_chunks_mut(shape.elements()).zip(&files).find_map_first(|(slot, file)| {
        let filled = decode(file, colour).and_then(|pixels| {
            wanted.check(file, pixels.width, pixels.height)?;
            slot.copy_from_slice(&pixels.bytes);
            Ok(())
        });
        filled.err()
    });
    failure.map_or(Ok(Dataset { shape, classes, images, labels }), Err)
}

/// The size that all images must have, and what asks for it.
struct Wanted {
    width: usize,
    height: usize,
    by: String,
}

impl Wanted {
    fn check(&self, file: &Path, width: usize, height: usize) -> Result<()> {
        if (width, height) == (self.width, self.height) {
            return Ok(());
        }
        let Self { width: w, height: h, by } = self;
        let problem = format!("is {width}x{height} pixels, but only {w}x{h} is accepted, the size of {by}");
        Err(Error::input(file.display(), problem))
    }
}

/// The entries of a folder whose names do not begin with a dot, sorted: the order of `read_dir` is not reproducible.
fn visible_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            entries.push(entry.path());
        }
    }
    entries.sort();
    Ok(entries)
}

fn class_name(folder: &Path) -> Result<String> {
    if !folder.is_dir() {
        return Err(Error::input(folder.display(), "is not a folder, but only class folders are accepted here"));
    }
    match folder.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(name.to_owned()),
        None => Err(Error::input(folder.display(), "has a name that is not UTF-8, but a class name must be")),
    }
}

fn images_of_class(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = visible_entries(folder)?;
    if files.is_empty() {
        return Err(Error::input(folder.display(), "has no images, but a class must have at least one"));
    }
    let known = |file: &PathBuf| {
        let extension = file.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension)))
    };
    match files.iter().find(|file| !known(file)) {
        Some(file) => Err(Error::input(file.display(), format!("only {} are accepted here", EXTENSIONS.join(", ")))),
        None => Ok(files),
    }
}

/// A decoded image: `bytes` is `[height, width, channels]`.
struct Pixels {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

fn decode(file: &Path, colour: Colour) -> Result<Pixels> {
    let reader = ImageReader::open(file).map_err(Error::io(file))?;
    // By content, because images are often saved under another format's extension.
    let reader = reader.with_guessed_format().map_err(Error::io(file))?;
    let image = reader
        .decode()
        .map_err(|error| Error::input(file.display(), format!("is not an intact png, jpeg or webp image ({error})")))?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let bytes = match colour {
        Colour::Grey => image.into_luma8().into_raw(),
        Colour::Rgb => image.into_rgb8().into_raw(),
    };
    if bytes.is_empty() {
        return Err(Error::input(file.display(), "has no pixels, but an image must have at least one"));
    }
    Ok(Pixels { width, height, bytes })
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgb, RgbImage};
    use tempfile::TempDir;

    use super::*;

    /// Writes an RGB image of one colour; its format is that of the name.
    fn paint(root: &TempDir, name: &str, width: u32, height: u32, colour: [u8; 3]) {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(width, height, Rgb(colour)).save(path).unwrap();
    }

    fn birds() -> TempDir {
        let root = tempfile::tempdir().unwrap();
        paint(&root, "wren/b.PNG", 3, 2, [1, 2, 3]);
        paint(&root, "wren/a.webp", 3, 2, [4, 5, 6]);
        paint(&root, "crow/z.png", 3, 2, [7, 8, 9]);
        root
    }

    /// The message of the refusal, without the folder's name.
    fn refusal(root: &TempDir, image_size: Option<usize>) -> String {
        let error = load(root.path(), image_size, Colour::Rgb).unwrap_err().to_string();
        error.replace(&format!("{}", root.path().display()), "ROOT")
    }

    #[test]
    fn class_folders_and_their_images_come_in_sorted_order() {
        let root = birds();
        std::fs::write(root.path().join(".DS_Store"), "x").unwrap();
        std::fs::write(root.path().join("crow/.thumbs"), "x").unwrap();
        std::fs::create_dir(root.path().join(".git")).unwrap();
        let data = load(root.path(), None, Colour::Rgb).unwrap();
        assert_eq!(data.shape, ImageShape { height: 2, width: 3, channels: 3 });
        assert_eq!(data.classes, ["crow", "wren"]);
        assert_eq!(data.labels, [0, 1, 1]);
        assert_eq!(data.image(0), [7, 8, 9].repeat(6));
        assert_eq!(data.image(1), [4, 5, 6].repeat(6));
        assert_eq!(data.image(2), [1, 2, 3].repeat(6));
    }

    #[test]
    fn images_are_converted_to_the_channels_asked_for() {
        let root = tempfile::tempdir().unwrap();
        paint(&root, "a/green.png", 2, 2, [0, 255, 0]);
        GrayImage::from_fn(2, 2, |x, y| Luma([(10 * y + x) as u8])).save(root.path().join("a/grey.png")).unwrap();
        let grey = load(root.path(), Some(2), Colour::Grey).unwrap();
        assert_eq!(grey.shape, ImageShape { height: 2, width: 2, channels: 1 });
        // Rec. 709: 0.7152 of white.
        assert_eq!(grey.images, [182, 182, 182, 182, 0, 1, 10, 11]);
        let rgb = load(root.path(), Some(2), Colour::Rgb).unwrap();
        assert_eq!(rgb.image(0), [0, 255, 0].repeat(4));
        assert_eq!(rgb.image(1), [0, 0, 0, 1, 1, 1, 10, 10, 10, 11, 11, 11]);
    }

    #[test]
    fn a_jpeg_is_read_close_to_what_was_written() {
        let root = tempfile::tempdir().unwrap();
        paint(&root, "a/x.jpg", 8, 8, [200, 100, 50]);
        paint(&root, "a/y.JPEG", 8, 8, [200, 100, 50]);
        let data = load(root.path(), Some(8), Colour::Rgb).unwrap();
        assert_eq!(data.len(), 2);
        for (found, written) in data.images.iter().zip([200u8, 100, 50].iter().cycle()) {
            assert!(found.abs_diff(*written) <= 4, "{found} {written}");
        }
    }

    #[test]
    fn an_image_of_another_size_is_refused_with_both_sizes() {
        let root = birds();
        paint(&root, "wren/c.png", 2, 3, [0; 3]);
        assert_eq!(
            refusal(&root, None),
            "ROOT/wren/c.png: is 2x3 pixels, but only 3x2 is accepted, the size of ROOT/crow/z.png"
        );
        assert_eq!(
            refusal(&root, Some(28)),
            "ROOT/crow/z.png: is 3x2 pixels, but only 28x28 is accepted, the size of data.image_size"
        );
        assert_eq!(refusal(&root, Some(0)), "data.image_size: is 0, but only sizes of at least 1 pixel are accepted");
    }

    #[test]
    fn of_several_wrong_images_the_first_is_named() {
        let root = tempfile::tempdir().unwrap();
        for i in 0..40 {
            paint(&root, &format!("a/{i:02}.png"), if i < 20 { 2 } else { 3 }, 2, [0; 3]);
        }
        assert!(refusal(&root, None).starts_with("ROOT/a/20.png: is 3x2 pixels"));
    }

    #[test]
    fn what_is_not_an_image_is_refused_by_name() {
        let root = birds();
        std::fs::write(root.path().join("wren/notes.txt"), "x").unwrap();
        assert_eq!(refusal(&root, None), "ROOT/wren/notes.txt: only png, jpg, jpeg, webp are accepted here");

        let root = birds();
        std::fs::create_dir(root.path().join("wren/young")).unwrap();
        assert_eq!(refusal(&root, None), "ROOT/wren/young: only png, jpg, jpeg, webp are accepted here");

        let root = birds();
        let png = root.path().join("wren/b.PNG");
        let bytes = std::fs::read(&png).unwrap();
        for damaged in [&bytes[..0], &bytes[..bytes.len() / 2], b"not an image at all"] {
            std::fs::write(&png, damaged).unwrap();
            let error = refusal(&root, None);
            assert!(error.starts_with("ROOT/wren/b.PNG: is not an intact png, jpeg or webp image ("), "{error}");
        }
    }

    #[test]
    fn a_folder_without_classes_or_images_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(refusal(&root, None), "ROOT: has no class folder; one folder of images a class is accepted");
        std::fs::create_dir(root.path().join("wren")).unwrap();
        assert_eq!(refusal(&root, None), "ROOT/wren: has no images, but a class must have at least one");
        paint(&root, "stray.png", 2, 2, [0; 3]);
        std::fs::remove_dir(root.path().join("wren")).unwrap();
        assert_eq!(refusal(&root, None), "ROOT/stray.png: is not a folder, but only class folders are accepted here");
        let missing = load(Path::new("/nowhere/birds"), None, Colour::Grey).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/birds: No such file"), "{missing}");
    }
}
