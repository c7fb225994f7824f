//! A guest's memory as preview 1 sees it: little-endian values at 32-bit addresses, every access checked.
//!
//! Owns the layouts of iovecs. What lies outside is `FAULT`, never a trap: that is how Wasmtime's own functions answer.

use super::socket::Errno;

/// Most buffers of one call that are looked at.
const MAX_BUFFERS: u32 = 1024;
/// Most bytes that one call moves: the host copies them.
const MAX_BYTES: usize = 256 << 10;

/// Bytes at `at`.
pub(super) fn bytes(memory: &[u8], at: i32, length: u32) -> Result<&[u8], Errno> {
    let first = at.cast_unsigned() as usize;
    memory.get(first..first.saturating_add(length as usize)).ok_or(Errno::Fault)
}

/// The `N` bytes at `at` plus `offset`.
pub(super) fn array<const N: usize>(memory: &[u8], at: i32, offset: u32) -> Result<[u8; N], Errno> {
    let first = (at.cast_unsigned() as usize).saturating_add(offset as usize);
    let bytes = memory.get(first..first.saturating_add(N)).ok_or(Errno::Fault)?;
    bytes.try_into().map_err(|_| Errno::Fault)
}

pub(super) fn read_u32(memory: &[u8], at: i32, offset: u32) -> Result<u32, Errno> {
    array(memory, at, offset).map(u32::from_le_bytes)
}

/// Writes `value` at `at`, whole or not at all.
pub(super) fn write(memory: &mut [u8], at: i32, value: &[u8]) -> Result<(), Errno> {
    let first = at.cast_unsigned() as usize;
    let place = memory.get_mut(first..first.saturating_add(value.len())).ok_or(Errno::Fault)?;
    place.copy_from_slice(value);
    Ok(())
}

/// The (address, length) pairs of a call that moves bytes, cut to what one call moves; the sum of their lengths.
pub(super) fn buffers(memory: &[u8], at: i32, count: i32) -> Result<(Vec<(i32, u32)>, usize), Errno> {
    let count = count.cast_unsigned();
    if count > MAX_BUFFERS {
        return Err(Errno::Inval);
    }
    let (mut all, mut sum) = (Vec::new(), 0_usize);
    for i in 0..count {
        let (address, length) = (read_u32(memory, at, i * 8)?, read_u32(memory, at, i * 8 + 4)?);
        bytes(memory, address.cast_signed(), length)?;
        let length = length.min(u32::try_from(MAX_BYTES - sum).unwrap_or(0));
        sum += length as usize;
        if length > 0 {
            all.push((address.cast_signed(), length));
        }
    }
    Ok((all, sum))
}

/// Copies the buffers' bytes out.
pub(super) fn gather(memory: &[u8], buffers: &[(i32, u32)], sum: usize) -> Result<Vec<u8>, Errno> {
    let mut out = Vec::with_capacity(sum);
    for (address, length) in buffers {
        out.extend_from_slice(bytes(memory, *address, *length)?);
    }
    Ok(out)
}

/// Copies `data` into the buffers, which have room for it.
pub(super) fn scatter(memory: &mut [u8], buffers: &[(i32, u32)], mut data: &[u8]) -> Result<(), Errno> {
    for (address, length) in buffers {
        let (now, rest) = data.split_at(data.len().min(*length as usize));
        write(memory, *address, now)?;
        data = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_outside_memory_and_wrapping_ones_are_faults() {
        let mut memory = vec![0_u8; 64];
        write(&mut memory, 0, &16_u32.to_le_bytes()).expect("inside");
        write(&mut memory, 4, &8_u32.to_le_bytes()).expect("inside");
        assert_eq!(buffers(&memory, 0, 1), Ok((vec![(16, 8)], 8)));
        write(&mut memory, 4, &u32::MAX.to_le_bytes()).expect("inside");
        assert_eq!(buffers(&memory, 0, 1), Err(Errno::Fault));
        assert_eq!(buffers(&memory, 60, 1), Err(Errno::Fault));
        assert_eq!(buffers(&memory, -4, 1), Err(Errno::Fault));
        assert_eq!(buffers(&memory, 0, -1), Err(Errno::Inval));
        assert_eq!(write(&mut memory, 62, &[0; 4]), Err(Errno::Fault));
    }

    #[test]
    fn data_is_scattered_in_order() {
        let mut memory = vec![0_u8; 16];
        let two = [(0, 2), (8, 4)];
        scatter(&mut memory, &two, b"abcde").expect("room");
        assert_eq!((&memory[..2], &memory[8..12]), (&b"ab"[..], &b"cde\0"[..]));
        assert_eq!(gather(&memory, &two, 6), Ok(b"abcde\0".to_vec()));
    }
}
