//! A full disk under an agent: a batch that finds no room holds everything up. Nothing has left the process then, and nothing is lost:
//! executors go on, what comes waits in its order, and heartbeats go on, for they are not the loop's.

use crate::nodes::agent::checkpoint::Trouble;
use crate::world::{Happening, Node, Peer, World};
use smalti_agent_core::{Event, Message, Record};
use smalti_types::Effects;
use std::collections::VecDeque;
use std::convert::Infallible;

/// Between two tries to write.
const TRY_AGAIN_US: u64 = 500_000;

/// What waits for room.
#[derive(Debug)]
pub(super) struct Stall {
    /// Decided, not durable.
    effects: Effects<Record, Message>,
    /// Has come since.
    waiting: VecDeque<Event>,
}

impl Stall {
    /// Something comes.
    pub(super) fn waits(&mut self, event: Event) {
        // Ticks that are missed are not made up for.
        if !matches!(event, Event::Tick) {
            self.waiting.push_back(event);
        }
    }
}

impl World {
    pub(super) fn stall_agent(&mut self, i: usize, effects: Effects<Record, Message>) -> Result<(), String> {
        self.note(format_args!("agent {i} finds no room"));
        self.agents[i].stall = Some(Stall { effects, waiting: VecDeque::new() });
        self.try_to_write(i, self.agents[i].life)
    }

    /// All that the core has may be shorter than what was to be added.
    pub(crate) fn try_to_write(&mut self, i: usize, life: u64) -> Result<(), String> {
        if self.life(Node::Peer(Peer::Agent(i))) != Some(life) {
            return Ok(());
        }
        let node = &mut self.agents[i];
        let (Some(core), true) = (&node.core, node.stall.is_some()) else { return Ok(()) };
        match node.checkpoint.snapshot(core.checkpoint(), self.calm, &mut self.rng) {
            Ok(()) => {}
            Err(Trouble::Full) => {
                self.after(TRY_AGAIN_US, Happening::TryToWrite(i, life));
                return Ok(());
            }
            Err(trouble) => return self.agent_cannot(i, &trouble),
        }
        let Some(Stall { effects, mut waiting }) = self.agents[i].stall.take() else { return Ok(()) };
        self.note(format_args!("agent {i} has room"));
        let messages = effects.commit(|_| Ok::<_, Infallible>(())).unwrap_or_else(|never| match never {});
        self.agent_does(i, life, messages)?;
        while let Some(event) = waiting.pop_front() {
            self.agent_event(i, life, event)?;
        }
        Ok(())
    }
}
