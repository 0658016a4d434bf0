//! IDX files of unsigned bytes (<http://yann.lecun.com/exdb/mnist/>): a magic number, big-endian sizes, the values.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::Dataset;
use crate::ImageShape;
use crate::{Error, Result};

/// The magic number's third byte: the values are unsigned bytes. Its fourth is the number of sizes.
const UNSIGNED_BYTE: u8 = 8;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Loads images `[N, height, width]` and labels `[N]`, each gzipped or plain.
///
/// # Errors
/// `Error::Io` if a file cannot be read; `Error::Input` if it is not a whole IDX file of that kind, if the two disagree
/// on N, or if a label has no class.
pub(super) fn load(images: &Path, labels: &Path, classes: &[String]) -> Result<Dataset> {
    let ([count, height, width], pixels) = read::<3>(images, "images")?;
    let ([labelled], values) = read::<1>(labels, "labels")?;
    if labelled != count {
        let problem = format!(
            "has {labelled} labels, but {} has {count} images; one label an image is accepted",
            images.display()
        );
        return Err(Error::input(labels.display(), problem));
    }
    if let Some(item) = values.iter().position(|&label| usize::from(label) >= classes.len()) {
        let (label, named) = (values[item], classes.len());
        let problem =
            format!("item {item} has the label {label}, but only labels below the {named} named classes are accepted");
        return Err(Error::input(labels.display(), problem));
    }
    Ok(Dataset {
        shape: ImageShape { height, width, channels: 1 },
        classes: classes.to_vec(),
        images: pixels,
        labels: values.into_iter().map(u16::from).collect(),
    })
}

/// The sizes and the values of an IDX file of `SIZES` dimensions.
fn read<const SIZES: usize>(path: &Path, what: &str) -> Result<([usize; SIZES], Vec<u8>)> {
    let refuse = |problem: String| Err(Error::input(path.display(), problem));
    let mut reader = open(path)?;

    let length = 4 + 4 * SIZES;
    let header = read_at_most(&mut reader, length, path)?;
    let (words, _) = header.as_chunks::<4>();
    let magic = [0, 0, UNSIGNED_BYTE, SIZES as u8];
    if let Some(&found) = words.first().filter(|&&found| found != magic) {
        let (found, magic) = (u32::from_be_bytes(found), u32::from_be_bytes(magic));
        return refuse(format!("has the magic number {found:#010x}, but IDX {what} with {magic:#010x} are accepted"));
    }
    if header.len() < length {
        return refuse(format!("is truncated: {} bytes, but the header of IDX {what} has {length}", header.len()));
    }

    let sizes: [usize; SIZES] = std::array::from_fn(|i| u32::from_be_bytes(words[1 + i]) as usize);
    if sizes.contains(&0) {
        return refuse(format!("has the sizes {sizes:?} in its header, but each must be at least 1"));
    }
    let Some(expected) = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size)) else {
        return refuse(format!("has the sizes {sizes:?} in its header, whose product is too large to address"));
    };

    // One byte more than the header promises, to see whether any follow; never allocated before it is read, because a
    // damaged header may promise anything.
    let values = read_at_most(&mut reader, expected.saturating_add(1), path)?;
    if values.len() < expected {
        let found = values.len();
        return refuse(format!("is truncated: its sizes {sizes:?} ask for {expected} values, but {found} follow"));
    }
    if values.len() > expected {
        return refuse(format!("has more bytes than the {expected} values that its sizes {sizes:?} ask for"));
    }
    Ok((sizes, values))
}

/// A reader of the file's content, decompressed if the content (not the name) says gzip.
fn open(path: &Path) -> Result<Box<dyn Read>> {
    let mut file = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let gzipped = file.fill_buf().map_err(Error::io(path))?.starts_with(&GZIP_MAGIC);
    Ok(if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

fn read_at_most(reader: &mut dyn Read, limit: usize, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit as u64).read_to_end(&mut bytes).map_err(|source| match source.kind() {
        // What the decoder says of a damaged stream: the fault of the file, not of the system.
        ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            Error::input(path.display(), format!("its gzip stream is damaged or truncated ({source})"))
        }
        _ => Error::io(path)(source),
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;
    use crate::training::data::Source;

    fn idx(sizes: &[u32], values: &[u8]) -> Vec<u8> {
        let header = [0, 0, 8, sizes.len() as u8].into_iter().chain(sizes.iter().flat_map(|size| size.to_be_bytes()));
        header.chain(values.iter().copied()).collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn classes(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("class {i}")).collect()
    }

    /// Loads the two contents from real files, with four classes; errors without the folder's name.
    fn load_bytes(images: &[u8], labels: &[u8]) -> std::result::Result<Dataset, String> {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| -> PathBuf {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let prefix = format!("{}/", folder.path().display());
        load(&write("images", images), &write("labels", labels), &classes(4))
            .map_err(|error| error.to_string().replace(&prefix, ""))
    }

    fn images() -> Vec<u8> {
        idx(&[3, 2, 4], &(0..24).collect::<Vec<u8>>())
    }

    fn labels() -> Vec<u8> {
        idx(&[3], &[3, 0, 2])
    }

    #[test]
    fn plain_and_gzipped_files_load_alike_whatever_their_names() {
        let plain = load_bytes(&images(), &labels()).unwrap();
        assert_eq!(plain.shape, ImageShape { height: 2, width: 4, channels: 1 });
        assert_eq!(plain.classes, classes(4));
        assert_eq!(plain.labels, [3, 0, 2]);
        assert_eq!(plain.image(1), [8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(load_bytes(&gzip(&images()), &gzip(&labels())).unwrap(), plain);
        assert_eq!(load_bytes(&gzip(&images()), &labels()).unwrap(), plain);
    }

    #[test]
    fn another_magic_number_is_refused() {
        assert_eq!(
            load_bytes(&labels(), &labels()).unwrap_err(),
            "images: has the magic number 0x00000801, but IDX images with 0x00000803 are accepted"
        );
        assert_eq!(
            load_bytes(&images(), &gzip(&images())).unwrap_err(),
            "labels: has the magic number 0x00000803, but IDX labels with 0x00000801 are accepted"
        );
    }

    #[test]
    fn truncated_files_are_refused() {
        for (bytes, message) in [
            (&images()[..0], "images: is truncated: 0 bytes, but the header of IDX images has 16"),
            (&images()[..15], "images: is truncated: 15 bytes, but the header of IDX images has 16"),
            (&images()[..39], "images: is truncated: its sizes [3, 2, 4] ask for 24 values, but 23 follow"),
        ] {
            assert_eq!(load_bytes(bytes, &labels()).unwrap_err(), message);
        }
        let cut = gzip(&labels());
        let error = load_bytes(&images(), &cut[..cut.len() - 1]).unwrap_err();
        assert!(error.starts_with("labels: its gzip stream is damaged or truncated ("), "{error}");
    }

    #[test]
    fn a_damaged_gzip_stream_is_refused() {
        let mut damaged = gzip(&images());
        let checksum = damaged.len() - 8;
        damaged[checksum] ^= 1;
        let error = load_bytes(&damaged, &labels()).unwrap_err();
        assert!(error.starts_with("images: its gzip stream is damaged or truncated ("), "{error}");
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let longer = [images(), vec![0]].concat();
        let message = "images: has more bytes than the 24 values that its sizes [3, 2, 4] ask for";
        assert_eq!(load_bytes(&longer, &labels()).unwrap_err(), message);
        assert_eq!(load_bytes(&gzip(&longer), &labels()).unwrap_err(), message);
        assert!(load_bytes(&[gzip(&images()), vec![0]].concat(), &labels()).is_err());
    }

    #[test]
    fn counts_that_disagree_are_refused() {
        let error = load_bytes(&images(), &idx(&[2], &[0, 1])).unwrap_err();
        assert!(error.starts_with("labels: has 2 labels, but "), "{error}");
        assert!(error.ends_with("images has 3 images; one label an image is accepted"), "{error}");
    }

    #[test]
    fn a_label_without_a_class_is_refused() {
        assert_eq!(
            load_bytes(&images(), &idx(&[3], &[3, 4, 0])).unwrap_err(),
            "labels: item 1 has the label 4, but only labels below the 4 named classes are accepted"
        );
    }

    #[test]
    fn zero_and_overflowing_sizes_are_refused() {
        for sizes in [[0, 2, 4], [3, 0, 4], [3, 2, 0]] {
            assert_eq!(
                load_bytes(&idx(&sizes, &[]), &labels()).unwrap_err(),
                format!("images: has the sizes {sizes:?} in its header, but each must be at least 1")
            );
        }
        assert_eq!(
            load_bytes(&idx(&[u32::MAX; 3], &[1]), &labels()).unwrap_err(),
            "images: has the sizes [4294967295, 4294967295, 4294967295] in its header, whose product is too large to \
             address"
        );
        // Addressable, but no file is that long: nothing is allocated for it.
        let error = load_bytes(&idx(&[u32::MAX, u32::MAX, 1], &[1]), &labels()).unwrap_err();
        assert!(error.ends_with("ask for 18446744065119617025 values, but 1 follow"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Path::new("/nowhere/images"), Path::new("/nowhere/labels"), &classes(4)).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/images: No such file"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_file_cut_at_any_byte_is_refused(
            (count, height, width) in (1u32..6, 1u32..6, 1u32..6),
            pixels in prop::collection::vec(any::<u8>(), 125),
            zipped in any::<bool>(),
            cut_labels in any::<bool>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut images = idx(&[count, height, width], &pixels[..(count * height * width) as usize]);
            let mut labels = idx(&[count], &vec![1; count as usize]);
            if zipped {
                (images, labels) = (gzip(&images), gzip(&labels));
            }
            prop_assert!(load_bytes(&images, &labels).is_ok());
            let shortened = if cut_labels { &mut labels } else { &mut images };
            shortened.truncate(cut.index(shortened.len()));
            let error = load_bytes(&images, &labels).unwrap_err();
            prop_assert!(error.contains("truncated"), "{}", error);
        }

        #[test]
        fn damage_never_panics(
            zipped in any::<bool>(),
            at in any::<prop::sample::Index>(),
            bits in 1u8..,
        ) {
            let mut damaged = if zipped { gzip(&images()) } else { images() };
            let at = at.index(damaged.len());
            damaged[at] ^= bits;
            let _ = load_bytes(&damaged, &labels());
        }
    }

    #[test]
    fn fashion_mnist_is_read_as_debian_installs_it() {
        let folder = Path::new("/usr/share/datasets/fashion-mnist");
        let [images, labels] = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"].map(|f| folder.join(f));
        assert!(images.exists(), "{} is missing: install the Debian package dataset-fashion-mnist", images.display());
        let data = Source::Idx { images, labels, classes: classes(10) }.load().unwrap();
        assert_eq!(data.len(), 60_000);
        assert_eq!(data.shape, ImageShape { height: 28, width: 28, channels: 1 });
        assert_eq!(data.images.len(), 60_000 * 28 * 28);
        assert_eq!(data.label(0), 9);
        for class in 0..10 {
            assert_eq!(data.labels.iter().filter(|&&label| label == class).count(), 6_000, "class {class}");
        }
        // The published statistics over [0, 1] are 0.2860 and 0.3530.
        let (mean, std) = data.statistics();
        assert!((mean - (2.0 * 0.2860 - 1.0)).abs() < 2e-4 && (std - 2.0 * 0.3530).abs() < 2e-4, "{mean} {std}");
    }
}
