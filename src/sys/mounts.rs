//! A table of mounts of this process's own.

use std::io;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives this process a copy of the table of mounts (mount_namespaces(7)): what it and
/// its programs mount from here on is seen by nobody else once propagation is off, and ends
/// with the last of them.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn unshare() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS shares no descriptor table and no file system attributes with
    // another thread differently than before: unshare(2) copies the latter for the caller.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(Into::into)
}
