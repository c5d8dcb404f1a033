//! The facts of an instant: time, randomness, free space.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::host::layout::Layout;
use crate::model::units::Bytes;
use crate::plan::facts::Moment;

/// This instant, for the mind.
pub fn now(layout: &Layout) -> Moment {
    let random: [u8; 8] = random_bytes();
    Moment {
        unix_s: now_ns() / 1_000_000_000,
        random: u64::from_ne_bytes(random),
        state_free: free(layout),
    }
}

/// The host's clock, nanoseconds since the epoch; 0 for a clock before it.
pub fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Fresh random bytes of the kernel.
///
/// # Panics
/// The kernel has no randomness to give, which getrandom(2) rules out after boot.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty());
    assert_eq!(filled, Ok(N), "getrandom(2) fills up to 256 bytes at once");
    bytes
}

/// What we may still write where disks live. A directory that cannot be asked has none.
fn free(layout: &Layout) -> Bytes {
    rustix::fs::statvfs(&layout.state).map_or(Bytes(0), |seen| {
        Bytes(seen.f_bavail.saturating_mul(seen.f_frsize))
    })
}
