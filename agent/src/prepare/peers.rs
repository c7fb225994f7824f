//! Where to fetch from: the master is asked which other agents have the content, so that its origin is not asked by each agent.
//!
//! Owns the questions under way. Without a master, or with one that does not know the question, everybody goes to the origin. Deliberately
//! absent: fetching (`download`), and who may have what (each agent judges for itself, see `serve`).

use smalti_proto::v1::{self, agent_to_master::Message};
use smalti_types::{Digest, HoldingKey, LocateOutcome, Role};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long an answer is waited for: longer than any master has somebody wait for others.
const MOST_WAIT: Duration = Duration::from_secs(15 * 60);

/// Asks the master. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Locator(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// To the master, while there is one.
    outbound: Option<mpsc::Sender<v1::AgentToMaster>>,
    waiting: HashMap<u64, oneshot::Sender<Option<SocketAddr>>>,
}

impl Locator {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is a master that answers.
    pub(crate) fn connected(&self, outbound: mpsc::Sender<v1::AgentToMaster>) {
        let mut state = self.lock();
        state.waiting.clear();
        state.outbound = Some(outbound);
    }

    /// There is none any more: who waits goes to the origin.
    pub(crate) fn disconnected(&self) {
        let mut state = self.lock();
        state.outbound = None;
        state.waiting.clear();
    }

    /// What the master has answered.
    pub(crate) fn answered(&self, located: &v1::Located) {
        let Some(waits) = self.lock().waiting.remove(&located.ticket) else { return };
        // An address that is none is as good as no answer.
        let _ = waits.send(smalti_proto::convert::peer_address(&located.address).unwrap_or_default());
    }

    /// Asks where a role's content is to be fetched from, and waits for the answer.
    pub(crate) async fn ask(&self, role: &Role, digest: &Digest) -> Place {
        let (answer, answered) = oneshot::channel();
        let (ticket, outbound) = {
            let mut state = self.lock();
            let Some(outbound) = state.outbound.clone() else { return Place { from: None, ticket: None } };
            state.last += 1;
            let ticket = state.last;
            state.waiting.insert(ticket, answer);
            (ticket, outbound)
        };
        // From now on it is ended, however this goes on.
        let mut place = Place { from: None, ticket: Some(Ticket { locator: self.clone(), number: ticket, outbound: outbound.clone() }) };
        let question = v1::Locate { ticket, role: role.to_string(), key: HoldingKey::of_digest(digest).0 };
        if outbound.send(v1::AgentToMaster { message: Some(Message::Locate(question)) }).await.is_ok() {
            // No answer in time, and no master any more, are as good as the origin.
            place.from = tokio::time::timeout(MOST_WAIT, answered).await.ok().and_then(Result::ok).flatten();
        }
        place
    }
}

/// A question that has not ended.
#[derive(Debug)]
struct Ticket {
    locator: Locator,
    number: u64,
    /// Of the connection that was asked: numbers mean nothing to another.
    outbound: mpsc::Sender<v1::AgentToMaster>,
}

/// Where to fetch from. Others may be waiting for it: end it as soon as it is known how it went. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Place {
    from: Option<SocketAddr>,
    ticket: Option<Ticket>,
}

impl Place {
    /// Another agent; `None`: the origin.
    pub(crate) fn from(&self) -> Option<SocketAddr> {
        self.from
    }

    /// Tells the master.
    pub(crate) fn end(mut self, outcome: LocateOutcome) {
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: LocateOutcome) {
        let Some(Ticket { locator, number, outbound }) = self.ticket.take() else { return };
        locator.lock().waiting.remove(&number);
        let end = v1::LocateEnd { ticket: number, outcome: v1::LocateOutcome::from(outcome).into() };
        let message = v1::AgentToMaster { message: Some(Message::LocateEnd(end)) };
        if let Err(mpsc::error::TrySendError::Full(message)) = outbound.try_send(message)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { outbound.send(message).await });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tell(LocateOutcome::GivenUp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(inbound: &mut mpsc::Receiver<v1::AgentToMaster>) -> Message {
        inbound.recv().await.unwrap().message.unwrap()
    }

    #[tokio::test]
    async fn without_a_master_everybody_goes_to_the_origin() {
        let locator = Locator::default();
        assert_eq!(locator.ask(&Role::default(), &Digest::of(b"x")).await.from(), None);
        let (outbound, mut inbound) = mpsc::channel(4);
        locator.connected(outbound);
        let asked = tokio::spawn({
            let locator = locator.clone();
            async move { locator.ask(&Role::default(), &Digest::of(b"x")).await.from() }
        });
        assert!(matches!(heard(&mut inbound).await, Message::Locate(_)));
        locator.disconnected();
        assert_eq!(asked.await.unwrap(), None);
    }

    #[tokio::test]
    async fn every_question_is_ended_once() {
        let locator = Locator::default();
        let (outbound, mut inbound) = mpsc::channel(4);
        locator.connected(outbound);
        let (role, digest) = (Role::new("r").unwrap(), Digest::of(b"x"));
        let ask = || {
            let (locator, role) = (locator.clone(), role.clone());
            tokio::spawn(async move { locator.ask(&role, &digest).await })
        };
        let asked = ask();
        let Message::Locate(question) = heard(&mut inbound).await else { panic!("a question first") };
        assert_eq!((question.ticket, question.role.as_str(), question.key), (1, "r", HoldingKey::of_digest(&digest).0));
        locator.answered(&v1::Located { ticket: 1, address: "127.0.0.1:7".into() });
        let place = asked.await.unwrap();
        assert_eq!(place.from(), Some("127.0.0.1:7".parse().unwrap()));
        place.end(LocateOutcome::Held);
        let Message::LocateEnd(end) = heard(&mut inbound).await else { panic!("its end") };
        assert_eq!((end.ticket, end.outcome()), (1, v1::LocateOutcome::LocateHeld));
        // Given up while it waits.
        let asked = ask();
        assert!(matches!(heard(&mut inbound).await, Message::Locate(_)));
        asked.abort();
        let Message::LocateEnd(end) = heard(&mut inbound).await else { panic!("its end") };
        assert_eq!((end.ticket, end.outcome()), (2, v1::LocateOutcome::LocateGivenUp));
        assert!(locator.lock().waiting.is_empty());
    }
}
