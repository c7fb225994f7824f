//! Landlock, the kernel's rules that a process imposes on itself, in whatever version the kernel has.
//!
//! The supervisor needs no path any more once it supervises: it denies itself everything that Landlock knows.
//!
//! The worker denies itself to bind and connect TCP (ABI 4, Linux 6.7) and to reach abstract unix sockets and signal processes
//! outside (ABI 6, Linux 6.12). **No rights on files**, on purpose: Landlock also judges what is opened below a descriptor that
//! was passed in, rules can name only directories that exist when it is imposed, and tasks' directories come later. Handling
//! even one file right forbids renaming and linking between directories wherever no rule allows it, which would break guests in
//! their own `/scratch`. What file rights would stop is stopped otherwise: the root is empty, descriptors lead only to a task's
//! own directories, `execve` and `mknod` are not in the filter.

use ::landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope};

/// The latest version whose rights are named here.
const NEWEST: ABI = ABI::V6;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Imposed {
    /// All that is asked for.
    Fully,
    /// A part: an older kernel.
    Partly,
    /// Nothing: the kernel has none of it.
    Unsupported,
    /// Nothing, and why.
    Failed(String),
}

impl Imposed {
    /// As the agent reports it.
    pub(crate) fn state(&self) -> String {
        match self {
            Self::Fully => "on".to_owned(),
            Self::Partly => "on: in part, this kernel knows fewer rules".to_owned(),
            Self::Unsupported => "off: this kernel has no Landlock, or one that knows only rules on files".to_owned(),
            Self::Failed(why) => format!("off: {why}"),
        }
    }
}

/// For the worker, before it has a second thread: Landlock binds the calling thread and what it starts. `tcp`: it may use TCP
/// as far as its filter lets it.
pub(crate) fn for_worker(tcp: bool) -> Imposed {
    let rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort).scope(Scope::from_all(NEWEST));
    let rules = if tcp { rules } else { rules.and_then(|r| r.handle_access(AccessNet::from_all(NEWEST))) };
    impose(rules)
}

/// For the supervisor: no file at all, no network, nobody else's sockets.
pub(crate) fn for_supervisor() -> Imposed {
    let rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(NEWEST));
    impose(rules.and_then(|r| r.handle_access(AccessNet::from_all(NEWEST))).and_then(|r| r.scope(Scope::from_all(NEWEST))))
}

fn impose(rules: Result<Ruleset, RulesetError>) -> Imposed {
    let status = rules.and_then(Ruleset::create).and_then(::landlock::RulesetCreated::restrict_self);
    match status.map(|s| s.ruleset) {
        Ok(RulesetStatus::FullyEnforced) => Imposed::Fully,
        Ok(RulesetStatus::PartiallyEnforced) => Imposed::Partly,
        Ok(RulesetStatus::NotEnforced) => Imposed::Unsupported,
        Err(e) => Imposed::Failed(e.to_string()),
    }
}
