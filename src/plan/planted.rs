//! Faults planted on purpose, so that the simulation can prove that it finds them.
//!
//! In a build without tests [`planted`] is the constant `false` and every branch on
//! it disappears. The bug is per thread: tests run side by side.

/// A wrong turn that the design warns of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The way down runs from the first step to the last.
    UndoForward,
    /// A step that reported failure is taken to have left nothing.
    FailedStepSkipped,
    /// Recovery does not look at VMs that were being started.
    RecoveryForgetsRow,
    /// A lease is free as soon as the deletion begins.
    LeaseReleasedEarly,
    /// Recovery begins while helper programs of the old daemon may still run.
    HelpersNotKilled,
    /// Nobody hears that a vsock back end ends.
    BackendUnwatched,
    /// What a running VM lacks of its row is not given to it by the next daemon.
    AdjustmentForgotten,
    /// Recovery deletes a VM whose client lives.
    HoldOverlooked,
    /// Nobody hears that a client of an earlier daemon ends.
    HoldUnwatched,
    /// A row that says `stuck` is dropped at the next start.
    StuckRowDropped,
    /// What nothing names is swept while a pull is about to name it.
    SweepBesidePull,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in this thread, or takes it out again.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.with(|planted| planted.set(bug));
}

/// Whether this bug is planted.
#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.with(|planted| planted.get() == Some(bug))
}

/// Whether this bug is planted: never, outside of tests.
#[cfg(not(test))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_bug_is_there_until_taken_out() {
        plant(Some(Bug::UndoForward));
        assert!(planted(Bug::UndoForward) && !planted(Bug::HelpersNotKilled));
        plant(None);
        assert!(!planted(Bug::UndoForward));
    }
}
