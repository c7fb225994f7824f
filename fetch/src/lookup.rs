//! Names to addresses, by the system's resolver.
//!
//! Owns the difference between a name that does not exist and a resolver that cannot say now: the first is the task's mistake and stays
//! one, the second may be over in a moment. Deliberately absent: what is done about either, and any memory of earlier answers.

use dns_lookup::{AddrInfoHints, LookupError, LookupErrorKind, getaddrinfo};
use nix::libc;
use std::net::IpAddr;
use std::time::Duration;

/// How long one name may take to be looked up.
const WITHIN: Duration = Duration::from_secs(10);

/// Why there are no addresses.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Whoever is asked says that there are none: asking again does not help.
    #[error("there is no such name ({0})")]
    NoSuchName(String),
    /// Nobody could say.
    #[error("{0}")]
    Trouble(String),
}

/// The addresses of a host, or the one that `host` is.
///
/// # Errors
/// As [`Error`] says.
pub async fn look_up(host: &str) -> Result<Vec<IpAddr>, Error> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let name = host.to_owned();
    match tokio::time::timeout(WITHIN, tokio::task::spawn_blocking(move || ask(&name, 0))).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => Err(Error::Trouble(format!("the look-up ended early: {e}"))),
        Err(_) => Err(Error::Trouble(format!("no answer within {WITHIN:?}"))),
    }
}

/// Asks and waits. Each address comes once, as for a stream.
fn ask(name: &str, flags: i32) -> Result<Vec<IpAddr>, Error> {
    let hints = AddrInfoHints { flags, socktype: libc::SOCK_STREAM, ..AddrInfoHints::default() };
    let found = getaddrinfo(Some(name), None, Some(hints)).map_err(judge)?;
    Ok(found.flatten().map(|a| a.sockaddr.ip()).collect())
}

fn judge(error: LookupError) -> Error {
    let kind = error.kind();
    let said = std::io::Error::from(error).to_string();
    let words = said.strip_prefix("failed to lookup address information: ").unwrap_or(&said).to_owned();
    match kind {
        LookupErrorKind::NoName | LookupErrorKind::NoData => Error::NoSuchName(words),
        _ => Error::Trouble(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_themselves_and_names_are_asked_for() {
        assert_eq!(look_up("10.0.0.1").await, Ok(vec!["10.0.0.1".parse().unwrap()]));
        assert_eq!(look_up("::1").await, Ok(vec!["::1".parse().unwrap()]));
        let local = look_up("localhost").await.unwrap();
        assert!(!local.is_empty() && local.iter().all(IpAddr::is_loopback), "{local:?}");
    }

    #[test]
    fn only_what_the_resolver_says_not_to_exist_does_not() {
        // Nobody is asked, on whatever machine this runs: a name where only an address is let through.
        let error = ask("smalti", libc::AI_NUMERICHOST).unwrap_err();
        assert!(matches!(&error, Error::NoSuchName(_)), "{error}");
        assert!(error.to_string().starts_with("there is no such name ("), "{error}");
        assert!(matches!(judge(LookupError::new(libc::EAI_NODATA)), Error::NoSuchName(_)));
        for trouble in [libc::EAI_AGAIN, libc::EAI_FAIL, libc::EAI_MEMORY, libc::EAI_SYSTEM] {
            assert!(matches!(judge(LookupError::new(trouble)), Error::Trouble(_)), "{trouble}");
        }
    }
}
