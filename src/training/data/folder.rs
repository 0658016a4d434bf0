//! A folder of class folders of images.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Background, Colour, Dataset};
use crate::ImageShape;
use crate::classes;
use crate::picture::{self, Picture};
use crate::{Error, Result};

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Skipped files that the warning names.
const NAMED: usize = 3;

/// Loads every image of every class folder of `root`, in the order of their names, converted to `colour` as
/// [`picture::decode`] says. Names that begin with a dot are ignored; whatever else is no image by its ending is skipped,
/// and one warning says how much that is.
///
/// # Errors
/// `Error::Io` if a folder or a file cannot be read; `Error::Input` if there is no class folder, a class without images,
/// an image outside the class folders, one that is damaged, or one of another size than `image_size` (square) or else than
/// the first one.
pub(super) fn load(root: &Path, image_size: Option<usize>, colour: Colour, background: Background) -> Result<Dataset> {
    if image_size == Some(0) {
        return Err(Error::input("data.image_size", "is 0, but only sizes of at least 1 pixel are accepted"));
    }
    let Listing { classes, labels, files, foreign } = Listing::of(root)?;
    let Some(first) = files.first() else {
        return Err(Error::input(root.display(), "has no class folder; one folder of images a class is accepted"));
    };
    if let Some(warning) = skipped(root, &foreign) {
        tracing::warn!("{warning}");
    }

    // The first image is decoded twice, so that no memory is allocated on the word of a damaged header.
    let decode = |file: &PathBuf| {
        let bytes = std::fs::read(file).map_err(Error::io(file))?;
        picture::decode(&bytes, colour, background).map_err(|problem| Error::input(file.display(), problem))
    };
    let Picture { width, height, .. } = decode(first)?;
    let wanted = match image_size {
        Some(size) => Wanted { width: size, height: size, by: "data.image_size".into() },
        None => Wanted { width, height, by: first.display().to_string() },
    };
    wanted.check(first, width, height)?;

    let shape = ImageShape { height, width, channels: colour.channels() };
    let mut images = vec![0; files.len() * shape.elements()];
    let failure = images.par_chunks_mut(shape.elements()).zip(&files).find_map_first(|(slot, file)| {
        let filled = decode(file).and_then(|picture| {
            wanted.check(file, picture.width, picture.height)?;
            slot.copy_from_slice(&picture.bytes);
            Ok(())
        });
        filled.err()
    });
    failure.map_or(Ok(Dataset { shape, classes, images, labels }), Err)
}

/// What lies in a folder of class folders.
struct Listing {
    classes: Vec<String>,
    /// The class of each of `files`.
    labels: Vec<u16>,
    files: Vec<PathBuf>,
    /// What is no image.
    foreign: Vec<PathBuf>,
}

impl Listing {
    fn of(root: &Path) -> Result<Self> {
        let (folders, mut foreign): (Vec<_>, Vec<_>) = visible_entries(root)?.into_iter().partition(|e| e.is_dir());
        if let Some(stray) = foreign.iter().find(|file| is_image(file)) {
            return Err(Error::input(
                stray.display(),
                "is in no class folder; one folder of images a class is accepted",
            ));
        }
        let mut named = folders.into_iter().map(|f| Ok((class_name(&f)?, f))).collect::<Result<Vec<_>>>()?;
        // By their names, which are the same everywhere: a Mac gives the bytes of `é` in another order.
        named.sort();
        let (mut classes, mut labels, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for (name, folder) in named {
            let label = u16::try_from(classes.len())
                .map_err(|_| Error::input(root.display(), "has more class folders than the 65536 that are accepted"))?;
            classes.push(name);
            let (images, others): (Vec<_>, Vec<_>) =
                visible_entries(&folder)?.into_iter().partition(|entry| is_image(entry));
            if images.is_empty() {
                return Err(Error::input(folder.display(), "has no images, but a class must have at least one"));
            }
            files.extend(images);
            labels.resize(files.len(), label);
            foreign.extend(others);
        }
        Ok(Self { classes, labels, files, foreign })
    }
}

/// What to say of files that are no images; `None` where there are none.
pub(super) fn skipped(root: &Path, foreign: &[PathBuf]) -> Option<String> {
    let names: Vec<_> = foreign.iter().take(NAMED).map(|file| file.strip_prefix(root).unwrap_or(file)).collect();
    let names: Vec<_> = names.iter().map(|name| name.display().to_string()).collect();
    let more = if foreign.len() > NAMED { ", ..." } else { "" };
    (!foreign.is_empty()).then(|| {
        format!(
            "{}: skipped {} that end in none of {}: {}{more}",
            root.display(),
            foreign.len(),
            EXTENSIONS.join(", "),
            names.join(", ")
        )
    })
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
pub(super) fn visible_entries(folder: &Path) -> Result<Vec<PathBuf>> {
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
    match folder.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(classes::canonical(name)),
        None => Err(Error::input(folder.display(), "has a name that is not UTF-8, but a class name must be")),
    }
}

/// Whether an entry is to be read as an image: a file by its ending, so that a damaged one is not passed over.
pub(super) fn is_image(entry: &Path) -> bool {
    let extension = entry.extension().and_then(|extension| extension.to_str());
    let known = extension.is_some_and(|found| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(found)));
    known && !entry.is_dir()
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgb, RgbImage};
    use tempfile::TempDir;

    use super::*;

    fn load_with(root: &Path, image_size: Option<usize>, colour: Colour) -> Result<Dataset> {
        load(root, image_size, colour, Background::of(colour))
    }

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
        let error = load_with(root.path(), image_size, Colour::Rgb).unwrap_err().to_string();
        error.replace(&format!("{}", root.path().display()), "ROOT")
    }

    #[test]
    fn class_folders_and_their_images_come_in_sorted_order() {
        let root = birds();
        std::fs::write(root.path().join(".DS_Store"), "x").unwrap();
        std::fs::write(root.path().join("crow/.thumbs"), "x").unwrap();
        std::fs::create_dir(root.path().join(".git")).unwrap();
        let data = load_with(root.path(), None, Colour::Rgb).unwrap();
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
        let grey = load_with(root.path(), Some(2), Colour::Grey).unwrap();
        assert_eq!(grey.shape, ImageShape { height: 2, width: 2, channels: 1 });
        // Rec. 709: 0.7152 of white.
        assert_eq!(grey.images, [182, 182, 182, 182, 0, 1, 10, 11]);
        let rgb = load_with(root.path(), Some(2), Colour::Rgb).unwrap();
        assert_eq!(rgb.image(0), [0, 255, 0].repeat(4));
        assert_eq!(rgb.image(1), [0, 0, 0, 1, 1, 1, 10, 10, 10, 11, 11, 11]);
    }

    #[test]
    fn a_jpeg_is_read_close_to_what_was_written() {
        let root = tempfile::tempdir().unwrap();
        paint(&root, "a/x.jpg", 8, 8, [200, 100, 50]);
        paint(&root, "a/y.JPEG", 8, 8, [200, 100, 50]);
        let data = load_with(root.path(), Some(8), Colour::Rgb).unwrap();
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
    fn what_is_no_image_is_skipped_and_counted_in_one_warning() {
        let root = birds();
        let wanted = load_with(root.path(), None, Colour::Rgb).unwrap();
        assert!(skipped(root.path(), &Listing::of(root.path()).unwrap().foreign).is_none());
        for name in ["wren/notes.txt", "wren/Thumbs.db", "readme.md", "crow/no-ending"] {
            std::fs::write(root.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(root.path().join("wren/young.png")).unwrap();
        assert_eq!(load_with(root.path(), None, Colour::Rgb).unwrap(), wanted);
        let warning = skipped(root.path(), &Listing::of(root.path()).unwrap().foreign).unwrap();
        assert_eq!(
            warning.replace(&root.path().display().to_string(), "ROOT"),
            "ROOT: skipped 5 that end in none of png, jpg, jpeg, webp: readme.md, crow/no-ending, wren/Thumbs.db, ..."
        );
    }

    #[test]
    fn a_damaged_image_is_refused_by_name() {
        let root = birds();
        let png = root.path().join("wren/b.PNG");
        let bytes = std::fs::read(&png).unwrap();
        let jpeg = include_bytes!("../../../tests/pictures/cut-at-60-percent.jpg");
        for damaged in [&bytes[..0], &bytes[..bytes.len() / 2], b"not an image at all", jpeg] {
            std::fs::write(&png, damaged).unwrap();
            let error = refusal(&root, None);
            assert!(error.starts_with("ROOT/wren/b.PNG: is not an intact png, jpeg or webp image ("), "{error}");
        }
    }

    #[test]
    fn a_class_has_the_same_name_and_place_whichever_form_of_unicode_its_folder_is_written_in() {
        let classes = |cafe: &str| {
            let root = tempfile::tempdir().unwrap();
            for name in ["cafz", cafe, "caff"] {
                paint(&root, &format!("{name}/a.png"), 1, 1, [name.len() as u8; 3]);
            }
            load_with(root.path(), None, Colour::Rgb).unwrap().classes
        };
        assert_eq!(classes("caf\u{e9}"), ["caff", "cafz", "caf\u{e9}"]);
        assert_eq!(classes("cafe\u{301}"), ["caff", "cafz", "caf\u{e9}"]);
    }

    #[test]
    fn a_folder_without_classes_or_images_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(refusal(&root, None), "ROOT: has no class folder; one folder of images a class is accepted");
        std::fs::create_dir(root.path().join("wren")).unwrap();
        std::fs::write(root.path().join("wren/notes.txt"), "x").unwrap();
        assert_eq!(refusal(&root, None), "ROOT/wren: has no images, but a class must have at least one");
        paint(&root, "stray.png", 2, 2, [0; 3]);
        std::fs::remove_dir_all(root.path().join("wren")).unwrap();
        assert_eq!(
            refusal(&root, None),
            "ROOT/stray.png: is in no class folder; one folder of images a class is accepted"
        );
        let missing = load_with(Path::new("/nowhere/birds"), None, Colour::Grey).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/birds: No such file"), "{missing}");
    }
}
