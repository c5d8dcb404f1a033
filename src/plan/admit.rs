//! Whether a wish fits the situation of a VM: a pure table.
//!
//! | situation | start | stop | kill | restart | delete | delete, force | reset, set | adjust | dial |
//! |---|---|---|---|---|---|---|---|---|---|
//! | creating | deny | deny | deny | deny | deny | queue | deny | deny | deny |
//! | stopped | accept | ignore | ignore | accept | accept | accept | accept | deny | deny |
//! | starting | join | queue | queue | deny | deny | queue | deny | deny | deny |
//! | running | ignore | accept | accept | accept | deny | accept | deny | accept | ignore |
//! | adjusting | ignore | queue | queue | queue | deny | queue | deny | deny | ignore |
//! | powering off | deny | join | hasten | deny | queue | queue | deny | deny | deny |
//! | stopping | deny | join | join | deny | queue | queue | deny | deny | deny |
//! | resetting | deny | deny | deny | deny | queue | queue | join, deny | deny | deny |
//! | deleting | deny | deny | deny | deny | join | join | deny | deny | deny |
//! | stuck stopping | deny | accept | accept | deny | accept | accept | deny | deny | deny |
//! | stuck resetting | deny | ignore | ignore | deny | accept | accept | accept, deny | deny | deny |
//! | stuck deleting, unreadable | deny | deny | deny | deny | accept | accept | deny | deny | deny |
//!
//! *Queue*: turn what is under way, if it goes up, and do this when it has come to
//! rest. At most one wish waits; the same wish joins it, a deletion takes its place.
//! *Set* is what must wait for the next start, *adjust* what a running machine can be given.

/// What somebody wants of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Run.
    Start,
    /// Power off and be at rest.
    Stop,
    /// Be at rest, at once.
    Kill,
    /// Run anew.
    Restart,
    /// Not exist, if it does not run.
    Delete,
    /// Not exist.
    ForceDelete,
    /// Have a fresh root.
    Reset,
    /// Have other sizes.
    Set,
    /// Have other sizes while it runs.
    Adjust,
    /// Have its agent reached.
    Dial,
}

/// Where a VM is, its work under way included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Situation {
    /// Its disks are being made.
    Creating,
    /// At rest.
    Stopped,
    /// Its run is being made, and not on its way down.
    Starting,
    /// Usable.
    Running,
    /// Usable, and being given other sizes.
    Adjusting,
    /// Its guest has been asked to power off.
    PoweringOff,
    /// Its run is being removed.
    Stopping,
    /// Its root is being made anew.
    Resetting,
    /// It is being removed.
    Deleting,
    /// Stuck while its run was being removed.
    StuckStopping,
    /// Stuck without a root.
    StuckResetting,
    /// Stuck while it was being removed, or its row cannot be read.
    StuckDeleting,
}

/// The answer of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Begin now.
    Accept,
    /// It is so already.
    Ignore,
    /// The same is under way: share its end.
    Join,
    /// End the waiting for the guest and share the end of the stop.
    Hasten,
    /// Turn what goes up, and do this next.
    Queue,
    /// Not now, for this reason.
    Deny(Denial),
}

/// Why not, and what to type instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// Completes `vm NAME …`.
    pub reason: &'static str,
    /// A sentence in which `{}` stands for the name.
    pub hint: &'static str,
}

const fn deny(reason: &'static str, hint: &'static str) -> Verdict {
    Verdict::Deny(Denial { reason, hint })
}

const WATCH: &str = "See `banger vm list`, and try again when it is done.";
const WATCH_SHOW: &str = "See `banger vm show {}`, and try again when it is done.";
const STOP_FIRST: &str = "Stop it first with `banger vm stop {}`.";
const FORCE: &str = "Stop it first with `banger vm stop {}`, or add `--force`.";
const START_FIRST: &str = "Start it with `banger vm start {}`.";
const TARGET_NEEDS_RUN: &str = "A target is for a running guest: start it with `banger vm start {}`, or change its memory with `--memory`.";
const RETRY_STOP: &str = "See `banger vm show {}`, then try `banger vm stop {}` again.";
const RETRY_RESET: &str = "See `banger vm show {}`, then try `banger vm reset {}` again.";
const RETRY_DELETE: &str = "See `banger vm show {}`, then try `banger vm delete {}` again.";

/// The table at the head of this file.
pub fn admit(situation: Situation, wish: Wish) -> Verdict {
    match situation {
        Situation::Creating => creating(wish),
        Situation::Stopped => stopped(wish),
        Situation::Starting => starting(wish),
        Situation::Running => running(wish),
        Situation::Adjusting => adjusting(wish),
        Situation::PoweringOff => powering_off(wish),
        Situation::Stopping => stopping(wish),
        Situation::Resetting => resetting(wish),
        Situation::Deleting => deleting(wish),
        Situation::StuckStopping => stuck_stopping(wish),
        Situation::StuckResetting => stuck_resetting(wish),
        Situation::StuckDeleting => stuck_deleting(wish),
    }
}

fn creating(wish: Wish) -> Verdict {
    match wish {
        Wish::ForceDelete => Verdict::Queue,
        Wish::Delete => deny("is being created", "Add `--force` to give it up."),
        Wish::Start
        | Wish::Stop
        | Wish::Kill
        | Wish::Restart
        | Wish::Reset
        | Wish::Set
        | Wish::Adjust
        | Wish::Dial => deny("is being created", WATCH),
    }
}

fn stopped(wish: Wish) -> Verdict {
    match wish {
        Wish::Start
        | Wish::Restart
        | Wish::Delete
        | Wish::ForceDelete
        | Wish::Reset
        | Wish::Set => Verdict::Accept,
        Wish::Stop | Wish::Kill => Verdict::Ignore,
        Wish::Adjust => deny("is stopped", TARGET_NEEDS_RUN),
        Wish::Dial => deny("is stopped", START_FIRST),
    }
}

fn starting(wish: Wish) -> Verdict {
    match wish {
        Wish::Start => Verdict::Join,
        Wish::Stop | Wish::Kill | Wish::ForceDelete => Verdict::Queue,
        Wish::Delete => deny("is starting", FORCE),
        Wish::Reset | Wish::Set => deny("is starting", STOP_FIRST),
        Wish::Restart | Wish::Adjust | Wish::Dial => deny("is starting", WATCH),
    }
}

fn running(wish: Wish) -> Verdict {
    match wish {
        Wish::Start | Wish::Dial => Verdict::Ignore,
        Wish::Stop | Wish::Kill | Wish::Restart | Wish::ForceDelete | Wish::Adjust => {
            Verdict::Accept
        }
        Wish::Delete => deny("is running", FORCE),
        Wish::Reset | Wish::Set => deny("is running", STOP_FIRST),
    }
}

fn adjusting(wish: Wish) -> Verdict {
    match wish {
        Wish::Start | Wish::Dial => Verdict::Ignore,
        Wish::Stop | Wish::Kill | Wish::Restart | Wish::ForceDelete => Verdict::Queue,
        Wish::Delete => deny("is running", FORCE),
        Wish::Reset | Wish::Set => deny("is running", STOP_FIRST),
        Wish::Adjust => deny("is being given other sizes", WATCH_SHOW),
    }
}

fn powering_off(wish: Wish) -> Verdict {
    match wish {
        Wish::Stop => Verdict::Join,
        Wish::Kill => Verdict::Hasten,
        Wish::Delete | Wish::ForceDelete => Verdict::Queue,
        Wish::Start | Wish::Restart | Wish::Reset | Wish::Set | Wish::Adjust | Wish::Dial => {
            deny("is stopping", WATCH)
        }
    }
}

fn stopping(wish: Wish) -> Verdict {
    match wish {
        Wish::Stop | Wish::Kill => Verdict::Join,
        Wish::Delete | Wish::ForceDelete => Verdict::Queue,
        Wish::Start | Wish::Restart | Wish::Reset | Wish::Set | Wish::Adjust | Wish::Dial => {
            deny("is stopping", WATCH)
        }
    }
}

fn resetting(wish: Wish) -> Verdict {
    match wish {
        Wish::Reset => Verdict::Join,
        Wish::Delete | Wish::ForceDelete => Verdict::Queue,
        Wish::Start
        | Wish::Stop
        | Wish::Kill
        | Wish::Restart
        | Wish::Set
        | Wish::Adjust
        | Wish::Dial => deny("is being reset", WATCH),
    }
}

fn deleting(wish: Wish) -> Verdict {
    match wish {
        Wish::Delete | Wish::ForceDelete => Verdict::Join,
        Wish::Start
        | Wish::Stop
        | Wish::Kill
        | Wish::Restart
        | Wish::Reset
        | Wish::Set
        | Wish::Adjust
        | Wish::Dial => deny("is being deleted", WATCH),
    }
}

fn stuck_stopping(wish: Wish) -> Verdict {
    match wish {
        Wish::Stop | Wish::Kill | Wish::Delete | Wish::ForceDelete => Verdict::Accept,
        Wish::Start | Wish::Restart | Wish::Reset | Wish::Set | Wish::Adjust | Wish::Dial => {
            deny("is stuck", RETRY_STOP)
        }
    }
}

fn stuck_resetting(wish: Wish) -> Verdict {
    match wish {
        Wish::Reset | Wish::Delete | Wish::ForceDelete => Verdict::Accept,
        Wish::Stop | Wish::Kill => Verdict::Ignore,
        Wish::Start | Wish::Restart | Wish::Set | Wish::Adjust | Wish::Dial => {
            deny("is stuck without a root", RETRY_RESET)
        }
    }
}

fn stuck_deleting(wish: Wish) -> Verdict {
    match wish {
        Wish::Delete | Wish::ForceDelete => Verdict::Accept,
        Wish::Start
        | Wish::Stop
        | Wish::Kill
        | Wish::Restart
        | Wish::Reset
        | Wish::Set
        | Wish::Adjust
        | Wish::Dial => deny("is stuck", RETRY_DELETE),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WISHES: [Wish; 10] = [
        Wish::Start,
        Wish::Stop,
        Wish::Kill,
        Wish::Restart,
        Wish::Delete,
        Wish::ForceDelete,
        Wish::Reset,
        Wish::Set,
        Wish::Adjust,
        Wish::Dial,
    ];
    const SITUATIONS: [Situation; 12] = [
        Situation::Creating,
        Situation::Stopped,
        Situation::Starting,
        Situation::Running,
        Situation::Adjusting,
        Situation::PoweringOff,
        Situation::Stopping,
        Situation::Resetting,
        Situation::Deleting,
        Situation::StuckStopping,
        Situation::StuckResetting,
        Situation::StuckDeleting,
    ];

    fn at_rest(situation: Situation) -> bool {
        use Situation as S;
        matches!(
            situation,
            S::Stopped | S::Running | S::StuckStopping | S::StuckResetting | S::StuckDeleting
        )
    }

    proptest! {
        #[test]
        fn only_a_vm_at_rest_begins_and_only_one_at_work_is_waited_for(
            situation in prop::sample::select(&SITUATIONS[..]),
            wish in prop::sample::select(&WISHES[..]),
        ) {
            match admit(situation, wish) {
                Verdict::Accept => prop_assert!(at_rest(situation)),
                Verdict::Join | Verdict::Queue | Verdict::Hasten => prop_assert!(!at_rest(situation)),
                Verdict::Ignore => {}
                Verdict::Deny(denial) => prop_assert!(denial.hint.ends_with('.')),
            }
        }

        #[test]
        fn a_forced_deletion_is_never_denied_and_a_dial_reaches_only_the_running(
            situation in prop::sample::select(&SITUATIONS[..]),
        ) {
            prop_assert!(!matches!(admit(situation, Wish::ForceDelete), Verdict::Deny(_)));
            let dial = admit(situation, Wish::Dial);
            let runs = matches!(situation, Situation::Running | Situation::Adjusting);
            prop_assert_eq!(dial == Verdict::Ignore, runs);
        }

        #[test]
        fn a_plain_deletion_spares_what_is_or_will_be_running(
            situation in prop::sample::select(&[Situation::Creating, Situation::Starting, Situation::Running][..]),
        ) {
            prop_assert!(matches!(admit(situation, Wish::Delete), Verdict::Deny(_)));
        }
    }
}
