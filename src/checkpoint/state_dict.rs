//! Named tensors of a file, read when they are asked for.

use crate::files::{listed, write_tensors};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What code wraps a network in puts these before its names: DistributedDataParallel, a preconditioning or Lightning's module,
/// `torch.compile`.
const WRAPPERS: [&str; 3] = ["module.", "model.", "_orig_mod."];

/// A tensor that lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    /// By axis, in elements.
    strides: Vec<usize>,
    /// The element that comes first, of those of the storage.
    offset: usize,
    /// The bytes of the file in which its elements are, among others.
    storage: Range<usize>,
}

impl Stored {
    /// A view of a storage.
    ///
    /// # Errors
    /// How it does not fit into the storage.
    pub(super) fn new(
        dtype: Dtype,
        shape: Vec<usize>,
        strides: Vec<usize>,
        offset: usize,
        storage: Range<usize>,
    ) -> std::result::Result<Self, String> {
        let held = storage.len() * 8 / dtype.bitsize();
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let last = shape.iter().zip(&strides).try_fold(offset, |last, (&size, &stride)| {
            size.saturating_sub(1).checked_mul(stride).and_then(|more| last.checked_add(more))
        });
        match (elements, last) {
            _ if shape.len() != strides.len() => Err("has a stride too many or too few".into()),
            (Some(0), _) => Ok(Self { dtype, shape, strides, offset, storage }),
            // Values that stand for many would let a small file ask for any memory.
            (Some(elements), Some(last)) if elements <= held && last < held => {
                Ok(Self { dtype, shape, strides, offset, storage })
            }
            _ => Err(format!("shape {shape:?} does not fit into its {held} stored values")),
        }
    }

    /// A view of all of a storage, row-major.
    fn whole(dtype: Dtype, shape: &[usize], storage: Range<usize>) -> std::result::Result<Self, String> {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = shape[axis].saturating_mul(strides[axis]);
        }
        Self::new(dtype, shape.to_vec(), strides, 0, storage)
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether it has elements, which follow each other in the storage.
    fn is_contiguous(&self) -> bool {
        let mut next = 1;
        !self.shape.contains(&0)
            && self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
                let fits = size == 1 || stride == next;
                next *= size;
                fits
            })
    }

    /// The places of its elements in the storage, row-major.
    fn places(&self) -> Vec<usize> {
        if self.shape.contains(&0) {
            return Vec::new();
        }
        let mut places = vec![self.offset];
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            places = places.iter().flat_map(|&place| (0..size).map(move |index| place + index * stride)).collect();
        }
        places
    }

    /// Its elements as f32, row-major; None where they are no floats.
    pub(super) fn values(&self, file: &[u8]) -> Option<Vec<f32>> {
        let bytes = &file[self.storage.clone()];
        Some(match self.dtype {
            Dtype::F64 => self.picked(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::F32 => self.picked(bytes, f32::from_le_bytes),
            Dtype::F16 => self.picked(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => self.picked(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            _ => return None,
        })
    }

    /// Its elements of N bytes each in the bytes of the storage.
    fn picked<const N: usize>(&self, bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        let elements = bytes.as_chunks::<N>().0;
        if self.is_contiguous() {
            let count = self.shape.iter().product();
            return elements[self.offset..][..count].iter().map(|&bytes| value(bytes)).collect();
        }
        self.places().into_iter().map(|place| value(elements[place])).collect()
    }
}

/// Named tensors of a file, or of the files that share a network's between them.
#[derive(Clone, Debug)]
pub struct StateDict {
    path: PathBuf,
    /// What stands before every name in the file.
    prefix: String,
    /// By name, with the bytes of its file.
    tensors: BTreeMap<String, (Arc<Vec<u8>>, Stored)>,
}

impl StateDict {
    pub(super) fn new(path: &Path, file: Arc<Vec<u8>>, tensors: BTreeMap<String, Stored>) -> Self {
        let tensors = tensors.into_iter().map(|(name, stored)| (name, (file.clone(), stored))).collect();
        Self { path: path.to_owned(), prefix: String::new(), tensors }
    }

    /// The tensors of all of these files, which `path` lists.
    pub(super) fn joined(path: &Path, files: Vec<Self>) -> Self {
        let tensors = files.into_iter().flat_map(|file| file.tensors).collect();
        Self { path: path.to_owned(), prefix: String::new(), tensors }
    }

    /// The tensors of a safetensors file.
    ///
    /// # Errors
    /// [`Error::Input`] if it is none, or not whole.
    pub fn of_safetensors(path: &Path, file: Arc<Vec<u8>>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, view) in crate::files::parse_tensors(path, &file)?.iter() {
            let start = view.data().as_ptr() as usize - file.as_ptr() as usize;
            let stored = Stored::whole(view.dtype(), view.shape(), start..start + view.data().len());
            tensors.insert(name.to_owned(), stored.map_err(|problem| Error::field(path, name, problem))?);
        }
        Ok(Self::new(path, file, tensors))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What stands before every name in the file.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The names, in their order as text.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether it has no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// How many tensors it has.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// The shape of a tensor, where it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, stored)| stored.shape())
    }

    /// The elements of tensors as f32, row-major. They may be stored as F64, F32, F16 and BF16, mixed.
    ///
    /// # Errors
    /// [`Error::Input`] with the names of those whose elements are no floats or not finite, or that are not there.
    pub fn values<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Vec<f32>>> {
        let (mut values, mut others, mut infinite) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            let full = format!("{}{name}", self.prefix);
            let held = self.tensors.get(name).ok_or_else(|| Error::field(&self.path, &full, "tensor is missing"))?;
            let (file, tensor) = held;
            match tensor.values(file) {
                // After the conversion: a value of f64 may be too large for f32.
                Some(floats) if floats.iter().all(|value| value.is_finite()) => values.push(floats),
                Some(_) => infinite.push(full),
                None => others.push(format!("{full} ({:?})", tensor.dtype)),
            }
        }
        let refuse = |problem| Err(Error::input(self.path.display(), problem));
        match (&others[..], &infinite[..]) {
            ([], []) => Ok(values),
            ([], names) => refuse(format!("has values that are not finite in {}", listed(names))),
            (names, _) => refuse(format!("has weights that are none of F64, F32, F16, BF16: {}", listed(names))),
        }
    }

    /// The tensors whose names begin with `prefix`, by what comes after it.
    pub fn under(&self, prefix: &str) -> Self {
        // Who asks for bare names knows of the wrapped ones beside them.
        let bare = |name: &str| prefix.is_empty() && !wrapper(name).is_empty();
        let named = self.tensors.iter().filter(|(name, _)| !bare(name));
        let short = named.filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())));
        let prefix = format!("{}{prefix}", self.prefix);
        Self { path: self.path.clone(), prefix, tensors: short.collect() }
    }

    /// The same tensors under other names.
    pub fn renamed(&self, name: impl Fn(&str) -> String) -> Self {
        let tensors = self.tensors.iter().map(|(old, tensor)| (name(old), tensor.clone())).collect();
        Self { tensors, ..self.clone() }
    }

    /// The same tensors without those of these names.
    pub fn without(mut self, is_left_out: impl Fn(&str) -> bool) -> Self {
        self.tensors.retain(|name, _| !is_left_out(name));
        self
    }

    /// The same tensors, but of those whose names `are_vectors` the last axes that have one element are left out: a convolution of
    /// one pixel is a linear layer.
    pub fn squeezed(mut self, are_vectors: impl Fn(&str) -> bool) -> Self {
        for (name, (_, stored)) in &mut self.tensors {
            while are_vectors(name) && stored.shape.len() > 2 && stored.shape.ends_with(&[1]) {
                stored.shape.pop();
                stored.strides.pop();
            }
        }
        self
    }

    /// The same tensors, but for these values of some, row-major.
    ///
    /// # Panics
    /// For a name that it has not, or another number of values.
    pub fn with_values(mut self, values: BTreeMap<String, Vec<f32>>) -> Self {
        for (name, values) in values {
            let (file, stored) = self.tensors.get_mut(&name).expect("one of its names");
            let shape = stored.shape.clone();
            *file = Arc::new(values.iter().flat_map(|value| value.to_le_bytes()).collect());
            *stored = Stored::whole(Dtype::F32, &shape, 0..file.len()).expect("as many values as before");
            assert_eq!(shape.iter().product::<usize>(), values.len(), "values of {name}");
        }
        self
    }

    /// Writes them as f32 to a safetensors file, `prefix` before every name.
    ///
    /// # Errors
    /// As [`Self::values`]; [`Error::Io`] if the file cannot be written.
    pub fn write(&self, path: &Path, prefix: &str) -> Result<()> {
        let tensor = |name: &str| {
            let shape = self.shape(name).expect("one of its names");
            Ok((format!("{prefix}{name}"), Tensor::from_vec(self.values([name])?.concat(), shape, &Device::Cpu)?))
        };
        write_tensors(path, self.names().map(tensor).collect::<Result<Vec<_>>>()?, None)
    }

    /// The tensors by what wraps them: those under `model.`, under `module.model.` and so on, and the bare ones.
    pub fn unwrapped(&self) -> Vec<Self> {
        let mut groups = BTreeMap::<&str, BTreeMap<String, _>>::new();
        for (name, tensor) in &self.tensors {
            let wrapper = wrapper(name);
            groups.entry(wrapper).or_default().insert(name[wrapper.len()..].to_owned(), tensor.clone());
        }
        let group =
            |(wrapper, tensors)| Self { path: self.path.clone(), prefix: format!("{}{wrapper}", self.prefix), tensors };
        groups.into_iter().map(group).collect()
    }
}

/// What of a name the wrappers of a network put there.
fn wrapper(name: &str) -> &str {
    let mut rest = name;
    while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| rest.strip_prefix(wrapper)) {
        rest = inner;
    }
    &name[..name.len() - rest.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_floats_become_f32_and_everything_else_is_refused_by_name() {
        use candle_core::{DType, Device, Tensor};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mixed");
        let tensor = |dtype| Tensor::new(&[[1f32, -0.5], [0.25, 3.0]], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let infinite = Tensor::new(&[f64::MAX], &Device::Cpu).unwrap();
        let tensors =
            [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32), ("f64", DType::F64), ("i", DType::I64)];
        let tensors = tensors.map(|(name, dtype)| (name, tensor(dtype)));
        crate::files::write_tensors(&path, tensors.into_iter().chain([("large", infinite)]), None).unwrap();
        let file = Arc::new(std::fs::read(&path).unwrap());
        let tensors = StateDict::of_safetensors(&path, file).unwrap();
        for values in tensors.values(["f16", "bf16", "f32", "f64"]).unwrap() {
            assert_eq!(values, [1.0, -0.5, 0.25, 3.0]);
        }
        let refusal = |name| tensors.values([name]).unwrap_err().to_string();
        assert!(refusal("i").ends_with("mixed: has weights that are none of F64, F32, F16, BF16: i (I64)"));
        // Too large for f32.
        assert!(refusal("large").ends_with("mixed: has values that are not finite in large"));
    }

    #[test]
    fn a_view_is_within_its_storage_and_has_no_value_twice() {
        let view = |shape: &[usize], strides: &[usize], offset| {
            Stored::new(Dtype::F32, shape.to_vec(), strides.to_vec(), offset, 8..8 + 4 * 6)
        };
        assert_eq!(view(&[2, 3], &[1, 2], 0).unwrap().places(), [0, 2, 4, 1, 3, 5]);
        assert_eq!(view(&[], &[], 5).unwrap().places(), [5]);
        assert!(view(&[9, 0], &[1, 1], 99).unwrap().places().is_empty());
        for (shape, strides, offset) in [
            (&[2, 3][..], &[3, 1][..], 1),
            (&[7], &[0], 0),
            (&[2], &[usize::MAX], 0),
            (&[usize::MAX, 3], &[1, 1], 0),
            (&[3], &[2, 1], 0),
        ] {
            assert!(view(shape, strides, offset).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn wrappers_are_parted_from_names_in_any_order() {
        assert_eq!(
            ["model.a", "module._orig_mod.a.model.b", "a.model.b"].map(wrapper),
            ["model.", "module._orig_mod.", ""]
        );
    }
}
