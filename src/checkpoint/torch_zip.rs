//! The zip files of `torch.save` (since 1.6): `data.pkl` with the object, and each storage as a file `data/KEY`.

use super::pickle::Pickle;
use super::torch::Torch;
use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use zip::{CompressionMethod, ZipArchive};

/// Reads the file.
///
/// # Errors
/// What is wrong with it, for behind the file's name.
pub fn read(file: &[u8]) -> Result<Torch<'_>, String> {
    let parts = places(file)?;
    let (data, pickle) = parts
        .iter()
        .find_map(|(name, range)| Some((name.strip_suffix("data.pkl")?, range)))
        .ok_or("is a zip archive without data.pkl, so none that `torch.save` wrote")?;
    let is_big = |range: &Range<usize>| file[range.clone()] == *b"big";
    if parts.get(&format!("{data}byteorder")).is_some_and(is_big) {
        return Err("was written on a big-endian machine; save it on a little-endian one".into());
    }
    let prefix = format!("{data}data/");
    let storage =
        |(name, range): (&String, &Range<usize>)| Some((name.strip_prefix(&prefix)?.to_owned(), range.clone()));
    let storages = parts.iter().filter_map(storage).collect();
    Ok(Torch::new(Pickle::read(&file[..pickle.end], pickle.start)?, storages))
}

/// Where the files of an archive are in it. PyTorch compresses none, so that it can map them into memory.
fn places(file: &[u8]) -> Result<HashMap<String, Range<usize>>, String> {
    let damaged = |error| format!("is not a whole zip archive: {error}");
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(damaged)?;
    let mut parts = HashMap::new();
    for index in 0..archive.len() {
        let part = archive.by_index_raw(index).map_err(damaged)?;
        let name = part.name().map_err(damaged)?.into_owned();
        if part.compression() != CompressionMethod::Stored || part.encrypted() {
            return Err(format!(
                "is a zip archive with {name} compressed or encrypted, so none that `torch.save` wrote"
            ));
        }
        let place = |start: u64, length: u64| {
            Some(usize::try_from(start).ok()?..usize::try_from(start.checked_add(length)?).ok()?)
        };
        let range = part.data_start().and_then(|start| place(start, part.size()));
        let range = range.filter(|range| range.end <= file.len());
        parts.insert(name, range.ok_or("is not a whole zip archive: a file in it is cut off")?);
    }
    Ok(parts)
}
