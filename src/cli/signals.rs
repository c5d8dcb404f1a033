//! Signals as bytes on a pipe, so that one poll waits for them and for everything else.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use async_signal::{Signal, Signals};
use rustix::pipe::PipeFlags;
use smol::stream::StreamExt;

/// Linux number of SIGINT.
pub const INTERRUPT: u8 = 2;
/// Linux number of SIGTERM.
pub const TERMINATE: u8 = 15;
/// Linux number of SIGHUP.
pub const HANG_UP: u8 = 1;
/// Linux number of SIGWINCH.
pub const WINDOW_CHANGE: u8 = 28;

/// What a session hears.
const FORWARDED: [Signal; 5] = [
    Signal::Int,
    Signal::Term,
    Signal::Hup,
    Signal::Quit,
    Signal::Winch,
];

/// Catches what a session forwards, from now on: the reading end of a pipe that
/// gives the Linux number of each signal, one byte each. What whoever started us has
/// ignored stays so: `nohup` and a shell's `&` mean it, for the guest's command too.
///
/// # Errors
/// The process has no descriptors left.
pub fn catch() -> io::Result<OwnedFd> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    let wanted = FORWARDED.into_iter();
    let wanted = wanted.filter(|signal| ignored & (1 << (number(*signal) - 1)) == 0);
    let mut signals = Signals::new(wanted)?;
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mut writer = File::from(writer);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            smol::block_on(async {
                while let Some(Ok(signal)) = signals.next().await {
                    // The session has ended when nobody reads.
                    if writer.write_all(&[number(signal)]).is_err() {
                        return;
                    }
                }
            });
        })?;
    Ok(reader)
}

/// The signals that a process ignores, bit 0 for signal 1, by its status (proc(5)).
fn ignored(status: &str) -> u64 {
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// The Linux number of a signal that is caught here (signal(7)).
fn number(signal: Signal) -> u8 {
    match signal {
        Signal::Hup => HANG_UP,
        Signal::Quit => 3,
        Signal::Term => TERMINATE,
        Signal::Winch => WINDOW_CHANGE,
        _ => INTERRUPT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_linux() {
        assert_eq!(number(Signal::Int), INTERRUPT);
        assert_eq!(number(Signal::Winch), WINDOW_CHANGE);
        assert_eq!(number(Signal::Hup), 1);
        assert_eq!(number(Signal::Quit), 3);
        assert_eq!(number(Signal::Term), 15);
    }

    #[test]
    fn signals_that_were_ignored_before_us_are_known() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!(ignored(status), 1 | 1 << 12);
        assert_eq!(ignored(""), 0);
    }
}
