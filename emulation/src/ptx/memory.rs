//! Addresses.

use super::instruction::Space;

/// Where each space lies among the addresses of all; no process has memory there.
const SHARED: u64 = 0xff01 << 48;
const LOCAL: u64 = 0xff02 << 48;
/// Variables of the module.
pub(super) const GLOBALS: u64 = 0xff03 << 48;
/// Of the above: what is not the offset.
const WINDOW: u64 = 0xffff << 48;

/// NaN in every format of the kernels.
pub(super) const POISON: u8 = 0xff;

/// The address among all of one in `space`.
pub(super) fn generic(space: Space, address: u64) -> u64 {
    match space {
        Space::Shared => SHARED | u64::from(address as u32),
        Space::Local => LOCAL | u64::from(address as u32),
        Space::Generic | Space::Global | Space::Parameter => address,
    }
}

/// The address in `space` of one among all.
pub(super) fn specific(space: Space, address: u64) -> u64 {
    match space {
        Space::Shared | Space::Local => address & !WINDOW,
        Space::Generic | Space::Global | Space::Parameter => address,
    }
}

/// What a thread can reach.
pub(super) struct Memory<'a, 'b> {
    pub(super) parameters: &'a [u8],
    pub(super) globals: &'a [u8],
    pub(super) shared: &'a mut [u8],
    pub(super) outside: &'a mut [&'b mut [u8]],
}

impl Memory<'_, '_> {
    /// The bytes at an address, for reading.
    pub(super) fn read<'s>(
        &'s self,
        local: &'s [u8],
        space: Space,
        address: u64,
        bytes: usize,
    ) -> Result<&'s [u8], String> {
        if space == Space::Parameter {
            return part(self.parameters, address, bytes)
                .and_then(|range| self.parameters.get(range))
                .ok_or_else(|| outside(address));
        }
        let address = aligned(generic(space, address), bytes)?;
        let found = match address & WINDOW {
            SHARED => part(self.shared, address & !WINDOW, bytes).map(|range| &self.shared[range]),
            LOCAL => part(local, address & !WINDOW, bytes).map(|range| &local[range]),
            GLOBALS => part(self.globals, address & !WINDOW, bytes).map(|range| &self.globals[range]),
            _ => self.outside.iter().find_map(|slice| {
                let offset = address.checked_sub(slice.as_ptr() as u64)?;
                part(slice, offset, bytes).map(|range| &slice[range])
            }),
        };
        found.ok_or_else(|| outside(address))
    }

    /// The bytes at an address, for writing.
    pub(super) fn write<'s>(
        &'s mut self,
        local: &'s mut [u8],
        space: Space,
        address: u64,
        bytes: usize,
    ) -> Result<&'s mut [u8], String> {
        let address = aligned(generic(space, address), bytes)?;
        let found = match address & WINDOW {
            SHARED => part(self.shared, address & !WINDOW, bytes).map(|range| &mut self.shared[range]),
            LOCAL => part(local, address & !WINDOW, bytes).map(|range| &mut local[range]),
            _ => self.outside.iter_mut().find_map(|slice| {
                let offset = address.checked_sub(slice.as_ptr() as u64)?;
                part(slice, offset, bytes).map(|range| &mut slice[range])
            }),
        };
        found.ok_or_else(|| outside(address))
    }
}

fn part(of: &[u8], offset: u64, bytes: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(bytes)?;
    (end <= of.len()).then_some(start..end)
}

fn aligned(address: u64, bytes: usize) -> Result<u64, String> {
    match address.is_multiple_of(bytes as u64) {
        true => Ok(address),
        false => Err(format!("an access of {bytes} bytes at {address:#x} is not on a boundary of its size")),
    }
}

fn outside(address: u64) -> String {
    match address & WINDOW {
        SHARED => format!("an access at {:#x} is outside of shared memory", address & !WINDOW),
        _ => format!("an access at {address:#x} is outside of the memory"),
    }
}
