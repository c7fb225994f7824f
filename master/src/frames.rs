//! What is queued for a peer: domain values in frames of bounded size. They become wire messages when the peer's
//! connection takes them, outside the event loop.

use smalti_proto::{v1, version};
use smalti_types::protocol::{AgentCommand, FrameworkEvent};
use smalti_types::{DurationMs, ItemBatch, MasterEpoch, TaskSpec, Time};
use std::net::SocketAddr;

/// Neighbouring values are joined into one frame up to about this many bytes: far below the wire's limit, and enough that
/// frames cost nothing.
const FRAME_BYTES: usize = 1 << 20;
/// What any value is counted as beside its own texts and lists.
const BASE_BYTES: usize = 256;

/// A frame for a peer: how much it weighs, and whether a later value joins it.
pub(crate) trait Frame: Sized + Send + 'static {
    /// The wire message it becomes.
    type Wire: Send + 'static;
    /// About how many bytes it holds.
    fn weight(&self) -> usize;
    /// Takes in the next value if it belongs into the same frame, else gives it back.
    fn join(&mut self, next: Self) -> Option<Self>;
    /// Whether it says nothing but that the master is there.
    fn is_heartbeat(&self) -> bool;
    /// The wire message.
    fn into_wire(self) -> Self::Wire;
}

/// Frames for an agent.
#[derive(Debug)]
pub(crate) enum AgentFrame {
    /// The agent is in, and is to beat this often.
    Registered(MasterEpoch, DurationMs),
    Refused(String),
    Commands(Vec<AgentCommand>, usize),
    Read(v1::ReadRequest),
    Located(u64, Option<SocketAddr>),
    Heartbeat(Time),
}

/// Frames for a framework.
#[derive(Debug)]
pub(crate) enum FrameworkFrame {
    Event(FrameworkEvent, usize),
    Heartbeat(Time),
}

impl AgentFrame {
    pub(crate) fn command(command: AgentCommand) -> Self {
        let weight = BASE_BYTES
            + match &command {
                AgentCommand::Launch { launch, .. } => spec_weight(&launch.spec),
                AgentCommand::LaunchArray { launch, .. } => {
                    spec_weight(&launch.template.spec) + launch.template.split_inputs.len() * BASE_BYTES + batch_weight(&launch.batch)
                }
                AgentCommand::AssignItems { batch, .. } => batch_weight(batch),
                AgentCommand::ReturnItems { .. }
                | AgentCommand::Kill { .. }
                | AgentCommand::Acknowledge(_)
                | AgentCommand::Lease { .. } => 0,
            };
        Self::Commands(vec![command], weight)
    }
}

impl FrameworkFrame {
    pub(crate) fn event(event: FrameworkEvent) -> Self {
        let weight = BASE_BYTES
            + match &event {
                FrameworkEvent::Updates(updates) => updates.iter().map(|(_, u)| u.weight()).sum(),
                FrameworkEvent::Offers(offers) => {
                    offers.iter().map(|o| (2 + o.attributes.0.len()) * BASE_BYTES + o.holdings.len() * 8).sum()
                }
                FrameworkEvent::Rescind(offers) => offers.len() * 16,
                FrameworkEvent::Refused { message, .. } => message.len(),
                FrameworkEvent::Subscribed { .. }
                | FrameworkEvent::AgentLost { .. }
                | FrameworkEvent::Error(_)
                | FrameworkEvent::Fenced { .. } => 0,
            };
        Self::Event(event, weight)
    }
}

fn heartbeat(now: Time) -> v1::Heartbeat {
    v1::Heartbeat { time_us: now.0, ..v1::Heartbeat::default() }
}

fn spec_weight(spec: &TaskSpec) -> usize {
    let texts: usize = spec.args.iter().map(String::len).chain(spec.env.iter().map(|(k, v)| k.len() + v.len())).sum();
    let sources = match &spec.stdin {
        smalti_types::Stdin::Outputs(sources) => sources.iter().map(|s| 128 + s.items.ranges().len() * 16).sum(),
        _ => 0,
    };
    texts + spec.inputs.len() * BASE_BYTES + sources
}

fn batch_weight(batch: &ItemBatch) -> usize {
    batch.splits.len() * 32 + batch.items.ranges().len() * 16
}

impl Frame for AgentFrame {
    type Wire = v1::MasterToAgent;

    fn weight(&self) -> usize {
        match self {
            Self::Commands(_, weight) => *weight,
            _ => BASE_BYTES,
        }
    }

    fn join(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::Commands(mine, weight), Self::Commands(more, extra)) if *weight + extra <= FRAME_BYTES => {
                mine.extend(more);
                *weight += extra;
                None
            }
            (_, next) => Some(next),
        }
    }

    fn is_heartbeat(&self) -> bool {
        matches!(self, Self::Heartbeat(_))
    }

    fn into_wire(self) -> v1::MasterToAgent {
        use v1::master_to_agent::Message;
        let message = match self {
            Self::Registered(epoch, beat) => {
                Message::Registered(v1::Registered { version: Some(version::current()), epoch: epoch.0, heartbeat_interval_ms: beat.0 })
            }
            Self::Refused(reason) => Message::Refused(v1::RefusedByMaster { reason }),
            Self::Commands(commands, _) => Message::Commands(commands.into()),
            Self::Read(request) => Message::Read(request),
            Self::Located(ticket, from) => {
                Message::Located(v1::Located { ticket, address: from.map(|a| a.to_string()).unwrap_or_default() })
            }
            Self::Heartbeat(time) => Message::Heartbeat(heartbeat(time)),
        };
        v1::MasterToAgent { message: Some(message) }
    }
}

impl Frame for FrameworkFrame {
    type Wire = v1::Event;

    fn weight(&self) -> usize {
        match self {
            Self::Event(_, weight) => *weight,
            Self::Heartbeat(_) => BASE_BYTES,
        }
    }

    fn join(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::Event(mine, weight), Self::Event(more, extra)) => {
                Self::join_events(mine, weight, more, extra).map(|more| Self::Event(more, extra))
            }
            (_, next) => Some(next),
        }
    }

    fn is_heartbeat(&self) -> bool {
        matches!(self, Self::Heartbeat(_))
    }

    fn into_wire(self) -> v1::Event {
        match self {
            Self::Event(event, _) => event.into(),
            Self::Heartbeat(time) => v1::Event { event: Some(v1::event::Event::Heartbeat(heartbeat(time))) },
        }
    }
}

impl FrameworkFrame {
    fn join_events(mine: &mut FrameworkEvent, weight: &mut usize, more: FrameworkEvent, extra: usize) -> Option<FrameworkEvent> {
        if *weight + extra > FRAME_BYTES {
            return Some(more);
        }
        match (mine, more) {
            (FrameworkEvent::Updates(mine), FrameworkEvent::Updates(more)) => mine.extend(more),
            (FrameworkEvent::Offers(mine), FrameworkEvent::Offers(more)) => mine.extend(more),
            (FrameworkEvent::Rescind(mine), FrameworkEvent::Rescind(more)) => mine.extend(more),
            (_, more) => return Some(more),
        }
        *weight += extra;
        None
    }
}
