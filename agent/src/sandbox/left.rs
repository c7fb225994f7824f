//! What an earlier life of the agent left of its tasks' outputs, and when it was changed last.
//!
//! Owns the look through `sandboxes/`. Deliberately absent: removing any of it (see `collect`), but for what nobody has.

use super::collect::Over;
use super::segments::{self, Full, SegmentId};
use super::{Entry, Outputs};
use crate::prepare::LAID_OUT;
use smalti_types::{FrameworkId, TaskId, TaskKey};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What an earlier life left.
#[derive(Default)]
pub(super) struct LeftBehind {
    pub(super) live: BTreeMap<TaskKey, Entry>,
    pub(super) held: BTreeMap<TaskKey, Full>,
    pub(super) over: Vec<(SystemTime, Over)>,
    /// Behind all numbers of segments.
    pub(super) next: u64,
}

impl LeftBehind {
    pub(super) fn look(&mut self, root: &Path, base: &File, attempts: &BTreeMap<TaskKey, (bool, bool)>) -> std::io::Result<()> {
        for framework in std::fs::read_dir(root)?.flatten() {
            let name = framework.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(segments::SPARE) {
                // Nobody has it.
                let _ = std::fs::remove_file(framework.path());
                continue;
            }
            let Ok(id) = FrameworkId::new(name) else { continue };
            for entry in std::fs::read_dir(framework.path()).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let (Some(name), Ok(meta)) = (name.to_str(), entry.metadata()) else { continue };
                if let Some(number) = segments::number_of(name) {
                    let id = SegmentId { framework: id.clone(), number };
                    let time = last_change(id.files().map(|file| root.join(file)));
                    self.segment(base, id, time, attempts);
                } else if meta.is_dir()
                    && let Some((task, attempt)) = name.rsplit_once('.')
                    && let (Ok(task), Ok(attempt)) = (TaskId::new(task), attempt.parse())
                {
                    let files = std::fs::read_dir(entry.path()).into_iter().flatten().flatten().map(|e| e.path());
                    let time = last_change(files.chain([entry.path()]));
                    self.directory(&entry.path(), TaskKey { framework: id.clone(), task, attempt }, time, attempts);
                }
            }
        }
        // Something was laid out for a guest that never began.
        self.live.retain(|_, entry| !(entry.ended && entry.outputs == Outputs::Segment(None)));
        Ok(())
    }

    fn directory(&mut self, path: &Path, key: TaskKey, time: SystemTime, attempts: &BTreeMap<TaskKey, (bool, bool)>) {
        let known = attempts.get(&key);
        let ended = known.is_none_or(|(ended, _)| *ended);
        let outputs = if known.map_or_else(|| has_file(path, "slot-"), |(_, array)| *array) {
            Outputs::Slots
        } else if has_file(path, "std") {
            Outputs::Files
        } else {
            // Its segment says the rest, if it has one.
            self.live
                .entry(key.clone())
                .or_insert(Entry { alone: false, ended, outputs: Outputs::Segment(None), laid_out: true })
                .laid_out = true;
            if ended {
                self.over.push((time, Over::LaidOut(key)));
            }
            return;
        };
        self.live.insert(key.clone(), Entry { alone: false, ended, outputs, laid_out: false });
        if ended {
            self.over.push((time, Over::Directory(key)));
        }
    }

    /// No task of this life uses it. It goes when the one that may still run in it has ended.
    fn segment(&mut self, base: &File, id: SegmentId, time: SystemTime, attempts: &BTreeMap<TaskKey, (bool, bool)>) {
        self.next = self.next.max(id.number + 1);
        let tasks = segments::read_index(base, &id).unwrap_or_default();
        let full = Full { id, keys: tasks.iter().map(|(key, _)| key.clone()).collect(), ended: time };
        let mut runs = None;
        for (key, place) in tasks {
            let ended = place.to.is_some() || attempts.get(&key).is_none_or(|(ended, _)| *ended);
            if !ended {
                runs = Some(key.clone());
            }
            let entry = self.live.entry(key).or_insert(Entry { alone: false, ended, outputs: Outputs::Segment(None), laid_out: false });
            // Where the same attempt began last counts.
            if !matches!(entry.outputs, Outputs::Segment(Some(other)) if other.segment > place.segment) {
                (entry.ended, entry.outputs) = (ended, Outputs::Segment(Some(place)));
            }
        }
        match runs {
            Some(key) => drop(self.held.insert(key, full)),
            None => self.over.push((time, Over::Segment(full))),
        }
    }
}

/// When one of these was changed last.
fn last_change(paths: impl IntoIterator<Item = PathBuf>) -> SystemTime {
    let changed = paths.into_iter().filter_map(|path| std::fs::symlink_metadata(path).and_then(|meta| meta.modified()).ok());
    changed.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Whether a file there is called so.
fn has_file(path: &Path, prefix: &str) -> bool {
    let names = std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.file_name());
    names.into_iter().any(|name| name.to_str().is_some_and(|n| n.starts_with(prefix) && !LAID_OUT.contains(&n)))
}
