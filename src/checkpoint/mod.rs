//! Checkpoints that others wrote: the tensors in safetensors files, in PyTorch's files and in NVlabs' pickles, as
//! [`StateDict`]s. Which network they are of is for `nets` to say.
//!
//! Nothing in a file is run: see [`pickle`].

mod component;
mod constructors;
mod legacy;
pub mod lora;
pub mod module;
pub mod pickle;
mod state_dict;
mod torch;
mod torch_zip;

pub use component::component;
pub use module::Described;
pub use state_dict::StateDict;

use crate::files::listed;
use crate::{Error, Result};
use pickle::{Id, Pickle};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use torch::Torch;

/// Endings of the files that a directory is searched for.
const ENDINGS: [&str; 5] = ["safetensors", "pth", "pt", "ckpt", "pkl"];
/// Dictionaries lie in each other to this depth, at most.
const DEPTH: usize = 8;
/// Modules outside of others that a file has, at most.
const MODULES: usize = 64;

/// Tensors that lie together in a file.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where: the keys of the dictionaries that lead there, with dots between them; empty for the file itself.
    pub key: String,
    /// The tensors.
    pub tensors: StateDict,
    /// What the file says of the module that they are of.
    pub described: Option<Described>,
}

/// A file with tensors.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The file.
    pub path: PathBuf,
    /// The JSON beside it, where a directory was given.
    pub config: Option<PathBuf>,
    /// Its tensors, those that lie together.
    pub parts: Vec<Part>,
}

/// Reads the checkpoint `path`, or the only one in the directory `path`.
///
/// # Errors
/// [`Error::Input`] if it is none that is read, is damaged or names a constructor that is not known; if a directory has none
/// or several. [`Error::Io`] if it cannot be read.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let (path, config) = if path.is_dir() { only_file(path)? } else { (path.to_owned(), None) };
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let parts = parse(&path, bytes)?;
    if parts.is_empty() {
        return Err(Error::input(path.display(), "has no named tensors; a network's state dict is wanted"));
    }
    Ok(Checkpoint { path, config, parts })
}

/// The checkpoint in a directory, and its config.
fn only_file(dir: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let refuse = |problem: String| Err(Error::input(dir.display(), problem));
    let entries = std::fs::read_dir(dir).map_err(Error::io(dir))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().map_err(Error::io(dir))?;
    let is_checkpoint = |path: &PathBuf| {
        path.is_file()
            && path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| ENDINGS.contains(&ending))
    };
    let mut files: Vec<PathBuf> = paths.into_iter().filter(is_checkpoint).collect();
    files.sort();
    let [file] = &files[..] else {
        let endings = ENDINGS.map(|ending| format!(".{ending}")).join(", ");
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap_or_default().display()).collect();
        return match names[..] {
            [] => refuse(format!("has no file that ends in one of {endings}")),
            _ => refuse(format!("has several checkpoints, {}; give one of them", listed(&names))),
        };
    };
    let config = [file.with_extension("json"), dir.join("config.json")].into_iter().find(|path| path.is_file());
    Ok((file.clone(), config))
}

fn parse(path: &Path, bytes: Vec<u8>) -> Result<Vec<Part>> {
    let file = Arc::new(bytes);
    let torch = match file[..] {
        [b'P', b'K', 3, 4, ..] => torch_zip::read(&file),
        [0x80, 2..=5, ..] => Pickle::read(&file, 0).and_then(|pickle| match legacy::begins_with(&pickle) {
            true => legacy::read(&file, 0),
            false => Torch::with_storages_inside(&file, pickle),
        }),
        _ => {
            let tensors = StateDict::of_safetensors(path, file)?;
            let part = Part { key: String::new(), tensors, described: None };
            return Ok(Some(part).filter(|part| !part.tensors.is_empty()).into_iter().collect());
        }
    };
    let refuse = |problem: String| Error::input(path.display(), problem);
    let torch = torch.map_err(refuse)?;
    let mut search = Search { path, file: &file, torch: &torch, seen: HashSet::new(), modules: 0, parts: Vec::new() };
    search.visit(torch.pickle.root(), String::new(), DEPTH).map_err(refuse)?;
    Ok(search.parts)
}

/// The search of a pickle's dictionaries for tensors.
struct Search<'a> {
    path: &'a Path,
    file: &'a Arc<Vec<u8>>,
    torch: &'a Torch<'a>,
    /// Dictionaries may name each other in circles.
    seen: HashSet<Id>,
    modules: usize,
    parts: Vec<Part>,
}

impl Search<'_> {
    /// Keeps the tensors of a module, or those that are items of a dictionary, and goes on in the dictionaries in it.
    fn visit(&mut self, id: Id, key: String, depth: usize) -> std::result::Result<(), String> {
        if depth == 0 || !self.seen.insert(id) {
            return Ok(());
        }
        if let Some(tensors) = module::tensors(self.torch, id) {
            self.modules += 1;
            if self.modules > MODULES {
                return Err(format!("has more than {MODULES} modules beside each other; save the network's alone"));
            }
            self.keep(key, tensors?, module::described(self.torch, id));
            return Ok(());
        }
        let Some(items) = self.torch.pickle.items(id) else { return Ok(()) };
        let mut tensors = BTreeMap::new();
        for &(name, value) in items {
            let name = match (self.torch.pickle.str(name), self.torch.pickle.size(name)) {
                (Some(name), _) => name.to_owned(),
                (None, Some(number)) => number.to_string(),
                (None, None) => continue,
            };
            if let Some(tensor) = self.torch.tensor(value) {
                let tensor = tensor.map_err(|problem| format!("is damaged: {name} {problem}"))?;
                tensors.insert(name, tensor);
            } else {
                let inner = if key.is_empty() { name } else { format!("{key}.{name}") };
                self.visit(value, inner, depth - 1)?;
            }
        }
        self.keep(key, tensors, None);
        Ok(())
    }

    fn keep(&mut self, key: String, tensors: BTreeMap<String, state_dict::Stored>, described: Option<Described>) {
        if !tensors.is_empty() {
            let tensors = StateDict::new(self.path, self.file.clone(), tensors);
            self.parts.push(Part { key, tensors, described });
        }
    }
}
