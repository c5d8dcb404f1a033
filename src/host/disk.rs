//! Empty ext4 disks for a VM, in the same time whatever their size.
//!
//! `mke2fs` runs once per purpose and size, into a cached template; every disk is a
//! copy of the template's extents. A disk appears under its name only when complete,
//! and is durable before its VM's row says that it is made; so one that exists is never
//! looked into, changed or formatted again: what the guest did to it, even wiping it, is
//! the user's.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::model::units::Bytes;
use crate::model::vm::VmSpec;
use crate::plan::step::{Fault, FaultKind, Presence};

use super::aside::Aside;
use super::fault::fault;
use super::{directory, program, sparse};

/// Left free for the host when a disk is made, beyond what the disk takes at once.
const HEADROOM: Bytes = Bytes::mib(64);

/// mke2fs takes 5 to 11 ms for 1 to 50 GiB; a machine under load gets patience.
const MKE2FS_DEADLINE: Duration = Duration::from_secs(60);

/// Changes with the arguments below, so that an old cache is not taken for a new one.
const RECIPE: &str = "v1";

/// What a disk is for: its file system's label, and its template's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Takes the changes to the root.
    Upper,
    /// Mounted at /root.
    Work,
}

impl Purpose {
    fn label(self) -> &'static str {
        match self {
            Purpose::Upper => "banger-upper",
            Purpose::Work => "banger-work",
        }
    }
}

/// A disk as it must be.
#[derive(Debug, Clone, Copy)]
pub struct Disk<'a> {
    /// Where it lies.
    pub path: &'a Path,
    /// What it is for.
    pub purpose: Purpose,
    /// Its virtual size, and that of the file system in it.
    pub size: Bytes,
    /// Folder of the cached templates.
    pub templates: &'a Path,
}

/// Makes the disk if there is none, and longer if it is shorter than it must be.
pub fn ensure(disk: &Disk<'_>) -> Result<(), Fault> {
    match probe(disk.path, disk.size)? {
        Presence::Present => Ok(()),
        Presence::Different if grow(disk.path, disk.size)? => Ok(()),
        Presence::Different => Err(different(disk)),
        Presence::Absent => {
            create(disk)?;
            match probe(disk.path, disk.size)? {
                Presence::Present => Ok(()),
                Presence::Absent | Presence::Different => Err(different(disk)),
            }
        }
    }
}

/// Makes a disk of ours longer; whether it now is so long. What is in it stays, and its
/// guest lets the file system grow. One that is longer, or shorter than any disk of ours
/// ever was, is left as it is.
pub fn grow(path: &Path, size: Bytes) -> Result<bool, Fault> {
    let failed = |error: io::Error| fault(format!("grow disk {} to {size}", path.display()), error);
    let found = fs::symlink_metadata(path).map_err(failed)?;
    if !found.is_file() || !(VmSpec::MIN_DISK.0..=size.0).contains(&found.len()) {
        return Ok(false);
    }
    let file = File::options().write(true).open(path).map_err(failed)?;
    file.set_len(size.0).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok(true)
}

/// Removes the disk.
///
/// While somebody has the file open, its blocks stay: freeing those of a used disk takes
/// tens of milliseconds, and longer on a busy disk. So it is held open past its name's
/// end and let go by a thread; a daemon that dies meanwhile lets go as well.
pub fn absent(path: &Path) -> Result<(), Fault> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::open(path, flags, Mode::empty());
    let removed = fs::remove_file(path);
    if let Ok(held) = held {
        // Without a thread to be had it is let go here, by dropping the closure.
        let _let_go = thread::Builder::new().spawn(move || drop(held));
    }
    match removed {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(fault(format!("remove disk {}", path.display()), error)),
    }
}

/// Present means a regular file of exactly this size.
pub fn probe(path: &Path, size: Bytes) -> Result<Presence, Fault> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.len() == size.0 => Ok(Presence::Present),
        Ok(_) => Ok(Presence::Different),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Presence::Absent),
        Err(error) => Err(fault(format!("examine disk {}", path.display()), error)),
    }
}

fn different(disk: &Disk<'_>) -> Fault {
    let found = match fs::symlink_metadata(disk.path) {
        Ok(found) if found.is_file() => format!("a file of {}", Bytes(found.len())),
        Ok(_) => "not a regular file".to_owned(),
        Err(_) => "gone again".to_owned(),
    };
    Fault::new(
        FaultKind::Other,
        format!(
            "make disk {} of {}: there is one already, {found}; it was left as it is",
            disk.path.display(),
            disk.size
        ),
    )
}

fn create(disk: &Disk<'_>) -> Result<(), Fault> {
    let attempt = || format!("create disk {} of {}", disk.path.display(), disk.size);
    let failed = |error: io::Error| fault(attempt(), error);
    let template = open_template(disk)?;
    let takes = template.metadata().map_err(failed)?.blocks() * 512;
    check_space(disk.path, Bytes(takes), &attempt())?;
    let aside = Aside::begin(disk.path).map_err(failed)?;
    sparse::copy(&template, aside.file()).map_err(failed)?;
    aside.finish_recorded().map_err(failed)
}

/// Refuses to begin what would fill the file system.
pub fn check_space(path: &Path, takes: Bytes, attempt: &str) -> Result<(), Fault> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let free = free_space(folder).map_err(|error| fault(attempt, error))?;
    let wanted = Bytes(takes.0 + HEADROOM.0);
    if free >= wanted {
        return Ok(());
    }
    Err(Fault::new(
        FaultKind::Full,
        format!(
            "{attempt}: {} MiB are free in {}, {} MiB are needed; delete a VM or an image",
            free.whole_mib(),
            folder.display(),
            wanted.whole_mib() + 1
        ),
    ))
}

/// What an ordinary user may still write in a folder's file system.
pub fn free_space(folder: &Path) -> io::Result<Bytes> {
    let found = rustix::fs::statvfs(folder)?;
    Ok(Bytes(found.f_bavail.saturating_mul(found.f_frsize)))
}

fn open_template(disk: &Disk<'_>) -> Result<File, Fault> {
    let path = template_path(disk);
    let open = |path: &Path| match File::open(path) {
        Ok(file) if file.metadata()?.len() == disk.size.0 => Ok(Some(file)),
        // Somebody cut or grew it: a cache is made again, not trusted.
        Ok(_) => fs::remove_file(path).map(|()| None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let failed = |error| fault(format!("open disk template {}", path.display()), error);
    if let Some(file) = open(&path).map_err(failed)? {
        return Ok(file);
    }
    make_template(disk, &path)?;
    match open(&path).map_err(failed)? {
        Some(file) => Ok(file),
        None => Err(failed(io::ErrorKind::NotFound.into())),
    }
}

fn template_path(disk: &Disk<'_>) -> PathBuf {
    disk.templates.join(format!(
        "{}-{}-{RECIPE}.ext4",
        disk.purpose.label(),
        disk.size.0
    ))
}

/// Two callers may make the same template at once: each in a file without a name,
/// and the first to finish gives it one.
fn make_template(disk: &Disk<'_>, path: &Path) -> Result<(), Fault> {
    let attempt = || format!("make disk template {}", path.display());
    let failed = |error: io::Error| fault(attempt(), error);
    directory::ensure(disk.templates, directory::Access::Private)?;
    check_space(path, Bytes::mib(8), &attempt())?;
    let formatted = Aside::begin(path).map_err(failed)?;
    formatted.file().set_len(disk.size.0).map_err(failed)?;
    mke2fs(&formatted.path_for_program(), disk.purpose, &attempt())?;
    // mke2fs writes many blocks of zeros; the template keeps only the others.
    let template = Aside::begin(path).map_err(failed)?;
    sparse::copy_extents(formatted.file(), template.file()).map_err(failed)?;
    template.finish().map_err(failed)
}

/// Makes an ext4 of all of the file: without a block count mke2fs takes the file's
/// size, which spares us its units.
///
/// `assume_storage_prezeroed` (e2fsprogs 1.47) marks the inode tables as zeroed, so
/// that the guest's kernel does not write them all in the background after the first
/// mount. `orphan_file` and `metadata_csum_seed` are off for guests older than 5.15,
/// and `resize_inode` because its reserved blocks would be 4 MiB of every disk of 50 GiB
/// (growing works without it, by meta block groups).
fn mke2fs(file: &Path, purpose: Purpose, attempt: &str) -> Result<(), Fault> {
    let program = program::require("mke2fs", "e2fsprogs")?;
    let file = file.to_string_lossy();
    let arguments = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-m",
        "0",
        "-L",
        purpose.label(),
        "-O",
        "^orphan_file,^metadata_csum_seed,^resize_inode",
        "-E",
        "assume_storage_prezeroed=1,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,nodiscard",
        &file,
    ];
    let outcome = program::run(&program, arguments, b"", MKE2FS_DEADLINE)?;
    if outcome.success {
        return Ok(());
    }
    let old = ["Bad option", "Invalid filesystem option"]
        .iter()
        .any(|words| outcome.complaint.contains(words));
    let advice = if old {
        "; e2fsprogs 1.47 or newer is needed (package e2fsprogs)"
    } else {
        ""
    };
    let complaint = outcome.complaint.lines().next().unwrap_or("no message");
    Err(Fault::new(
        FaultKind::Other,
        format!("{attempt}: mke2fs: {complaint}{advice}"),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn disk<'a>(root: &'a Path, path: &'a Path, size: Bytes) -> Disk<'a> {
        Disk {
            path,
            purpose: Purpose::Work,
            size,
            templates: root,
        }
    }

    /// Block count times block size, from the superblock (Documentation/filesystems/ext4:
    /// offsets 0x4 and 0x150 the count, 0x18 the block size, 0x38 the magic).
    fn file_system_size(path: &Path) -> u64 {
        let mut block = [0; 1024];
        File::open(path)
            .unwrap()
            .read_exact_at(&mut block, 1024)
            .unwrap();
        let word = |at: usize| u64::from(u32::from_le_bytes(block[at..at + 4].try_into().unwrap()));
        assert_eq!(word(0x38) & 0xffff, 0xef53);
        (word(0x4) | word(0x150) << 32) << (10 + word(0x18))
    }

    #[test]
    fn the_file_system_fills_the_disk_at_every_size() {
        let root = tempfile::tempdir().unwrap();
        for size in [Bytes::mib(64), Bytes::mib(300), Bytes::gib(50)] {
            let path = root.path().join(format!("disk-{}", size.0));
            ensure(&disk(root.path(), &path, size)).unwrap();
            assert_eq!(file_system_size(&path), size.0, "{size}");
            assert!(path.metadata().unwrap().blocks() * 512 < 1 << 20, "{size}");
        }
    }

    #[test]
    fn a_copy_passes_fsck() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("disk");
        ensure(&disk(root.path(), &path, Bytes::gib(2))).unwrap();
        let fsck = program::require("e2fsck", "e2fsprogs").unwrap();
        let arguments = ["-f", "-n", path.to_str().unwrap()];
        let outcome = program::run(&fsck, arguments, b"", MKE2FS_DEADLINE).unwrap();
        assert!(outcome.success, "{outcome:?}");
    }

    #[test]
    fn an_existing_disk_is_made_longer_and_never_formatted_or_cut() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("disk");
        let wanted = disk(root.path(), &path, Bytes::mib(64));
        ensure(&wanted).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"the user's bytes", 1024).unwrap();
        ensure(&wanted).unwrap();
        ensure(&disk(root.path(), &path, Bytes::mib(128))).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 128 << 20);
        let fault = ensure(&wanted).unwrap_err();
        assert!(fault.what.contains("128M"), "{fault}");
        let mut found = [0; 16];
        File::open(&path)
            .unwrap()
            .read_exact_at(&mut found, 1024)
            .unwrap();
        assert_eq!(&found, b"the user's bytes");
        assert_eq!(path.metadata().unwrap().len(), 128 << 20);
    }

    #[test]
    fn removed_twice_is_absent() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("disk");
        ensure(&disk(root.path(), &path, Bytes::mib(64))).unwrap();
        absent(&path).unwrap();
        absent(&path).unwrap();
        assert_eq!(probe(&path, Bytes::mib(64)).unwrap(), Presence::Absent);
    }

    #[test]
    fn makers_at_the_same_time_share_one_template() {
        let root = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for index in 0..4 {
                let root = root.path();
                scope.spawn(move || {
                    let path = root.join(format!("disk-{index}"));
                    ensure(&disk(root, &path, Bytes::mib(96))).unwrap();
                    assert_eq!(file_system_size(&path), 96 << 20);
                });
            }
        });
        let names = fs::read_dir(root.path()).unwrap().count();
        assert_eq!(names, 5, "four disks and one template");
    }

    #[test]
    fn too_little_space_is_seen_before_anything_is_written() {
        let root = tempfile::tempdir().unwrap();
        let fault = check_space(
            &root.path().join("disk"),
            Bytes(u64::MAX / 2),
            "create disk x",
        );
        let fault = fault.unwrap_err();
        assert_eq!(fault.kind, FaultKind::Full);
        assert!(fault.what.contains("MiB are free"), "{fault}");
    }
}
