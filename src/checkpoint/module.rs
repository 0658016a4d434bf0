//! Modules of PyTorch in a pickle: their tensors by path, and what NVlabs' code says of them.
//!
//! NVlabs' code pickles a module as a call of `torch_utils.persistence._reconstruct_persistent_obj` on a dictionary: the name
//! of its class, the Python text that defines it (never run) and its `__dict__`, in which are the arguments that it was made
//! with. Modules of PyTorch itself are objects whose state is their `__dict__`.

use super::constructors::PERSISTENT;
use super::pickle::Id;
use super::state_dict::Stored;
use super::torch::Torch;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Modules lie in each other to this depth, at most.
const DEPTH: usize = 16;
/// Items that the dictionaries of all modules have, at most: those of a shared one count each time.
const MOST: usize = 1 << 20;

/// What NVlabs' code says of a module.
#[derive(Clone, Debug)]
pub struct Described {
    /// The name of its class.
    pub class: String,
    /// The named arguments that it was made with.
    pub arguments: Map<String, Value>,
    /// What it keeps, as far as it is plain data.
    pub attributes: Map<String, Value>,
    /// The module that it wraps as `model`.
    pub model: Option<Box<Self>>,
}

/// The `__dict__` of a module; None for what is none.
fn dict(torch: &Torch, id: Id) -> Option<Id> {
    let pickle = &torch.pickle;
    match pickle.call(id)? {
        (PERSISTENT, [meta]) => pickle.get(*meta, "state"),
        (class, _) if class.starts_with("torch.nn.modules.") => pickle.state(id),
        _ => None,
    }
}

/// What the file says of a module; None for one that is not of NVlabs' code.
pub fn described(torch: &Torch, id: Id) -> Option<Described> {
    described_within(torch, id, 2)
}

fn described_within(torch: &Torch, id: Id, depth: usize) -> Option<Described> {
    let pickle = &torch.pickle;
    let (PERSISTENT, [meta]) = pickle.call(id)? else { return None };
    let dict = dict(torch, id)?;
    let object = |value| if let Value::Object(map) = value { map } else { Map::new() };
    // Modules, tensors and hooks become null.
    let mut attributes = object(pickle.json(dict));
    attributes.retain(|_, value| value.is_number() || value.is_string() || value.is_boolean());
    let model = pickle.get(dict, "_modules").and_then(|modules| pickle.get(modules, "model"));
    Some(Described {
        class: pickle.str(pickle.get(*meta, "class_name")?)?.to_owned(),
        arguments: pickle.get(dict, "_init_kwargs").map_or_else(Map::new, |id| object(pickle.json(id))),
        attributes,
        model: model.filter(|_| depth > 1).and_then(|id| described_within(torch, id, depth - 1)).map(Box::new),
    })
}

/// The state dict of a module: its parameters and buffers by path. None for what is no module.
///
/// # Errors
/// A tensor's path and how it is damaged, or that the modules lie too deep.
pub fn tensors(torch: &Torch, id: Id) -> Option<Result<BTreeMap<String, Stored>, String>> {
    dict(torch, id)?;
    let (mut found, mut left) = (BTreeMap::new(), MOST);
    Some(collect(torch, id, "", DEPTH, &mut left, &mut found).map(|()| found))
}

fn collect(
    torch: &Torch,
    id: Id,
    path: &str,
    depth: usize,
    left: &mut usize,
    found: &mut BTreeMap<String, Stored>,
) -> Result<(), String> {
    let pickle = &torch.pickle;
    // None stands for a module that is absent.
    let Some(dict) = dict(torch, id) else { return Ok(()) };
    let items = |field| pickle.get(dict, field).and_then(|dict| pickle.items(dict)).unwrap_or_default();
    let fields = [items("_parameters"), items("_buffers"), items("_modules")];
    let cost = fields.iter().map(|items| items.len()).sum::<usize>() + pickle.items(dict).unwrap_or_default().len() + 1;
    *left = left.checked_sub(cost).filter(|_| depth > 0).ok_or("has more modules, or deeper ones, than any network")?;
    let [parameters, buffers, modules] = fields
        .map(|items| items.iter().filter_map(|&(key, value)| Some((format!("{path}{}", pickle.str(key)?), value))));
    for (name, value) in parameters.chain(buffers) {
        if let Some(tensor) = torch.tensor(value) {
            let tensor = tensor.map_err(|problem| format!("is damaged: {name} {problem}"))?;
            found.insert(name, tensor);
        }
    }
    for (name, value) in modules {
        collect(torch, value, &format!("{name}."), depth - 1, left, found)?;
    }
    Ok(())
}
