//! The broker: makes the sockets of one executor, outside of it. It is what an executor's launcher becomes that may have some.
//!
//! The executor's own network namespace is empty. Its filter turns `socket`, `bind`, `listen` and `connect` into notifications,
//! and this process, in the host's namespace, answers them: it makes the sockets and hands them in, and it binds and connects them
//! itself, to addresses that it copied once and checked ([`rules`]). So nothing that the executor changes meanwhile counts, and no
//! byte that is sent later passes here. One thread, one notification at a time, nothing else in it. It trusts the agent
//! and nobody else. When the agent ends, its executor goes on, and so does this, by the rules that it has; nobody can change them any
//! more. It ends with the executor. Before the first rules it refuses everything.

mod calls;
mod kernel;
mod rules;
#[cfg(test)]
mod tests;

use kernel::Notifications;
use rules::Rules;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};
use smalti_executor_protocol::v1::{ToBroker, to_broker::Message};
use smalti_executor_protocol::{Decoder, FrameError, blocking};
use std::os::fd::{AsFd, OwnedFd};

/// What it needs of root's power: to look at the executor's memory and descriptors, and to bind ports below 1024.
const KEPT: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::NET_BIND_SERVICE);
/// Open files: two connections and what one notification needs.
const MAX_OPEN_FILES: u64 = 64;
/// Bytes asked of the agent at a time.
const READ_BYTES: usize = 16 << 10;

/// Why the broker ends.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{step}: {source}")]
    Step { step: &'static str, source: std::io::Error },
    #[error("the agent's connection: {0}")]
    Frame(#[from] FrameError),
    #[error("the agent said {0}")]
    Senseless(String),
}

fn step<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |e| Error::Step { step, source: e.into() }
}

/// Serves one executor to its end. `agent` is the connection to the agent.
///
/// # Errors
/// What the agent said that makes no sense, or what the kernel refuses.
pub(crate) fn run(agent: impl AsFd) -> std::io::Result<()> {
    let agent = agent.as_fd().try_clone_to_owned()?;
    // What ends an agent from a terminal must not end this. Where it fails this process leads a session already.
    let _ = nix::unistd::setsid();
    give_up_power().and_then(|()| serve(agent)).map_err(std::io::Error::other)
}

fn give_up_power() -> Result<(), Error> {
    use nix::sys::resource::{Resource, setrlimit};
    set_no_new_privs(true).map_err(step("giving up privileges"))?;
    let held = capabilities(None).map_err(step("reading capabilities"))?;
    let kept = held.permitted & KEPT;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(step("giving up capabilities"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("turning core dumps off"))?;
    setrlimit(Resource::RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES).map_err(step("limiting open files"))
}

/// What the agent has said so far.
struct Agent {
    /// None: it is gone, and with it the end of this pipe for ever.
    stream: Option<OwnedFd>,
    decoder: Decoder,
    rules: Rules,
    notifications: Option<Notifications>,
}

impl Agent {
    /// Takes in all that is there.
    fn listen(&mut self) -> Result<(), Error> {
        let mut buffer = [0; READ_BYTES];
        while let Some(stream) = &self.stream {
            let chunk = match blocking::receive(stream, &mut buffer) {
                Ok(chunk) if chunk.bytes > 0 => chunk,
                Err(e) if e.is_timeout() => return Ok(()),
                Err(e) if !e.is_disconnect() => return Err(e.into()),
                _ => {
                    // What it had begun to say it never will.
                    (self.stream, self.decoder) = (None, Decoder::new());
                    return Ok(());
                }
            };
            self.decoder.push(&buffer[..chunk.bytes], chunk.fds)?;
            while let Some(frame) = self.decoder.next()? {
                let (message, fds) = frame.decode::<ToBroker>()?;
                self.take_in(message.message, fds)?;
            }
        }
        Ok(())
    }

    fn take_in(&mut self, message: Option<Message>, fds: Vec<OwnedFd>) -> Result<(), Error> {
        match message {
            Some(Message::Rules(rules)) => self.rules = Rules::read(&rules).map_err(Error::Senseless)?,
            Some(Message::Notifications(_)) => {
                let [fd] =
                    <[OwnedFd; 1]>::try_from(fds).map_err(|fds| Error::Senseless(format!("{} notification descriptors", fds.len())))?;
                self.notifications = Some(Notifications::new(fd));
            }
            None => return Err(Error::Senseless("something of another version".to_owned())),
        }
        Ok(())
    }
}

/// Answers until the executor is gone, or the agent before it has spoken of one.
fn serve(stream: OwnedFd) -> Result<(), Error> {
    rustix::io::ioctl_fionbio(&stream, true).map_err(step("preparing the agent's connection"))?;
    let mut agent = Agent { stream: Some(stream), decoder: Decoder::new(), rules: Rules::default(), notifications: None };
    loop {
        let executor = {
            let notifications = agent.notifications.as_ref().map(|n| PollFd::new(n, PollFlags::IN));
            let stream = agent.stream.as_ref().map(|s| PollFd::new(s, PollFlags::IN));
            let at = notifications.as_ref().map(|_| 0);
            let mut fds: Vec<PollFd<'_>> = notifications.into_iter().chain(stream).collect();
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(step("waiting")(e)),
            }
            at.and_then(|at: usize| fds.get(at)).map_or(PollFlags::empty(), PollFd::revents)
        };
        // First: the rules of a task are sent before the task is, so they are here when its first call is.
        agent.listen()?;
        let Some(notifications) = &agent.notifications else {
            if agent.stream.is_none() {
                return Ok(());
            }
            continue;
        };
        if executor.contains(PollFlags::IN) {
            if let Some(call) = notifications.receive().map_err(step("taking a notification"))? {
                calls::answer(notifications, &call, &agent.rules);
            }
        } else if executor.intersects(PollFlags::HUP | PollFlags::ERR) {
            // Nobody lives whom it could be about.
            return Ok(());
        }
    }
}
