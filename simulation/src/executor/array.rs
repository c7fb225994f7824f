//! An array part inside the model of an executor: its slots, the items that they run, and what is still to be reported.

use super::{Action, Inside};
use crate::rng::Rng;
use smalti_agent_core::{ArrayReport, Failure, ItemFailure, Run};
use smalti_types::{ItemSet, Reason, TaskKey};
use std::collections::{BTreeMap, VecDeque};

/// An item in one execution of it.
type Item = (u64, u32);

#[derive(Debug)]
pub(super) struct Array {
    key: TaskKey,
    /// What each slot runs.
    slots: BTreeMap<u32, Option<Item>>,
    queue: VecDeque<Item>,
    pub(super) report: ArrayReport,
    report_when_left: u64,
    interval_us: u64,
    pub(super) ending: bool,
    killed: bool,
    /// Counts reports: a timer of an earlier one is stale.
    round: u64,
    timer: bool,
    /// How long its items take, in microseconds.
    pace: u64,
}

impl Array {
    pub(super) fn new(key: TaskKey, slots: Vec<u32>, pace: u64) -> Self {
        Self {
            key,
            slots: slots.into_iter().map(|s| (s, None)).collect(),
            queue: VecDeque::new(),
            report: ArrayReport::default(),
            report_when_left: 0,
            interval_us: 0,
            ending: false,
            killed: false,
            round: 0,
            timer: false,
            pace,
        }
    }

    pub(super) fn has_slot(&self, slot: u32) -> bool {
        self.slots.contains_key(&slot)
    }

    pub(super) fn slots(&self) -> Vec<u32> {
        self.slots.keys().copied().collect()
    }

    pub(super) fn is_round(&self, round: u64) -> bool {
        self.round == round
    }

    /// Leased items that are in no report so far.
    pub(super) fn unreported(&self) -> ItemSet {
        let running = self.slots.values().flatten().chain(&self.queue).map(|(item, _)| *item);
        let failed = self.report.failed.iter().map(|f| f.item);
        let ended = self.report.finished.iter().chain(self.report.returned.iter());
        running.chain(failed).chain(ended).collect()
    }

    pub(super) fn lease(&mut self, items: &ItemSet, attempt: u32, report_when_left: u64, interval_us: u64) {
        self.queue.extend(items.iter().map(|item| (item, attempt)));
        (self.report_when_left, self.interval_us) = (report_when_left, interval_us);
    }

    pub(super) fn unlease(&mut self, most: u64) {
        for _ in 0..most {
            let Some((item, _)) = self.queue.pop_back() else { break };
            self.report.returned.insert(item);
        }
    }

    /// Idle slots take the next items.
    pub(super) fn fill_slots(&mut self, run: Run, rng: &mut Rng, out: &mut Vec<Action>) {
        for (slot, runs) in &mut self.slots {
            if runs.is_none() && !self.killed {
                let Some((item, attempt)) = self.queue.pop_front() else { break };
                *runs = Some((item, attempt));
                out.push(Action::StartsItem(self.key.clone(), item, attempt));
                let us = rng.between(50, self.pace);
                out.push(Action::After(us, Inside::ItemEnded { run, slot: *slot, item, us }));
            }
        }
    }

    /// A slot's item ended. Gives its attempt if it was that one.
    pub(super) fn take_out(&mut self, slot: u32, item: u64) -> Option<u32> {
        let runs = self.slots.get_mut(&slot)?;
        runs.take_if(|(i, _)| *i == item).map(|(_, attempt)| attempt)
    }

    pub(super) fn should_report(&self) -> bool {
        let left = self.queue.len() as u64;
        left == 0 || left <= self.report_when_left
    }

    pub(super) fn set_timer(&mut self, run: Run, out: &mut Vec<Action>) {
        if !self.timer {
            self.timer = true;
            out.push(Action::After(self.interval_us, Inside::ReportDue { run, round: self.round }));
        }
    }

    pub(super) fn take_report(&mut self) -> ArrayReport {
        let mut report = std::mem::take(&mut self.report);
        report.unstarted = self.queue.len() as u64;
        report.busy = u32::try_from(self.slots.values().flatten().count()).unwrap_or(u32::MAX);
        self.round += 1;
        self.timer = false;
        report
    }

    /// The slots that leave now, if any may.
    pub(super) fn leave(&mut self) -> Option<Vec<u32>> {
        let idle: Vec<u32> = self.slots.iter().filter(|(_, item)| item.is_none()).map(|(slot, _)| *slot).collect();
        if !self.ending || !self.queue.is_empty() || idle.is_empty() {
            return None;
        }
        self.slots.retain(|_, item| item.is_some());
        Some(idle)
    }

    pub(super) fn kill(&mut self) {
        self.killed = true;
        self.ending = true;
        for (item, _) in self.queue.drain(..) {
            self.report.returned.insert(item);
        }
        for (item, _) in self.slots.values_mut().filter_map(Option::take) {
            let failure = Some(Failure::new(Reason::KilledByRequest, "killed"));
            self.report.failed.push(ItemFailure { item, exit_code: None, failure });
        }
    }
}
