//! The guest's clock follows the host's, corrected at each call of the host: that
//! mends it after a pause, a restore or a laptop's sleep.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_settime};

use super::during;
use crate::failure::Failure;

/// A smaller difference is left to the guest: setting a clock back disturbs programs,
/// and the call itself takes some of it.
const TOLERATED_NS: u64 = 100_000_000;

/// This machine's clock, nanoseconds since the epoch.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_nanos() as u64)
}

/// Sets the clock when it is off by more than 100 ms.
///
/// # Errors
/// The kernel refuses the time.
pub fn follow(host_time_ns: u64) -> Result<(), Failure> {
    if !is_off(now_ns(), host_time_ns) {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: (host_time_ns / 1_000_000_000) as i64,
        tv_nsec: (host_time_ns % 1_000_000_000) as i64,
    };
    clock_settime(ClockId::Realtime, time).map_err(during("set the clock"))
}

/// Sets the clock by the machine's own, which goes on while a machine is written down.
///
/// # Errors
/// There is none, or the kernel refuses the time.
pub fn follow_hardware() -> Result<(), Failure> {
    const FILE: &str = "/sys/class/rtc/rtc0/since_epoch";
    let attempt = || during::<String>(format!("read the clock {FILE}"));
    let text = fs::read_to_string(FILE).map_err(|error| attempt()(error.to_string()))?;
    let seconds: u64 = (text.trim().parse()).map_err(|_| attempt()(format!("{text:?}")))?;
    follow(seconds.saturating_mul(1_000_000_000))
}

/// A host that does not know the time (0) is not followed.
fn is_off(guest_ns: u64, host_ns: u64) -> bool {
    host_ns != 0 && guest_ns.abs_diff(host_ns) > TOLERATED_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_than_a_tenth_of_a_second_is_off() {
        let now = 1_795_000_000_000_000_000;
        assert!(!is_off(now, now + TOLERATED_NS));
        assert!(is_off(now, now + TOLERATED_NS + 1));
        assert!(is_off(now + TOLERATED_NS + 1, now));
        assert!(!is_off(now, 0));
    }
}
