//! Deliberate bugs, for tests that must see whether the simulation would find them.
//!
//! Owns their names and the switch. Without the feature `sabotage`, which only tests turn on, the switch is a constant: nothing of it is
//! left in a program. With it, the switch belongs to the thread, so that worlds which run side by side do not disturb each other.

/// What can be broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sabotage {
    /// SDK: an update is acknowledged when it is delivered, not when the handler has taken it.
    SdkAcknowledgesEarly,
    /// SDK: an update that comes again is delivered again.
    SdkDeliversRepeats,
    /// SDK: what the handler has taken is not kept.
    SdkForgetsTaken,
    /// SDK: a second end of an attempt is delivered.
    SdkEndsTwice,
    /// Agent's recovery: updates are not kept before they are sent.
    AgentForgetsUpdates,
    /// Agent's recovery: where an attempt was started is not kept.
    AgentForgetsStarts,
    /// Agent's recovery: what never arrived in its executor is waited for.
    AgentAwaitsWhatNeverArrived,
    /// Agent's recovery: an executor gets leases before it has said what it holds.
    AgentLeasesBeforeHolds,
    /// Agent's recovery: items that an executor holds are taken for lost.
    AgentForgetsHeldItems,
    /// Array's ledger: items that were given back stay in the queue.
    ArrayReturnsAndKeeps,
    /// Array's ledger: items of an executor that died are forgotten.
    ArrayForgetsLostItems,
    /// Array's ledger: items whose end waits for its acknowledgement are taken in again.
    ArrayTakesEndedItems,
    /// Array's ledger: an item that was leased is not counted as leased.
    ArrayLeasesUncounted,
    /// Master: an update is acknowledged before its framework has it.
    MasterAcknowledgesEarly,
    /// Master: updates that wait are lost when their framework fails over.
    MasterLosesOnFailover,
    /// Master: a refusal does not end.
    MasterKeepsRefusals,
    /// Master: what is offered can be offered again.
    MasterOffersTwice,
    /// Master: an exclusive task is given up before its lease is over.
    MasterIgnoresLeases,
    /// Master: a scheduler that was taken over is still listened to.
    MasterHearsFenced,
    /// Master: the last subscription that is heard counts, whoever said it.
    MasterIgnoresClaims,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::SdkAcknowledgesEarly,
        Self::SdkDeliversRepeats,
        Self::SdkForgetsTaken,
        Self::SdkEndsTwice,
        Self::AgentForgetsUpdates,
        Self::AgentForgetsStarts,
        Self::AgentAwaitsWhatNeverArrived,
        Self::AgentLeasesBeforeHolds,
        Self::AgentForgetsHeldItems,
        Self::ArrayReturnsAndKeeps,
        Self::ArrayForgetsLostItems,
        Self::ArrayTakesEndedItems,
        Self::ArrayLeasesUncounted,
        Self::MasterAcknowledgesEarly,
        Self::MasterLosesOnFailover,
        Self::MasterKeepsRefusals,
        Self::MasterOffersTwice,
        Self::MasterIgnoresLeases,
        Self::MasterHearsFenced,
        Self::MasterIgnoresClaims,
    ];

    /// Whether this is to be broken now.
    #[cfg(feature = "sabotage")]
    #[must_use]
    pub fn is_on(self) -> bool {
        ON.get() == Some(self)
    }

    /// Whether this is to be broken now: never.
    #[cfg(not(feature = "sabotage"))]
    #[must_use]
    pub const fn is_on(self) -> bool {
        let _ = self;
        false
    }

    /// Breaks this, and nothing else, for this thread.
    #[cfg(feature = "sabotage")]
    pub fn set(which: Option<Self>) {
        ON.set(which);
    }
}

#[cfg(feature = "sabotage")]
std::thread_local! {
    static ON: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}
