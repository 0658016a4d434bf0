//! PyTorch's file format before it was a zip (until 1.6), which still is that of the storages in NVlabs' pickles: pickles of a
//! magic number, of a version, of facts about the machine, of the object and of the storages' keys; then each storage as the
//! number of its elements (int64) and their bytes.

use super::pickle::{Node, Pickle};
use super::torch::Torch;
use std::collections::HashMap;

/// 0x1950a86a20f9469cfc6c, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Whether a pickle is the first one of such a file.
pub fn begins_with(pickle: &Pickle) -> bool {
    pickle.long(pickle.root()) == Some(&MAGIC)
}

/// Reads the file that begins at `start` and ends with `bytes`.
///
/// # Errors
/// What is wrong with it, for behind the file's name.
pub fn read(bytes: &[u8], start: usize) -> Result<Torch<'_>, String> {
    let magic = Pickle::read(bytes, start)?;
    if !begins_with(&magic) {
        return Err("is damaged: a tensor's bytes are not in PyTorch's format".into());
    }
    let version = Pickle::read(bytes, magic.end())?;
    let machine = Pickle::read(bytes, version.end())?;
    let little_endian = machine.get(machine.root(), "little_endian").map(|id| machine.node(id));
    if matches!(little_endian, Some(Node::Bool(false))) {
        return Err("was written on a big-endian machine; save it on a little-endian one".into());
    }
    let pickle = Pickle::read(bytes, machine.end())?;
    let keys = Pickle::read(bytes, pickle.end())?;
    let Node::List(listed) = keys.node(keys.root()) else {
        return Err("is damaged: the keys of its storages are no list".into());
    };
    let mut torch = Torch::new(pickle, HashMap::new());
    let (mut storages, mut at) = (HashMap::new(), keys.end());
    let dtypes = torch.storage_dtypes();
    for &key in listed {
        let cut_off = "is not a whole PyTorch file: its storages are cut off";
        let key = keys.str(key).ok_or(cut_off)?;
        let dtype = dtypes.get(key).ok_or("is damaged: it has a storage of which nothing is said")?;
        let count = bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|count| u64::from_le_bytes(*count));
        let length =
            usize::try_from(count.ok_or(cut_off)?).ok().and_then(|count| count.checked_mul(dtype.bitsize() / 8));
        let end = length.and_then(|length| (at + 8).checked_add(length)).filter(|&end| end <= bytes.len());
        let end = end.ok_or(cut_off)?;
        storages.insert(key.to_owned(), at + 8..end);
        at = end;
    }
    drop(dtypes);
    torch.place(storages);
    Ok(torch)
}
