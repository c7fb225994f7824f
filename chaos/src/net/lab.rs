//! A cluster's network in namespaces: each process in its own, with a cable to a little switch of its own, and from there to the core.
//!
//! Owns the interfaces: all are in namespaces that go with this program, the core in that of the program itself; the namespace in
//! which it was started gets none. The switch in between is there so that either direction can be lost on the way: the kernel tells
//! a sender of what its own interface drops, and TCP then tries differently from when a packet is lost.

use super::Cut;
use super::namespace::{Namespace, leave};
use anyhow::{Context, Result, bail};
use std::net::Ipv4Addr;
use std::process::Command;

/// The network of all processes; the clients are number 1 in it.
const NETWORK: [u8; 3] = [10, 77, 0];
/// Bits of it.
const PREFIX: u8 = 24;
/// The clients, and whoever asks at the end.
const CLIENTS: u8 = 1;
/// The interface of each process.
const INTERFACE: &str = "eth0";
const CORE: &str = "core";

/// By what means packets are made late and lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shaper {
    /// The kernel's own network emulator.
    Netem,
    /// A token bucket: a queue that is slow and short. What does not fit even when it is empty never passes.
    Bucket,
    /// This kernel has neither.
    None,
}

/// The switch in the middle, and what is plugged into it.
#[derive(Debug)]
pub(crate) struct Lab {
    shaper: Shaper,
    next: u8,
}

/// The cable of one process.
#[derive(Debug)]
pub(crate) struct Link {
    namespace: Namespace,
    number: u8,
    shaper: Shaper,
}

impl Lab {
    /// Moves the calling thread into a new namespace, which becomes the core; the inner error says why that is not allowed here.
    pub(crate) fn enter() -> Result<Result<Self, anyhow::Error>> {
        for tool in ["ip", "tc"] {
            let found = Command::new(tool).arg("-Version").output();
            found.with_context(|| format!("network namespaces need `{tool}`: apt install iproute2, or ask for --relays"))?;
        }
        if let Err(refused) = leave() {
            return Ok(Err(refused));
        }
        ip("link set lo up")?;
        ip(&format!("link add {CORE} type bridge"))?;
        ip(&format!("address add {}/{PREFIX} dev {CORE}", address(CLIENTS)))?;
        ip(&format!("link set {CORE} up"))?;
        let shaper = [Shaper::Netem, Shaper::Bucket].into_iter().find(|s| s.lose("lo").is_ok()).unwrap_or(Shaper::None);
        shaper.remove("lo")?;
        Ok(Ok(Self { shaper, next: CLIENTS }))
    }

    pub(crate) const fn describe(&self) -> &'static str {
        match self.shaper {
            Shaper::Netem => "link down, either direction lost, late and lossy",
            Shaper::Bucket => "link down, either direction lost, slow with a short queue (this kernel has no netem)",
            Shaper::None => "link down only (this kernel has neither netem nor tbf)",
        }
    }

    pub(crate) const fn cuts(&self) -> &'static [Cut] {
        match self.shaper {
            Shaper::Netem | Shaper::Bucket => &[Cut::Down, Cut::To, Cut::From, Cut::Slow],
            Shaper::None => &[Cut::Down],
        }
    }

    /// A namespace with a cable to all others.
    pub(crate) fn plug(&mut self) -> Result<Link> {
        self.next = self.next.checked_add(1).context("all addresses of the lab are taken")?;
        let link = Link { namespace: Namespace::new()?, number: self.next, shaper: self.shaper };
        let (switch, near, up, down) = (format!("switch{}", link.number), link.near(), link.up(), format!("core{}", link.number));
        ip(&format!("link add {switch} type bridge"))?;
        ip(&format!("link add {near} type veth peer name {INTERFACE} netns {}", link.namespace.path()))?;
        ip(&format!("link add {up} type veth peer name {down}"))?;
        for (port, bridge) in [(&near, &*switch), (&up, &*switch), (&down, CORE)] {
            ip(&format!("link set {port} master {bridge} up"))?;
        }
        ip(&format!("link set {switch} up"))?;
        link.namespace.inside(|| {
            ip("link set lo up")?;
            ip(&format!("address add {}/{PREFIX} dev {INTERFACE}", link.address()))?;
            ip(&format!("link set {INTERFACE} up"))
        })?;
        Ok(link)
    }
}

impl Link {
    pub(crate) const fn address(&self) -> Ipv4Addr {
        address(self.number)
    }

    pub(crate) const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The switch's port to the process: what leaves here arrives there.
    fn near(&self) -> String {
        format!("near{}", self.number)
    }

    /// The switch's port to the core.
    fn up(&self) -> String {
        format!("up{}", self.number)
    }

    pub(crate) fn cut(&self, how: Cut) -> Result<()> {
        match how {
            Cut::Down => ip(&format!("link set {} down", self.near())),
            Cut::To => self.shaper.lose(&self.near()),
            Cut::From => self.shaper.lose(&self.up()),
            Cut::Slow => self.shaper.slow(&self.near()).and_then(|()| self.shaper.slow(&self.up())),
        }
    }

    pub(crate) fn mend(&self) -> Result<()> {
        for port in [self.near(), self.up()] {
            ip(&format!("link set {port} up"))?;
            self.shaper.remove(&port)?;
        }
        Ok(())
    }
}

impl Shaper {
    /// Everything that leaves here is lost.
    fn lose(self, port: &str) -> Result<()> {
        self.set(port, "netem loss 100%", "tbf rate 8bit burst 1 limit 1")
    }

    /// What leaves here is late, and some of it lost.
    fn slow(self, port: &str) -> Result<()> {
        self.set(port, "netem delay 250ms 100ms loss 15%", "tbf rate 256kbit burst 3kb latency 300ms")
    }

    fn set(self, port: &str, netem: &str, bucket: &str) -> Result<()> {
        match self {
            Self::Netem => run("tc", &format!("qdisc replace dev {port} root {netem}")),
            Self::Bucket => run("tc", &format!("qdisc replace dev {port} root {bucket}")),
            Self::None => bail!("this kernel has neither netem nor tbf"),
        }
    }

    /// Everything leaves as it comes.
    fn remove(self, port: &str) -> Result<()> {
        match self {
            // An interface without a discipline of its own refuses to have it removed; a plain queue can always be put there.
            Self::Netem | Self::Bucket => run("tc", &format!("qdisc replace dev {port} root pfifo limit 1000")),
            Self::None => Ok(()),
        }
    }
}

const fn address(number: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, number)
}

fn ip(args: &str) -> Result<()> {
    run("ip", args)
}

fn run(tool: &str, args: &str) -> Result<()> {
    let done = Command::new(tool).args(args.split_whitespace()).output().with_context(|| format!("starting {tool}"))?;
    if !done.status.success() {
        bail!("`{tool} {args}` ended with {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    /// Asserts on a socket that stays open over each way of cutting: silence while it is cut, and the byte arrives later.
    #[test]
    fn a_cut_is_silence_and_not_an_end() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not root: chaos uses relays here, which have a test of their own");
            return;
        }
        let mut lab = Lab::enter().unwrap().unwrap();
        let (one, two) = (lab.plug().unwrap(), lab.plug().unwrap());
        let listener = two.namespace().inside(|| Ok(TcpListener::bind((two.address(), 5050))?)).unwrap();
        let mut near = one.namespace().inside(|| Ok(TcpStream::connect((two.address(), 5050))?)).unwrap();
        let (mut far, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), one.address());
        let short = Some(Duration::from_millis(300));
        for how in lab.cuts().iter().copied().filter(|how| *how != Cut::Slow) {
            one.cut(how).unwrap();
            // A direction that is lost is lost for data one way, and for acknowledgements the other way.
            let (from, to) = if how == Cut::To { (&mut far, &mut near) } else { (&mut near, &mut far) };
            from.write_all(b"x").unwrap();
            to.set_read_timeout(short).unwrap();
            let silence = to.read(&mut [0]).unwrap_err();
            assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{how:?}: {silence}");
            one.mend().unwrap();
            to.set_read_timeout(None).unwrap();
            assert_eq!(to.read(&mut [0]).unwrap(), 1, "{how:?}");
        }
        one.cut(Cut::Slow).unwrap();
        near.write_all(b"x").unwrap();
        assert_eq!(far.read(&mut [0]).unwrap(), 1);
        one.mend().unwrap();
    }
}
