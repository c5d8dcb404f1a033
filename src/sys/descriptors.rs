//! What a program inherits: closes every descriptor that was not meant for it.

use std::fs;
use std::io;
use std::os::fd::RawFd;

/// Closes all descriptors of this process but 0, 1, 2 and those in `keep`.
///
/// For a process that is about to execute another program and has a single thread:
/// nothing else may own a descriptor here.
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
