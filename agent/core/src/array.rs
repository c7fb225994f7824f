//! One array part: which of its items wait, are leased or have ended, and what it still has to say about them.
//!
//! Owns the accounting of items. Invariant: every item that was handed to the part is in exactly one place: queued, leased, told, or in a
//! delta not yet told. Does not know executors: the agent passes leases on.

use crate::event::{ArrayReport, Failure, ItemFailure, Run};
use crate::lanes::Lanes;
use crate::lease::{Rate, pace_us};
use crate::pieces::Pieces;
use crate::queue::{Batch, HandOut, Queue};
use crate::record::{PartState, Record};
use crate::task::usage_pace;
use crate::trust::Bounds;
use smalti_types::status::{MAX_RESULT_LEN, truncate};
use smalti_types::{
    ArrayDelta, FailedItem, Input, ItemBatch, ItemSet, LaunchArray, Reason, Resources, Sabotage, Split, StatusUpdate, TaskKey, TaskState,
    Time, Usage,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Deltas merge up to about this size in bytes: an update must stay well below what one message may be.
const CHUNK_BYTES: usize = 512 << 10;
/// With this many deltas not yet told, no item is leased until some are.
const MOST_CHUNKS: usize = 4;
/// Longest message of one failed item: there may be thousands in one update.
const ITEM_MESSAGE_LEN: usize = 512;
/// The same when all items of an executor fail at once with the same words.
const ABANDONED_MESSAGE_CHARS: usize = 120;
/// Unacknowledged updates up to which ordinary and urgent ones are made.
const IN_FLIGHT: usize = 1;
const IN_FLIGHT_URGENT: usize = 2;

/// Items to hand to the executor, with when to report about them.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) batch: Batch,
    pub(crate) report_when_left: u64,
    pub(crate) report_interval_us: u64,
}

/// Items of one hand-out that an executor has.
#[derive(Debug)]
struct Leased {
    hand_out: Arc<HandOut>,
    items: ItemSet,
}

/// What has to be told, as one update says it.
#[derive(Debug, Default)]
struct Chunk {
    delta: ArrayDelta,
    /// The last of the deltas that it is made of.
    last: u64,
}

/// A part of a task array.
#[derive(Debug)]
pub(crate) struct Part {
    /// Without its items.
    pub(crate) launch: Arc<LaunchArray>,
    /// Slots whose resources it holds.
    pub(crate) slots: u32,
    /// Whether more items may come.
    pub(crate) open: bool,
    /// The executor knows that no more leases follow.
    pub(crate) ending: bool,
    pub(crate) queue: Queue,
    /// Of which items the bytes must be fetched first.
    pub(crate) pieces: Pieces,
    /// In class `process`: the executors of its items.
    pub(crate) lanes: Lanes,
    /// By the number of the hand-out.
    leased: BTreeMap<u64, Leased>,
    chunks: VecDeque<Chunk>,
    /// The last hand-out and the last delta.
    hand_outs: u64,
    deltas: u64,
    /// Deltas up to this one are in updates.
    told_deltas: u64,
    /// New ones, for the records of this step.
    new_hand_outs: Vec<(u64, Arc<HandOut>)>,
    new_deltas: Vec<(u64, ArrayDelta)>,
    rate: Rate,
    started: Option<Time>,
    /// Unstarted items and busy slots, as the executor said last.
    said: Option<(u64, u32)>,
    /// The executor was asked how far it is since the last lease.
    asked: bool,
    /// Slots that the last update spoke of.
    pub(crate) told_slots: u32,
    told_usage: Usage,
    /// What its running items have used so far, which the items' own reports do not have yet.
    running: Usage,
    /// The master does not know this, …
    running_news: bool,
    /// … and is not told before this.
    next_usage: Time,
    /// How far its transfers are, as long as it is being prepared and nobody has been told.
    pub(crate) fetching: Option<String>,
    /// The next update must not wait for its time.
    urgent: bool,
    low_water: u64,
    next_paced: Time,
    /// Items handed to the part and items told to have left it: for the invariant.
    handed: u64,
    told: u64,
}

impl Part {
    /// A part with its first items. The second value counts items that could not be taken.
    pub(crate) fn new(mut launch: LaunchArray) -> (Self, u64) {
        let batch = std::mem::take(&mut launch.batch);
        let mut part = Self {
            slots: launch.slots,
            open: true,
            ending: false,
            queue: Queue::default(),
            pieces: Pieces::new(&launch.template.split_inputs),
            lanes: Lanes::default(),
            leased: BTreeMap::new(),
            chunks: VecDeque::new(),
            hand_outs: 0,
            deltas: 0,
            told_deltas: 0,
            new_hand_outs: Vec::new(),
            new_deltas: Vec::new(),
            rate: Rate::default(),
            started: None,
            said: None,
            asked: false,
            told_slots: launch.slots,
            told_usage: Usage::default(),
            running: Usage::default(),
            running_news: false,
            next_usage: Time(0),
            fetching: None,
            urgent: false,
            low_water: 0,
            next_paced: Time(0),
            handed: 0,
            told: 0,
            launch: Arc::new(launch),
        };
        let refused = part.assign(batch, true, &ItemSet::default());
        part.open = part.launch.open;
        (part, refused)
    }

    /// What `slots` of its slots hold.
    pub(crate) fn resources(&self, slots: u32) -> Resources {
        // The product was checked when the part was accepted, and it only shrinks.
        self.launch.slot_resources.checked_mul(slots).unwrap_or_default()
    }

    /// Takes more items. What comes after the end goes back; what it already has, or is beyond the array, is refused and counted.
    /// `told`: ended here, and the framework may not know.
    pub(crate) fn assign(&mut self, batch: ItemBatch, open: bool, told: &ItemSet) -> u64 {
        let wanted = batch.items.len();
        let mut have = self.queue.items();
        have.extend(told);
        for leased in self.leased.values() {
            have.extend(&leased.items);
        }
        for chunk in &self.chunks {
            have.extend(&items_of(&chunk.delta));
        }
        let allowed = batch.items.intersection(&ItemSet::range(0, self.launch.template.total_items)).difference(&have);
        let taken = allowed.len();
        self.handed += taken;
        if self.open {
            self.hand_out(batch, allowed);
            self.open = open;
            self.low_water = self.outstanding() / 2;
        } else if taken > 0 {
            self.note(ArrayDelta { returned: allowed, ..ArrayDelta::default() });
            self.urgent = true;
        }
        wanted - taken
    }

    /// Queues the items of `batch` that are in `items`.
    fn hand_out(&mut self, batch: ItemBatch, items: ItemSet) {
        if items.is_empty() {
            return;
        }
        let mut splits = batch.splits;
        splits.retain(|s| items.contains(s.item));
        splits.sort_by_key(|s| s.item);
        splits.dedup_by_key(|s| s.item);
        self.hand_outs += 1;
        let hand_out = Arc::new(HandOut { attempt: batch.attempt, splits });
        self.new_hand_outs.push((self.hand_outs, hand_out.clone()));
        self.queue.push(Batch { items, number: self.hand_outs, hand_out });
    }

    /// Items that have neither ended nor been returned.
    pub(crate) fn outstanding(&self) -> u64 {
        self.queue.len() + self.leased_len()
    }

    pub(crate) fn leased_len(&self) -> u64 {
        self.leased.values().map(|l| l.items.len()).sum()
    }

    /// The part has its executor's slots and runs.
    pub(crate) fn start(&mut self, now: Time) {
        self.started = Some(now);
        self.urgent = true;
    }

    /// Whether there is an item to start, and room to tell what comes of it.
    pub(crate) fn has_next(&self) -> bool {
        self.ready_len() > 0 && !self.ending && self.chunks.len() < MOST_CHUNKS
    }

    /// Items that could be leased now.
    pub(crate) fn ready_len(&self) -> u64 {
        self.queue.len_of(self.pieces.ready())
    }

    /// Splits that are to be fetched now.
    pub(crate) fn take_wanted_splits(&mut self) -> Vec<(Split, Input)> {
        if self.ending {
            return Vec::new();
        }
        let ahead = self.rate.target(u64::from(self.slots));
        let wanted = self.pieces.take_wanted(&self.queue, ahead);
        let inputs = &self.launch.template.split_inputs;
        wanted.into_iter().filter_map(|s| Some((s, inputs.get(s.input as usize)?.clone()))).collect()
    }

    /// Items whose splits nobody needs any more.
    pub(crate) fn take_gone_splits(&mut self) -> ItemSet {
        self.pieces.take_gone(&self.queue.items().union(&self.leased_items()))
    }

    /// The next item by itself.
    pub(crate) fn lease_one(&mut self) -> Option<Batch> {
        let batch = self.has_next().then(|| self.queue.take_first(1, self.pieces.ready())).flatten()?;
        self.lease(&batch);
        Some(batch)
    }

    fn lease(&mut self, batch: &Batch) {
        if Sabotage::ArrayLeasesUncounted.is_on() {
            return;
        }
        let none = || Leased { hand_out: batch.hand_out.clone(), items: ItemSet::default() };
        self.leased.entry(batch.number).or_insert_with(none).items.extend(&batch.items);
    }

    /// Items that were leased and reached no executor are leased again, before all others.
    pub(crate) fn requeue(&mut self, items: &ItemSet) {
        for (number, leased) in &mut self.leased {
            let back = leased.items.intersection(items);
            leased.items = leased.items.difference(&back);
            self.queue.put_back(Batch { items: back, number: *number, hand_out: leased.hand_out.clone() });
        }
        self.leased.retain(|_, leased| !leased.items.is_empty());
        self.said = None;
    }

    /// Items in the hands of executors with their attempts, and the numbers of the output files that they may lie in.
    pub(crate) fn leased_with(&self) -> Vec<(u32, ItemSet)> {
        self.leased.values().map(|l| (l.hand_out.attempt, l.items.clone())).collect()
    }

    /// Every item in the hands of executors.
    pub(crate) fn leased_items(&self) -> ItemSet {
        self.leased.values().flat_map(|l| l.items.ranges()).copied().collect()
    }

    /// An item that was leased and never started goes back.
    pub(crate) fn return_one(&mut self, item: u64) {
        let returned = self.unlease(&ItemSet::range(item, item + 1));
        self.note(ArrayDelta { returned, ..ArrayDelta::default() });
        self.urgent = true;
    }

    /// The executor of this one item is gone.
    pub(crate) fn abandon_one(&mut self, item: u64, state: TaskState, failure: &Failure) {
        if let Some(attempt) = self.unlease_one(item) {
            let failed = vec![abandoned(item, attempt, state, failure)];
            self.note(ArrayDelta { failed, ..ArrayDelta::default() });
        }
    }

    /// Whether this item is in the hands of an executor.
    pub(crate) fn is_leased(&self, item: u64) -> bool {
        self.leased.values().any(|l| l.items.contains(item))
    }

    /// Whether every item is accounted for and none can follow.
    pub(crate) fn is_exhausted(&self) -> bool {
        !self.open && self.queue.is_empty() && self.leased.is_empty()
    }

    /// Items that the executor should have now.
    pub(crate) fn take_leases(&mut self, now: Time) -> Vec<Lease> {
        let slots = u64::from(self.slots);
        let mut leases = Vec::new();
        if self.ending || self.chunks.len() >= MOST_CHUNKS {
            return leases;
        }
        let (target, ahead, have) = (self.rate.target(slots), self.rate.ahead(slots), self.leased_len());
        if have >= target || (ahead > 0 && have >= slots && have - slots > ahead / 2) {
            return leases;
        }
        let report_interval_us = pace_us(now, self.started.unwrap_or(now));
        let mut want = target - have;
        while let Some(batch) = self.queue.take_first(want, self.pieces.ready()) {
            want -= batch.items.len();
            self.lease(&batch);
            leases.push(Lease { batch, report_when_left: 0, report_interval_us });
        }
        if !leases.is_empty() {
            self.asked = false;
        }
        // Half of what lies ahead: the next lease arrives while the executor works on the other half.
        let report_when_left = self.leased_len().saturating_sub(slots) / 2;
        for lease in &mut leases {
            lease.report_when_left = report_when_left;
        }
        leases
    }

    /// Whether its slots can leave after the items they run: nothing waits here, none can follow, and the executor has begun with
    /// everything that it was leased (a lease still on its way would make the sums differ).
    pub(crate) fn is_drained(&self) -> bool {
        let begun = self.said.is_some_and(|(unstarted, busy)| unstarted == 0 && u64::from(busy) == self.leased_len());
        !self.open && self.queue.is_empty() && (begun || self.leased.is_empty())
    }

    /// Whether slots may be idle without the executor having said so: it reports outcomes, not that a slot never got an item.
    pub(crate) fn should_ask(&mut self) -> bool {
        let ask = self.started.is_some()
            && !self.ending
            && !self.open
            && self.queue.is_empty()
            && self.leased_len() < u64::from(self.slots)
            && !self.asked;
        self.asked |= ask;
        ask
    }

    /// Takes items back for another part: those that wait, from the back. Returns how many the executor should give back.
    pub(crate) fn return_items(&mut self, most: u64) -> u64 {
        let returned = if Sabotage::ArrayReturnsAndKeeps.is_on() { self.queue.items() } else { self.queue.take_last(most) };
        let missing = most.saturating_sub(returned.len());
        let unlease = if self.started.is_some() && self.lanes.len() == 0 { missing.min(self.leased_len()) } else { 0 };
        self.note(ArrayDelta { returned, ..ArrayDelta::default() });
        self.urgent = true;
        unlease
    }

    /// Gives back every item that waits.
    pub(crate) fn return_queue(&mut self) {
        let returned = self.queue.take_all();
        self.open = false;
        if !returned.is_empty() {
            self.note(ArrayDelta { returned, ..ArrayDelta::default() });
        }
    }

    /// Takes in what the executor reports, as far as it is about items that it holds. Returns how many items finished, and how
    /// many statements were ignored.
    pub(crate) fn report(&mut self, report: ArrayReport, killing: bool) -> (u64, u64) {
        self.said = Some((report.unstarted, report.busy));
        let stated = report.finished.len().saturating_add(report.failed.len() as u64).saturating_add(report.returned.len());
        let mut delta = ArrayDelta { finished: self.unlease(&report.finished), ..ArrayDelta::default() };
        for failure in report.failed {
            if let Some(attempt) = self.unlease_one(failure.item) {
                delta.failed.push(failed_item(failure, attempt, killing));
            }
        }
        delta.returned = self.unlease(&report.returned);
        let ended = delta.finished.len() + delta.failed.len() as u64;
        let mut ignored = stated.saturating_sub(delta.items());
        if ended > 0 {
            delta.usage = report.usage;
            // What these items used is not that of running ones any more, until the executor says how much that is now.
            self.running.cpu_us = self.running.cpu_us.saturating_sub(report.usage.cpu_us);
            self.running.wall_us = self.running.wall_us.saturating_sub(report.usage.wall_us);
            self.running.bytes_read = self.running.bytes_read.saturating_sub(report.usage.bytes_read);
            self.running.bytes_written = self.running.bytes_written.saturating_sub(report.usage.bytes_written);
            self.running.fuel = self.running.fuel.map(|f| f.saturating_sub(report.usage.fuel.unwrap_or(0)));
        }
        let mut seen = BTreeSet::new();
        for (item, value) in report.results {
            if value.len() <= MAX_RESULT_LEN && delta.finished.contains(item) && seen.insert(item) {
                delta.results.push((item, value));
            } else {
                ignored = ignored.saturating_add(1);
            }
        }
        let result_bytes = delta.results.iter().map(|(_, v)| v.len() as u64).sum();
        self.rate.add(ended, &delta.usage, result_bytes);
        if !delta.returned.is_empty() {
            self.urgent = true;
        }
        let finished = delta.finished.len();
        self.note(delta);
        (finished, ignored)
    }

    /// What `items` of its items can have used, or all that run at once.
    fn bounds(&self, items: Option<u64>) -> Bounds {
        let slots = u64::from(self.launch.slots);
        let fuel = self.launch.template.spec.limits.fuel.map(|fuel| fuel.saturating_mul(items.unwrap_or(slots)));
        Bounds { since: self.started, slots, memory: self.launch.slot_resources.mem.0, fuel }
    }

    /// Takes in what the executor says that the items which run now have used so far.
    pub(crate) fn note_running(&mut self, now: Time, said: &Usage) {
        let usage = self.bounds(None).cut(now, said);
        self.running_news |= usage != self.running;
        self.running = usage;
    }

    /// The executor is gone: items that it held may have run and failed with it, the others go back.
    pub(crate) fn abandon(&mut self, state: TaskState, failure: &Failure) {
        let mut delta = ArrayDelta::default();
        for leased in std::mem::take(&mut self.leased).into_values().filter(|_| !Sabotage::ArrayForgetsLostItems.is_on()) {
            let attempt = leased.hand_out.attempt;
            delta.failed.extend(leased.items.iter().map(|item| abandoned(item, attempt, state, failure)));
        }
        delta.failed.sort_by_key(|f| f.item);
        if !delta.failed.is_empty() {
            self.note(delta);
        }
        self.return_queue();
    }

    /// One slot fewer. The resources are told at once.
    pub(crate) fn give_back(&mut self, slots: u32) {
        self.slots = self.slots.saturating_sub(slots);
        self.urgent = true;
    }

    /// Deltas that wait to be told.
    pub(crate) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Whether an update should be made now.
    pub(crate) fn is_due(&self, now: Time, in_flight: usize) -> bool {
        let slots_changed = self.slots != self.told_slots;
        if self.chunks.is_empty() && !slots_changed && !self.urgent {
            return (self.running_news || self.fetching.is_some()) && in_flight < IN_FLIGHT && now >= self.next_usage;
        }
        // Somebody waits for what we have to say: resources, items asked for, or a slot that has nothing to do.
        let starving = self.started.is_some() && self.open && self.queue.is_empty() && self.leased_len() < u64::from(self.slots);
        let low = self.open && self.outstanding() <= self.low_water;
        if self.urgent || slots_changed || starving || low || self.chunks.len() > 1 {
            return in_flight < IN_FLIGHT_URGENT;
        }
        in_flight < IN_FLIGHT && now >= self.next_paced
    }

    /// Makes an update of the first delta that waits (or of none).
    pub(crate) fn take_update(&mut self, now: Time, key: &TaskKey, seq: u64, state: TaskState) -> StatusUpdate {
        let Chunk { mut delta, last } = self.chunks.pop_front().unwrap_or_default();
        self.told_deltas = self.told_deltas.max(last);
        self.told += delta.items();
        delta.slots = if state.is_terminal() { 0 } else { self.slots };
        delta.outstanding = self.outstanding() + self.chunks.iter().map(|c| c.delta.items()).sum::<u64>();
        self.told_slots = delta.slots;
        delta.usage = self.bounds(Some(delta.items())).cut(now, &delta.usage);
        self.told_usage.add(&delta.usage);
        self.urgent = false;
        self.running_news = false;
        self.next_usage = now.after(usage_pace(now, self.started));
        if self.open && self.outstanding() <= self.low_water {
            self.low_water = self.outstanding() / 2;
        }
        self.next_paced = Time(now.0.saturating_add(pace_us(now, self.started.unwrap_or(now))));
        let mut update = StatusUpdate::new(key.clone(), seq, state, Reason::None, self.fetching.take().unwrap_or_default(), now);
        update.usage = self.told_usage;
        if !state.is_terminal() {
            update.usage.add(&self.running);
        }
        update.array = Some(delta);
        update
    }

    /// Where each item is: queued, leased, not yet told; and what was handed in and told away.
    pub(crate) fn check_invariants(&self) -> Result<(), String> {
        let mut all = self.queue.items();
        let mut sum = self.queue.len();
        let untold = self.chunks.iter().map(|c| items_of(&c.delta));
        for set in self.leased.values().map(|l| l.items.clone()).chain(untold) {
            sum += set.len();
            all.extend(&set);
        }
        if all.len() != sum {
            return Err(format!("an item is in two places: {} items in {sum} places", all.len()));
        }
        if self.leased.values().any(|l| l.items.is_empty()) {
            return Err("an empty lease is kept".into());
        }
        self.pieces.check_invariants(&self.queue.items())?;
        if self.lanes.items().any(|item| !self.is_leased(item)) {
            return Err("an executor has an item that is not leased".into());
        }
        if self.handed != sum + self.told {
            return Err(format!("{} items were handed in, {} told, {sum} are here", self.handed, self.told));
        }
        Ok(())
    }

    /// Removes those of `items` that are leased, and returns them.
    fn unlease(&mut self, items: &ItemSet) -> ItemSet {
        let mut held = ItemSet::default();
        if items.is_empty() {
            return held;
        }
        for leased in self.leased.values_mut() {
            let here = leased.items.intersection(items);
            if !here.is_empty() {
                leased.items = leased.items.difference(&here);
                held.extend(&here);
            }
        }
        self.leased.retain(|_, leased| !leased.items.is_empty());
        held
    }

    /// Removes one item and returns its attempt, if it is leased.
    fn unlease_one(&mut self, item: u64) -> Option<u32> {
        let attempt = self.leased.values().find(|l| l.items.contains(item)).map(|l| l.hand_out.attempt)?;
        self.unlease(&ItemSet::range(item, item + 1));
        Some(attempt)
    }

    /// Adds to what has to be told.
    fn note(&mut self, delta: ArrayDelta) {
        if delta.items() == 0 {
            return;
        }
        self.deltas += 1;
        self.new_deltas.push((self.deltas, delta.clone()));
        self.add(self.deltas, delta);
    }

    fn add(&mut self, number: u64, delta: ArrayDelta) {
        match self.chunks.back_mut() {
            Some(Chunk { delta: chunk, last }) if weight(chunk) + weight(&delta) <= CHUNK_BYTES => {
                *last = number;
                chunk.finished.extend(&delta.finished);
                chunk.failed.extend(delta.failed);
                chunk.returned.extend(&delta.returned);
                chunk.results.extend(delta.results);
                chunk.usage.add(&delta.usage);
            }
            _ => self.chunks.push_back(Chunk { delta, last: number }),
        }
    }

    /// What the records of this step say of new hand-outs and of deltas that no update has taken yet.
    pub(crate) fn take_news(&mut self, run: Run) -> impl Iterator<Item = Record> + '_ {
        let told = self.told_deltas;
        let hand_outs = self.new_hand_outs.drain(..).map(move |(number, hand_out)| Record::HandOut { run, number, hand_out });
        let deltas = self.new_deltas.drain(..).filter(move |(number, _)| *number > told);
        hand_outs.chain(deltas.map(move |(number, delta)| Record::Delta { run, number, delta }))
    }

    /// The same of everything that is here, for a snapshot.
    pub(crate) fn all_news(&self, run: Run) -> Vec<Record> {
        let queued = self.queue.batches().map(|b| (b.number, &b.hand_out));
        let leased = self.leased.iter().map(|(number, l)| (*number, &l.hand_out));
        let hand_outs: BTreeMap<u64, &Arc<HandOut>> = queued.chain(leased).collect();
        let hand_outs = hand_outs.into_iter().map(|(number, h)| Record::HandOut { run, number, hand_out: h.clone() });
        hand_outs.chain(self.chunks.iter().map(|c| Record::Delta { run, number: c.last, delta: c.delta.clone() })).collect()
    }

    /// Its accounts, for a record.
    pub(crate) fn state(&self) -> PartState {
        PartState {
            slots: self.slots,
            open: self.open,
            ending: self.ending,
            started: self.started,
            told_slots: self.told_slots,
            told_usage: self.told_usage,
            told: self.told_deltas,
            queued: self.queue.batches().map(|b| (b.number, b.items.clone())).collect(),
            leased: self.leased.iter().map(|(number, l)| (*number, l.items.clone())).collect(),
            lanes: self.lanes.state(),
        }
    }

    /// Whether [`Self::state`] would be this.
    pub(crate) fn is_recorded(&self, state: &PartState) -> bool {
        let head = (self.slots, self.open, self.ending, self.started, self.told_slots, self.told_usage, self.told_deltas);
        head == (state.slots, state.open, state.ending, state.started, state.told_slots, state.told_usage, state.told)
            && self.queue.batches().map(|b| (b.number, &b.items)).eq(state.queued.iter().map(|(n, items)| (*n, items)))
            && self.leased.iter().map(|(n, l)| (*n, &l.items)).eq(state.leased.iter().map(|(n, items)| (*n, items)))
            && self.lanes.is_recorded(state.lanes.as_ref())
    }

    /// A part as records describe it. Hand-outs and deltas of which nothing is left are ignored.
    pub(crate) fn restore(
        launch: Arc<LaunchArray>,
        state: Option<PartState>,
        hand_outs: &BTreeMap<u64, Arc<HandOut>>,
        deltas: BTreeMap<u64, ArrayDelta>,
    ) -> Self {
        let (mut part, _) = Self::new(LaunchArray { batch: ItemBatch::default(), ..LaunchArray::clone(&launch) });
        part.launch = launch;
        let Some(state) = state else { return part };
        part.slots = state.slots;
        part.open = state.open;
        part.ending = state.ending;
        part.started = state.started;
        part.told_slots = state.told_slots;
        part.told_usage = state.told_usage;
        part.told_deltas = state.told;
        part.hand_outs = hand_outs.keys().next_back().copied().unwrap_or(0);
        for (number, items) in state.queued {
            if let Some(hand_out) = hand_outs.get(&number) {
                part.queue.push(Batch { items, number, hand_out: hand_out.clone() });
            }
        }
        for (number, items) in state.leased {
            if let Some(hand_out) = hand_outs.get(&number) {
                part.leased.insert(number, Leased { hand_out: hand_out.clone(), items });
            }
        }
        part.deltas = state.told;
        for (number, delta) in deltas.into_iter().filter(|(number, _)| *number > state.told) {
            part.deltas = number;
            part.add(number, delta);
        }
        let unstarted = state.lanes.iter().flat_map(|l| &l.busy).filter(|l| !l.started).map(|l| l.item).collect();
        part.requeue(&unstarted);
        part.lanes = Lanes::restore(state.lanes);
        part.handed = part.outstanding() + part.chunks.iter().map(|c| c.delta.items()).sum::<u64>();
        part.low_water = part.outstanding() / 2;
        part.urgent = true;
        part
    }

    /// It never reached its executor: it begins anew.
    pub(crate) fn reset(&mut self) {
        let leased = self.leased_items();
        self.requeue(&leased);
        self.pieces.reset();
        (self.started, self.said, self.asked, self.ending) = (None, None, false, false);
    }
}

/// What the master is told of an item whose executor is gone.
fn abandoned(item: u64, attempt: u32, state: TaskState, failure: &Failure) -> FailedItem {
    let message = failure.message.chars().take(ABANDONED_MESSAGE_CHARS).collect();
    FailedItem { item, attempt, state, reason: failure.reason, message, exit_code: None }
}

/// Every item that a delta speaks of.
fn items_of(delta: &ArrayDelta) -> ItemSet {
    let failed: ItemSet = delta.failed.iter().map(|f| f.item).collect();
    delta.finished.union(&delta.returned).union(&failed)
}

/// About how many bytes a delta has on the wire.
fn weight(delta: &ArrayDelta) -> usize {
    let ranges = delta.finished.ranges().len() + delta.returned.ranges().len();
    let failed: usize = delta.failed.iter().map(|f| 48 + f.message.len()).sum();
    let results: usize = delta.results.iter().map(|(_, v)| 16 + v.len()).sum();
    24 * ranges + failed + results
}

/// What the master is told of an item that did not finish.
fn failed_item(failure: ItemFailure, attempt: u32, killing: bool) -> FailedItem {
    let Failure { reason, mut message, .. } = crate::reports::checked_failure(failure.failure, failure.exit_code);
    truncate(&mut message, ITEM_MESSAGE_LEN);
    let killed = reason == Reason::KilledByRequest && killing;
    let state = if killed { TaskState::Killed } else { TaskState::Failed };
    FailedItem { item: failure.item, attempt, state, reason, message, exit_code: failure.exit_code }
}
