//! A second scheduler under a framework's id: started by somebody on a copy of the first one's store, while that is stopped or out of
//! sight. Once it has subscribed, the first goes on where it was, and must not do any harm: it is told that it was taken over, and ends.
//!
//! Owns the first one's life from then on: it takes what waits for it, answers on its old connection, and never makes a new one.

use super::{FrameworkNode, Handler};
use crate::network::{ToMaster, ToPeer, Way};
use crate::script::Answers;
use crate::world::{Happening, Node, Peer, TICK_US, World};
use smalti_framework_sdk_core::{Client, Delivery, Event, Message, Record, UpdateId};
use std::collections::VecDeque;

/// A scheduler that another one has taken over from.
#[derive(Debug)]
pub(super) struct Fenced {
    conn: u64,
    client: Client,
    handler: Handler,
    inbox: VecDeque<Delivery>,
    /// What has come while it was stopped; `None` once it goes on.
    stopped: Option<VecDeque<ToPeer>>,
}

impl FrameworkNode {
    /// The process is stopped, and another one is to begin with a copy of what it has kept.
    fn give_way(&mut self) -> bool {
        // It may be subscribing again, and be heard after the other one. One that has never been subscribed takes over itself.
        let Some(conn) = self.conn.filter(|_| self.fenced.is_empty()) else { return false };
        let Some(client) = self.client.take_if(|client| client.has_stood()) else { return false };
        let copy = self.handler.copy();
        let handler = std::mem::replace(&mut self.handler, copy);
        let inbox = std::mem::take(&mut self.inbox);
        self.fenced.push(Fenced { conn, client, handler, inbox, stopped: Some(VecDeque::new()) });
        self.conn = None;
        self.seen.clear();
        true
    }
}

impl World {
    /// Somebody starts a second scheduler.
    pub(crate) fn take_over(&mut self, i: usize) {
        if self.frameworks[i].give_way() {
            // The copy may be an old one: it does not know how many lives there were.
            if self.rng.chance(30) {
                self.frameworks[i].store.retain(|key, value| !matches!(Record::decode(key, value), Ok(Record::Life(_))));
            }
            self.note(format_args!("a second scheduler of framework {i} begins"));
            let us = self.rng.between(1_000, 300_000);
            self.after(us, Happening::Start(Node::Peer(Peer::Framework(i))));
        }
    }

    /// The framework's scheduler hears that it has subscribed: one that was stopped goes on.
    pub(super) fn subscription_stands(&mut self, i: usize) {
        let stopped: Vec<u64> = self.frameworks[i].fenced.iter().filter(|f| f.stopped.is_some()).map(|f| f.conn).collect();
        for conn in stopped {
            let us = if self.rng.chance(60) { 0 } else { self.rng.below(500_000) };
            self.after(us, Happening::Fenced(i, conn));
        }
    }

    fn fenced(&mut self, i: usize, conn: u64) -> Option<&mut Fenced> {
        self.frameworks[i].fenced.iter_mut().find(|f| f.conn == conn)
    }

    /// It goes on: what has come meanwhile, what waits for its handler, and its time-outs.
    pub(crate) fn fenced_goes_on(&mut self, i: usize, conn: u64) -> Result<(), String> {
        let Some(fenced) = self.fenced(i, conn) else { return Ok(()) };
        for message in fenced.stopped.take().unwrap_or_default() {
            self.fenced_hears(Peer::Framework(i), conn, message)?;
        }
        let now = self.frameworks[i].machine.clock.wall(self.now);
        let Some(fenced) = self.frameworks[i].fenced.iter_mut().find(|f| f.conn == conn) else { return Ok(()) };
        let mut answers = Answers::default();
        for delivery in fenced.inbox.drain(..) {
            if let Delivery::Update { update, .. } = &delivery {
                answers.handled.push(UpdateId::of(update));
            }
            fenced.handler.take(now, delivery, &mut self.rng, &mut answers);
        }
        fenced.handler.tick(now, self.calm, &mut self.rng, &mut answers);
        let events = std::iter::once(Event::Handled(answers.handled)).chain(answers.calls.into_iter().map(Event::Call));
        for event in events.chain([Event::Tick]) {
            self.fenced_steps(i, conn, event)?;
        }
        self.after(TICK_US, Happening::Fenced(i, conn));
        Ok(())
    }

    /// Something comes on a connection that is not its framework's present one.
    pub(crate) fn fenced_hears(&mut self, peer: Peer, conn: u64, message: ToPeer) -> Result<(), String> {
        let Peer::Framework(i) = peer else { return Ok(()) };
        let Some(fenced) = self.fenced(i, conn) else { return Ok(()) };
        if let Some(stopped) = &mut fenced.stopped {
            stopped.push_back(message);
            return Ok(());
        }
        match message {
            ToPeer::Framework(event) => self.fenced_steps(i, conn, Event::FromMaster(event)),
            ToPeer::Closed => Err(format!("the scheduler of framework {i} that was taken over was not told so")),
            ToPeer::Agent(message) => Err(format!("framework {i} was told {message:?}")),
        }
    }

    fn fenced_steps(&mut self, i: usize, conn: u64, event: Event) -> Result<(), String> {
        let now = self.frameworks[i].machine.clock.wall(self.now);
        let Some(fenced) = self.fenced(i, conn) else { return Ok(()) };
        let effects = fenced.client.step(now, event);
        // Into its own copy of the store, which nobody reads any more.
        let messages = effects.commit(|_| Ok::<_, std::convert::Infallible>(())).unwrap_or_else(|never| match never {});
        for message in messages {
            match message {
                Message::Subscribe(_) | Message::Reconnect => return Err(format!("a fenced scheduler of framework {i} subscribes")),
                Message::ToMaster(call) => self.say_to_master(conn, ToMaster::Call(call)),
                Message::Deliver(Delivery::Error(_)) => {
                    self.note(format_args!("the scheduler of framework {i} that was taken over ends"));
                    self.network.close(conn, Way::ToPeer);
                    self.fenced_ends(Peer::Framework(i), conn);
                    return Ok(());
                }
                Message::Deliver(delivery) => self.fenced(i, conn).into_iter().for_each(|f| f.inbox.push_back(delivery.clone())),
            }
        }
        Ok(())
    }

    /// Its connection is gone: it ends, rather than that it subscribes again.
    pub(crate) fn fenced_ends(&mut self, peer: Peer, conn: u64) {
        if let Peer::Framework(i) = peer {
            self.frameworks[i].fenced.retain(|f| f.conn != conn);
        }
    }
}
