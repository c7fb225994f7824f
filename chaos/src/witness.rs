//! Somebody outside who sees exclusive tasks run: each calls here, says who it is, and goes on saying that it runs.
//!
//! Owns what was heard. Two attempts of one task that were heard at the same time are what must never be.

use crate::net::Namespace;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A caller that said nothing for this long is gone, or stopped.
const SILENCE: Duration = Duration::from_secs(120);
/// Where it listens in the agents' namespaces: the same everywhere, and below the ports of tasks.
const PORT: u16 = 5_060;

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    attempt: String,
    first: Instant,
    last: Instant,
    /// It said that its work is done.
    finished: bool,
}

type Calls = BTreeMap<String, Vec<Call>>;

/// The one who listens.
#[derive(Debug, Clone)]
pub(crate) struct Witness {
    address: SocketAddr,
    calls: Arc<Mutex<Calls>>,
}

impl Witness {
    /// Listens on the loopback interface of each of `places`, or here when there are none: no cut cable is between it and the tasks,
    /// so what it hears is what happens.
    pub(crate) fn listen(places: &[&Namespace]) -> Result<Self> {
        let calls: Arc<Mutex<Calls>> = Arc::default();
        let mut address = SocketAddr::from(([127, 0, 0, 1], if places.is_empty() { 0 } else { PORT }));
        let bind = move || TcpListener::bind(address).with_context(|| format!("listening at {address} for exclusive tasks"));
        let mut listeners = places.iter().map(|place| place.inside(bind)).collect::<Result<Vec<_>>>()?;
        if listeners.is_empty() {
            let listener = bind()?;
            address = listener.local_addr().context("the witness's address")?;
            listeners.push(listener);
        }
        for listener in listeners {
            let shared = calls.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let calls = shared.clone();
                    std::thread::spawn(move || hear(stream, &calls));
                }
            });
        }
        Ok(Self { address, calls })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many tasks and attempts called.
    ///
    /// # Errors
    /// When two attempts of a task were heard at the same time, or one of `tasks` never finished its work.
    pub(crate) fn judge(&self, tasks: &[String]) -> Result<(usize, usize)> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        for (task, calls) in calls.iter() {
            for (n, a) in calls.iter().enumerate() {
                for b in &calls[n + 1..] {
                    let apart = a.last < b.first || b.last < a.first;
                    ensure!(apart, "exclusive task {task} ran twice at the same time: attempts {} and {}", a.attempt, b.attempt);
                }
            }
        }
        for task in tasks {
            let finished = calls.get(task).map_or(0, |c| c.iter().filter(|c| c.finished).count());
            ensure!(finished >= 1, "exclusive task {task} never said that it has finished");
        }
        Ok((calls.len(), calls.values().map(Vec::len).sum()))
    }
}

/// The first line is `name attempt`, each later one a sign of life, the last one `end`.
fn hear(stream: TcpStream, calls: &Mutex<Calls>) {
    let _ = stream.set_read_timeout(Some(SILENCE));
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let Some((name, attempt)) = first.split_once(' ') else { return };
    let now = Instant::now();
    let call = Call { attempt: attempt.to_owned(), first: now, last: now, finished: false };
    let with = |change: &dyn Fn(&mut Vec<Call>)| {
        change(calls.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default());
    };
    let at = std::cell::Cell::new(0);
    with(&|calls| {
        at.set(calls.len());
        calls.push(call.clone());
    });
    for line in lines {
        with(&|calls| {
            if let Some(call) = calls.get_mut(at.get()) {
                (call.last, call.finished) = (Instant::now(), line == "end");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn call(witness: &Witness, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(witness.address()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    fn heard(witness: &Witness, task: &str, lines: usize) {
        let until = Instant::now() + Duration::from_secs(60);
        let count = || witness.calls.lock().unwrap().get(task).map_or(0, Vec::len);
        while count() < lines {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn two_at_once_are_seen_and_one_after_the_other_is_fine() {
        let witness = Witness::listen(&[]).unwrap();
        let first = call(&witness, "a 0\nalive\n");
        heard(&witness, "a", 1);
        drop(first);
        std::thread::sleep(Duration::from_millis(20));
        call(&witness, "a 1\nalive\nend\n");
        heard(&witness, "a", 2);
        let finished = || witness.calls.lock().unwrap()["a"][1].finished;
        while !finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(witness.judge(&["a".to_owned()]).unwrap(), (1, 2));
        assert!(witness.judge(&["b".to_owned()]).is_err());

        let mut one = call(&witness, "c 0\n");
        heard(&witness, "c", 1);
        let mut two = call(&witness, "c 1\n");
        heard(&witness, "c", 2);
        one.write_all(b"alive\n").unwrap();
        two.write_all(b"alive\n").unwrap();
        let both = || witness.calls.lock().unwrap()["c"].iter().all(|c| c.last > c.first);
        while !both() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(witness.judge(&[]).unwrap_err().to_string().contains("ran twice"));
    }
}
