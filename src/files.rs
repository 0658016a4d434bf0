//! Files and directories that appear whole or not at all.

use crate::{Error, Result};
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Writes a file by way of a temporary one beside it, so that a reader never sees half of it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let partial = partial(path);
    let written = std::fs::File::create(&partial)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|error| {
        // The error says more than one about the remains would.
        let _ = std::fs::remove_file(&partial);
        Error::io(path)(error)
    })
}

/// Refuses a file that [`write_whole`] could not write: for before the work, so that it is not in vain.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::io(path)(std::io::ErrorKind::IsADirectory.into()));
    }
    let partial = partial(path);
    std::fs::File::create(&partial).and_then(|_| std::fs::remove_file(&partial)).map_err(Error::io(path))
}

/// The temporary file beside a file.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

/// Reads a TOML file; the error names the file, the line and the field.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let refused = |error: toml::de::Error, field: &str| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        Error::input(format!("{}, line {line}{field}", path.display()), error.message())
    };
    let document = toml::Deserializer::parse(&text).map_err(|error| refused(error, ""))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        // A path of `.` is the document itself.
        let field = Some(error.path().to_string()).filter(|field| field != ".");
        refused(error.into_inner(), &field.map_or_else(String::new, |field| format!(": {field}")))
    })
}

/// Writes a TOML file whole or not at all.
pub fn write_toml(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = toml::to_string(value).map_err(|error| Error::input(path.display(), error))?;
    write_whole(path, text.as_bytes())
}

/// Writes a JSON file whole or not at all.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| Error::input(path.display(), error))?;
    text.push('\n');
    write_whole(path, text.as_bytes())
}

/// The tensors in the bytes of the file `path`.
///
/// # Errors
/// If they are not a whole safetensors file.
pub fn parse_tensors<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes).map_err(|error| damaged(path, &error))
}

/// The metadata in the bytes of the file `path`; empty where it has none.
///
/// # Errors
/// As [`parse_tensors`].
pub fn parse_metadata(path: &Path, bytes: &[u8]) -> Result<HashMap<String, String>> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| damaged(path, &error))?;
    Ok(header.metadata().clone().unwrap_or_default())
}

fn damaged(path: &Path, error: &SafeTensorError) -> Error {
    Error::input(path.display(), format!("is not a whole safetensors file ({error})"))
}

/// Writes a safetensors file whole or not at all.
///
/// # Errors
/// [`Error::NotFinite`] if a value is not, which no reader of ours would take; what lay there stays.
pub fn write_tensors<S, V>(
    path: &Path,
    tensors: impl IntoIterator<Item = (S, V)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()>
where
    S: AsRef<str> + Ord + std::fmt::Display,
    V: View,
{
    let tensors: Vec<(S, V)> = tensors.into_iter().collect();
    if let Some((name, tensor)) = tensors.iter().find(|(_, tensor)| !is_finite(tensor.dtype(), &tensor.data())) {
        let problem = format!("has values that are not finite as {:?}, so the file is not written", tensor.dtype());
        return Err(Error::NotFinite { place: format!("{}: {name}", path.display()), problem });
    }
    let bytes = safetensors::serialize(tensors, metadata)
        .map_err(|error| Error::input(path.display(), format!("cannot be written: {error}")))?;
    write_whole(path, &bytes)
}

/// Whether all values of a tensor are finite: none has an exponent of ones only. Integers are.
pub fn is_finite(dtype: Dtype, data: &[u8]) -> bool {
    fn all<const N: usize>(data: &[u8], infinite: impl Fn([u8; N]) -> bool) -> bool {
        !data.as_chunks::<N>().0.iter().any(|bytes| infinite(*bytes))
    }
    match dtype {
        Dtype::F64 => all(data, |bytes| !f64::from_le_bytes(bytes).is_finite()),
        Dtype::F32 => all(data, |bytes| !f32::from_le_bytes(bytes).is_finite()),
        Dtype::F16 => all(data, |bytes| !half::f16::from_le_bytes(bytes).is_finite()),
        Dtype::BF16 => all(data, |bytes| !half::bf16::from_le_bytes(bytes).is_finite()),
        _ => true,
    }
}

/// Refuses an `--out` that holds something: for before the work, so that it is not in vain.
pub fn check_vacant(out: &Path) -> Result<()> {
    match std::fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::input(format!("--out {}", out.display()), "is not empty; give a new directory")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(_) => Err(Error::input(format!("--out {}", out.display()), "is not a directory; give a new one")),
    }
}

/// Makes the directory `out` with what `fill` writes into it. On an error nothing is left behind.
pub fn write_directory(out: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    check_vacant(out)?;
    let place = || Error::input(format!("--out {}", out.display()), "has no name; give a new directory");
    let name = out.file_name().ok_or_else(place)?.to_string_lossy();
    // A sibling, since a rename does not cross file systems.
    let partial = out.with_file_name(format!(".{name}.partial-{}", std::process::id()));
    // What an error must take away: the partial directory, or the first of the parents that it brought along.
    let made = first_missing(&partial);
    let written = std::fs::create_dir_all(&partial)
        .map_err(Error::io(&partial))
        .and_then(|()| fill(&partial))
        .and_then(|()| std::fs::rename(&partial, out).map_err(Error::io(out)));
    if written.is_err() {
        // The first error says more than one about its remains would.
        let _ = std::fs::remove_dir_all(made);
    }
    written
}

/// The topmost part of `path` that does not exist.
fn first_missing(path: &Path) -> PathBuf {
    let missing = path.ancestors().take_while(|part| !part.as_os_str().is_empty() && !part.exists());
    missing.last().unwrap_or(path).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toml_file_is_refused_with_its_line_and_field() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Row {
            #[expect(dead_code, reason = "only read from files")]
            ms: f64,
        }
        #[derive(Debug, serde::Deserialize)]
        struct Rows {
            #[expect(dead_code, reason = "only read from files")]
            row: Vec<Row>,
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, says) in [
            ("[[row]]\nms = 1.0\n[[row]]\nms = 'x'", ", line 4: row[1].ms: invalid type: string"),
            ("[[row]]\nsm = 1.0", ", line 2: row[0].sm: unknown field `sm`, expected `ms`"),
            ("[[row]]\n", ", line 1: row[0]: missing field `ms`"),
            ("", ", line 1: missing field `row`"),
            ("\nrow", ", line 2: key with no value"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let message = read_toml::<Rows>(file.path()).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{}{says}", file.path().display())), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_tensor_that_no_reader_would_take_is_not_written_and_what_was_there_stays() {
        use candle_core::{DType, Device, Tensor};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let write = |value: f32, dtype| {
            let tensor = Tensor::new(&[1.0, value], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            write_tensors(&path, [("w", &tensor)], None)
        };
        write(2.0, DType::F32).unwrap();
        let before = std::fs::read(&path).unwrap();
        // 70,000 is above what f16 holds.
        for (value, dtype, name) in [
            (f32::NAN, DType::F32, "F32"),
            (f32::NEG_INFINITY, DType::F64, "F64"),
            (7e4, DType::F16, "F16"),
            (f32::NAN, DType::BF16, "BF16"),
        ] {
            let refusal = write(value, dtype).unwrap_err();
            assert!(matches!(refusal, Error::NotFinite { .. }), "{refusal:?}");
            let says =
                format!("w.safetensors: w: has values that are not finite as {name}, so the file is not written");
            assert!(refusal.to_string().ends_with(&says), "{refusal}");
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        write(6e4, DType::F16).unwrap();
        write(f32::MAX, DType::F32).unwrap();
    }

    #[test]
    fn a_file_is_known_to_be_writable_before_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |path: &Path| check_writable(path).unwrap_err().to_string();
        assert!(refusal(dir.path()).ends_with(": is a directory"));
        assert!(refusal(&dir.path().join("absent/file")).contains("absent/file: No such file"));
        check_writable(&dir.path().join("file")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::write(dir.path().join("file"), "kept").unwrap();
        check_writable(&dir.path().join("file")).unwrap();
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"kept");
    }

    #[test]
    fn a_failure_takes_away_everything_that_it_made() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b/model");
        let failed = write_directory(&out, |partial| {
            std::fs::write(partial.join("half"), "x").map_err(Error::io(partial))?;
            Err(Error::input("--model", "is broken"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "--model: is broken");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_holds_something_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model");
        write_directory(&out, |partial| std::fs::write(partial.join("whole"), "x").map_err(Error::io(partial)))
            .unwrap();
        assert!(out.join("whole").exists());
        assert!(
            write_directory(&out, |_| Ok(())).unwrap_err().to_string().ends_with("is not empty; give a new directory")
        );
        assert!(check_vacant(&out.join("whole")).unwrap_err().to_string().contains("is not a directory"));
    }
}
