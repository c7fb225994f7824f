//! The wall clock of the event loop. Never steps back within one life, whatever the system's clock does.

use smalti_types::Time;
use std::time::SystemTime;

/// A clock that does not step back.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    latest: Time,
}

impl Clock {
    pub(crate) fn now(&mut self) -> Time {
        self.latest = self.latest.max(SystemTime::now().into());
        self.latest
    }
}
