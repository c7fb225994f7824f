//! One array part: its leased items, the slots that run them, and the reports about them.
//!
//! Owns the rules of when a slot takes an item, waits or leaves, and of when a report is due. One lock is taken per item (to
//! hand in the outcome and take the next item at once); nothing is sent, woken or written per item. A report names an item
//! only after its output and ledger record are in their files. Running the guest is [`crate::instance`]'s work.

use crate::control::Control;
use crate::inputs::SplitInputs;
use crate::instance::Template;
use crate::link::{Link, Speech};
use crate::output::SlotOutput;
use crate::queue::{Item, Queue};
use crate::report::{Done, Pending, ranges};
use crate::scratch::Scratch;
use crate::streams::Source;
use crate::ticker::Activity;
use smalti_executor_protocol::v1;
use smalti_executor_protocol::v1::from_executor::Message;
use smalti_types::Split;
use smalti_types::items::ItemSet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Reports by time are never closer together than this, whatever the lease says.
const MIN_REPORT_INTERVAL: Duration = Duration::from_millis(1);
/// Before the first lease says otherwise.
const DEFAULT_REPORT_INTERVAL: Duration = Duration::from_millis(20);

/// What does not change while the part runs.
pub(crate) struct Part {
    pub(crate) run: u64,
    pub(crate) template: Template,
    /// Items of the whole array over all agents.
    pub(crate) total_items: u64,
    /// What the items' splits refer to.
    pub(crate) inputs: Option<SplitInputs>,
    /// The slots and where their output goes.
    pub(crate) outputs: BTreeMap<u32, Arc<SlotOutput>>,
    /// Their disks, if items have one.
    pub(crate) disks: BTreeMap<u32, Arc<Scratch>>,
    pub(crate) link: Arc<Link>,
    pub(crate) activity: Arc<Activity>,
}

/// One array part.
pub(crate) struct ArrayRun {
    pub(crate) part: Part,
    state: Mutex<State>,
    /// Items came, or slots should leave.
    wake: Condvar,
    /// Held from taking the outcomes until their report is queued, so that reports leave in order and a slot's end never
    /// overtakes a report about its items. Room in the outbox is waited for before: who hears the agent takes this lock, too.
    sending: Mutex<()>,
}

/// On cache lines of its own: every slot writes here with each item, and reads the part, which does not change.
#[derive(Debug)]
#[repr(align(128))]
struct State {
    queue: Queue,
    pending: Pending,
    /// Slots that still belong to the part, each with the item that it runs.
    slots: BTreeMap<u32, Option<u64>>,
    /// Those that are to leave at their next item boundary.
    leaving: BTreeSet<u32>,
    killed: bool,
    /// Report when so few items are left; `None` once that was done for the current lease.
    low_water: Option<u64>,
    interval: Duration,
    last_report: Instant,
}

impl State {
    /// After an outcome or an item taken. While nobody listens outcomes are collected, so that there is little to say afterwards.
    fn report_is_due(&self, now: Instant, listening: bool) -> bool {
        let early = listening && (self.low_water.is_some_and(|mark| self.queue.len() <= mark) || self.interval_is_over(now));
        !self.pending.is_empty() && (early || self.pending.is_large())
    }
    fn interval_is_over(&self, now: Instant) -> bool {
        !self.pending.is_empty() && now.saturating_duration_since(self.last_report) >= self.interval
    }
    fn must_leave(&self, slot: u32) -> bool {
        self.killed || self.leaving.contains(&slot)
    }
    /// A slot takes an item, or has none any more.
    fn set_item(&mut self, slot: u32, item: Option<u64>) {
        if let Some(place) = self.slots.get_mut(&slot) {
            *place = item;
        }
    }
    fn busy(&self) -> u32 {
        u32::try_from(self.slots.values().flatten().count()).unwrap_or(u32::MAX)
    }
    fn give_back_all(&mut self) {
        let all = self.queue.take_last(u64::MAX);
        self.pending.give_back(&all);
    }
}

impl fmt::Debug for ArrayRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArrayRun").field("run", &self.part.run).finish_non_exhaustive()
    }
}

impl ArrayRun {
    /// A part whose slots wait for the first lease.
    pub(crate) fn new(part: Part, now: Instant) -> Self {
        let state = State {
            queue: Queue::default(),
            pending: Pending::default(),
            slots: part.outputs.keys().map(|slot| (*slot, None)).collect(),
            leaving: BTreeSet::new(),
            killed: false,
            low_water: None,
            interval: DEFAULT_REPORT_INTERVAL,
            last_report: now,
        };
        Self { part, state: Mutex::new(state), wake: Condvar::new(), sending: Mutex::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control(&self) -> &Control {
        &self.part.template.common.control
    }

    /// Hands in the outcome of the slot's last item and takes the next one, waiting for it if need be. `None`: the slot has
    /// left the part, and the agent was told. The second value is true when the slot had to wait.
    pub(crate) fn next(&self, slot: u32, mut done: Option<Done>, now: Instant) -> Option<(Item, bool)> {
        let mut waited = false;
        let mut active = done.is_some();
        loop {
            let mut state = self.lock();
            if let Some(done) = done.take() {
                state.pending.add(done);
                state.set_item(slot, None);
            }
            if state.must_leave(slot) {
                drop(state);
                self.leave(slot);
                if active {
                    self.part.activity.end();
                }
                return None;
            }
            if let Some(item) = state.queue.pop() {
                state.set_item(slot, Some(item.item));
                let due = state.report_is_due(now, self.part.link.is_listening());
                drop(state);
                if !active {
                    self.part.activity.begin();
                }
                if due {
                    self.report_patiently();
                }
                return Some((item, waited));
            }
            if !state.pending.is_empty() {
                drop(state);
                self.report_patiently();
                continue;
            }
            if active {
                self.part.activity.end();
                active = false;
            }
            waited = true;
            drop(self.wake.wait(state).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// More items. They go back at once when nobody is left to run them.
    pub(crate) fn lease(&self, items: &ItemSet, attempt: u32, splits: Vec<Split>, report_when_left: u64, interval: Duration) {
        let mut state = self.lock();
        let refused = state.killed || state.slots.keys().all(|s| state.leaving.contains(s));
        if refused || !state.queue.push(items, attempt, splits) {
            state.pending.give_back(items);
            drop(state);
            self.report(true);
            return;
        }
        state.low_water = Some(report_when_left);
        state.interval = interval.max(MIN_REPORT_INTERVAL);
        drop(state);
        self.wake.notify_all();
    }

    /// Gives up to `most` unstarted items back. Always answered.
    pub(crate) fn unlease(&self, most: u64) {
        let mut state = self.lock();
        let items = state.queue.take_last(most);
        state.pending.give_back(&items);
        drop(state);
        self.report(true);
    }

    /// These slots (all, when none is named) leave at their next item boundary. With the last of them, what is unstarted goes
    /// back.
    pub(crate) fn end(&self, slots: &[u32]) {
        let mut state = self.lock();
        if slots.is_empty() {
            state.leaving = state.slots.keys().copied().collect();
        } else {
            state.leaving.extend(slots);
        }
        drop(state);
        self.wake.notify_all();
    }

    /// Stops the part: unstarted items go back, running ones end after `grace` at the latest, each slot leaves after its item.
    pub(crate) fn kill(&self, now: Instant, grace: Duration) {
        self.control().kill(now, grace);
        let mut state = self.lock();
        state.killed = true;
        state.give_back_all();
        drop(state);
        self.wake.notify_all();
        self.report(false);
    }

    /// What depends on time.
    pub(crate) fn tick(&self, now: Instant) {
        self.control().tick(now);
        for output in self.part.outputs.values() {
            output.tick(now);
        }
        let due = self.part.link.is_listening() && self.lock().interval_is_over(now);
        // Others have the clock, too: it does not wait for one agent.
        if due && self.part.link.has_room() {
            self.report(false);
        }
    }

    /// For slots: they wait while the agent is behind.
    fn report_patiently(&self) {
        self.part.link.wait_for_room();
        self.report(false);
    }

    fn report(&self, even_if_empty: bool) {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        self.report_in_order(&self.part.link.speak(), even_if_empty);
    }

    /// With `sending` held, and leave to speak from before the outcomes are taken until they are said.
    fn report_in_order(&self, speech: &Speech<'_>, even_if_empty: bool) {
        let mut state = self.lock();
        if state.pending.is_empty() && !even_if_empty {
            return;
        }
        let mut pending = std::mem::take(&mut state.pending);
        let (unstarted, busy) = (state.queue.len(), state.busy());
        if state.low_water.is_some_and(|mark| unstarted <= mark) {
            state.low_water = None;
        }
        state.last_report = Instant::now();
        drop(state);
        for output in self.part.outputs.values() {
            if let Err(e) = output.flush() {
                pending.spoil(&e.to_string());
            }
        }
        speech.say(Message::Report(pending.into_message(self.part.run, unstarted, busy)));
    }

    fn leave(&self, slot: u32) {
        self.part.link.wait_for_room();
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let speech = self.part.link.speak();
        let mut state = self.lock();
        state.slots.remove(&slot);
        if state.slots.is_empty() {
            state.give_back_all();
        }
        drop(state);
        self.report_in_order(&speech, false);
        speech.say(Message::ArrayEnded(v1::ArrayEnded { run: self.part.run, slots: vec![slot] }));
    }

    /// What it holds, while nobody speaks: leased items that no report has named, and slots. `None`: it is over, and that was said.
    pub(crate) fn held(&self) -> Option<v1::HeldPart> {
        let state = self.lock();
        if state.slots.is_empty() {
            return None;
        }
        let mut items = state.queue.items();
        items.extend(&state.pending.items());
        state.slots.values().flatten().for_each(|item| items.insert(*item));
        Some(v1::HeldPart { run: self.part.run, items: ranges(&items), slots: state.slots.keys().copied().collect() })
    }

    /// Whether all slots have left.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().slots.is_empty()
    }

    /// What `item` reads on stdin; an error says what is wrong with its split.
    pub(crate) fn source(&self, item: &Item) -> Result<Option<Source>, String> {
        let Some(inputs) = &self.part.inputs else { return Ok(None) };
        let split = item.split.ok_or_else(|| format!("item {} has no split", item.item))?;
        inputs.open(&split).map(Some)
    }
}
