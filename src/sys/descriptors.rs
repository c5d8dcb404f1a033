//! What a program inherits: takes the descriptor that was meant for it, closes those
//! that were not. What it hands to another through a socket.

use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, retry_on_intr};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Takes ownership of a descriptor that whoever started this process left open for it
/// under this number, and keeps it from the programs that this process starts.
///
/// # Errors
/// `EBADF`: nothing of that number was inherited. What this process opened itself is
/// told apart by its close-on-exec flag, which no inherited descriptor has and every one
/// that Rust's library or rustix's `CLOEXEC` opens has.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 || fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err() {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: open, as just seen, and borrowed only until the next lines.
    let seen = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::io::fcntl_getfd(seen.as_fd())?.contains(FdFlags::CLOEXEC) {
        return Err(rustix::io::Errno::BADF.into());
    }
    rustix::io::fcntl_setfd(seen, FdFlags::CLOEXEC)?;
    // SAFETY: inherited, so no value in this process owns it; a second call for the same
    // number fails on the flag that was just set.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends bytes, and a descriptor with the first of them; how many were sent.
///
/// # Errors
/// As sendmsg(2); `EPIPE` without a signal.
pub fn send_with(
    stream: impl AsFd,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    if let Some(descriptors) = &descriptors {
        let pushed = control.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(pushed, "the space is made for one descriptor");
    }
    let slices = [IoSlice::new(bytes)];
    let mut send = || sendmsg(&stream, &slices, &mut control, SendFlags::NOSIGNAL);
    Ok(retry_on_intr(&mut send)?)
}

/// Closes all descriptors of this process but 0, 1, 2 and those in `keep`.
///
/// For a process with a single thread that has just begun, or is about to execute another
/// program: nothing else may own a descriptor here.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for number in open {
        // The listing's own descriptor was in the list and is closed by now.
        let is_open = fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
        if number > 2 && is_open && !keep.contains(&number) {
            // SAFETY: open, and by this function's contract no value in this process
            // owns it.
            unsafe { rustix::io::close(number) };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn inherited_descriptor_is_taken_once_and_not_passed_on() {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(writer);
        let taken = take_inherited(number).unwrap();
        let flags = rustix::io::fcntl_getfd(&taken).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC));
        assert!(take_inherited(number).is_err());
    }

    #[test]
    fn what_we_opened_ourselves_and_what_is_not_open_are_refused() {
        let file = fs::File::open("/dev/null").unwrap();
        assert!(take_inherited(file.as_raw_fd()).is_err());
        assert!(take_inherited(1).is_err());
        assert!(take_inherited(1_000_000).is_err());
        assert!(take_inherited(-1).is_err());
    }
}
