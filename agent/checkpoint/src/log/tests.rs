//! The log on files and on a disk in memory: what was written comes back, torn ends are cut, damage is refused, full disks lose nothing.

use super::*;
use crate::disk::{Files, STEP};
use crate::record::{RECORD_VERSION, encode};
use proptest::prelude::*;
use smalti_agent_core::{
    AttemptState, ExecutorKind, ExecutorRecord, HandOut, KillState, LaneState, LanesState, LaunchedWork, PartState, PlaceState, Run,
};
use smalti_types::*;
use std::sync::Arc;

const BOOT: &str = "b1";

/// Two files and a boot. `room`: how much can be reserved altogether.
#[derive(Debug, Clone, Default)]
struct Memory {
    log: Option<Vec<u8>>,
    spare: Option<Vec<u8>>,
    boot: Option<String>,
    room: Option<u64>,
}

impl Memory {
    fn file(&mut self, which: Which) -> &mut Option<Vec<u8>> {
        match which {
            Which::Log => &mut self.log,
            Which::Spare => &mut self.spare,
        }
    }
}

impl Disk for Memory {
    fn length(&mut self, which: Which) -> io::Result<Option<u64>> {
        Ok(self.file(which).as_ref().map(|f| f.len() as u64))
    }

    fn read(&mut self, which: Which, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        let file = self.file(which).as_ref().ok_or(io::ErrorKind::NotFound)?;
        buffer.copy_from_slice(file.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn reserve(&mut self, which: Which, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).unwrap();
        let here = self.file(which).as_ref().map_or(0, Vec::len);
        let sum = [&self.log, &self.spare].into_iter().flatten().map(Vec::len).sum::<usize>() - here + length;
        if self.room.is_some_and(|room| sum as u64 > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = self.file(which).get_or_insert_default();
        file.resize(file.len().max(length), 0);
        Ok(())
    }

    fn write(&mut self, which: Which, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        let file = self.file(which).as_mut().ok_or(io::ErrorKind::NotFound)?;
        file.get_mut(at..at + bytes.len()).expect("writes go where room was reserved").copy_from_slice(bytes);
        Ok(())
    }

    fn swap(&mut self) -> io::Result<()> {
        std::mem::swap(&mut self.log, &mut self.spare);
        Ok(())
    }

    fn boot(&mut self) -> io::Result<Option<String>> {
        Ok(self.boot.clone())
    }

    fn note_boot(&mut self, boot: &str) -> io::Result<()> {
        self.boot = Some(boot.to_owned());
        Ok(())
    }

    fn name(&self, which: Which) -> String {
        format!("{which:?}")
    }
}

fn executor(n: u64) -> ExecutorId {
    ExecutorId::new(format!("E{n}")).unwrap()
}

fn removed(n: u64) -> Record {
    Record::Removed { run: Run(n) }
}

fn key() -> TaskKey {
    TaskKey { framework: FrameworkId::new("F").unwrap(), task: TaskId::new("t").unwrap(), attempt: 3 }
}

/// One of each kind, with everything in it.
fn all_kinds() -> Vec<Record> {
    let run = Run(7);
    let resources = Resources::new(MilliCpus(1_500), Bytes::mib(64));
    let mut spec = TaskSpec::new(BundleRef { digest: Digest::of(b"x"), uri: Some("https://h/x.wasm".into()) });
    spec.exclusive = true;
    spec.env = vec![("A".into(), "b".into())];
    let launch = Launch { task: key().task, attempt: 3, resources: resources.clone(), spec: spec.clone() };
    let template = ArrayTemplate { spec: TaskSpec { stdin: Stdin::Split, ..spec }, total_items: 99, split_inputs: vec![] };
    let batch = ItemBatch::default();
    let array = LaunchArray { task: key().task, attempt: 3, slot_resources: resources, slots: 2, template, batch, open: true };
    let usage = Usage { cpu_us: 1, wall_us: 2, peak_memory: 3, bytes_read: 4, bytes_written: 5, fuel: Some(6) };
    let failed =
        FailedItem { item: 4, attempt: 1, state: TaskState::Failed, reason: Reason::Trap, message: "m".into(), exit_code: Some(3) };
    let delta = ArrayDelta {
        finished: ItemSet::range(0, 4),
        failed: vec![failed],
        returned: ItemSet::range(8, 9),
        results: vec![(1, vec![1, 2])],
        outstanding: 3,
        slots: 2,
        usage,
    };
    let mut update = StatusUpdate::new(key(), 2, TaskState::Running, Reason::None, "words", Time(9));
    update.progress = Some((500, "half".into()));
    update.array = Some(delta.clone());
    let lane = |n, started| LaneState { executor: executor(n), number: 1, item: n, started };
    let part = PartState {
        slots: 2,
        open: true,
        ending: true,
        started: Some(Time(4)),
        told_slots: 2,
        told_usage: usage,
        told: 5,
        queued: vec![(1, ItemSet::range(0, 5)), (2, [7, 9].into_iter().collect())],
        leased: vec![(1, ItemSet::range(5, 6))],
        lanes: Some(LanesState { free: vec![3], busy: vec![lane(1, true), lane(2, false)] }),
    };
    let state = AttemptState {
        place: Some(PlaceState { executor: executor(1), slots: vec![0, 3], running: true }),
        began: Some(Time(5)),
        overdue: Some(Time(6)),
        kill: Some(KillState { grace: DurationMs(7), deadline: Time(8) }),
        part: Some(part),
    };
    let splits = vec![Split { item: 1, input: 0, offset: 3, length: 4 }];
    let of_executor = ExecutorRecord {
        kind: ExecutorKind::Networked,
        framework: Some(key().framework),
        only: Some(run),
        used: true,
        slots: 4,
        modules: 5,
        stopping: true,
    };
    let launched = |work| Record::Launched { run, key: key(), role: Role::default(), kind: ExecutorKind::Pooled, disk_memory: 9, work };
    vec![
        Record::Numbers { runs: 1, executors: 2 },
        Record::Seen { framework: key().framework, keys: vec![(key().task, 1), (key().task, 2)] },
        launched(LaunchedWork::Single(Arc::new(launch))),
        launched(LaunchedWork::Part(Arc::new(array))),
        Record::HandOut { run, number: 1, hand_out: Arc::new(HandOut { attempt: 2, splits }) },
        Record::Attempt { run, state },
        Record::Attempt { run, state: AttemptState::default() },
        Record::Delta { run, number: 6, delta },
        Record::Update { run, update: Box::new(update) },
        Record::Acknowledged { run, seq: 1 },
        removed(7),
        Record::Executor { executor: executor(1), state: of_executor },
        Record::Heard { executor: executor(1), number: 12 },
        Record::ExecutorGone { executor: executor(1) },
    ]
}

fn open(disk: &Memory) -> Opened<Memory> {
    Log::open(disk.clone(), BOOT).unwrap()
}

/// A log of these batches, and the lengths that it had before each and after the last.
fn written(batches: &[Vec<Record>]) -> (Memory, Vec<usize>) {
    let mut log = open(&Memory::default()).log;
    log.snapshot([]).unwrap();
    let mut lengths = vec![usize::try_from(log.length()).unwrap()];
    for batch in batches {
        log.append(batch.iter().cloned()).unwrap();
        lengths.push(usize::try_from(log.length()).unwrap());
    }
    (log.disk, lengths)
}

#[test]
fn every_kind_comes_back_as_it_was() {
    for record in all_kinds() {
        assert_eq!(decode(&mut encode(record.clone()).as_slice()), Ok(record));
    }
}

#[test]
fn what_is_of_a_later_version_is_refused_with_a_way_back() {
    let mut later = encode(removed(1));
    assert_eq!(later[1..3], [8, 1], "the version is the first field");
    later[2] = 2;
    assert_eq!(decode(&mut later.as_slice()), Err(RecordError::Later(RECORD_VERSION + 1)));
    // A kind that is not known.
    assert_eq!(decode(&mut [6, 8, 1, 0xfa, 1, 1, 0].as_slice()), Err(RecordError::Later(1)));
    let (mut disk, _) = written(&[]);
    let file = disk.log.as_mut().unwrap();
    let newer = frame::FILE_VERSION + 1;
    let mut header = frame::header(1);
    header[8..12].copy_from_slice(&newer.to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&1_u64.to_le_bytes()).update(&0_u64.to_le_bytes()).update(&header[..20]);
    header[20..].copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    file[..HEADER_LEN].copy_from_slice(&header);
    let error = Log::open(disk, BOOT).unwrap_err();
    assert!(matches!(error, Error::Later { .. }) && error.to_string().contains("start that version again"), "{error}");
}

/// What an agent would make of a log of the first format.
fn restored(log: &[u8]) -> smalti_agent_core::Agent {
    let disk = Memory { log: Some(log.to_vec()), boot: Some(BOOT.into()), ..Memory::default() };
    let opened = Log::open(disk, BOOT).unwrap();
    assert!(opened.same_boot && opened.cut.is_none(), "{:?}", opened.cut);
    let total = Resources::new(MilliCpus(3_000), Bytes::gib(2));
    let again: Vec<Record> = opened.records.iter().map(|r| encode(r.clone())).map(|b| decode(&mut &b[..]).unwrap()).collect();
    assert_eq!(again, opened.records, "it is written as it was understood");
    smalti_agent_core::Agent::restore(smalti_agent_core::Parameters::new(total), opened.records, true)
}

#[test]
fn logs_of_the_first_format_are_read() {
    let running = |agent: &smalti_agent_core::Agent| {
        let live = agent.attempts().filter(|(_, ended, _)| !ended);
        live.map(|(key, _, array)| (key.task.to_string(), array)).collect::<std::collections::BTreeSet<_>>()
    };
    let all = |names: &[(&str, bool)]| names.iter().map(|(n, a)| ((*n).to_owned(), *a)).collect();
    let agent = restored(include_bytes!("../../../../tests/fixtures/formats-1/agent-appended.log"));
    let singles = [("j1-a787.t", false), ("j2-6c35.t", false), ("j4-c0d5.t", false), ("j5-53e4.t", false)];
    let parts = [("j3-455f.m0.2", true), ("j6-48c1.m0.0", true)];
    assert_eq!(running(&agent), all(&[&singles[..], &parts].concat()));
    assert!(agent.to_find().count() >= 3, "one for each task of class process, and one for the rest");
    let agent = restored(include_bytes!("../../../../tests/fixtures/formats-1/agent-snapshot.log"));
    assert_eq!(running(&agent), all(&[("j3-455f.m0.3", true), ("j6-48c1.m0.1", true), ("j6-48c1.m0.2", true)]));
    assert!(agent.to_find().count() > 0);
}

#[test]
fn files_keep_it_over_a_restart_and_snapshots_take_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("checkpoint");
    let open = |boot: &str| Log::open(Files::open(&directory).unwrap(), boot).unwrap();
    let first = open(BOOT);
    assert!(first.records.is_empty() && !first.same_boot && first.cut.is_none());
    let mut log = first.log;
    log.snapshot([removed(1)]).unwrap();
    for n in 2..100 {
        log.append([removed(n)]).unwrap();
    }
    drop(log);
    let second = open(BOOT);
    assert_eq!(second.records, (1..100).map(removed).collect::<Vec<_>>());
    assert!(second.same_boot && second.cut.is_none());
    let mut log = second.log;
    log.snapshot([removed(7)]).unwrap();
    log.append([removed(8)]).unwrap();
    drop(log);
    // The old generation lies in the other file, and behind the new one's end.
    let mut third = open(BOOT);
    assert_eq!(third.records, [removed(7), removed(8)]);
    third.log.snapshot([removed(9)]).unwrap();
    assert_eq!(open(BOOT).records, [removed(9)]);
    assert!(std::fs::metadata(directory.join("log")).unwrap().len() >= STEP);
    let after_boot = open("b2");
    assert!(!after_boot.same_boot && after_boot.records == [removed(9)]);
}

#[test]
fn a_batch_is_one_write_and_says_the_last_number_of_each_executor_once() {
    let heard = |number| Record::Heard { executor: executor(1), number };
    let (disk, lengths) = written(&[vec![heard(1), removed(1), heard(2)], vec![]]);
    assert_eq!(lengths[1], lengths[2], "nothing is written when there is nothing");
    assert_eq!(open(&disk).records, [removed(1), heard(2)]);
}

#[test]
fn a_torn_end_is_cut_and_said_and_the_log_goes_on() {
    let batches: Vec<Vec<Record>> = (0..4).map(|n| vec![removed(n), removed(100 + n)]).collect();
    let (disk, lengths) = written(&batches);
    for cut in lengths[3] + 1..lengths[4] {
        let mut disk = disk.clone();
        disk.log.as_mut().unwrap()[cut..].fill(0);
        let opened = open(&disk);
        assert_eq!(opened.records, batches[..3].concat(), "cut at {cut}");
        assert!(opened.cut.is_some_and(|words| words.contains(&format!("cut at byte {}", lengths[3]))));
        let mut log = opened.log;
        log.snapshot(opened.records).unwrap();
        log.append([removed(55)]).unwrap();
        assert_eq!(open(&log.disk).records.last(), Some(&removed(55)));
    }
}

#[test]
fn damage_before_the_end_is_refused_with_instructions_unless_the_machine_went_down() {
    let batches: Vec<Vec<Record>> = (0..4).map(|n| vec![removed(n)]).collect();
    let (disk, lengths) = written(&batches);
    for at in lengths[1]..lengths[2] {
        let mut disk = disk.clone();
        disk.log.as_mut().unwrap()[at] ^= 0x40;
        let error = Log::open(disk.clone(), BOOT).unwrap_err().to_string();
        assert!(error.contains(&format!("at byte {}", lengths[1])) && error.contains("move the log's directory away"), "{error}");
        let opened = Log::open(disk, "b2").unwrap();
        assert_eq!((opened.records, opened.same_boot), (batches[0].clone(), false));
        assert!(opened.cut.is_some_and(|words| words.contains("went down")));
    }
    let mut headless = disk.clone();
    headless.log.as_mut().unwrap()[3] ^= 1;
    assert!(matches!(Log::open(headless.clone(), BOOT), Err(Error::Damaged { at: 0, .. })));
    assert!(Log::open(headless, "b2").unwrap().cut.is_some());
    let emptied = Memory { log: Some(Vec::new()), ..disk.clone() };
    assert!(matches!(Log::open(emptied, BOOT), Err(Error::Damaged { .. })), "somebody has emptied it");
    let without = Memory { log: None, ..disk.clone() };
    let error = Log::open(without, BOOT).unwrap_err().to_string();
    assert!(error.contains("it is not there") && error.contains("move the log's directory away"), "{error}");
    let moved = Memory { room: disk.room, ..Memory::default() };
    assert!(Log::open(moved, BOOT).unwrap().records.is_empty(), "the whole directory is gone");
}

#[test]
fn a_full_disk_is_told_before_and_what_was_reserved_can_be_written() {
    let mut log = open(&Memory { room: Some(3 * STEP), ..Memory::default() }).log;
    log.snapshot([]).unwrap();
    assert!(log.has_room(STEP).unwrap());
    assert!(!log.has_room(4 * STEP).unwrap());
    // A snapshot finds its room whatever happens.
    let big = |n: u64| Record::Seen {
        framework: key().framework,
        keys: (0..10_000).map(|i| (TaskId::new(format!("task-{n}-{i}")).unwrap(), 0)).collect(),
    };
    let mut n = 0;
    let full = loop {
        n += 1;
        match log.append([big(n)]) {
            Ok(()) => {}
            Err(e) => break e,
        }
    };
    assert!(full.is_full(), "{full}");
    assert_eq!(open(&log.disk).records.len() as u64, n - 1);
    log.snapshot([big(0)]).unwrap();
    log.append([big(n)]).unwrap();
    assert_eq!(open(&log.disk).records, [big(0), big(n)]);
}

#[test]
fn a_snapshot_that_was_written_counts_although_nothing_fits_behind_it() {
    let mut log = open(&Memory { room: Some(2 * STEP), ..Memory::default() }).log;
    let keys = |n: u64| (0..30_000).map(|i| (TaskId::new(format!("task-{n}-{i:060}")).unwrap(), 0)).collect();
    let big = |n| Record::Seen { framework: key().framework, keys: keys(n) };
    log.snapshot([big(1)]).unwrap();
    assert!(log.length() > STEP / 2 && log.length() < STEP, "{}", log.length());
    assert!(log.append([big(2)]).unwrap_err().is_full());
    log.snapshot([big(3)]).unwrap();
    assert_eq!(open(&log.disk).records, [big(3)]);
}

#[test]
fn a_snapshot_is_due_when_it_makes_the_log_much_shorter() {
    let mut log = open(&Memory::default()).log;
    log.snapshot([]).unwrap();
    let big = Record::Seen { framework: key().framework, keys: (0..40_000).map(|i| (TaskId::new(format!("t{i}")).unwrap(), 0)).collect() };
    while !log.wants_snapshot() {
        log.append([big.clone()]).unwrap();
    }
    assert!(log.length() > SNAPSHOT_AFTER_STEPS * STEP);
    log.snapshot(vec![big; 30]).unwrap();
    assert!(!log.wants_snapshot());
    assert_eq!(open(&log.disk).records.len(), 30);
}

proptest! {
    #[test]
    fn whatever_happens_to_the_bytes_the_records_are_a_prefix_or_refused(
        sizes in proptest::collection::vec(1_usize..6, 1..12),
        at in any::<prop::sample::Index>(),
        garbage in proptest::collection::vec(any::<u8>(), 1..40),
    ) {
        let mut n = 0;
        let batches: Vec<Vec<Record>> = sizes.iter().map(|size| (0..*size).map(|_| { n += 1; removed(n) }).collect()).collect();
        let (mut disk, lengths) = written(&batches);
        let all = batches.concat();
        let file = disk.log.as_mut().unwrap();
        let at = HEADER_LEN + at.index(lengths.last().unwrap() - HEADER_LEN);
        file[at..at + garbage.len()].copy_from_slice(&garbage);
        match Log::open(disk, BOOT) {
            Ok(opened) => prop_assert!(all.starts_with(&opened.records), "{:?}", opened.records),
            Err(e) => prop_assert!(e.to_string().contains("move the log's directory away"), "{}", e),
        }
    }
}
