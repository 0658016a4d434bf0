//! NumPy's file of several arrays: a zip of `.npy` files (NEP 1).

use std::io::{self, Read, Seek, Write};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// An array.
pub struct Array {
    /// NumPy's name of its elements, such as `|u1`.
    pub dtype: &'static str,
    /// Its axes.
    pub shape: Vec<usize>,
    /// Its elements, the last axis fastest.
    pub elements: Box<dyn Read>,
}

/// Writes the arrays as `arr_0`, `arr_1` and so on, uncompressed.
///
/// # Errors
/// If elements cannot be read, or the file not written.
pub fn write(file: impl Write + Seek, arrays: Vec<Array>) -> io::Result<()> {
    let mut zip = ZipWriter::new(file);
    // An array may be larger than 4 GiB.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    for (index, mut array) in arrays.into_iter().enumerate() {
        zip.start_file(format!("arr_{index}.npy"), options)?;
        zip.write_all(&header(&array))?;
        io::copy(&mut array.elements, &mut zip)?;
    }
    zip.finish()?;
    Ok(())
}

/// Magic, version 1.0, and a dictionary that is filled up so that the elements begin at a multiple of 64.
fn header(array: &Array) -> Vec<u8> {
    const BEFORE: usize = 10;
    let axes = array.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    // A tuple of one has a comma behind it.
    let axes = if array.shape.len() == 1 { axes + "," } else { axes };
    let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({axes}), }}", array.dtype);
    while !(BEFORE + text.len() + 1).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.into_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::npy::NpzTensors;

    #[test]
    fn what_is_written_is_what_others_read() {
        let bytes = vec![0, 1, 2, 253, 254, 255];
        let labels: Vec<u8> = [7i64, -1].iter().flat_map(|value| value.to_le_bytes()).collect();
        let arrays = vec![
            Array { dtype: "|u1", shape: vec![2, 1, 3], elements: Box::new(io::Cursor::new(bytes.clone())) },
            Array { dtype: "<i8", shape: vec![2], elements: Box::new(io::Cursor::new(labels)) },
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arrays.npz");
        write(std::fs::File::create(&path).unwrap(), arrays).unwrap();
        let read = NpzTensors::new(&path).unwrap();
        let images = read.get("arr_0").unwrap().unwrap();
        assert_eq!(images.dims(), [2, 1, 3]);
        assert_eq!(images.flatten_all().unwrap().to_vec1::<u8>().unwrap(), bytes);
        assert_eq!(read.get("arr_1").unwrap().unwrap().to_vec1::<i64>().unwrap(), [7, -1]);
    }
}
