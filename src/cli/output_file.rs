//! A file that the user names for a command's output (`-o`).
//!
//! A regular file appears whole under its name or not at all: it is written aside and
//! renamed to where the name leads, so that a link stays a link. What is there already and
//! is no regular file (a device, a FIFO, `/dev/stdout`) is written into, as a shell's `>`
//! would: renamed over, /dev/null would be gone for everybody.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::session::OwnFailure;
use crate::failure::Failure;

/// Has `fill` write the output; its length, where that is a file's.
///
/// # Errors
/// The file cannot be written, or `fill` fails: then a regular file is as it was.
pub fn write(
    path: &Path,
    what: &str,
    fill: impl FnOnce(File) -> Result<(), OwnFailure>,
) -> Result<Option<u64>, OwnFailure> {
    let failed = |error: io::Error| {
        OwnFailure::from(Failure::failed(format!("write {what} {}", path.display())).because(error))
    };
    if let Some(open) = open_as_it_is(path).map_err(failed)? {
        return fill(open).map(|()| None);
    }
    let target = target(path).map_err(failed)?;
    let aside = aside(&target);
    let written = (|| {
        let file = File::create_new(&aside).map_err(failed)?;
        fill(file.try_clone().map_err(failed)?)?;
        put_in_place(&file, &aside, &target).map_err(failed)
    })();
    if written.is_err() {
        drop(fs::remove_file(&aside));
    }
    written.map(Some)
}

/// What is not replaced, opened: all but a regular file, and standard output whatever it
/// is (`/dev/stdout`), for who gave it to us has it open and may have written to it.
fn open_as_it_is(path: &Path) -> io::Result<Option<File>> {
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let own = stdout.metadata()?;
    if (own.dev(), own.ino()) == (found.dev(), found.ino()) {
        return Ok(Some(stdout));
    }
    match found.is_file() {
        true => Ok(None),
        false => File::options().write(true).open(path).map(Some),
    }
}

/// Where a name leads, also if nothing is there yet.
fn target(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::read_link(path) {
            // A link to nothing; a circle of links is another error (ELOOP).
            Ok(next) => target(&path.parent().unwrap_or(Path::new("")).join(next)),
            Err(_) => Ok(path.to_owned()),
        },
        found => found,
    }
}

fn aside(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    PathBuf::from(name)
}

fn put_in_place(file: &File, aside: &Path, target: &Path) -> io::Result<u64> {
    if let Ok(old) = fs::metadata(target) {
        file.set_permissions(old.permissions())?;
    }
    file.sync_all()?;
    let length = file.metadata()?.len();
    fs::rename(aside, target)?;
    Ok(length)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn put(path: &Path, text: &str) -> Result<Option<u64>, OwnFailure> {
        write(path, "patch", |mut file| {
            file.write_all(text.as_bytes()).unwrap();
            Ok(())
        })
    }

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_fifo_and_a_device_are_written_into_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        // Read and write: an end for each side, so that nobody waits for the other.
        let mut reader = File::options().read(true).write(true).open(&fifo).unwrap();
        assert_eq!(put(&fifo, "patch").unwrap(), None);
        let mut seen = [0; 5];
        reader.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"patch");
        assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
        // By a link of ours, so that a fault here does not cost the machine its own.
        let null = folder.path().join("null");
        symlink("/dev/null", &null).unwrap();
        assert_eq!(put(&null, "patch").unwrap(), None);
        assert!(null.is_symlink());
        assert_eq!(names(folder.path()), 2);
    }

    #[test]
    fn a_link_stays_and_its_file_is_replaced_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let below = |name: &str| folder.path().join(name);
        fs::write(below("real"), "old and longer").unwrap();
        fs::set_permissions(below("real"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink("real", below("link")).unwrap();
        symlink("missing", below("dangling")).unwrap();
        assert_eq!(put(&below("link"), "new").unwrap(), Some(3));
        assert_eq!(put(&below("dangling"), "new").unwrap(), Some(3));
        for (link, file) in [("link", "real"), ("dangling", "missing")] {
            assert!(below(link).is_symlink());
            assert_eq!(fs::read_to_string(below(file)).unwrap(), "new");
        }
        let mode = fs::metadata(below("real")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names(folder.path()), 4);
    }

    #[test]
    fn a_failed_command_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("patch");
        fs::write(&path, "old").unwrap();
        let failed = write(&path, "patch", |_| Err(Failure::failed("make it").into()));
        assert_eq!(failed.unwrap_err().status, 125);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(folder.path()), 1);
    }

    #[test]
    fn a_folder_and_a_circle_of_links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(put(folder.path(), "patch").is_err());
        symlink("circle", folder.path().join("circle")).unwrap();
        assert!(put(&folder.path().join("circle"), "patch").is_err());
        assert_eq!(names(folder.path()), 1);
    }
}
