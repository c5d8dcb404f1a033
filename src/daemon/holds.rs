//! What a client of `vm run --rm` holds on to its VM by, for as long as it lives: one end
//! of a named pipe in the VM's folder, passed to it with its answer.
//!
//! ```text
//!  daemon --- the pipe, with the answer ---> client        dies, by whatever
//!    | dies                                    |                 |
//!  next daemon: a reader of the same name. Empty: somebody writes. Ended: nobody does.
//! ```
//!
//! The connection to a daemon ends with either side; this ends with the client alone. It
//! is the kernel's word and needs no time: from the moment the answer is sent the pipe is
//! open, be it in a message that nobody has read yet. Nothing is ever written to it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::io::Errno;
use smol::Async;

use crate::model::ids::VmId;

/// Makes the pipe, and opens it for the client; `None` when that fails: the VM is then
/// deleted when this daemon ends, which its client could not prevent.
pub fn give(vm: VmId, path: &Path) -> Option<OwnedFd> {
    match make(path) {
        Ok(hold) => Some(hold),
        Err(error) => {
            log::error!(vm:%; "make {}: {error}: the VM will not outlive this daemon", path.display());
            None
        }
    }
}

fn make(path: &Path) -> io::Result<OwnedFd> {
    match mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    // For both, since to open it for writing alone needs a reader, and there is none.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(open(path, flags, Mode::empty())?)
}

/// Whether a client lives that was given the pipe, or may: one that cannot be looked for
/// is not said to be gone, for its VM would go with it.
pub fn is_held(path: &Path) -> bool {
    match reader(path).and_then(|reader| look(&reader)) {
        Ok(held) => held,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            log::error!("ask whether {} is held: {error}", path.display());
            true
        }
    }
}

/// Waits until no client is left that was given the pipe; a pipe that is gone has none.
///
/// # Errors
/// It cannot be watched: nothing is known of the client then.
pub async fn released(path: &Path) -> io::Result<()> {
    let reader = match reader(path) {
        Ok(reader) => Async::new(reader)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    while look(reader.get_ref())? {
        reader.readable().await?;
    }
    Ok(())
}

fn reader(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(open(path, flags, Mode::empty())?.into())
}

/// A pipe that somebody could write to has nothing yet; one that nobody can has ended
/// (pipe(7)).
fn look(reader: &File) -> io::Result<bool> {
    let mut unasked = [0_u8; 64];
    loop {
        match rustix::io::read(reader, &mut unasked) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_seen_by_who_never_had_it_until_its_last_copy_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client");
        assert!(!is_held(&path));
        let hold = make(&path).unwrap();
        let copy = hold.try_clone().unwrap();
        drop(hold);
        assert!(is_held(&path));
        drop(copy);
        assert!(!is_held(&path));
    }

    #[test]
    fn the_end_of_the_holder_wakes_who_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client");
        let hold = make(&path).unwrap();
        let waiting = released(&path);
        let other = smol::future::or(
            async {
                waiting.await.unwrap();
                "released"
            },
            async {
                smol::future::yield_now().await;
                drop(hold);
                smol::future::pending().await
            },
        );
        assert_eq!(smol::block_on(other), "released");
        assert!(!is_held(&path));
    }

    /// Symptom: a daemon out of descriptors deleted the VMs of clients that lived.
    #[test]
    fn a_client_that_cannot_be_looked_for_is_not_said_to_be_gone() {
        let folder = tempfile::tempdir().unwrap();
        // A name that leads to itself can be opened by nobody, root included.
        let path = folder.path().join("client");
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(is_held(&path));
        assert!(smol::block_on(released(&path)).is_err());
        let gone = folder.path().join("gone");
        assert!(!is_held(&gone));
        smol::block_on(released(&gone)).unwrap();
    }
}
