//! Signals as bytes on a pipe, so that one poll waits for them and for everything else.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys::signals;

/// Linux number of SIGINT (signal(7), as all of these).
pub const INTERRUPT: u8 = 2;
/// Linux number of SIGTERM.
pub const TERMINATE: u8 = 15;
/// Linux number of SIGHUP.
pub const HANG_UP: u8 = 1;
/// Linux number of SIGQUIT.
const QUIT: u8 = 3;
/// Linux number of SIGWINCH.
pub const WINDOW_CHANGE: u8 = 28;

/// What a session hears.
const FORWARDED: [u8; 5] = [INTERRUPT, TERMINATE, HANG_UP, QUIT, WINDOW_CHANGE];

/// Catches what a session forwards, from now on: the reading end of a pipe that
/// gives the Linux number of each signal, one byte each. What whoever started us has
/// ignored stays so: `nohup` and a shell's `&` mean it, for the guest's command too. Once
/// per process.
///
/// # Errors
/// The process has no descriptors left, or it is the second time.
pub fn catch() -> io::Result<OwnedFd> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    let heard = |signal: &u8| ignored & (1 << (signal - 1)) == 0;
    let wanted: Vec<u8> = FORWARDED.into_iter().filter(heard).collect();
    signals::catch(&wanted)
}

/// The signals that a process ignores, bit 0 for signal 1, by its status (proc(5)).
fn ignored(status: &str) -> u64 {
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_were_ignored_before_us_are_known() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!(ignored(status), 1 | 1 << 12);
        assert_eq!(ignored(""), 0);
    }
}
