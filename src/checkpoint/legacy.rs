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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storages_follow_the_pickles_and_may_be_parts_of_each_other() {
        let mut file = b"before".to_vec();
        file.extend([&b"\x80\x02\x8a\x0a"[..], &MAGIC, b".\x80\x02M\xe9\x03.\x80\x02}."].concat());
        // A tensor of the elements 2 and 3 of a storage, in a part that begins at its element 1.
        file.extend(b"\x80\x02}(X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(");
        file.extend(
            b"(X\x07\0\0\0storagectorch\nHalfStorage\nX\x01\0\0\0aX\x03\0\0\0cpuK\x05(X\x01\0\0\0vK\x01K\x03ttQ",
        );
        file.extend(b"K\x01K\x02\x85K\x01\x85\x89NtRu.");
        file.extend(b"\x80\x02]X\x01\0\0\0aa.");
        file.extend(5u64.to_le_bytes());
        file.extend([0.0, 1.0, 2.0, 3.0, 4.0].iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()));
        let torch = read(&file, 6).unwrap();
        let tensor = torch.tensor(torch.pickle.get(torch.pickle.root(), "w").unwrap()).unwrap().unwrap();
        assert_eq!(tensor.values(&file).unwrap(), [2.0, 3.0]);
        let cut = read(&file[..file.len() - 1], 6).unwrap_err();
        assert_eq!(cut, "is not a whole PyTorch file: its storages are cut off");
    }
}
