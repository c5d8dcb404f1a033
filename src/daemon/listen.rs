//! The daemon's socket: made in a 0700 directory, 0600, one daemon at a time.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::Mode;

use crate::failure::{Failure, FailureKind};
use crate::host::layout::refused::Directory;

/// Makes a directory of ours, 0700; an existing one must belong to `uid`, be no
/// symlink and be closed to others.
///
/// # Errors
/// It cannot be made, or is not what it must be.
pub fn private_directory(directory: Directory, path: &Path, uid: u32) -> Result<(), Failure> {
    let attempt = format!("make {} {}", directory.name(), path.display());
    let failed = |error: io::Error| {
        let way_out = directory.way_out(path, &error);
        storage(&attempt, &error).hint(way_out)
    };
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(failed)?;
    let seen = fs::symlink_metadata(path).map_err(failed)?;
    if !seen.is_dir() || seen.uid() != uid {
        return Err(not_ours(directory, path, &seen, uid));
    }
    if seen.mode() & 0o077 != 0 {
        let closed = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
        closed.map_err(failed)?;
    }
    Ok(())
}

fn not_ours(directory: Directory, path: &Path, seen: &fs::Metadata, uid: u32) -> Failure {
    let (variable, shown) = (directory.variable(), path.display());
    let what = format!("use {} {shown}", directory.name());
    let failure = Failure::new(FailureKind::Denied, what);
    if !seen.is_dir() {
        return failure
            .because("it is not a directory")
            .hint(format!("Set {variable} to a directory of your own."));
    }
    failure
        .because(format!("it belongs to uid {}, and we are uid {uid}", seen.uid()))
        .hint(format!(
            "If it is meant for you, `sudo chown -R {uid} {shown}`; otherwise set {variable} to a directory of your own."
        ))
}

fn storage(attempt: &str, error: &io::Error) -> Failure {
    Failure::new(FailureKind::Storage, attempt).because(error)
}

/// Binds the socket. The caller holds the store, so nobody else is a daemon here and
/// a socket file that exists is a dead one's.
///
/// # Errors
/// The path cannot be bound, or another process still answers on it.
pub fn bind(path: &Path) -> Result<UnixListener, Failure> {
    let attempt = format!("listen on {}", path.display());
    if UnixStream::connect(path).is_ok() {
        return Err(Failure::new(FailureKind::Busy, attempt)
            .because("another process answers there")
            .hint("Run `banger daemon status` to see it."));
    }
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(storage(&attempt, &error)),
    }
    // The umask closes the moment between bind and chmod.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    bound.map_err(|error| {
        let way_out = Directory::Runtime.way_out(path, &error);
        storage(&attempt, &error).hint(way_out)
    })
}

/// Removes the socket's file at the daemon's end. The caller still listens on it: see
/// [`bind`] for why nobody else can have bound it then.
pub fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        log::warn!("remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_is_0600_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(listener);
    }

    #[test]
    fn a_socket_that_answers_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _first = bind(&path).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind, FailureKind::Busy);
    }

    #[test]
    fn an_open_directory_of_ours_is_closed_and_a_symlink_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        private_directory(Directory::State, &open, uid).unwrap();
        assert_eq!(fs::metadata(&open).unwrap().mode() & 0o777, 0o700);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert_eq!(
            private_directory(Directory::State, &link, uid)
                .unwrap_err()
                .kind,
            FailureKind::Denied
        );
    }
}
