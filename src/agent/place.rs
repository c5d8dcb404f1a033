//! A directory that paths are resolved inside of: links, absolute ones too, never
//! lead out of it. The kernel does it component by component (`openat2` with
//! `RESOLVE_IN_ROOT`, Linux 5.6), so nothing can be swapped in between.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

/// How often a lookup is tried again that raced with a rename (`EAGAIN` of openat2).
const TRIES: u32 = 64;

/// A root that nothing escapes.
#[derive(Debug)]
pub struct Place {
    root: OwnedFd,
}

impl Place {
    /// The place below an existing directory.
    ///
    /// # Errors
    /// It does not exist or is no directory.
    pub fn at(path: &Path) -> io::Result<Place> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Place { root })
    }

    /// Opens a directory inside, making it and its parents (0755) where missing.
    ///
    /// # Errors
    /// A component is no directory, is `..`, or cannot be made.
    pub fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = inner(path)?;
        match self.open(&path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make(&path),
            opened => opened,
        }
    }

    /// Opens what exists inside, links followed inside.
    ///
    /// # Errors
    /// It does not exist, or may not be opened so.
    pub fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = inner(path)?;
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &path
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match openat2(
                &self.root,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            ) {
                Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
                opened => return Ok(opened?),
            }
        }
    }

    /// Splits a path into its parent, opened and made where missing, and its name.
    ///
    /// # Errors
    /// As [`Place::directory`]; and for a path without a name.
    pub fn parent<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or_else(|| outside(path))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((self.directory(parent)?, name))
    }

    fn make(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut at = self.root.as_fd().try_clone_to_owned()?;
        let mut so_far = PathBuf::new();
        for name in path.iter() {
            so_far.push(name);
            at = match self.open(&so_far, flags) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
                    self.open(&so_far, flags)?
                }
                opened => opened?,
            };
        }
        Ok(at)
    }
}

/// The path by which mount(2) reaches an open directory; /proc must be mounted.
pub fn by_descriptor(directory: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// The path relative to the root; `..` is refused rather than guessed at.
fn inner(path: &Path) -> io::Result<PathBuf> {
    path.components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .map(|part| match part {
            Component::Normal(name) => Ok(name),
            _ => Err(outside(path)),
        })
        .collect()
}

fn outside(path: &Path) -> io::Error {
    let why = format!("{} does not lead to anything inside", path.display());
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_inside_and_never_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        symlink("/usr", root.join("absolute")).unwrap();
        symlink("../../../usr", root.join("upwards")).unwrap();
        let place = Place::at(&root).unwrap();
        place.directory(Path::new("/lib/modules/6.1")).unwrap();
        place.directory(Path::new("absolute/share")).unwrap();
        place.directory(Path::new("upwards/local")).unwrap();
        assert!(root.join("usr/lib/modules/6.1").is_dir());
        assert!(root.join("usr/share").is_dir());
        assert!(root.join("usr/local").is_dir());
    }

    #[test]
    fn two_dots_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::at(dir.path()).unwrap();
        let error = place.directory(Path::new("a/../../b")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(place.parent(Path::new("a/..")).is_err());
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let place = Place::at(dir.path()).unwrap();
        assert!(place.directory(Path::new("file/below")).is_err());
    }
}
