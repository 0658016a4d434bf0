//! The tensors of a pickle that PyTorch wrote: views of storages, which lie outside of it or in its bytes.

use super::constructors::{PARAMETER, STORAGE_FROM_BYTES, TENSOR, storage_dtype};
use super::legacy;
use super::pickle::{Id, Node, Pickle};
use super::state_dict::Stored;
use safetensors::Dtype;
use std::collections::HashMap;
use std::ops::Range;

/// A pickle, and where the storages that it names are in the file.
#[derive(Debug)]
pub struct Torch<'a> {
    /// The pickle.
    pub pickle: Pickle<'a>,
    /// The bytes of the storages outside of it, by key.
    storages: HashMap<String, Range<usize>>,
    /// The storages in its bytes, by the call that would read them.
    inner: HashMap<Id, (Dtype, Range<usize>)>,
}

impl<'a> Torch<'a> {
    /// A pickle with storages outside of it.
    pub fn new(pickle: Pickle<'a>, storages: HashMap<String, Range<usize>>) -> Self {
        Self { pickle, storages, inner: HashMap::new() }
    }

    /// A pickle of protocol 4 or 5 with each storage as the bytes of a file of its own, as NVlabs' code writes them.
    ///
    /// # Errors
    /// What is wrong with one of these files, whether a tensor is in it or not.
    pub fn with_storages_inside(file: &'a [u8], pickle: Pickle<'a>) -> Result<Self, String> {
        let (mut inner, mut read) = (HashMap::new(), HashMap::new());
        for (id, _) in pickle.nodes() {
            let Some((STORAGE_FROM_BYTES, args)) = pickle.call(id) else { continue };
            let [Node::Bytes(range)] = args.iter().map(|&arg| pickle.node(arg)).collect::<Vec<_>>()[..] else {
                return Err(format!("is damaged: {STORAGE_FROM_BYTES} is given what are no bytes"));
            };
            // Many calls can be given the same bytes.
            if !read.contains_key(range) {
                let saved = legacy::read(&file[..range.end], range.start)?;
                read.insert(range.clone(), saved.storage(saved.pickle.root()));
            }
            inner.extend(read[range].clone().map(|storage| (id, storage)));
        }
        Ok(Self { pickle, storages: HashMap::new(), inner })
    }

    /// The tensor that a value is; None where it is something else.
    ///
    /// # Errors
    /// How it is damaged.
    pub fn tensor(&self, id: Id) -> Option<Result<Stored, String>> {
        let pickle = &self.pickle;
        match pickle.call(id)? {
            (constructor, [tensor, ..]) if PARAMETER.contains(&constructor) => match pickle.call(*tensor)? {
                (constructor, args) if TENSOR.contains(&constructor) => Some(self.view(args)),
                _ => None,
            },
            (constructor, args) if TENSOR.contains(&constructor) => Some(self.view(args)),
            _ => None,
        }
    }

    fn view(&self, args: &[Id]) -> Result<Stored, String> {
        let pickle = &self.pickle;
        let [storage, offset, shape, strides, ..] = *args else { return Err("lacks its storage or shape".into()) };
        let (dtype, storage) = self.storage(storage).ok_or("has a storage that is not in the file")?;
        match (pickle.size(offset), pickle.sizes(shape), pickle.sizes(strides)) {
            (Some(offset), Some(shape), Some(strides)) => Stored::new(dtype, shape, strides, offset, storage),
            _ => Err("has a shape that is none".into()),
        }
    }

    /// The elements and the bytes of a storage.
    pub fn storage(&self, id: Id) -> Option<(Dtype, Range<usize>)> {
        let Node::Persistent(name) = self.pickle.node(id) else { return self.inner.get(&id).cloned() };
        let (key, dtype, part) = self.persistent(*name)?;
        let storage = self.storages.get(key)?.clone();
        // Until 2018, a storage could be a part of another one: by its own key, the first element and the number of them.
        let Some(&[_, first, count]) = part.and_then(|part| self.pickle.tuple(part)) else {
            return Some((dtype, storage));
        };
        let bytes = |elements| self.pickle.size(elements)?.checked_mul(dtype.bitsize() / 8);
        let start = storage.start.checked_add(bytes(first)?)?;
        let end = start.checked_add(bytes(count)?).filter(|&end| end <= storage.end)?;
        Some((dtype, start..end))
    }

    /// The key, the elements and the part that is meant, of a storage's name: `('storage', class, key, location, length)` in
    /// a zip, with the part behind them in the format before.
    fn persistent(&self, name: Id) -> Option<(&str, Dtype, Option<Id>)> {
        let [_, class, key, _, _, ref part @ ..] = *self.pickle.tuple(name)? else { return None };
        Some((self.pickle.str(key)?, storage_dtype(self.pickle.global(class)?)?, part.first().copied()))
    }

    /// The elements of every storage outside of the pickle, by key.
    pub fn storage_dtypes(&self) -> HashMap<&str, Dtype> {
        let names = self.pickle.nodes().filter_map(|(_, node)| match node {
            Node::Persistent(name) => self.persistent(*name),
            _ => None,
        });
        names.map(|(key, dtype, _)| (key, dtype)).collect()
    }

    /// Says where the storages are.
    pub fn place(&mut self, storages: HashMap<String, Range<usize>>) {
        self.storages = storages;
    }
}
