//! A file that has no name until it is complete.
//!
//! Where the file system can, it is an unnamed inode (`O_TMPFILE`): if we die, it is
//! gone, and a helper program that outlives us writes into nothing. Elsewhere it is a
//! file beside the wanted name, replaced by the next attempt.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::durable::sync_way;

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
        let mut meanwhile = name.as_os_str().to_owned();
        meanwhile.push(format!(".{}.aside", std::process::id()));
        let meanwhile = PathBuf::from(meanwhile);
        match fs::remove_file(&meanwhile) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let descriptor: OwnedFd = rustix::fs::open(&meanwhile, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Aside {
            file: File::from(descriptor),
            name: name.to_owned(),
            named: Some(meanwhile),
        })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A path by which another program of the same user reaches the file.
    pub fn path_for_program(&self) -> PathBuf {
        match &self.named {
            Some(path) => path.clone(),
            None => descriptor_path(std::process::id(), &self.file),
        }
    }

    /// Makes the content durable, then gives the file its name: for what nothing but the
    /// name vouches for. A file that has this name already stays as it is and is the one
    /// that counts.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_data()?;
        self.give_name()
    }

    /// The same for what a row vouches for, which says that it is being made until this
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

fn descriptor_path(pid: u32, file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/fd/{}", file.as_raw_fd()))
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
