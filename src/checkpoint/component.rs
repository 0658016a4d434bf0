//! The weights of one network of a pipeline, in the files that diffusers and transformers write.

use super::StateDict;
use crate::files::read_json;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What the files are called: diffusers' and transformers' safetensors, then what both made with `torch.save`.
const NAMES: [(&str, &str); 4] = [
    ("diffusion_pytorch_model", "safetensors"),
    ("model", "safetensors"),
    ("diffusion_pytorch_model", "bin"),
    ("pytorch_model", "bin"),
];
/// Other precisions, which stand in a name before its ending; the first is the one that a pipeline is published in.
const VARIANTS: [&str; 3] = ["", ".fp16", ".bf16"];

/// The list of a network that is spread over several files.
#[derive(Deserialize)]
struct Index {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

/// The tensors of the network in the directory `dir`: those of its one file, or of all files that its index lists; of several
/// precisions the first of f32, f16 and bf16.
///
/// # Errors
/// [`Error::Input`] if there is none, or one is damaged or missing; [`Error::Io`] if one cannot be read.
pub fn component(dir: &Path) -> Result<StateDict> {
    for variant in VARIANTS {
        for (name, ending) in NAMES {
            let whole = dir.join(format!("{name}{variant}.{ending}"));
            if whole.is_file() {
                return of_file(&whole);
            }
            let index = dir.join(format!("{name}.{ending}.index{variant}.json"));
            if index.is_file() {
                return of_index(&index);
            }
        }
    }
    let problem =
        "has no weights: diffusion_pytorch_model.safetensors or model.safetensors is wanted, or parts with an index";
    Err(Error::input(dir.display(), problem))
}

fn of_file(path: &Path) -> Result<StateDict> {
    let mut parts = super::open(path)?.parts;
    // Of a state dict there is one part; where other things lie beside it, they lie deeper.
    Ok(parts.swap_remove(parts.iter().position(|part| part.key.is_empty()).unwrap_or(0)).tensors)
}

fn of_index(path: &Path) -> Result<StateDict> {
    let Index { weight_map } = read_json(path)?;
    let files: BTreeSet<&String> = weight_map.values().collect();
    let refuse = |problem: String| Err(Error::field(path, "weight_map", problem));
    if files.is_empty() {
        return refuse("lists no file".into());
    }
    // A name, not a path: what lies elsewhere is not the network's.
    if let Some(file) = files.iter().find(|file| Path::new(file.as_str()).file_name() != Some(file.as_ref())) {
        return refuse(format!("`{file}` is not the name of a file beside it"));
    }
    let open = |file: &String| match path.with_file_name(file) {
        file if file.is_file() => of_file(&file),
        file => Err(Error::field(path, "weight_map", format!("{} is missing", file.display()))),
    };
    let files = files.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    let joined = StateDict::joined(path, files);
    match weight_map.keys().find(|name| joined.shape(name).is_none()) {
        Some(name) => refuse(format!("the file of `{name}` does not have it")),
        None => Ok(joined),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};

    fn write(dir: &Path, file: &str, names: &[&str], dtype: DType) {
        let tensors = names.iter().map(|name| (*name, Tensor::ones((2, 3), dtype, &Device::Cpu).unwrap()));
        crate::files::write_tensors(&dir.join(file), tensors, None).unwrap();
    }

    fn read(dir: &Path) -> std::result::Result<Vec<String>, String> {
        let tensors = component(dir).map_err(|error| error.to_string())?;
        let names: Vec<String> = tensors.names().map(str::to_owned).collect();
        assert!(tensors.values(names.iter().map(String::as_str)).unwrap().concat().iter().all(|&value| value == 1.0));
        Ok(names)
    }

    #[test]
    fn a_network_is_in_one_file_or_in_those_of_its_index_at_any_precision() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap_err().contains("has no weights: diffusion_pytorch_model.safetensors or"));
        write(dir.path(), "diffusion_pytorch_model.fp16.safetensors", &["half"], DType::F16);
        assert_eq!(read(dir.path()).unwrap(), ["half"]);
        write(dir.path(), "model-00001-of-00002.safetensors", &["a"], DType::F32);
        let map = r#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
        std::fs::write(dir.path().join("model.safetensors.index.json"), map).unwrap();
        assert!(read(dir.path()).unwrap_err().ends_with("model-00002-of-00002.safetensors is missing"));
        write(dir.path(), "model-00002-of-00002.safetensors", &["c"], DType::F32);
        assert!(read(dir.path()).unwrap_err().ends_with("weight_map: the file of `b` does not have it"));
        write(dir.path(), "model-00002-of-00002.safetensors", &["b"], DType::BF16);
        assert_eq!(read(dir.path()).unwrap(), ["a", "b"]);
        std::fs::write(dir.path().join("model.safetensors.index.json"), map.replace("model-0", "../model-0")).unwrap();
        assert!(read(dir.path()).unwrap_err().contains("is not the name of a file beside it"));
        write(dir.path(), "diffusion_pytorch_model.safetensors", &["whole"], DType::F32);
        assert_eq!(read(dir.path()).unwrap(), ["whole"]);
    }
}
