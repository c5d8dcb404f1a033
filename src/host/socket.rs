//! Unix sockets in a VM's run directory: its processes may make and remove files there,
//! so a name proves nothing. A link is not followed, and a file with a second name
//! (another VM's socket, a service's of this machine) is not called.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

/// A socket's file, pinned: the path to call it by means this file and no other.
#[derive(Debug)]
pub struct Pinned(OwnedFd);

impl Pinned {
    /// Looks at what lies at `path`.
    ///
    /// # Errors
    /// It is no socket, or has a second name.
    pub fn at(path: &Path) -> io::Result<Pinned> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let found = rustix::fs::fstat(&file)?;
        let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
        match is_socket && found.st_nlink == 1 {
            true => Ok(Pinned(file)),
            false => Err(io::Error::other("it is not a socket of the VM's own")),
        }
    }

    /// Leads to the file as long as this lives.
    pub fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.0.as_raw_fd().to_string())
    }
}

/// Connects to the socket at `path`.
///
/// # Errors
/// See [`Pinned::at`]; nobody listens.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(Pinned::at(path)?.path())
}

/// Listens at `path`, for callers of its folder's group besides ourselves: the processes
/// of the VM, where they have a user of their own.
///
/// # Errors
/// The name is taken, or the path cannot be bound.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    // In a sticky folder of ours: nobody can have put another file in its place.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Takes away whatever lies at `path`, so that a socket can be made there. Processes of
/// the VM may still live and put things there meanwhile, so what `unlink` refuses is not
/// examined but renamed, which takes whatever has the name: what is left of it then goes
/// with its folder, once they are dead.
///
/// # Errors
/// The name cannot be taken away.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // POSIX has EPERM for a directory, Linux EISDIR.
        Err(error) if error.kind() != io::ErrorKind::IsADirectory => return Err(error),
        Err(_) => {}
    }
    let aside = path.with_file_name(format!(".gone-{}", random_word()?));
    match fs::rename(path, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Its owner may be in the way of this, and only of this.
    let _ = fs::remove_dir_all(&aside);
    Ok(())
}

/// A name that nobody can have put something at before.
fn random_word() -> io::Result<String> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_lies_at_a_sockets_name_is_taken_away_and_nothing_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let below = |name: &str| folder.path().join(name);
        let (outside, at) = (tempfile::tempdir().unwrap(), below("vsock"));
        std::fs::write(outside.path().join("precious"), "x").unwrap();
        let link_at = |path: &Path| std::os::unix::fs::symlink(outside.path(), path).unwrap();
        drop(listen(&at).unwrap());
        remove(&at).unwrap();
        link_at(&at);
        remove(&at).unwrap();
        std::fs::create_dir_all(at.join("deeper")).unwrap();
        link_at(&at.join("deeper/link"));
        remove(&at).unwrap();
        remove(&at).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(outside.path().join("precious").exists());
    }

    #[test]
    fn a_socket_is_called_and_links_to_it_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let below = |name: &str| folder.path().join(name);
        let listener = listen(&below("s")).unwrap();
        connect(&below("s")).unwrap();
        listener.accept().unwrap();
        std::os::unix::fs::symlink(below("s"), below("soft")).unwrap();
        assert!(connect(&below("soft")).is_err());
        std::fs::hard_link(below("s"), below("hard")).unwrap();
        assert!(connect(&below("hard")).is_err());
        assert!(connect(&below("none")).is_err());
        std::fs::write(below("file"), "").unwrap();
        assert!(connect(&below("file")).is_err());
    }

    #[test]
    fn a_path_too_long_for_an_address_is_called_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let _listener = listen(&folder.path().join("s")).unwrap();
        std::fs::rename(folder.path().join("s"), deep.join("s")).unwrap();
        connect(&deep.join("s")).unwrap();
    }
}
