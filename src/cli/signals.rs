//! Signals as bytes on a pipe, so that one poll waits for them and for everything else.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use async_signal::{Signal, Signals};
use rustix::pipe::PipeFlags;
use smol::stream::StreamExt;

/// Linux number of SIGINT.
pub const INTERRUPT: u8 = 2;
/// Linux number of SIGWINCH.
pub const WINDOW_CHANGE: u8 = 28;

/// Catches what a session forwards, from now on: the reading end of a pipe that
/// gives the Linux number of each signal, one byte each.
///
/// # Errors
/// The process has no descriptors left.
pub fn catch() -> io::Result<OwnedFd> {
    let mut signals = Signals::new([
        Signal::Int,
        Signal::Term,
        Signal::Hup,
        Signal::Quit,
        Signal::Winch,
    ])?;
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

/// The Linux number of a signal that is caught here (signal(7)).
fn number(signal: Signal) -> u8 {
    match signal {
        Signal::Hup => 1,
        Signal::Quit => 3,
        Signal::Term => 15,
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
}
