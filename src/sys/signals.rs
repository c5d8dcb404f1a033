//! Signals as bytes on a pipe: without a thread, and without a runtime to wake one.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::pipe::PipeFlags;

/// signal.h, both C libraries.
const SIG_ERR: usize = usize::MAX;

unsafe extern "C" {
    /// signal(2) as BSD means it: calls that are interrupted go on, the handler stays.
    fn signal(number: c_int, handler: usize) -> usize;
    fn write(file: c_int, bytes: *const c_void, length: usize) -> isize;
    fn __errno_location() -> *mut c_int;
}

/// Where the numbers go; -1 until somebody wants them. Never closed.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Only what signal-safety(7) allows.
extern "C" fn note(number: c_int) {
    let byte = number as u8;
    // SAFETY: the place is this thread's own; what was interrupted finds its error again.
    let error = unsafe { *__errno_location() };
    // A pipe that is full has signals enough for whoever reads it.
    // SAFETY: one byte of a live variable; the descriptor is never closed.
    unsafe { write(PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
    // SAFETY: as above.
    unsafe { *__errno_location() = error };
}

/// Catches these signals from now on: the reading end of a pipe that gives the number of
/// each, one byte each. Once per process.
///
/// # Errors
/// The process has no descriptors left; a number is none that can be caught; it is the
/// second time.
pub fn catch(numbers: &[u8]) -> io::Result<OwnedFd> {
    let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    let (reader, writer) = rustix::pipe::pipe_with(flags)?;
    let unset = PIPE.compare_exchange(-1, i32::MIN, Ordering::SeqCst, Ordering::SeqCst);
    if unset.is_err() {
        return Err(io::Error::other("signals are caught already"));
    }
    PIPE.store(writer.into_raw_fd(), Ordering::SeqCst);
    for number in numbers {
        let number = c_int::from(*number);
        let handler = note as extern "C" fn(c_int) as usize;
        // SAFETY: the handler does only what a handler may, and lives as long as we.
        if unsafe { signal(number, handler) } == SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    /// SIGWINCH: by default nothing comes of it, so other tests of this process are not
    /// disturbed.
    #[test]
    fn what_is_caught_comes_as_its_number() {
        const WINDOW: u8 = 28;
        let reader = catch(&[WINDOW]).unwrap();
        kill_process(getpid(), Signal::WINCH).unwrap();
        rustix::io::ioctl_fionbio(&reader, false).unwrap();
        let mut byte = [0];
        File::from(reader).read_exact(&mut byte).unwrap();
        assert_eq!(byte, [WINDOW]);
        assert!(catch(&[WINDOW]).is_err());
    }
}
