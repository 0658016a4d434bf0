//! The constructors that a pickle may name: those that make data of data. They are only recorded, never run, so the list
//! keeps out what has no meaning here rather than what is dangerous; one that is not in it is refused by its name.

use safetensors::Dtype;

/// Constructors of tensors, by how they are used.
pub const TENSOR: [&str; 2] = ["torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"];
/// Constructors of a parameter, whose first argument is its tensor.
pub const PARAMETER: [&str; 2] = ["torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"];
/// A storage as the bytes of a file of its own.
pub const STORAGE_FROM_BYTES: &str = "torch.storage._load_from_bytes";
/// A module of NVlabs' code, with its state and its Python text.
pub const PERSISTENT: &str = "torch_utils.persistence._reconstruct_persistent_obj";
/// Dictionaries that keep their items as such.
pub const DICTS: [&str; 3] = ["collections.OrderedDict", "collections.defaultdict", "dnnlib.util.EasyDict"];

const OTHERS: [&str; 13] = [
    "_codecs.encode",
    "argparse.Namespace",
    "collections.Counter",
    "collections.deque",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.Size",
    "torch.device",
    "types.SimpleNamespace",
];
/// Of `builtins`, `__builtin__` in Python 2.
const BUILTINS: [&str; 12] =
    ["bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "set", "slice", "tuple"];
const DTYPES: [&str; 12] = [
    "bfloat16",
    "bool",
    "complex64",
    "float16",
    "float32",
    "float64",
    "half",
    "int16",
    "int32",
    "int64",
    "int8",
    "uint8",
];

/// Whether a pickle may name `name`, a module and a name in it.
pub fn is_known(name: &str) -> bool {
    let after = |prefix| name.strip_prefix(prefix);
    let is_class =
        |name: &str| name.len() < 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._".contains(&b));
    [&TENSOR[..], &PARAMETER, &[STORAGE_FROM_BYTES, PERSISTENT], &DICTS, &OTHERS].iter().any(|some| some.contains(&name))
        || storage_dtype(name).is_some()
        || after("torch.").is_some_and(|dtype| DTYPES.contains(&dtype))
        || after("builtins.").or(after("__builtin__.")).is_some_and(|class| BUILTINS.contains(&class))
        // Containers, and layers that are no network's own.
        || after("torch.nn.modules.").is_some_and(is_class)
}

/// The elements of a storage of this class.
pub fn storage_dtype(class: &str) -> Option<Dtype> {
    let elements = class.strip_prefix("torch.")?.strip_suffix("Storage")?;
    Some(match elements.strip_prefix("cuda.").unwrap_or(elements) {
        "Double" => Dtype::F64,
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::BOOL,
        "ComplexFloat" => Dtype::C64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_data_is_known_and_what_runs_code_is_not() {
        for name in ["torch.FloatStorage", "torch.float16", "builtins.set", "torch.nn.modules.container.ModuleDict"] {
            assert!(is_known(name), "{name}");
        }
        for name in ["posix.system", "builtins.eval", "torch.load", "torch.nn.modules.a b", "torch.hub.load", "torch."]
        {
            assert!(!is_known(name), "{name}");
        }
    }
}
