//! The registry over files that are whole, damaged, of the future, in use, and over a disk that is full.

use super::*;
use smalti_master_core::Record;
use smalti_types::protocol::Claim;
use smalti_types::{AgentInfo, Attributes, Bytes, DurationMs, FrameworkInfo, MilliCpus, Resources, Role, Time};
use std::collections::BTreeMap;
use std::io::{Error as IoError, ErrorKind};
use std::sync::{Arc, Mutex};

fn agent(name: &str) -> Record {
    Record::Agent(AgentInfo {
        id: AgentId::new(name).unwrap(),
        hostname: format!("{name}.example"),
        total: Resources::new(MilliCpus(1_000), Bytes::gib(1)),
        overhead: Resources::default(),
        attributes: Attributes::default(),
        isolation: BTreeMap::new(),
        boot_id: "boot".into(),
        incarnation: 1,
    })
}

fn framework(name: &str, away_until: Option<Time>) -> Record {
    let info = FrameworkInfo {
        name: name.into(),
        principal: "p".into(),
        role: Role::default(),
        failover_timeout: DurationMs(5),
        services: BTreeMap::new(),
    };
    let claim = Claim { life: name.len() as u64, turn: u64::from(away_until.is_some()) };
    Record::Framework { id: FrameworkId::new(name).unwrap(), info, claim, away_until }
}

fn records() -> Vec<Record> {
    let id = |name: &str| FrameworkId::new(name).unwrap();
    vec![
        agent("a1"),
        agent("a2"),
        Record::AgentRemoved(AgentId::new("a1").unwrap()),
        framework("f1", None),
        framework("f1", Some(Time(77))),
        framework("f2", None),
        Record::FrameworkRemoved { id: id("f2"), at: Time(5) },
        Record::FrameworkRemoved { id: id("f3"), at: Time(6) },
        Record::FrameworkForgotten(id("f3")),
        Record::LeaseSpan(DurationMs(77)),
    ]
}

#[test]
fn what_records_add_up_to_is_there_after_a_restart_and_epochs_rise() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.redb");
    let mut expected = Stored::default();
    records().into_iter().for_each(|r| expected.apply(r));
    assert_eq!((expected.agents.len(), expected.frameworks.len(), expected.removed.len()), (1, 1, 1));
    let mut registry = File::open(&path).unwrap();
    assert_eq!(registry.load().unwrap(), Stored::default());
    assert_eq!(registry.next_epoch(MasterEpoch(100)).unwrap(), MasterEpoch(100));
    registry.write(records()).unwrap();
    drop(registry);
    let mut registry = File::open(&path).unwrap();
    assert_eq!(registry.load().unwrap(), expected);
    assert_eq!(registry.next_epoch(MasterEpoch(7)).unwrap(), MasterEpoch(101));
    registry.write(records()).unwrap();
    assert_eq!(registry.load().unwrap(), expected, "a batch that is written twice changes nothing");
    assert!(matches!(File::open(&path), Err(RegistryError::InUse(p)) if p == path));
}

#[test]
fn a_registry_of_the_first_format_is_read_and_written_on() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.redb");
    let mut bytes = Vec::new();
    let packed: &[u8] = include_bytes!("../../../tests/fixtures/formats-1/registry.redb.gz");
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let mut registry = File::open(&path).unwrap();
    let stored = registry.load().unwrap();
    let agents: Vec<_> = stored.agents.values().map(|a| (a.id.as_str(), a.hostname.as_str(), a.total.cpus)).collect();
    assert_eq!(agents, [("agent0", "host0", MilliCpus(3_000)), ("agent1", "host1", MilliCpus(3_000))]);
    let [(id, framework)] = &stored.frameworks.clone().into_iter().collect::<Vec<_>>()[..] else { panic!("{stored:?}") };
    assert_eq!((id.as_str(), framework.info.name.as_str(), framework.away_until), ("F66158f3fa401f-1", "batch", None));
    assert_eq!((framework.claim, stored.lease_span, stored.removed.len()), (Claim::default(), None, 0), "it knows of no numbers");
    assert!(registry.next_epoch(MasterEpoch(1)).unwrap() > MasterEpoch(1), "epochs go on");
    let claim = Claim { life: 3, turn: 1 };
    registry.write(vec![Record::Framework { id: id.clone(), info: framework.info.clone(), claim, away_until: None }]).unwrap();
    drop(registry);
    assert_eq!(File::open(&path).unwrap().load().unwrap().frameworks[id].claim, claim);
}

#[test]
fn a_file_that_was_damaged_is_refused_with_instructions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.redb");
    let many = (0..500).map(|n| agent(&format!("a{n}"))).collect();
    File::open(&path).unwrap().write(many).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let opened = File::open(&path).and_then(|mut registry| registry.load());
        let Err(error @ RegistryError::Damaged { .. }) = opened else { panic!("{what}: {opened:?}") };
        let text = error.to_string();
        assert!(text.contains("registry.redb") && text.contains("move it away") && !text.contains('\n'), "{text}");
    };
    refused(b"this is not a database at all, whatever its name says", "garbage");
    refused(b"", "empty");
    refused(&whole[..whole.len() / 3], "cut off");
    // Every occurrence of one agent's host name: a page that is in use is among them.
    let mut flipped = whole.clone();
    for at in 0..flipped.len() - 12 {
        if &flipped[at..at + 12] == b"a250.example" {
            flipped[at] ^= 1;
        }
    }
    assert_ne!(flipped, whole);
    refused(&flipped, "one letter changed");
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(File::open(&path).unwrap().load().unwrap().agents.len(), 500);
}

#[test]
fn what_a_later_version_wrote_is_refused_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.redb");
    let registry = File::open(&path).unwrap();
    // Field 1 of a record is its format: 2.
    let later = |t: &WriteTransaction| {
        t.open_table(AGENTS)?.insert("a9", [8_u8, 2].as_slice())?;
        Ok(())
    };
    registry.within("write to", later).unwrap();
    drop(registry);
    let mut registry = File::open(&path).unwrap();
    let text = registry.load().unwrap_err().to_string();
    assert!(text.contains("record of a9") && text.contains("format 2") && text.contains("later version"), "{text}");
    let later = |t: &WriteTransaction| {
        t.open_table(META)?.insert("format", 3)?;
        Ok(())
    };
    registry.within("write to", later).unwrap();
    drop(registry);
    let text = File::open(&path).unwrap_err().to_string();
    assert!(text.contains("format 3") && text.contains("reads up to 1"), "{text}");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = File::open(&dir.path().join("none/registry.redb")).unwrap_err().to_string();
    assert!(text.contains("none/registry.redb") && text.contains("--registry redb:PATH"), "{text}");
    for bad in ["etcd://x", "redb:", ""] {
        assert!(matches!(super::super::open(Some(bad), dir.path()), Err(RegistryError::Option(_))), "{bad}");
    }
    super::super::open(None, dir.path()).unwrap();
    assert!(dir.path().join("registry.redb").exists());
}

/// A disk with an end, whose bytes survive the process.
#[derive(Debug, Clone, Default)]
struct SmallDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    most: Arc<Mutex<Option<u64>>>,
}

impl ::redb::StorageBackend for SmallDisk {
    fn len(&self) -> Result<u64, IoError> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), IoError> {
        let from = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.bytes.lock().unwrap()[from..from + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), IoError> {
        if self.most.lock().unwrap().is_some_and(|most| len > most) {
            return Err(ErrorKind::StorageFull.into());
        }
        self.bytes.lock().unwrap().resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), IoError> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let from = usize::try_from(offset).unwrap();
        self.bytes.lock().unwrap()[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}

#[test]
fn a_full_disk_ends_the_master_with_instructions_and_loses_nothing_that_was_written() {
    let disk = SmallDisk::default();
    let mut registry = File::over(disk.clone()).unwrap();
    registry.write(records()).unwrap();
    let before = registry.load().unwrap();
    *disk.most.lock().unwrap() = Some(disk.bytes.lock().unwrap().len() as u64);
    let mut written = 0;
    let error = loop {
        let batch = (0..1_000).map(|n| agent(&format!("b{written}-{n}"))).collect();
        match registry.write(batch) {
            Ok(()) => written += 1,
            Err(error) => break error.to_string(),
        }
        assert!(written < 1_000, "the disk never filled");
    };
    assert!(error.contains("free space") && error.contains("write to the registry"), "{error}");
    drop(registry);
    *disk.most.lock().unwrap() = None;
    let after = File::over(disk).unwrap().load().unwrap();
    assert_eq!(after.agents.len(), before.agents.len() + written * 1_000, "whole batches, and none of the one that failed");
    assert_eq!((after.frameworks, after.removed), (before.frameworks, before.removed));
}
