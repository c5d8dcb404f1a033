//! A file that has no name until it is complete.
//!
//! Where the file system can, it is an unnamed inode (`O_TMPFILE`): if we die, it is
//! gone, and a helper program that outlives us writes into nothing. Elsewhere it is a
//! file beside the wanted name, locked while its maker lives; the next attempt at that
//! name removes those of the dead.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::durable::sync_way;

/// Ends the name of an incomplete file.
const ENDING: &str = ".aside";

/// An incomplete file that will be known as `name`.
#[derive(Debug)]
pub struct Aside {
    file: File,
    name: PathBuf,
    /// Where it lies meanwhile, on file systems without unnamed files.
    named: Option<PathBuf>,
}

impl Aside {
    /// Begins the file, mode 0600, in the folder that `name` lies in.
    pub fn begin(name: &Path) -> io::Result<Aside> {
        let folder = name.parent().unwrap_or(Path::new("."));
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(descriptor) => Ok(Aside {
                file: File::from(descriptor),
                name: name.to_owned(),
                named: None,
            }),
            // ISDIR: a kernel or file system that takes the flag for a plain open.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Aside::begin_named(name),
            Err(error) => Err(error.into()),
        }
    }

    fn begin_named(name: &Path) -> io::Result<Aside> {
        remove_abandoned(name)?;
        loop {
            let meanwhile = meanwhile(name);
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
            let made = rustix::fs::open(&meanwhile, flags, Mode::RUSR | Mode::WUSR);
            let file = match made {
                Ok(descriptor) => File::from(descriptor),
                // Of a process that had our id, in another boot or namespace.
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(error.into()),
            };
            file.lock()?;
            // Another attempt may have found it before it was locked.
            if file.metadata()?.nlink() > 0 {
                return Ok(Aside {
                    file,
                    name: name.to_owned(),
                    named: Some(meanwhile),
                });
            }
        }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A path by which another program of the same user reaches the file.
    pub fn path_for_program(&self) -> PathBuf {
        match &self.named {
            Some(path) => path.clone(),
            None => path_while_open(&self.file),
        }
    }

    /// Makes the content durable, then gives the file its name: for what nothing but the
    /// name vouches for. A file that has this name already stays as it is and is the one
    /// that counts.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_data()?;
        self.give_name()
    }

    /// Gives the file its name alone: for what is compared with a sum of its own before it is
    /// believed, and can be made anew.
    pub fn finish_checked(self) -> io::Result<()> {
        self.give_name()
    }

    /// As [`Aside::finish`] for what a row vouches for, which says that it is being made until this
    /// returns: file and name reach the disk together, in half the time.
    pub fn finish_recorded(self) -> io::Result<()> {
        self.give_name()?;
        self.file.sync_all()?;
        sync_way(&self.name)
    }

    fn give_name(&self) -> io::Result<()> {
        let from = self
            .named
            .clone()
            .unwrap_or_else(|| PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd())));
        match rustix::fs::linkat(CWD, &from, CWD, &self.name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(path) = &self.named {
            let _ = fs::remove_file(path);
        }
    }
}

/// A name that no other attempt of this process has.
fn meanwhile(name: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut meanwhile = name.as_os_str().to_owned();
    meanwhile.push(format!(".{}-{number}{ENDING}", std::process::id()));
    meanwhile.into()
}

/// Removes what attempts at this name have left whose makers are dead.
fn remove_abandoned(name: &Path) -> io::Result<()> {
    let beginning = name.file_name().unwrap_or_default().as_bytes();
    for entry in fs::read_dir(name.parent().unwrap_or(Path::new(".")))? {
        let entry = entry?;
        let found = entry.file_name();
        let rest = found.as_bytes().strip_prefix(beginning);
        if rest.is_none_or(|rest| !rest.starts_with(b".") || !rest.ends_with(ENDING.as_bytes())) {
            continue;
        }
        if is_abandoned(&entry.path()) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a path is that of an incomplete file whose maker is dead.
pub fn is_abandoned(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_bytes().ends_with(ENDING.as_bytes())
        && File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

/// The path by which another process of this user opens a file of ours, as long as we have it
/// open.
pub fn path_while_open(file: &File) -> PathBuf {
    let (pid, number) = (std::process::id(), file.as_raw_fd());
    PathBuf::from(format!("/proc/{pid}/fd/{number}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_unfinished_file_leaves_no_name() {
        let root = tempfile::tempdir().unwrap();
        for begin in [Aside::begin, Aside::begin_named] {
            let aside = begin(&root.path().join("disk")).unwrap();
            aside.file().write_all(b"half").unwrap();
            drop(aside);
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        }
    }

    /// Symptom: the name held our process id, so a crash's file was never found again.
    #[test]
    fn an_attempt_removes_what_dead_ones_have_left_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let name = root.path().join("disk");
        let kept = ["disk.notes", "disk2.1-0.aside"];
        for left in kept.iter().chain(&["disk.1-0.aside", "disk.77.aside"]) {
            fs::write(root.path().join(left), "half").unwrap();
        }
        let one = Aside::begin_named(&name).unwrap();
        let other = Aside::begin_named(&name).unwrap();
        let mut wanted: Vec<PathBuf> = kept.map(|kept| root.path().join(kept)).into();
        wanted.extend([one.path_for_program(), other.path_for_program()]);
        wanted.sort();
        let found = fs::read_dir(root.path()).unwrap();
        let mut found: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
        found.sort();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_finished_file_never_replaces_the_one_that_was_first() {
        let root = tempfile::tempdir().unwrap();
        let name = root.path().join("disk");
        for (begin, content) in [
            (Aside::begin as fn(&Path) -> io::Result<Aside>, b"first"),
            (Aside::begin_named, b"later"),
        ] {
            let aside = begin(&name).unwrap();
            aside.file().write_all(content).unwrap();
            aside.finish().unwrap();
        }
        assert_eq!(fs::read(&name).unwrap(), b"first");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
