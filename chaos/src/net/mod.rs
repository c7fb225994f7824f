//! The network between the processes, and how it is cut.
//!
//! As root every process has a network namespace of its own ([`lab`], [`namespace`]): a cut loses packets, so connections hang, and
//! each end learns of it by its own timers only. Without root a relay between a process and the master keeps the bytes to itself
//! ([`relay`]). Owns nothing of what is cut when; that is [`crate::faults`].

mod lab;
mod namespace;
mod relay;

pub(crate) use lab::{Lab, Link};
pub(crate) use namespace::Namespace;

use anyhow::Result;
use relay::Relay;
use std::net::{Ipv4Addr, SocketAddr};

/// Ways to cut a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nothing passes, and the kernel at its end sees that there is no carrier.
    Down,
    /// What is sent to it is lost.
    To,
    /// What it sends is lost.
    From,
    /// Both directions are late and lose packets.
    Slow,
}

/// Where the processes of a cluster are, and what is between them.
#[derive(Debug)]
pub(crate) enum Net {
    /// All in one namespace, with relays to the master.
    Relays,
    /// Each in its own.
    Lab(Lab),
}

/// What joins one process to the others.
#[derive(Debug)]
pub(crate) enum Cable {
    /// The master itself, where others have relays to it.
    None,
    Relay(Relay),
    Link(Link),
}

impl Net {
    /// Namespaces where that is allowed, unless `relays` are asked for. Moves the calling thread, which must be the only one, into a
    /// namespace of its own.
    pub(crate) fn new(relays: bool) -> Result<Self> {
        if relays || !nix::unistd::geteuid().is_root() {
            return Ok(Self::Relays);
        }
        Ok(match Lab::enter()? {
            Ok(lab) => Self::Lab(lab),
            Err(refused) => {
                println!("no network namespaces here ({refused})");
                Self::Relays
            }
        })
    }

    /// How cables are cut, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Relays => "cables are cut by relays to the master, which keep the bytes until the cable is whole".to_owned(),
            Self::Lab(lab) => format!("cables are cut between network namespaces: {}", lab.describe()),
        }
    }

    /// What can be done to a cable.
    pub(crate) fn cuts(&self) -> &'static [Cut] {
        match self {
            Self::Relays => &[Cut::Down],
            Self::Lab(lab) => lab.cuts(),
        }
    }

    /// The cable of the process to which the others connect.
    pub(crate) fn cable_of_master(&mut self) -> Result<Cable> {
        Ok(match self {
            Self::Relays => Cable::None,
            Self::Lab(lab) => Cable::Link(lab.plug()?),
        })
    }

    /// The cable of a process that connects to the master.
    pub(crate) fn cable_to(&mut self, master: SocketAddr) -> Result<Cable> {
        Ok(match self {
            Self::Relays => Cable::Relay(Relay::to(master)?),
            Self::Lab(lab) => Cable::Link(lab.plug()?),
        })
    }
}

impl Cable {
    /// Where its process listens.
    pub(crate) const fn address(&self) -> Ipv4Addr {
        match self {
            Self::None | Self::Relay(_) => Ipv4Addr::LOCALHOST,
            Self::Link(link) => link.address(),
        }
    }

    /// Where its process finds a master that listens at `master`.
    pub(crate) const fn reaches(&self, master: SocketAddr) -> SocketAddr {
        match self {
            Self::None | Self::Link(_) => master,
            Self::Relay(relay) => relay.address(),
        }
    }

    /// The namespace of its process, if it has one of its own.
    pub(crate) const fn namespace(&self) -> Option<&Namespace> {
        match self {
            Self::None | Self::Relay(_) => None,
            Self::Link(link) => Some(link.namespace()),
        }
    }

    pub(crate) const fn can_be_cut(&self) -> bool {
        !matches!(self, Self::None)
    }

    pub(crate) fn cut(&self, how: Cut) -> Result<()> {
        match self {
            Self::None => {}
            Self::Relay(relay) => relay.set_cut(true),
            Self::Link(link) => link.cut(how)?,
        }
        Ok(())
    }

    /// Makes it whole after whatever was done to it.
    pub(crate) fn mend(&self) -> Result<()> {
        match self {
            Self::None => {}
            Self::Relay(relay) => relay.set_cut(false),
            Self::Link(link) => link.mend()?,
        }
        Ok(())
    }
}
