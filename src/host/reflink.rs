//! A root of the VM's own that shares the image's blocks until they are written.
//!
//! `FICLONE` (ioctl_ficlone(2)) takes the time of the image's extents, not of its size.
//! Where files cannot share blocks it is refused and not copied instead: a copy would
//! take the image's time and space for each VM, and `overlay` takes neither.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::model::units::Bytes;
use crate::plan::step::{Fault, FaultKind, Presence};

use super::aside::Aside;
use super::disk;
use super::fault::fault;

/// A root as it must be.
#[derive(Debug, Clone, Copy)]
pub struct RootDisk<'a> {
    /// Where it lies.
    pub path: &'a Path,
    /// The image's file system.
    pub base: &'a Path,
    /// Virtual size, at least the base's.
    pub size: Bytes,
}

/// Makes the root if there is none, and longer if it is shorter than it must be.
pub fn ensure(root: &RootDisk<'_>) -> Result<(), Fault> {
    match disk::probe(root.path, root.size)? {
        Presence::Present => Ok(()),
        Presence::Different if disk::grow(root.path, root.size)? => Ok(()),
        Presence::Different => Err(different(root)),
        Presence::Absent => {
            create(root)?;
            match disk::probe(root.path, root.size)? {
                Presence::Present => Ok(()),
                Presence::Absent | Presence::Different => Err(different(root)),
            }
        }
    }
}

fn attempt(root: &RootDisk<'_>) -> String {
    format!("make root {} of {}", root.path.display(), root.size)
}

fn different(root: &RootDisk<'_>) -> Fault {
    let what = format!(
        "{}: there is something else of that name; it was left as it is",
        attempt(root)
    );
    Fault::new(FaultKind::Other, what)
}

fn create(root: &RootDisk<'_>) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(attempt(root), error);
    let base = File::open(root.base)
        .map_err(|error| fault(format!("open image {}", root.base.display()), error))?;
    let holds = base.metadata().map_err(failed)?.len();
    if holds > root.size.0 {
        let what = format!("{}: the image has {} already", attempt(root), Bytes(holds));
        return Err(Fault::new(FaultKind::Other, what));
    }
    disk::check_space(root.path, Bytes(0), &attempt(root))?;
    let aside = Aside::begin(root.path).map_err(failed)?;
    rustix::fs::ioctl_ficlone(aside.file(), &base).map_err(|errno| refused(root, errno))?;
    // The guest finds the room behind its file system and lets it grow.
    aside.file().set_len(root.size.0).map_err(failed)?;
    aside.finish_recorded().map_err(failed)
}

fn refused(root: &RootDisk<'_>, errno: Errno) -> Fault {
    let why = match errno {
        Errno::XDEV => "the image lies in another file system",
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS => {
            "files cannot share blocks there"
        }
        other => return fault(attempt(root), other),
    };
    Fault::new(FaultKind::Other, format!("{}: {why}", attempt(root))).remedy(Some(
        "Use `--root-mode overlay`, or set BANGER_STATE_DIR to a folder on XFS or btrfs."
            .to_owned(),
    ))
}

/// Whether files in this folder can share blocks, by trying with two that have no name;
/// if not, why.
pub fn fitness(folder: &Path) -> Result<(), String> {
    let attempt = || format!("share blocks between files in {}", folder.display());
    let nameless = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)
    };
    let tried = nameless().and_then(|from| {
        let to = nameless()?;
        rustix::io::pwrite(&from, &[1; 4096], 0)?;
        rustix::fs::ioctl_ficlone(&to, &from)
    });
    tried.map_err(|errno| match errno {
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL => {
            format!("{}: its file system cannot", attempt())
        }
        other => fault(attempt(), other).what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_is_named_with_the_way_out_and_left_empty() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (base, path) = (folder.path().join("base"), folder.path().join("root"));
        std::fs::write(&base, [1; 8192]).unwrap();
        let root = RootDisk {
            path: &path,
            base: &base,
            size: Bytes::mib(1),
        };
        let fault = ensure(&root).unwrap_err();
        assert!(fault.what.contains("share blocks"), "{fault}");
        assert!(fault.remedy.unwrap().contains("--root-mode overlay"));
        assert!(!path.exists());
        assert!(fitness(folder.path()).is_err());
    }

    #[test]
    fn an_image_larger_than_the_root_is_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let (base, path) = (folder.path().join("base"), folder.path().join("root"));
        File::create(&base).unwrap().set_len(2 << 20).unwrap();
        let root = RootDisk {
            path: &path,
            base: &base,
            size: Bytes::mib(1),
        };
        let fault = ensure(&root).unwrap_err();
        assert!(fault.what.contains("has 2M already"), "{fault}");
        assert!(!path.exists());
    }
}
