//! What to say of a directory of ours that cannot be made or written, and what to type
//! next. Looks at what is in the way; changes nothing.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;

/// One of our directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directory {
    /// Disks, images and the store.
    State,
    /// What can be made again.
    Cache,
    /// Sockets.
    Runtime,
}

impl Directory {
    /// `state directory`, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Directory::State => "state directory",
            Directory::Cache => "cache directory",
            Directory::Runtime => "runtime directory",
        }
    }

    /// The variable that moves it.
    pub fn variable(self) -> &'static str {
        match self {
            Directory::State => "BANGER_STATE_DIR",
            Directory::Cache => "BANGER_CACHE_DIR",
            Directory::Runtime => "BANGER_RUNTIME_DIR",
        }
    }

    /// What to do about `error`, met when `path` (this directory, or a file in it) was to
    /// be made or written.
    pub fn way_out(self, path: &Path, error: &io::Error) -> String {
        let place = nearest(path);
        let shown = place.display();
        let repair = match error.kind() {
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                format!("{shown} is not a directory: move it away (`mv {shown} {shown}.old`)")
            }
            ErrorKind::ReadOnlyFilesystem => format!(
                "The file system of {shown} is read-only: `findmnt -T {shown}` shows it, `dmesg` may say why"
            ),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                format!("The disk of {shown} is full: make room on it (`df {shown}`)")
            }
            ErrorKind::PermissionDenied => denied(path, place, error),
            _ => format!("{shown} is in the way"),
        };
        let variable = self.variable();
        format!("{repair}, or set {variable} to a directory of your own elsewhere.")
    }
}

/// The deepest of the path that exists.
fn nearest(path: &Path) -> &Path {
    let mut above = path.ancestors();
    let exists = |path: &&Path| path.symlink_metadata().is_ok();
    above.find(exists).unwrap_or(Path::new("/"))
}

fn denied(path: &Path, place: &Path, error: &io::Error) -> String {
    let shown = place.display();
    let own = rustix::process::geteuid();
    if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) || own.is_root() {
        return format!("{shown} may be immutable: see `lsattr -d {shown}`");
    }
    let own = own.as_raw();
    let found = place.metadata();
    if found.is_ok_and(|found| found.uid() == own) {
        return format!("Give yourself the right to write to {shown} (`chmod u+rwx {shown}`)");
    }
    match place == path {
        true => format!("Make {shown} yours (`sudo chown -R {own} {shown}`)"),
        false => {
            let path = path.display();
            format!(
                "You may not write to {shown}: have it made for you (`sudo install -d -m 700 -o {own} {path}`)"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_named_with_what_to_type() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let below = file.join("a/b");
        let error = std::fs::create_dir_all(&below).unwrap_err();
        let said = Directory::State.way_out(&below, &error);
        let shown = file.display();
        assert!(
            said.contains(&format!("`mv {shown} {shown}.old`")),
            "{said}"
        );
        assert!(said.ends_with("set BANGER_STATE_DIR to a directory of your own elsewhere."));
    }

    #[test]
    fn each_cause_has_a_way_out_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("a/b");
        let said = |errno: Errno| Directory::Runtime.way_out(&missing, &errno.into());
        assert!(said(Errno::ROFS).contains("findmnt -T"));
        assert!(said(Errno::NOSPC).contains("df "));
        assert!(said(Errno::PERM).contains("lsattr -d"));
        for errno in [
            Errno::ROFS,
            Errno::NOSPC,
            Errno::PERM,
            Errno::ACCESS,
            Errno::IO,
        ] {
            assert!(said(errno).contains("BANGER_RUNTIME_DIR"));
            assert!(said(errno).contains(&folder.path().display().to_string()));
        }
    }
}
