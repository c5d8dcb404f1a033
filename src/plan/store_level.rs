//! How full the exception store of a snapshot is, and when that is worth a warning.
//!
//! A store of ours is as long as it can ever need to be, so what runs out is the host's
//! disk: a store that cannot be written there is lost with all changes to the root
//! (`__invalidate_snapshot` of drivers/md/dm-snap.c). Therefore the warning is about the
//! lesser of the two: what is left in the store and what is left on the host.

use crate::model::units::Bytes;

/// What the kernel says of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Taken by changes and their index.
    pub used: Bytes,
    /// What it can take.
    pub total: Bytes,
    /// Whether it still takes any.
    pub state: StoreState,
}

/// Whether a store takes changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreState {
    /// It does.
    Active,
    /// It is full: reads and changes of what was changed before go on, others fail.
    Overflow,
    /// It could not be written: every read and write fails, the changes are lost.
    Invalid,
}

impl StoreState {
    /// The word for people and the wire.
    pub fn word(self) -> &'static str {
        match self {
            StoreState::Active => "active",
            StoreState::Overflow => "overflow",
            StoreState::Invalid => "invalid",
        }
    }
}

/// Under so much left, and under an eighth of the store, there is a warning.
const LITTLE: Bytes = Bytes::gib(1);

/// What there is to say of the store of this VM's root, whose whole change would take
/// `needed`, on a host with so much free.
pub fn warning(vm: &str, level: &Level, needed: Bytes, host_free: Bytes) -> Option<String> {
    match level.state {
        StoreState::Invalid => Some(format!(
            "the changes to the root are lost: the host's disk failed or was full; `banger vm stop {vm}` and `banger vm reset {vm}` make the root anew, /root is kept"
        )),
        StoreState::Overflow => Some(format!(
            "the root takes no more changes: its store is full; `banger vm restart {vm}` makes it longer"
        )),
        StoreState::Active => running_out(level, needed, host_free),
    }
}

fn running_out(level: &Level, needed: Bytes, host_free: Bytes) -> Option<String> {
    let in_store = level.total.0.saturating_sub(level.used.0);
    let to_come = needed.0.saturating_sub(level.used.0);
    let left = in_store.min(host_free.0);
    let is_little = left < LITTLE.0 && left < level.total.0 / 8;
    if left >= to_come || !is_little {
        return None;
    }
    let left = Bytes(left).whole_mib();
    Some(match host_free.0 < in_store {
        true => format!(
            "{left} MiB are free on the host's disk: when it is full, the changes to the root are lost; free space, for example with `banger vm prune`"
        ),
        false => {
            format!("{left} MiB are left for changes to the root; a restart makes its store longer")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: Bytes = Bytes::gib(9);

    fn level(used: Bytes, state: StoreState) -> Level {
        Level {
            used,
            total: NEEDED,
            state,
        }
    }

    fn said(used: Bytes, total: Bytes, free: Bytes) -> Option<String> {
        let level = Level {
            total,
            ..level(used, StoreState::Active)
        };
        warning("dev", &level, NEEDED, free)
    }

    #[test]
    fn a_store_of_full_length_on_a_roomy_host_is_never_worth_a_word() {
        for used in [Bytes(0), Bytes::gib(4), Bytes::gib(9)] {
            assert_eq!(said(used, NEEDED, Bytes::gib(100)), None, "{used}");
        }
        // Nearly all is changed already: a full host takes nothing away from it.
        assert_eq!(said(Bytes::gib(9), NEEDED, Bytes::mib(1)), None);
    }

    #[test]
    fn little_space_on_the_host_or_in_a_short_store_is_told_apart() {
        let host = said(Bytes::gib(1), NEEDED, Bytes::mib(300)).unwrap();
        assert!(host.contains("300 MiB are free on the host"), "{host}");
        let store = said(Bytes::mib(3900), Bytes::gib(4), Bytes::gib(100)).unwrap();
        assert!(store.contains("196 MiB are left"), "{store}");
        assert_eq!(said(Bytes::gib(1), NEEDED, Bytes::gib(2)), None);
    }

    #[test]
    fn full_and_lost_stores_say_what_to_type() {
        let word = |state| warning("dev", &level(Bytes(0), state), NEEDED, NEEDED).unwrap();
        assert!(word(StoreState::Overflow).contains("banger vm restart dev"));
        assert!(word(StoreState::Invalid).contains("banger vm reset dev"));
    }
}
