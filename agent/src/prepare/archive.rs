//! Bundles that are archives: `.tar`, `.tar.gz` and `.tar.zst`, told by their first bytes and unpacked with suspicion.
//!
//! Nothing is written outside the target, no links and no devices are made, and entries, bytes and the ratio of unpacked
//! to packed are bounded. Deliberately absent: modes, owners and times of the archive; files are plain and read-only to guests.

use super::Failure;
use super::cache::BLOCK;
use smalti_types::Reason;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tar::{Archive, EntryType};

/// Where the guest lies in an unpacked archive, under its own name.
pub(crate) const GUEST_DIR: &str = "guest";
/// Where the archive's other files lie.
pub(crate) const ASSETS_DIR: &str = "assets";

/// Most entries of an archive.
const MAX_ENTRIES: u64 = 10_000;
/// Most bytes of all files together.
const MAX_UNPACKED: u64 = 1 << 30;
/// Most unpacked bytes per packed byte; real archives stay below 50.
const MAX_RATIO: u64 = 200;
/// Unpacked size below which the ratio does not matter: a text of blanks packs well.
const RATIO_FREE: u64 = 64 << 20;
/// Longest header extension (long names, attributes), which the tar reader holds in memory.
const MAX_EXTENSION: u64 = 64 << 10;
/// Room that one name takes in a directory, at most: it may be 255 bytes long, and directories are half empty.
const MAX_NAME: u64 = 1 << 10;
/// Deepest path.
const MAX_DEPTH: usize = 32;
/// The names by which a guest is found among several.
const PREFERRED: [&str; 2] = ["main.wasm", "app.wasm"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Tells an archive by its first bytes; `None` for everything else.
pub(crate) fn detect(file: &mut File) -> io::Result<Option<Packing>> {
    let mut head = [0_u8; 512];
    let mut have = 0;
    while have < head.len() {
        match file.read(&mut head[have..])? {
            0 => break,
            n => have += n,
        }
    }
    file.seek(SeekFrom::Start(0))?;
    let head = &head[..have];
    Ok(match head {
        [0x1f, 0x8b, ..] => Some(Packing::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Packing::Zstd),
        _ if head.get(257..262) == Some(b"ustar") => Some(Packing::Plain),
        // An archive without entries is nothing but zeros.
        _ if head.len() == 512 && head.iter().all(|b| *b == 0) => Some(Packing::Plain),
        _ => None,
    })
}

fn invalid(why: impl std::fmt::Display) -> Failure {
    Failure::new(Reason::InvalidBundle, format!("the archive cannot be used: {why}"))
}

fn most_unpacked(bundle: &Path) -> Result<u64, Failure> {
    let packed = fs::metadata(bundle).map_err(|e| Failure::new(Reason::LaunchFailed, format!("cannot read {}: {e}", bundle.display())))?;
    Ok(MAX_UNPACKED.min(packed.len().saturating_mul(MAX_RATIO).max(RATIO_FREE)))
}

/// An archive that may be unpacked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surveyed {
    packing: Packing,
    most: u64,
    /// How much its files will take on the disk, at most.
    pub(crate) room: u64,
}

/// Reads it through, and refuses what must not be unpacked.
pub(crate) fn look_at(bundle: &Path, packing: Packing, wanted: &Wanted) -> Result<Surveyed, Failure> {
    let most = most_unpacked(bundle)?;
    let room = survey(&mut Archive::new(open(bundle, packing, most, wanted)?), most)?;
    Ok(Surveyed { packing, most, room })
}

/// Unpacks into `target` (an empty directory): the guest into `guest/`, the rest into `assets/`. Ends early, with whatever failure, when
/// `wanted` says that nobody waits for it any more.
pub(crate) fn unpack(bundle: &Path, Surveyed { packing, most, .. }: Surveyed, target: &Path, wanted: &Wanted) -> Result<(), Failure> {
    let ours = |e: io::Error| Failure::new(Reason::LaunchFailed, format!("cannot unpack the archive into {}: {e}", target.display()));
    // A name that cannot be, or that is a file and a directory, is the archive's fault.
    let blame = |path: &Path, e: io::Error| match e.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists | io::ErrorKind::IsADirectory | io::ErrorKind::InvalidFilename => {
            invalid(format!("`{}` cannot be made: {e}", path.display().to_string().chars().take(200).collect::<String>()))
        }
        _ => ours(e),
    };
    let assets = target.join(ASSETS_DIR);
    make_dir(&assets).map_err(ours)?;
    let mut made = 0;
    let mut archive = Archive::new(open(bundle, packing, most, wanted)?);
    for entry in archive.entries().map_err(invalid)? {
        let mut entry = entry.map_err(invalid)?;
        let path = safe_path(&entry.path_bytes())?;
        let Some(path) = path else { continue };
        let at = assets.join(&path);
        if entry.header().entry_type() == EntryType::Directory {
            make_dirs(&assets, &path, &mut made).map_err(|e| blame(&path, e))?;
            within(made, IN_ALL)?;
            continue;
        }
        make_dirs(&assets, path.parent().unwrap_or(Path::new("")), &mut made).map_err(|e| blame(&path, e))?;
        made += 1;
        within(made, IN_ALL)?;
        let mut file = match OpenOptions::new().write(true).create_new(true).open(&at) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(invalid(format!("it has `{}` twice", path.display()))),
            Err(e) => return Err(blame(&path, e)),
        };
        // Errors of the archive and of the disk look alike here; a full disk says so in its text.
        io::copy(&mut entry, &mut file).map_err(invalid)?;
        file.set_permissions(Permissions::from_mode(0o644)).map_err(ours)?;
    }
    let guest = choose_guest(&assets)?;
    make_dir(&target.join(GUEST_DIR)).map_err(ours)?;
    fs::rename(assets.join(&guest), target.join(GUEST_DIR).join(&guest)).map_err(ours)
}

/// Reads all headers first, without the tar reader's own handling of extensions, which would trust their sizes.
/// Gives the room that they take.
fn survey(archive: &mut Archive<impl Read>, most: u64) -> Result<u64, Failure> {
    let (mut entries, mut bytes, mut parts) = (0_u64, 0_u64, 0_u64);
    for entry in archive.entries().map_err(invalid)?.raw(true) {
        let mut entry = entry.map_err(invalid)?;
        let size = entry.header().entry_size().map_err(invalid)?;
        entries += 1;
        within(entries, "entries")?;
        bytes = bytes.saturating_add(size);
        // A path may imply as many directories as it has parts; names in extensions are counted with theirs.
        let implied = entry.path_bytes().iter().filter(|b| **b == b'/').count() as u64;
        parts += implied + if entry.header().entry_type().is_file() { 0 } else { size.min(MAX_EXTENSION) / 2 };
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XHeader | EntryType::XGlobalHeader) && size <= MAX_EXTENSION {
            check_extension(&mut entry)?;
        }
        let name = || String::from_utf8_lossy(&entry.path_bytes()).chars().take(200).collect::<String>();
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => {}
            EntryType::GNULongName | EntryType::XHeader | EntryType::XGlobalHeader if size <= MAX_EXTENSION => {}
            EntryType::GNULongName | EntryType::XHeader | EntryType::XGlobalHeader => {
                return Err(invalid(format!("a header extension is larger than {MAX_EXTENSION} bytes")));
            }
            EntryType::Symlink | EntryType::Link | EntryType::GNULongLink => {
                return Err(invalid(format!("`{}` is a link, and links are not allowed", name())));
            }
            _ => return Err(invalid(format!("`{}` is neither a file nor a directory", name()))),
        }
        if bytes > most {
            return Err(invalid(format!("it unpacks to more than {} MiB", most >> 20)));
        }
    }
    if entries == 0 {
        return Err(invalid("it is empty"));
    }
    // Each file is rounded up to a block, each directory takes one, and the top ones beside.
    Ok(bytes.saturating_add((entries + parts.min(MAX_ENTRIES) + 3).saturating_mul(BLOCK + MAX_NAME)))
}

/// A size in an extension would take precedence over the header's when unpacking: the entries behind it would be others than those
/// surveyed. Only files beyond 8 GiB need one.
fn check_extension(entry: &mut impl Read) -> Result<(), Failure> {
    let mut text = Vec::new();
    entry.read_to_end(&mut text).map_err(invalid)?;
    for extension in tar::PaxExtensions::new(&text) {
        if extension.map_err(invalid)?.key_bytes() == b"size" {
            return Err(invalid("a header extension gives a size"));
        }
    }
    Ok(())
}

fn open(bundle: &Path, packing: Packing, most: u64, wanted: &Wanted) -> Result<WhileWanted<Box<dyn Read>>, Failure> {
    let file = File::open(bundle).map_err(|e| Failure::new(Reason::LaunchFailed, format!("cannot read {}: {e}", bundle.display())))?;
    let file = BufReader::new(file);
    // Headers and padding come on top of the files; past this the reader sees the end, and the archive is broken.
    let most = most + MAX_ENTRIES * 2_048;
    let unpacked: Box<dyn Read> = match packing {
        Packing::Plain => Box::new(file.take(most)),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file).take(most)),
        Packing::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(file).map_err(|e| invalid(format!("its compression is broken: {e}")))?;
            Box::new(decoder.take(most))
        }
    };
    Ok(WhileWanted(unpacked, wanted.clone()))
}

/// The entry's path below the target; `None` for the top directory itself.
fn safe_path(bytes: &[u8]) -> Result<Option<PathBuf>, Failure> {
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("it has a name that is not UTF-8"))?;
    let shown = || text.chars().take(200).collect::<String>();
    let mut path = PathBuf::new();
    let mut depth = 0;
    for component in Path::new(text).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => continue,
            _ => return Err(invalid(format!("`{}` would lie outside of it", shown()))),
        }
        depth += 1;
    }
    if depth > MAX_DEPTH || text.contains('\0') {
        return Err(invalid(format!("the path `{}` is not usable", shown())));
    }
    Ok((depth > 0).then_some(path))
}

/// What is counted when it is unpacked: directories that only names imply count like those that are listed.
const IN_ALL: &str = "files and directories";

/// The one bound on how many there may be, of what is listed and of what is made.
fn within(count: u64, what: &str) -> Result<(), Failure> {
    if count > MAX_ENTRIES { Err(invalid(format!("it has more than {MAX_ENTRIES} {what}"))) } else { Ok(()) }
}

/// Whether a [`Waiter`] still waits for what a thread does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted(Arc<AtomicBool>);

/// The end of who waits.
#[derive(Debug, Default)]
pub(crate) struct Waiter(Wanted);

impl Waiter {
    pub(crate) fn wanted(&self) -> Wanted {
        self.0.clone()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// A bundle's bytes, as long as they are wanted.
struct WhileWanted<R>(R, Wanted);

impl<R: Read> Read for WhileWanted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.1.0.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        self.0.read(buffer)
    }
}

/// False: it was there.
fn make_dir(path: &Path) -> io::Result<bool> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(e) => Err(e),
        // Executors run under other user ids and reach files through descriptors.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o755)).map(|()| true),
    }
}

/// Adds to `made` how many were new.
fn make_dirs(base: &Path, relative: &Path, made: &mut u64) -> io::Result<()> {
    let mut at = base.to_owned();
    for part in relative.components() {
        at.push(part);
        *made += u64::from(make_dir(&at)?);
    }
    Ok(())
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

/// The guest's file name at the top level: `main.wasm`, `app.wasm`, or the only `*.wasm`.
fn choose_guest(assets: &Path) -> Result<String, Failure> {
    let ours = |e: io::Error| Failure::new(Reason::LaunchFailed, format!("cannot list {}: {e}", assets.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(assets).map_err(ours)? {
        let entry = entry.map_err(ours)?;
        if let Ok(name) = entry.file_name().into_string()
            && name.ends_with(".wasm")
            && entry.file_type().is_ok_and(|t| t.is_file())
        {
            found.push(name);
        }
    }
    found.sort();
    if let Some(name) = PREFERRED.iter().find(|p| found.iter().any(|f| f == *p)) {
        return Ok((*name).to_owned());
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 if is_empty(assets) => Err(invalid("it is empty")),
        0 => Err(invalid("it has no .wasm file at its top level")),
        n => Err(invalid(format!("it has {n} .wasm files at its top level; name the guest main.wasm"))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// A tar archive of files, with whatever names: the header's bytes are set past the builder's checks.
    pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        tar_of(files.iter().map(|(name, data)| (*name, EntryType::Regular, *data)))
    }

    fn tar_of<'a>(entries: impl IntoIterator<Item = (&'a str, EntryType, &'a [u8])>) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, data) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o600);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn directories_count_also_where_only_names_imply_them() {
        let names: Vec<String> = (0..900).map(|n| format!("{n}{}/f", "/d".repeat(30))).collect();
        let files: Vec<(&str, &[u8])> = std::iter::once(("main.wasm", &b"x"[..])).chain(names.iter().map(|n| (&**n, &b""[..]))).collect();
        let failure = try_unpack(&tar(&files)).1.unwrap_err();
        assert!(failure.reason == Reason::InvalidBundle && failure.message.contains("files and directories"), "{failure:?}");
    }

    #[test]
    fn names_that_cannot_be_are_the_archives_fault() {
        for names in [["main.wasm", "main.wasm/b"], ["a/b", "a"]] {
            let files: Vec<(&str, &[u8])> = names.iter().map(|n| (*n, &b"x"[..])).collect();
            assert_eq!(try_unpack(&tar(&files)).1.unwrap_err().reason, Reason::InvalidBundle, "{names:?}");
        }
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o600);
        builder.append_data(&mut header, "n".repeat(300), &b""[..]).unwrap();
        assert_eq!(try_unpack(&builder.into_inner().unwrap()).1.unwrap_err().reason, Reason::InvalidBundle);
    }

    fn try_unpack(bytes: &[u8]) -> (tempfile::TempDir, Result<(), Failure>) {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle");
        fs::write(&bundle, bytes).unwrap();
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        let packing = detect(&mut File::open(&bundle).unwrap()).unwrap().expect("an archive");
        let wanted = Wanted::default();
        let result = look_at(&bundle, packing, &wanted).and_then(|surveyed| {
            unpack(&bundle, surveyed, &target, &wanted)?;
            assert!(super::super::cache::size_of(&target) <= surveyed.room, "it takes no more than was said");
            Ok(())
        });
        (dir, result)
    }

    fn refused(bytes: &[u8], why: &str) {
        let (dir, result) = try_unpack(bytes);
        let failure = result.expect_err(why);
        assert_eq!(failure.reason, Reason::InvalidBundle);
        assert!(failure.message.contains(why), "{failure}");
        assert!(!dir.path().join("evil").exists() && !dir.path().join("target/evil").exists());
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn the_guest_and_its_assets_come_out_of_every_packing() {
        let plain = tar(&[("./prog.wasm", b"guest"), ("data/a.txt", b"asset"), ("lib/other.wasm", b"x")]);
        for bytes in [plain.clone(), gzip(&plain), zstd(&plain)] {
            let (dir, result) = try_unpack(&bytes);
            result.unwrap();
            let target = dir.path().join("target");
            assert_eq!(fs::read(target.join("guest/prog.wasm")).unwrap(), b"guest");
            assert_eq!(fs::read(target.join("assets/data/a.txt")).unwrap(), b"asset");
            assert!(!target.join("assets/prog.wasm").exists());
        }
    }

    #[test]
    fn a_preferred_name_wins_and_otherwise_there_may_be_only_one() {
        let (dir, result) = try_unpack(&tar(&[("a.wasm", b"1"), ("main.wasm", b"2")]));
        result.unwrap();
        assert!(dir.path().join("target/guest/main.wasm").exists());
        refused(&tar(&[("a.wasm", b"1"), ("b.wasm", b"2")]), "2 .wasm files");
        refused(&tar(&[("readme.txt", b"1")]), "no .wasm file");
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_unpacked_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, target) = (dir.path().join("bundle"), dir.path().join("target"));
        fs::write(&bundle, tar(&[("main.wasm", &vec![7; 1 << 20])])).unwrap();
        fs::create_dir(&target).unwrap();
        let waiter = Waiter::default();
        // In the middle of a file, not only between two.
        let mut reader = open(&bundle, Packing::Plain, MAX_UNPACKED, &waiter.wanted()).unwrap();
        assert_eq!(reader.read(&mut [0; 1_000]).unwrap(), 1_000);
        let wanted = waiter.wanted();
        drop(waiter);
        assert!(reader.read(&mut [0; 1_000]).unwrap_err().to_string().contains("nobody waits"));
        let failure = look_at(&bundle, Packing::Plain, &wanted).unwrap_err();
        assert!(failure.message.contains("nobody waits"), "{failure}");
    }

    #[test]
    fn nothing_leaves_the_target() {
        refused(&tar(&[("main.wasm", b"x"), ("../evil", b"x")]), "outside");
        refused(&tar(&[("main.wasm", b"x"), ("a/../../evil", b"x")]), "outside");
        refused(&tar(&[("main.wasm", b"x"), ("/evil", b"x")]), "outside");
    }

    #[test]
    fn links_and_devices_are_refused() {
        for kind in [EntryType::Symlink, EntryType::Link] {
            refused(&tar_of([("main.wasm", EntryType::Regular, &b"x"[..]), ("evil", kind, b"")]), "link");
        }
        for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse] {
            refused(&tar_of([("evil", kind, &b""[..])]), "neither a file nor a directory");
        }
    }

    #[test]
    fn empty_broken_and_exploding_archives_are_refused() {
        refused(&tar(&[]), "empty");
        refused(&gzip(&tar(&[])), "empty");
        refused(&gzip(b"not a tar at all, but long enough to fill a block".repeat(20).as_slice()), "archive cannot be used");
        refused(&[0x1f, 0x8b, 1, 2, 3], "archive cannot be used");
        refused(&[0x28, 0xb5, 0x2f, 0xfd, 9, 9], "compression is broken");
        let plain = tar(&[("main.wasm", &[7; 4_000])]);
        refused(&plain[..1_000], "archive cannot be used");
        refused(&gzip(&tar(&[("main.wasm", &vec![0; 100 << 20])])), "unpacks to more than");
        refused(&tar(&[("main.wasm", b"1"), ("main.wasm", b"2")]), "twice");
        let many: Vec<_> = (0..=MAX_ENTRIES).map(|i| format!("f{i}")).collect();
        refused(&tar(&many.iter().map(|n| (n.as_str(), &b""[..])).collect::<Vec<_>>()), "entries");
        refused(&tar_of([("x", EntryType::XHeader, vec![b'a'; 100_000].as_slice())]), "header extension is larger");
        // The data of `main.wasm` begins where a reader of the header alone sees the next entry.
        let shifted =
            [("x", EntryType::XHeader, &b"12 size=512\n"[..]), ("main.wasm", EntryType::Regular, b""), ("b", EntryType::Regular, b"1")];
        refused(&tar_of(shifted), "gives a size");
    }
}
