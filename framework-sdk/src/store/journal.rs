//! Where transactions are durable before they are in the database: two areas of a file that take turns.
//!
//! A commit of a database writes a dozen pages and costs half a millisecond beside its fsync; a frame here is one write into room that the
//! file has already. The database gets what one area holds at once, while the other fills up (write-ahead logging; after the double-buffered
//! log of ARIES implementations, and the rules of the agent's checkpoint log for torn ends). Owns the layout of the file and which of its
//! frames count. Knows nothing of databases, and of transactions only how they become bytes.
//!
//! File: a header (magic, id), then two areas. Frame: length, sequence number, checksum over all of it, payload; each begins at a multiple
//! of [`ALIGN`]. Numbers go up by one from frame to frame, through both areas: what breaks the row is left from an earlier turn.

use super::Writes;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8; 8] = b"smaltij1";
/// Room of the header.
const HEADER: u64 = 4096;
/// Room of one area.
pub(super) const AREA: u64 = 2 << 20;
/// Frames begin at multiples of this.
const ALIGN: u64 = 64;
/// Length, sequence number, checksum.
const FRAME_HEAD: usize = 4 + 8 + 16;

/// The open file.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    area: u64,
    /// Where the next frame goes, in the area.
    at: u64,
    /// Number of the next frame.
    next: u64,
    buffer: Vec<u8>,
}

/// Why what is in a journal cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// It is not the one that the database was used with.
    Other,
    /// A frame is broken, and a later one is whole: no crash does that.
    At(u64),
}

impl Journal {
    /// Opens the file, or makes it with all its room; `next` is the number of the first frame that will be written, `id` names it.
    pub(super) fn open(path: &Path, id: u64, next: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() != HEADER + 2 * AREA {
            file.set_len(0)?;
            // Real zeros: blocks that were never written would cost each first write an entry in the file system's own journal.
            let zeros = vec![0; 1 << 16];
            let mut at = 0;
            while at < HEADER + 2 * AREA {
                let n = zeros.len().min(usize::try_from(HEADER + 2 * AREA - at).unwrap_or(usize::MAX));
                file.write_all_at(&zeros[..n], at)?;
                at += n as u64;
            }
        }
        file.write_all_at(&[MAGIC.as_slice(), &id.to_le_bytes()].concat(), 0)?;
        file.sync_all()?;
        Ok(Self { file, area: 0, at: 0, next, buffer: Vec::new() })
    }

    /// The number of the last frame that was written.
    pub(super) const fn last(&self) -> u64 {
        self.next - 1
    }

    /// Makes a transaction durable. False: there is no room, and nothing was written.
    ///
    /// # Errors
    /// What the disk says; then it is not known whether the frame is there.
    pub(super) fn append(&mut self, writes: &Writes) -> io::Result<bool> {
        self.buffer.clear();
        self.buffer.resize(FRAME_HEAD, 0);
        encode(writes, &mut self.buffer);
        let length = (self.buffer.len() as u64).next_multiple_of(ALIGN);
        if self.at + length > AREA {
            return Ok(false);
        }
        seal(&mut self.buffer, self.next);
        self.file.write_all_at(&self.buffer, HEADER + self.area * AREA + self.at)?;
        self.file.sync_data()?;
        self.at += length;
        self.next += 1;
        if self.buffer.capacity() > 1 << 18 {
            self.buffer = Vec::new();
        }
        Ok(true)
    }

    /// The next frames go to the other area, over what is there.
    pub(super) const fn turn(&mut self) {
        self.area = 1 - self.area;
        self.at = 0;
    }
}

/// The transactions behind number `applied`, in their order, with their numbers.
///
/// # Errors
/// What the disk says; or, within, that the file is not what was written.
pub(super) fn read(path: &Path, id: u64, applied: u64) -> io::Result<Result<Vec<(u64, Writes)>, Damage>> {
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Err(Damage::Other)),
        bytes => bytes?,
    };
    if !bytes.starts_with(MAGIC) || bytes.get(8..16) != Some(&id.to_le_bytes()) {
        return Ok(Err(Damage::Other));
    }
    let mut all = Vec::new();
    for area in 0..2 {
        let start = usize::try_from(HEADER + area * AREA).unwrap_or(usize::MAX);
        let area = &bytes[start.min(bytes.len())..bytes.len().min(start + usize::try_from(AREA).unwrap_or(0))];
        match read_area(area, applied) {
            Ok(frames) => all.extend(frames),
            Err(at) => return Ok(Err(Damage::At(start as u64 + at))),
        }
    }
    all.sort_by_key(|(number, _)| *number);
    // One that was not made durable before a later one cannot be: commits wait for each other.
    let in_a_row = all.iter().zip(applied + 1..).take_while(|((number, _), expected)| number == expected).count();
    if in_a_row < all.len() {
        return Ok(Err(Damage::At(0)));
    }
    Ok(Ok(all))
}

/// Frames of one area behind `applied`. An error is where one is broken in the midst of others.
fn read_area(area: &[u8], applied: u64) -> Result<Vec<(u64, Writes)>, u64> {
    let align = usize::try_from(ALIGN).unwrap_or(1);
    let mut all: Vec<(u64, Writes)> = Vec::new();
    let (mut at, mut last) = (0, None);
    while let Some((number, payload, length)) = frame(&area[at..]) {
        if last.is_some_and(|last| number != last + 1) {
            break;
        }
        last = Some(number);
        if number > applied {
            all.push((number, decode(payload).ok_or(at as u64)?));
        }
        at += length.next_multiple_of(align);
        if at >= area.len() {
            break;
        }
    }
    // What is left from an earlier turn has lower numbers. A higher one behind a broken frame was written after it.
    let newest = last.unwrap_or(applied);
    let mut behind = at;
    while behind < area.len() {
        if frame(&area[behind..]).is_some_and(|(number, ..)| number > newest) {
            return Err(at as u64);
        }
        behind += align;
    }
    Ok(all)
}

fn checksum(number: u64, payload: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(payload);
    let mut sum = [0; 16];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    sum
}

fn seal(frame: &mut [u8], number: u64) {
    let (head, payload) = frame.split_at_mut(FRAME_HEAD);
    head[..4].copy_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    head[4..12].copy_from_slice(&number.to_le_bytes());
    head[12..].copy_from_slice(&checksum(number, payload));
}

/// The frame that begins here, if a whole one does: number, payload, length.
fn frame(bytes: &[u8]) -> Option<(u64, &[u8], usize)> {
    let (head, rest) = bytes.split_at_checked(FRAME_HEAD)?;
    let length = usize::try_from(u32::from_le_bytes(head[..4].try_into().ok()?)).ok()?;
    let number = u64::from_le_bytes(head[4..12].try_into().ok()?);
    let payload = rest.get(..length).filter(|_| number > 0)?;
    (head[12..] == checksum(number, payload)).then_some((number, payload, FRAME_HEAD + length))
}

/// Tables, each with its keys, each with a value or without.
fn encode(writes: &Writes, out: &mut Vec<u8>) {
    let put = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(bytes);
    };
    for (table, keys) in writes.tables() {
        put(out, table.as_bytes());
        out.extend(u32::try_from(keys.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (key, value) in keys {
            put(out, key);
            out.push(u8::from(value.is_some()));
            put(out, value.as_deref().unwrap_or_default());
        }
    }
}

fn decode(mut bytes: &[u8]) -> Option<Writes> {
    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = bytes.split_at_checked(n)?;
        *bytes = rest;
        Some(taken)
    }
    fn number(bytes: &mut &[u8]) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?)).ok()
    }
    fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let n = number(bytes)?;
        take(bytes, n)
    }
    let mut writes = Writes::default();
    while !bytes.is_empty() {
        let table = std::str::from_utf8(text(&mut bytes)?).ok()?;
        for _ in 0..number(&mut bytes)? {
            let key = text(&mut bytes)?.to_vec();
            let is_there = take(&mut bytes, 1)? == [1];
            let value = text(&mut bytes)?.to_vec();
            writes.set(table, key, is_there.then_some(value));
        }
    }
    Some(writes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(n: u64) -> Writes {
        let mut writes = Writes::default();
        writes.put("t", n.to_le_bytes(), vec![b'x'; usize::try_from(n % 200).unwrap()]);
        writes.delete("other", n.to_le_bytes());
        writes
    }

    fn numbers(path: &Path, applied: u64) -> Result<Vec<u64>, Damage> {
        read(path, 7, applied).unwrap().map(|all| {
            for (number, w) in &all {
                assert_eq!(*w, writes(*number));
            }
            all.into_iter().map(|(number, _)| number).collect()
        })
    }

    fn written(path: &Path, from: u64, n: u64) -> Journal {
        let mut journal = Journal::open(path, 7, from).unwrap();
        (from..from + n).for_each(|i| assert!(journal.append(&writes(i)).unwrap()));
        journal
    }

    #[test]
    fn what_was_appended_is_read_in_its_order_through_both_areas() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut journal = written(&path, 1, 5);
        journal.turn();
        (6..9).for_each(|i| assert!(journal.append(&writes(i)).unwrap()));
        assert_eq!(numbers(&path, 0).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(numbers(&path, 4).unwrap(), [5, 6, 7, 8]);
        // The first area begins anew: what is left of it does not count.
        journal.turn();
        assert!(journal.append(&writes(9)).unwrap());
        assert_eq!(numbers(&path, 5).unwrap(), [6, 7, 8, 9]);
        assert_eq!(journal.last(), 9);
        assert_eq!(read(&path, 8, 0).unwrap(), Err(Damage::Other));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&path, 7, 0).unwrap(), Err(Damage::Other));
    }

    #[test]
    fn an_area_that_is_full_takes_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut journal = written(&path, 1, 0);
        let mut large = Writes::default();
        large.put("t", "k", vec![0; 900_000]);
        assert!(journal.append(&large).unwrap() && journal.append(&large).unwrap() && !journal.append(&large).unwrap());
        journal.turn();
        assert!(journal.append(&large).unwrap());
        assert_eq!(read(&path, 7, 0).unwrap().unwrap().len(), 3);
        large.put("t", "k", vec![0; 3 << 20]);
        assert!(!journal.append(&large).unwrap());
    }

    #[test]
    fn a_torn_end_is_cut_wherever_it_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        drop(written(&path, 1, 4));
        let whole = std::fs::read(&path).unwrap();
        let end = whole.iter().rposition(|b| *b != 0).unwrap() + 1;
        let third = usize::try_from(HEADER).unwrap() + 3 * 64;
        for at in (third + 1)..end {
            let mut torn = whole.clone();
            torn[at..].fill(0);
            std::fs::write(&path, &torn).unwrap();
            let read = numbers(&path, 0).unwrap();
            assert!(!read.is_empty() && read.len() < 4 && read == (1..=read.len() as u64).collect::<Vec<_>>(), "{at}: {read:?}");
        }
    }

    #[test]
    fn a_frame_broken_before_a_whole_one_is_damage_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        drop(written(&path, 1, 4));
        let whole = std::fs::read(&path).unwrap();
        for at in [HEADER, HEADER + 20, HEADER + 40, HEADER + 130] {
            let mut broken = whole.clone();
            broken[usize::try_from(at).unwrap()] ^= 0x40;
            std::fs::write(&path, &broken).unwrap();
            assert!(matches!(numbers(&path, 0), Err(Damage::At(_))), "{at}");
        }
        // What the database has already cannot be missed.
        let mut broken = whole.clone();
        broken[usize::try_from(HEADER + 40).unwrap()] ^= 0x40;
        std::fs::write(&path, &broken).unwrap();
        assert!(matches!(numbers(&path, 4), Ok(none) if none.is_empty()));
    }
}
