//! Files and directories that appear whole or not at all.

use crate::{Error, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Names less alike than this, from 0 to 1, are of no help to who looks for one.
const ALIKE: f64 = 0.6;
/// How many names a refusal gives.
const NAMED: usize = 10;

/// Writes a file by way of a temporary one beside it, so that a reader never sees half of it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole_with(path, |file| file.write_all(bytes))
}

/// As [`write_whole`], of what `write` writes.
pub fn write_whole_with(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let partial = partial(path);
    let written = File::create(&partial)
        .and_then(|mut file| write(&mut file).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|error| {
        // The error says more than one about the remains would.
        let _ = std::fs::remove_file(&partial);
        Error::io(path)(error)
    })
}

/// Writes what a work is about to `path`, or refuses if another work's record lies there.
///
/// # Errors
/// [`Error::Input`] with the file and the first field that differs; [`Error::Io`].
pub fn continues(path: &Path, record: &impl Serialize) -> Result<()> {
    if !path.exists() {
        return write_toml(path, record);
    }
    let found: toml::Table = read_toml(path)?;
    let wanted = toml::Table::try_from(record).map_err(|error| Error::input(path.display(), error))?;
    let mut fields = wanted.keys().chain(found.keys());
    match fields.find(|field| found.get(*field) != wanted.get(*field)) {
        None => Ok(()),
        Some(field) => Err(Error::field(path, field, "is not what is asked for now; give another place")),
    }
}

/// Refuses a file that [`write_whole`] could not write: for before the work, so that it is not in vain.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::io(path)(std::io::ErrorKind::IsADirectory.into()));
    }
    let partial = partial(path);
    File::create(&partial).and_then(|_| std::fs::remove_file(&partial)).map_err(Error::io(path))
}

/// The temporary file beside a file.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

/// Reads a text in UTF-8; `wanted` says in the error what it should be.
pub fn read_text(path: &Path, wanted: &str) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    refuse_foreign(path, &bytes, wanted)?;
    String::from_utf8(bytes).map_err(|_| Error::input(path.display(), "is not a text in UTF-8"))
}

/// Reads a JSON file; the error names the file, the field and the line.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path, "a JSON file")?;
    let mut document = serde_json::Deserializer::from_str(&text);
    let read = serde_path_to_error::deserialize(&mut document).map_err(|error| match error.path().to_string() {
        // A path of `.` is the document itself.
        field if field == "." => Error::input(path.display(), error.into_inner()),
        field => Error::field(path, &field, error.into_inner()),
    })?;
    document.end().map_err(|error| Error::input(path.display(), error))?;
    Ok(read)
}

/// Reads a TOML file; the error names the file, the line and the field.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path, "a TOML file")?;
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

/// What these bytes are, and what to do about it, where they are known to be something else than was wanted.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    const LFS: &[u8] = b"version https://git-lfs";
    const HTML: [&[u8]; 2] = [b"<!doctype", b"<html"];
    let text = bytes.trim_ascii_start();
    let begins = |start: &[u8]| text.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start));
    Some(match bytes {
        _ if bytes.starts_with(LFS) => "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
        _ if HTML.into_iter().any(begins) => "is an HTML page: download the file itself, not the page that shows it",
        [b'P', b'K', 3, 4, ..] => {
            "is a zip archive, as `torch.save` writes it: load it in PyTorch and save its tensors"
        }
        [0x80, 2..=5, ..] => "is a Python pickle: load it in Python and save its tensors",
        [0x1f, 0x8b, ..] => "is compressed with gzip: unpack it",
        [b'G', b'G', b'U', b'F', ..] => "is a GGUF file",
        [0x89, b'H', b'D', b'F', ..] => "is an HDF5 file",
        _ => return None,
    })
}

/// Refuses a file of another kind than the `wanted` one, if its bytes say what it is.
pub fn refuse_foreign(path: &Path, bytes: &[u8], wanted: &str) -> Result<()> {
    let problem = foreign(bytes).map(|problem| Error::input(path.display(), format!("{problem}; {wanted} is wanted")));
    problem.map_or(Ok(()), Err)
}

/// The SHA-256 of a file, as 64 hexadecimal digits.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut read = || {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        loop {
            let bytes = file.fill_buf()?;
            let count = bytes.len();
            if count == 0 {
                return Ok(());
            }
            hasher.update(bytes);
            file.consume(count);
        }
    };
    read().map_err(Error::io(path))?;
    Ok(digits(hasher))
}

/// The SHA-256 of bytes, as 64 hexadecimal digits.
pub fn sha256_of(bytes: &[u8]) -> String {
    digits(Sha256::new().chain_update(bytes))
}

fn digits(hasher: Sha256) -> String {
    hasher.finalize().iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"))
}

/// The tensors in the bytes of the file `path`.
///
/// # Errors
/// If they are not a whole safetensors file.
pub fn parse_tensors<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes).map_err(|error| damaged(path, bytes, &error))
}

/// The tensor of this name.
///
/// # Errors
/// One sentence that names what the file has instead: the names most like it.
pub fn tensor<'a>(path: &Path, file: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>> {
    file.tensor(name).map_err(|_| Error::field(path, name, format!("tensor is missing: {}", instead(file, name))))
}

/// What a file has that lacks the tensor `name`.
fn instead(file: &SafeTensors, name: &str) -> String {
    let likeness = |other: &str| strsim::normalized_levenshtein(name, other);
    let mut names: Vec<(f64, &str)> = file.names().into_iter().map(|other| (likeness(other), other)).collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let nearest = names.iter().take(3).map(|(_, other)| *other).collect::<Vec<_>>().join(", ");
    match names.first() {
        None => "the file has no tensors".to_owned(),
        Some((best, _)) if *best < ALIKE => {
            format!(
                "none of the {} tensors of the file has a name like it, so it may be of another architecture (it \
                     has {nearest})",
                names.len()
            )
        }
        Some(_) => format!("of the {} tensors of the file, the nearest are {nearest}", names.len()),
    }
}

/// Refuses tensors of a file that are not `known`, naming the first ones; `what` says to what they do not belong.
pub fn refuse_surplus(path: &Path, file: &SafeTensors, known: impl Fn(&str) -> bool, what: &str) -> Result<()> {
    let mut surplus: Vec<&str> = file.names().into_iter().filter(|name| !known(name)).collect();
    surplus.sort_unstable();
    match surplus.len() {
        0 => Ok(()),
        1 => Err(Error::field(path, surplus[0], format!("tensor does not belong to {what}"))),
        count => {
            let problem = format!("{count} tensors do not belong to {what}: {}", listed(&surplus));
            Err(Error::input(path.display(), problem))
        }
    }
}

/// The first ten of some names, and how many more there are.
pub fn listed(names: &[impl Display]) -> String {
    let named = names.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// The metadata in the bytes of the file `path`; empty where it has none.
///
/// # Errors
/// As [`parse_tensors`].
pub fn parse_metadata(path: &Path, bytes: &[u8]) -> Result<HashMap<String, String>> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| damaged(path, bytes, &error))?;
    Ok(header.metadata().clone().unwrap_or_default())
}

fn damaged(path: &Path, bytes: &[u8], error: &SafeTensorError) -> Error {
    if let Err(foreign) = refuse_foreign(path, bytes, "a safetensors file") {
        return foreign;
    }
    let why = match error {
        _ if bytes.is_empty() => "it is empty".to_owned(),
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => "its header is cut off".to_owned(),
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("its {} bytes are more or fewer than its header says, as of a copy that was cut off", bytes.len())
        }
        error => error.to_string(),
    };
    Error::input(path.display(), format!("is not a whole safetensors file: {why}"))
}

/// Writes a safetensors file whole or not at all; the same tensors and metadata give the same bytes.
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
    // Of an empty map and no tensors the crate would make a header that is no JSON.
    let metadata = metadata.filter(|metadata| !metadata.is_empty());
    let mut bytes = safetensors::serialize(tensors, metadata)
        .map_err(|error| Error::input(path.display(), format!("cannot be written: {error}")))?;
    sort_header(&mut bytes);
    write_whole(path, &bytes)
}

/// Puts the keys of a safetensors file's header in order: the crate writes metadata in that of a hash, another one in each
/// process. The header is a length in 8 bytes and JSON, padded with spaces.
fn sort_header(bytes: &mut [u8]) {
    let (length, rest) = bytes.split_first_chunk_mut::<8>().expect("a header has a length");
    let header = &mut rest[..u64::from_le_bytes(*length) as usize];
    let mut json: serde_json::Value = serde_json::from_slice(header).expect("a header is JSON");
    json.sort_all_objects();
    let sorted = json.to_string();
    header[..sorted.len()].copy_from_slice(sorted.as_bytes());
    header[sorted.len()..].fill(b' ');
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
    fn a_file_of_another_kind_is_refused_with_what_it_is_and_what_to_do() {
        let html = b"\n<!DOCTYPE html><html><head>";
        let cases: [(&[u8], &str); 8] = [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
            (html, "is an HTML page: download the file itself"),
            (b"PK\x03\x04archive/data.pkl", "is a zip archive, as `torch.save` writes it"),
            (b"\x80\x02}q\x00", "is a Python pickle"),
            (b"\x1f\x8b\x08", "is compressed with gzip: unpack it"),
            (b"", "is not a whole safetensors file: it is empty"),
            (b"\x10\0\0", "is not a whole safetensors file: its header is cut off"),
            (b"\x10\0\0\0\0\0\0\0{\"a\"", "is not a whole safetensors file: its header is cut off"),
        ];
        for (bytes, says) in cases {
            let message = parse_tensors(Path::new("w"), bytes).unwrap_err().to_string();
            assert!(message.starts_with(&format!("w: {says}")), "{message}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), html).unwrap();
        let message = read_toml::<toml::Table>(file.path()).unwrap_err().to_string();
        assert!(message.ends_with("not the page that shows it; a TOML file is wanted"), "{message}");
        std::fs::write(file.path(), b"\xff\xfe").unwrap();
        let message = read_toml::<toml::Table>(file.path()).unwrap_err().to_string();
        assert!(message.ends_with("is not a text in UTF-8"), "{message}");
    }

    /// A file with tensors of these names, and metadata.
    fn written(path: &Path, names: &[&str], metadata: &[(&str, &str)]) -> Vec<u8> {
        let zero = candle_core::Tensor::zeros(3, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        write_tensors(path, names.iter().map(|name| (*name, zero.clone())), Some(metadata)).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn the_same_tensors_and_metadata_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        // Of eight keys, one order in 40,320.
        let metadata = ["h", "d", "é", "a \"b\"\n", "c", "\u{7f}", "f", "/"].map(|key| (key, "of it"));
        let first = written(&path, &["b", "a"], &metadata);
        for _ in 0..3 {
            assert_eq!(written(&path, &["b", "a"], &metadata), first);
        }
        let read = parse_metadata(&path, &first).unwrap();
        assert!(read.len() == 8 && metadata.iter().all(|(key, value)| read[*key] == *value), "{read:?}");
        assert_eq!(parse_tensors(&path, &first).unwrap().tensor("b").unwrap().shape(), [3]);
        let cut = parse_tensors(&path, &first[..first.len() - 1]).unwrap_err().to_string();
        assert!(cut.contains("bytes are more or fewer than its header says"), "{cut}");
    }

    #[test]
    fn a_missing_tensor_is_refused_with_the_names_most_like_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let missing = |names: &[&str], name: &str| {
            let bytes = written(&path, names, &[]);
            let file = parse_tensors(&path, &bytes).unwrap();
            tensor(&path, &file, name).unwrap_err().to_string()
        };
        let names = ["enc.block0.conv0.weight", "enc.block0.conv1.weight", "dec.norm.bias", "enc.block0.conv0.bias"];
        let message = missing(&names, "enc.block0.conv2.weight");
        let nearest = "enc.block0.conv0.weight, enc.block0.conv1.weight, enc.block0.conv0.bias";
        let says = format!(": tensor is missing: of the 4 tensors of the file, the nearest are {nearest}");
        assert!(message.ends_with(&says), "{message}");
        let message = missing(&["blocks.0.attn.qkv.weight"], "map_noise");
        assert!(message.contains("another architecture (it has blocks.0.attn.qkv.weight)"), "{message}");
        assert!(missing(&[], "x").ends_with("x: tensor is missing: the file has no tensors"));
    }

    #[test]
    fn tensors_that_do_not_belong_are_named_up_to_ten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let refusal = |count: usize| {
            let names: Vec<String> = (0..count).map(|index| format!("t{index:02}")).collect();
            let bytes = written(&path, &names.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
            let file = parse_tensors(&path, &bytes).unwrap();
            refuse_surplus(&path, &file, |name| name == "t00", "the network").map_err(|error| error.to_string())
        };
        assert_eq!(refusal(1), Ok(()));
        assert!(refusal(2).unwrap_err().ends_with("file: t01: tensor does not belong to the network"));
        assert!(refusal(3).unwrap_err().ends_with("file: 2 tensors do not belong to the network: t01, t02"));
        let many = refusal(13).unwrap_err();
        assert!(many.contains("12 tensors") && many.ends_with("t09, t10 and 2 more"), "{many}");
    }

    #[test]
    fn ten_names_are_given_and_the_others_counted() {
        assert_eq!(listed(&["a", "b"]), "a, b");
        assert!(listed(&(0..22).collect::<Vec<_>>()).ends_with("8, 9 and 12 more"));
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
