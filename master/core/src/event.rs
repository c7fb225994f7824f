//! What can come into the core and what can go out of it. A feature of the master starts as a variant of each.

use smalti_types::protocol::{AgentCommand, Call, Claim, FrameworkEvent, Registration, Subscription};
use smalti_types::{
    AgentId, AgentInfo, BootTime, DurationMs, FrameworkId, FrameworkInfo, HoldingKey, HoldingsNews, LocateOutcome, MasterEpoch,
    PeerAddress, Role, StatusUpdate, Time,
};
use std::fmt;

/// One connection of a peer. The shell numbers them upwards and never uses a number twice in one life of the master.
/// What arrives under a number that the core no longer knows is ignored: a late message of a peer that was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conn(pub u64);

impl fmt::Display for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {}", self.0)
    }
}

/// What can happen to the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An agent's first message on a new connection.
    AgentRegistered {
        /// The connection.
        conn: Conn,
        /// What the agent says of itself and its tasks.
        registration: Registration,
    },
    /// The connection of an agent ended, for whatever reason.
    AgentDisconnected {
        /// The connection.
        conn: Conn,
    },
    /// Status updates from an agent.
    AgentUpdates {
        /// The connection.
        conn: Conn,
        /// In the order in which the agent made them.
        updates: Vec<StatusUpdate>,
    },
    /// An agent asks for a lease for its exclusive tasks.
    AgentLease {
        /// The connection.
        conn: Conn,
        /// When it asked, by its own clock.
        asked: BootTime,
    },
    /// An agent tells what has changed in its caches.
    AgentHolds {
        /// The connection.
        conn: Conn,
        /// What.
        news: HoldingsNews,
    },
    /// An agent asks where to fetch from.
    AgentLocates {
        /// The connection.
        conn: Conn,
        /// The agent's number for it.
        ticket: u64,
        /// In which role.
        role: Role,
        /// What.
        key: HoldingKey,
    },
    /// An agent does not fetch any more what it asked about.
    AgentLocated {
        /// The connection.
        conn: Conn,
        /// Its number for it.
        ticket: u64,
        /// Why.
        outcome: LocateOutcome,
    },
    /// An agent said goodbye: it is removed.
    AgentDeregistered {
        /// The connection.
        conn: Conn,
        /// The agent's words.
        reason: String,
    },
    /// An operator removes an agent: its tasks are GONE.
    AgentRemoved {
        /// Which.
        agent: AgentId,
        /// Why, for people.
        reason: String,
    },
    /// A framework's first message on a new connection.
    FrameworkSubscribed {
        /// The connection.
        conn: Conn,
        /// What it wants to be.
        subscription: Subscription,
        /// The id it gets if it brings none.
        fresh: FrameworkId,
    },
    /// The connection of a framework ended.
    FrameworkDisconnected {
        /// The connection.
        conn: Conn,
    },
    /// A framework asks for something.
    FrameworkCall {
        /// The connection.
        conn: Conn,
        /// What it asks.
        call: Call,
    },
    /// Time has passed. Needed only for time-outs: leases, filters, fail-over.
    Tick,
    /// The shell's inbox is drained: make offers from everything that became free in this batch.
    BatchEnd,
}

/// What must be durable before the messages of the same batch leave. Each replaces what was stored under its id before, so
/// that writing one twice changes nothing. [`crate::Stored`] is what they add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// This agent belongs to the cluster, as described now.
    Agent(AgentInfo),
    /// This agent does not belong to the cluster any more.
    AgentRemoved(AgentId),
    /// This framework exists, as described now.
    Framework {
        /// Its id.
        id: FrameworkId,
        /// Its description.
        info: FrameworkInfo,
        /// Which of its schedulers subscribed last.
        claim: Claim,
        /// When it is removed unless its scheduler comes back; `None` while its scheduler is connected.
        away_until: Option<Time>,
    },
    /// This framework is gone for good; its id is not given out again while it is remembered.
    FrameworkRemoved {
        /// Its id.
        id: FrameworkId,
        /// Since when: the earliest are forgotten first.
        at: Time,
    },
    /// This removed framework need not be remembered any longer.
    FrameworkForgotten(FrameworkId),
    /// No lease that was granted, or will be until the next such record, lasts longer than this, with all that the master waits.
    LeaseSpan(DurationMs),
}

/// What the master says to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all messages are commands, and each is moved only a few times")]
pub enum AgentMessage {
    /// The registration stands; commands follow.
    Registered {
        /// This life of the master.
        epoch: MasterEpoch,
    },
    /// The registration was refused; the connection ends.
    Refused(String),
    /// Do this. The shell joins neighbouring commands into one frame.
    Command(AgentCommand),
    /// Where to fetch from what it asked about.
    Located {
        /// Its number for it.
        ticket: u64,
        /// Another agent; `None`: where it comes from.
        from: Option<PeerAddress>,
    },
}

/// What leaves the master. Every message names the connection it is for, so that it cannot reach a successor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all messages are commands, and each is moved only a few times")]
pub enum Message {
    /// To an agent.
    ToAgent {
        /// Over which connection.
        conn: Conn,
        /// What.
        message: AgentMessage,
    },
    /// To a framework.
    ToFramework {
        /// Over which connection.
        conn: Conn,
        /// What. Neighbouring updates may be joined into one frame.
        event: FrameworkEvent,
    },
    /// End this connection, of an agent or a framework, after what was sent before.
    Close {
        /// Which.
        conn: Conn,
        /// Why, for the log.
        reason: String,
    },
}
