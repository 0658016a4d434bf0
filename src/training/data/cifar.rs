//! CIFAR-10's binary version (<https://www.cs.toronto.edu/~kriz/cifar.html>): records of a label and three planes.

use std::io::ErrorKind;
use std::path::Path;

use super::Dataset;
use crate::ImageShape;
use crate::{Error, Result};

const SHAPE: ImageShape = ImageShape { height: 32, width: 32, channels: 3 };
const PLANE: usize = SHAPE.height * SHAPE.width;
/// A label byte, then the red, the green and the blue plane.
const RECORD: usize = 1 + 3 * PLANE;
/// The file of the class names.
pub(super) const NAMES: &str = "batches.meta.txt";
const CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Loads the five training batches in `folder`; class names from `batches.meta.txt` if it is there.
///
/// # Errors
/// `Error::Io` if a file cannot be read; `Error::Input` if a batch is missing, cut, or has a label above 9, or if the
/// class names are not ten.
pub(super) fn load(folder: &Path) -> Result<Dataset> {
    let classes = class_names(&folder.join(NAMES))?;
    let mut data = Dataset { shape: SHAPE, classes, images: Vec::new(), labels: Vec::new() };
    for batch in 1..=5 {
        append(&folder.join(format!("data_batch_{batch}.bin")), &mut data)?;
    }
    Ok(data)
}

fn append(path: &Path, data: &mut Dataset) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => {
            Error::input(path.display(), "is missing; data_batch_1.bin to data_batch_5.bin are all needed")
        }
        _ => Error::io(path)(source),
    })?;
    if bytes.is_empty() || bytes.len() % RECORD != 0 {
        let problem = format!("has {} bytes, but only whole records of {RECORD} bytes are accepted", bytes.len());
        return Err(Error::input(path.display(), problem));
    }
    data.images.reserve(bytes.len() / RECORD * SHAPE.elements());
    for (record, bytes) in bytes.chunks_exact(RECORD).enumerate() {
        let (label, planes) = (bytes[0], &bytes[1..]);
        if usize::from(label) >= CLASSES.len() {
            let problem = format!("record {record} has the label {label}, but only 0 to 9 are accepted");
            return Err(Error::input(path.display(), problem));
        }
        data.labels.push(u16::from(label));
        data.images.extend((0..PLANE).flat_map(|i| [planes[i], planes[PLANE + i], planes[2 * PLANE + i]]));
    }
    Ok(())
}

fn class_names(path: &Path) -> Result<Vec<String>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        // The names are the same in every copy of CIFAR-10, so the file is a courtesy.
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(CLASSES.map(String::from).to_vec()),
        Err(source) => return Err(Error::io(path)(source)),
    };
    let names: Vec<String> = text.lines().map(str::trim).filter(|name| !name.is_empty()).map(String::from).collect();
    if names.len() != CLASSES.len() {
        let problem = format!("names {} classes, but exactly 10 are accepted, one a line", names.len());
        return Err(Error::input(path.display(), problem));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record whose red, green and blue values at pixel `i` are `i`, `i + 50` and `i + 100`, modulo 256.
    fn record(label: u8) -> Vec<u8> {
        let plane = |offset: usize| (0..PLANE).map(move |i| (i + offset) as u8);
        std::iter::once(label).chain(plane(0)).chain(plane(50)).chain(plane(100)).collect()
    }

    fn five_batches() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for batch in 1..=5u8 {
            let path = folder.path().join(format!("data_batch_{batch}.bin"));
            std::fs::write(path, [record(batch), record(batch + 4)].concat()).unwrap();
        }
        folder
    }

    fn refusal(folder: &tempfile::TempDir) -> String {
        load(folder.path()).unwrap_err().to_string()
    }

    #[test]
    fn planes_become_interleaved_channels() {
        let data = load(five_batches().path()).unwrap();
        assert_eq!(data.shape, ImageShape { height: 32, width: 32, channels: 3 });
        assert_eq!(data.labels, [1, 5, 2, 6, 3, 7, 4, 8, 5, 9]);
        assert_eq!(data.images.len(), 10 * data.shape.elements());
        let pixels = data.image(9);
        assert_eq!(pixels[..6], [0, 50, 100, 1, 51, 101]);
        assert_eq!(pixels[3 * 1023..], [255, 49, 99]);
    }

    #[test]
    fn class_names_come_from_the_meta_file_or_are_the_standard_ones() {
        let folder = five_batches();
        assert_eq!(load(folder.path()).unwrap().classes, CLASSES);
        let names: Vec<String> = (0..10).map(|i| format!("class {i}")).collect();
        std::fs::write(folder.path().join("batches.meta.txt"), names.join("\n") + "\n\n").unwrap();
        assert_eq!(load(folder.path()).unwrap().classes, names);
        std::fs::write(folder.path().join("batches.meta.txt"), "cat\ndog\n").unwrap();
        let error = refusal(&folder);
        assert!(
            error.ends_with("batches.meta.txt: names 2 classes, but exactly 10 are accepted, one a line"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_batch_is_named() {
        let folder = five_batches();
        std::fs::remove_file(folder.path().join("data_batch_4.bin")).unwrap();
        let error = refusal(&folder);
        assert!(error.contains("data_batch_4.bin: is missing; data_batch_1.bin to data_batch_5.bin"), "{error}");
    }

    #[test]
    fn a_batch_that_is_not_whole_records_is_refused() {
        let folder = five_batches();
        for (bytes, length) in [(vec![], 0), (record(0)[1..].to_vec(), 3072), ([record(0), vec![0]].concat(), 3074)] {
            std::fs::write(folder.path().join("data_batch_2.bin"), bytes).unwrap();
            let error = refusal(&folder);
            let message = format!("data_batch_2.bin: has {length} bytes, but only whole records of 3073 bytes");
            assert!(error.contains(&message), "{error}");
        }
    }

    #[test]
    fn a_label_above_nine_is_refused() {
        let folder = five_batches();
        std::fs::write(folder.path().join("data_batch_5.bin"), [record(9), record(10)].concat()).unwrap();
        let error = refusal(&folder);
        assert!(
            error.ends_with("data_batch_5.bin: record 1 has the label 10, but only 0 to 9 are accepted"),
            "{error}"
        );
    }
}
