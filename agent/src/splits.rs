//! Pieces of large objects that the items of array parts read: which items wait for which, and what lies in the parts' directories for them.
//!
//! Owns that book, on the thread of the event loop. What is fetched comes back as an input of the loop, with the number of what it was asked
//! for: an answer to a question that nobody has any more is dropped, and what it brought with it.

use crate::event_loop::Input;
use crate::prepare::{Handle, Laid, WantedPiece};
use smalti_agent_core::Run;
use smalti_types::{ItemSet, Role, Split, TaskKey};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Which object of a part, and which bytes of it.
type Name = (u32, Range<u64>);

/// All parts' pieces.
#[derive(Debug)]
pub(crate) struct Splits {
    preparer: Handle,
    inbox: mpsc::Sender<Input>,
    runs: HashMap<Run, OfRun>,
    /// Of the last question.
    number: u64,
}

#[derive(Debug, Default)]
struct OfRun {
    pieces: HashMap<Name, Piece>,
    names: BTreeMap<u64, Name>,
    /// Objects that are there whole: they stay as long as the part.
    whole: BTreeMap<u32, Laid>,
}

#[derive(Debug)]
struct Piece {
    number: u64,
    items: BTreeSet<u64>,
    state: State,
}

#[derive(Debug)]
enum State {
    Coming(AbortHandle),
    There(Laid),
}

impl Piece {
    /// Nobody needs it any more. It goes at once, so that it is not the one that is put there the next time: one link, of a file that has
    /// another.
    fn end(self) {
        match self.state {
            State::Coming(task) => task.abort(),
            State::There(laid) => laid.remove(),
        }
    }
}

impl Splits {
    pub(crate) fn new(preparer: Handle, inbox: mpsc::Sender<Input>) -> Self {
        Self { preparer, inbox, runs: HashMap::new(), number: 0 }
    }

    /// Items of a part, whose directory this is, need these splits; those whose bytes are there already are returned. `whole`: some executor
    /// knows nothing of pieces.
    pub(crate) fn fetch(
        &mut self,
        run: Run,
        (key, role): (&TaskKey, &Role),
        wanted: Vec<(Split, smalti_types::Input)>,
        (directory, whole): (PathBuf, bool),
    ) -> ItemSet {
        let of_run = self.runs.entry(run).or_default();
        let mut there = ItemSet::default();
        for (split, input) in wanted {
            if of_run.whole.contains_key(&split.input) {
                there.insert(split.item);
                continue;
            }
            let name = (split.input, split.piece());
            of_run.names.insert(split.item, name.clone());
            if let Some(piece) = of_run.pieces.get_mut(&name) {
                piece.items.insert(split.item);
                if matches!(piece.state, State::There(_)) {
                    there.insert(split.item);
                }
                continue;
            }
            self.number += 1;
            let (framework, role, bytes, directory) = (key.framework.clone(), role.clone(), name.1.clone(), directory.clone());
            let question = WantedPiece { framework, role, input, index: split.input, bytes, directory, whole };
            let (number, preparer, inbox, of) = (self.number, self.preparer.clone(), self.inbox.clone(), name.clone());
            let task = self.preparer.runtime().spawn(async move {
                let laid = preparer.lay_out_piece(question).await;
                // Nobody reads it when the agent ends.
                let _ = inbox.send(Input::Piece { run, of, number, laid }).await;
            });
            let state = State::Coming(task.abort_handle());
            of_run.pieces.insert(name, Piece { number, items: BTreeSet::from([split.item]), state });
        }
        there
    }

    /// An answer: the items that waited for it.
    pub(crate) fn arrived(&mut self, run: Run, of: &Name, number: u64, laid: Laid) -> ItemSet {
        // The part is gone, or begins anew in a directory that is.
        let Some(of_run) = self.runs.get_mut(&run) else { return ItemSet::default() };
        let Some(piece) = of_run.pieces.get_mut(of) else {
            laid.remove();
            return ItemSet::default();
        };
        if piece.number != number {
            // The same will be put there once more.
            return ItemSet::default();
        }
        let items = piece.items.iter().copied().collect();
        if laid.whole {
            of_run.names.retain(|_, name| name != of);
            of_run.pieces.remove(of);
            of_run.whole.insert(of.0, laid);
        } else {
            piece.state = State::There(laid);
        }
        items
    }

    /// These items have ended, or will not run here.
    pub(crate) fn drop_items(&mut self, run: Run, items: &ItemSet) {
        let Some(of_run) = self.runs.get_mut(&run) else { return };
        for item in items.iter() {
            let Some(name) = of_run.names.remove(&item) else { continue };
            let Some(piece) = of_run.pieces.get_mut(&name) else { continue };
            piece.items.remove(&item);
            if piece.items.is_empty()
                && let Some(piece) = of_run.pieces.remove(&name)
            {
                piece.end();
            }
        }
    }

    /// The part is over, or begins anew: its directory is somebody else's care.
    pub(crate) fn forget(&mut self, run: Run) {
        for piece in self.runs.remove(&run).into_iter().flat_map(|of_run| of_run.pieces.into_values()) {
            if let State::Coming(task) = piece.state {
                task.abort();
            }
        }
    }
}
