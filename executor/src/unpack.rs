//! Compressed inputs as streams: gzip with several members, Zstandard with several frames.
//!
//! Unpacking happens on the slot's own thread while the guest reads, so its time is the guest's and nothing is ever unpacked to a disk.
//! Owns the limits: how much one input may become, and how much memory a decoder may take, which counts as the guest's. Deliberately
//! absent: which inputs are packed (whoever laid them out says so).

use crate::limits::{Budget, Charge};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use smalti_types::{Bytes, Packing};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Most bytes that one input may unpack to: what goes on beyond is a bomb, or should be several inputs.
const MAX_UNPACKED: Bytes = Bytes::gib(64);
/// Largest window of a Zstandard frame: what `zstd -19` and everything below makes, and what the format asks decoders to support.
const MAX_WINDOW: Bytes = Bytes::mib(8);
/// What a decoder takes beside the window: tables, one block, and the buffer before it.
const DECODER: Bytes = Bytes(512 << 10);
/// Bytes of the packed form that are read at a time.
const BUFFER: usize = 64 << 10;

/// A part of a file, as a reader.
struct Part {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.file.read_at(&mut buffer[..most], self.offset)?;
        if n == 0 {
            return Err(io::Error::other(format!("the input ends {} bytes before its promised length", self.left)));
        }
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// One frame after another.
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    /// A frame has begun and not ended.
    inside: bool,
}

impl<R: BufRead> Frames<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW.0);
        Self { source, decoder, inside: false }
    }

    /// Begins the next frame that has content; `false`: there is none.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.inside = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) => {
                    let requested = Bytes(requested);
                    let why =
                        format!("it needs a window of {requested}, at most {MAX_WINDOW} is given; compress it without --long or --ultra");
                    return Err(io::Error::other(why));
                }
                Err(e) => return Err(io::Error::other(e)),
            }
        }
        Ok(false)
    }

    fn end(&mut self) -> io::Result<()> {
        self.inside = false;
        match (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum()) {
            (Some(said), Some(found)) if said != found => Err(io::Error::other("its checksum is wrong")),
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.inside || self.begin()? {
            if self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1)).map_err(io::Error::other)?;
            }
            let n = self.decoder.read(buffer)?;
            if n > 0 {
                return Ok(n);
            }
            if self.decoder.is_finished() && self.decoder.can_collect() == 0 {
                self.end()?;
            }
        }
        Ok(0)
    }
}

/// The unpacked form of a part of a file.
pub(crate) struct Unpacked {
    reader: Box<dyn Read + Send>,
    /// Bytes that may still come.
    room: u64,
    limit: Bytes,
    /// The decoder's memory, as the guest's.
    charge: Option<Charge>,
    budget: Arc<Budget>,
    needs: Bytes,
}

impl fmt::Debug for Unpacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacked").field("room", &self.room).finish_non_exhaustive()
    }
}

impl Unpacked {
    /// `None` for what is not packed.
    pub(crate) fn new(packing: Packing, (file, offset, length): (Arc<File>, u64, u64), budget: &Arc<Budget>) -> Option<Self> {
        let source = BufReader::with_capacity(BUFFER, Part { file, offset, left: length });
        let (reader, needs): (Box<dyn Read + Send>, _) = match packing {
            Packing::Plain => return None,
            Packing::Gzip => (Box::new(MultiGzDecoder::new(source)), DECODER),
            Packing::Zstd => (Box::new(Frames::new(source)), Bytes(MAX_WINDOW.0 + DECODER.0)),
        };
        Some(Self { reader, room: MAX_UNPACKED.0, limit: MAX_UNPACKED, charge: None, budget: budget.clone(), needs })
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// In words: what is wrong with the input, or which limit it met.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        if self.charge.is_none() {
            let charge = self.budget.charge(self.needs.0);
            self.charge = Some(charge.ok_or_else(|| {
                let (needs, left) = (self.needs, Bytes(self.budget.left()));
                format!("unpacking the input needs {needs} of the task's memory, and {left} are left; give it more with --mem")
            })?);
        }
        let n = loop {
            match self.reader.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err("the input cannot be unpacked: it is cut off".to_owned()),
                Err(e) => return Err(format!("the input cannot be unpacked: {e}")),
                Ok(n) => break n,
            }
        };
        let left = self.room.checked_sub(n as u64);
        self.room = left.ok_or_else(|| format!("the input unpacks to more than {}; cut it into smaller ones", self.limit))?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).expect("in memory");
        out.finish().expect("in memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn open(packing: Packing, packed: &[u8], memory: u64) -> Unpacked {
        let mut file = tempfile::tempfile().expect("a file");
        // Only the part that is named counts.
        file.write_all(b"before").and_then(|()| file.write_all(packed)).and_then(|()| file.write_all(b"behind")).expect("written");
        let part = (Arc::new(file), 6, packed.len() as u64);
        Unpacked::new(packing, part, &Arc::new(Budget::new(memory))).expect("packed")
    }

    fn all(mut unpacked: Unpacked) -> Result<Vec<u8>, String> {
        let (mut out, mut buffer) = (Vec::new(), [0; 1000]);
        loop {
            match unpacked.read(&mut buffer)? {
                0 => return Ok(out),
                n => out.extend_from_slice(&buffer[..n]),
            }
        }
    }

    const MEMORY: u64 = 64 << 20;

    #[test]
    fn several_members_and_frames_are_one_input() {
        let text: Vec<u8> = (0..60_000_u32).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let (first, second) = text.split_at(12_345);
        assert_eq!(all(open(Packing::Gzip, &[gzip(first), gzip(second)].concat(), MEMORY)).as_deref(), Ok(&text[..]));
        // Between two frames one that is to be skipped, and an empty one.
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let frames = [zstd(first), skipped, zstd(b""), zstd(second)].concat();
        assert_eq!(all(open(Packing::Zstd, &frames, MEMORY)).as_deref(), Ok(&text[..]));
    }

    #[test]
    fn what_is_damaged_or_cut_off_is_told_and_never_taken_for_the_end() {
        let text = b"some words, some words, some words".repeat(1000);
        for (packing, packed) in [(Packing::Gzip, gzip(&text)), (Packing::Zstd, zstd(&text))] {
            let said = all(open(packing, &packed[..packed.len() - 9], MEMORY)).expect_err("cut off");
            assert!(said.contains("cannot be unpacked"), "{said}");
            let mut damaged = packed.clone();
            let last = damaged.len() - 1;
            damaged[last] ^= 1;
            assert!(all(open(packing, &damaged, MEMORY)).is_err(), "{packing:?}: the checksum, or the length");
            assert!(all(open(packing, b"plain text, not packed at all", MEMORY)).is_err());
        }
    }

    #[test]
    fn a_bomb_meets_a_limit() {
        for (packing, packed) in [(Packing::Gzip, gzip(&vec![0; 1 << 20])), (Packing::Zstd, zstd(&vec![0; 1 << 20]))] {
            let mut bomb = open(packing, &packed, MEMORY);
            (bomb.room, bomb.limit) = (1 << 19, Bytes(1 << 19));
            let said = all(bomb).expect_err("too much");
            assert!(said.contains("unpacks to more than 512KiB") || said.contains("unpacks to more than 512 KiB"), "{said}");
        }
    }

    #[test]
    fn a_decoders_memory_is_the_guests() {
        let said = all(open(Packing::Zstd, &zstd(b"x"), 1 << 20)).expect_err("too little");
        assert!(said.contains("--mem"), "{said}");
        // Magic number, a descriptor without content size, a window of 2^27.
        let wide = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (27 - 10) << 3, 1, 0, 0];
        let said = all(open(Packing::Zstd, &wide, MEMORY)).expect_err("too wide");
        assert!(said.contains("window"), "{said}");
    }
}
