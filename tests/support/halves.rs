//! A data set that a small network learns in seconds: grey images whose upper or lower half is bright.

use accordion::philox::Stream;
use std::path::Path;

/// Rows and columns of an image.
pub const SIDE: usize = 8;

/// So many images uint8 and their labels, the two classes in turn.
pub fn data(images: usize) -> (Vec<u8>, Vec<u8>) {
    let labels: Vec<u8> = (0..images).map(|index| (index % 2) as u8).collect();
    let mut bytes = Vec::with_capacity(images * SIDE * SIDE);
    for (index, &label) in labels.iter().enumerate() {
        let noise = Stream::new(9, 99, index as u64);
        for pixel in 0..SIDE * SIDE {
            let bright = (pixel < SIDE * SIDE / 2) == (label == 0);
            bytes.push(if bright { 195 } else { 20 } + (40.0 * noise.uniform(pixel as u64)) as u8);
        }
    }
    (bytes, labels)
}

/// An IDX file of unsigned bytes.
pub fn idx(sizes: &[usize], values: &[u8]) -> Vec<u8> {
    let header = [0, 0, 8, sizes.len() as u8].into_iter();
    header.chain(sizes.iter().flat_map(|&size| (size as u32).to_be_bytes())).chain(values.iter().copied()).collect()
}

/// Writes the files `images` and `labels` of so many images.
pub fn write(dir: &Path, images: usize) {
    let (bytes, labels) = data(images);
    std::fs::write(dir.join("images"), idx(&[images, SIDE, SIDE], &bytes)).unwrap();
    std::fs::write(dir.join("labels"), idx(&[images], &labels)).unwrap();
}
