//! "Persist, then tell" as a type: what leaves the process can be had only after what must be durable is.

/// What a core decided in one step, or in one batch of steps.
///
/// `records` must be durable before any of `messages` leaves the process. [`Effects::commit`] is the only way to the
/// messages, so a shell cannot send first.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "effects that are dropped are decisions that never happened"]
pub struct Effects<R, M> {
    records: Vec<R>,
    messages: Vec<M>,
}

impl<R, M> Default for Effects<R, M> {
    fn default() -> Self {
        Self { records: Vec::new(), messages: Vec::new() }
    }
}

impl<R, M> Effects<R, M> {
    /// Adds a record that must be durable before the messages go out.
    pub fn persist(&mut self, record: R) {
        self.records.push(record);
    }

    /// Adds a message that leaves the process after the records are durable.
    pub fn send(&mut self, message: M) {
        self.messages.push(message);
    }

    /// Appends the effects of a later step of the same batch.
    pub fn merge(&mut self, later: Self) {
        self.records.extend(later.records);
        self.messages.extend(later.messages);
    }

    /// Whether nothing was decided.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.messages.is_empty()
    }

    /// Whether anything must become durable.
    #[must_use]
    pub fn has_records(&self) -> bool {
        !self.records.is_empty()
    }

    /// Makes the records durable with `persist`, then gives out the messages in the order they were decided.
    ///
    /// # Errors
    /// What `persist` returns; the messages are then gone, and the caller must stop rather than go on without them.
    pub fn commit<E>(self, persist: impl FnOnce(Vec<R>) -> Result<(), E>) -> Result<Vec<M>, E> {
        persist(self.records)?;
        Ok(self.messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_only_after_the_records_are_durable() {
        let mut effects = Effects::<u8, &str>::default();
        effects.send("told");
        effects.persist(7);
        let mut disk = Vec::new();
        let sent = effects.clone().commit(|r| {
            disk.extend(r);
            Ok::<_, ()>(())
        });
        assert_eq!((disk, sent), (vec![7], Ok(vec!["told"])));
        assert_eq!(effects.commit(|_| Err("disk full")), Err("disk full"));
    }
}
