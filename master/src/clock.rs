//! The wall clock of the event loop. Never steps back within one life, whatever the system's clock does.

use smalti_types::Time;
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock that does not step back.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    latest: Time,
}

impl Clock {
    pub(crate) fn now(&mut self) -> Time {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.latest = self.latest.max(Time(u64::try_from(since.as_micros()).unwrap_or(u64::MAX)));
        self.latest
    }
}
