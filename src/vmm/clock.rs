//! The host's clock, for guests that cannot measure it.
//!
//! QEMU's translator hands a guest the host's own time-stamp counter, but executes the
//! guest's calibration loops too irregularly to measure its frequency with them. So it
//! is measured here, against a clock that time synchronisation does not slew.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::plan::boot_args::HostClock;
use crate::sys::tsc;

/// How long the counter is watched: with an uncertainty of 100 ns at either end the
/// result is within 10 parts in a million.
const SPAN: Duration = Duration::from_millis(20);

/// Measures; takes 20 ms of processor time, so once per process is enough. `None` where
/// there is no such counter.
pub fn measure() -> Option<HostClock> {
    let start = sample()?;
    loop {
        let end = sample()?;
        let span = end.time.checked_sub(start.time)?;
        if span >= SPAN {
            let ticks = u128::from(end.ticks.checked_sub(start.ticks)?);
            let khz = ticks * 1_000_000 / span.as_nanos();
            return u64::try_from(khz).ok().map(HostClock::of_tsc_khz);
        }
    }
}

#[derive(Clone, Copy)]
struct Sample {
    ticks: u64,
    time: Duration,
}

/// The counter and the clock at one instant: the tightest of a few tries, since being
/// interrupted between the two would spoil it.
fn sample() -> Option<Sample> {
    let once = || {
        let before = tsc::read()?;
        let time = clock_gettime(ClockId::MonotonicRaw);
        let after = tsc::read()?;
        let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
        let sample = Sample {
            ticks: before + after.wrapping_sub(before) / 2,
            time: seconds + Duration::from_nanos(time.tv_nsec.unsigned_abs()),
        };
        Some((after.wrapping_sub(before), sample))
    };
    let tries = [once()?, once()?, once()?, once()?];
    tries
        .into_iter()
        .min_by_key(|(width, _)| *width)
        .map(|(_, sample)| sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_within_one_in_a_thousand() {
        let (Some(one), Some(two)) = (measure(), measure()) else {
            println!(
                "skipped: two_measurements_agree_within_one_in_a_thousand: \
                 this processor has no time-stamp counter that can be read"
            );
            return;
        };
        assert!(one.tsc_khz > 100_000, "{one:?}");
        assert_eq!(one.loops_per_jiffy, one.tsc_khz * 4);
        // A machine that takes the processor away in the middle of both samples of an
        // instant spoils one pair, and not the next ones.
        let agrees =
            |one: HostClock, two: HostClock| one.tsc_khz.abs_diff(two.tsc_khz) < one.tsc_khz / 1000;
        let mut later = (0..50).filter_map(|_| Some((measure()?, measure()?)));
        assert!(
            agrees(one, two) || later.any(|(one, two)| agrees(one, two)),
            "{one:?} {two:?}"
        );
    }
}
