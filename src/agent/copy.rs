//! Copies a tree of files as it is: kinds, modes, owners, times, extended attributes
//! and hard links. Links are copied, never followed.
//!
//! On ext4 the copy's content is on its way to the disk when this returns: what is
//! done to the file system afterwards survives a power cut only with it. Waiting for
//! the disk (`syncfs`) would cost a boot 30 ms and more.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, lgetxattr,
    llistxattr, lsetxattr, mknodat, utimensat,
};
use rustix::io::Errno;

use super::during;
use crate::failure::Failure;
use crate::sys::ext4;

/// Most bytes of an extended attribute, and of the list of their names
/// (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_LIMIT: usize = 64 * 1024;
/// What they nearly always fit into.
const XATTR_USUAL: usize = 1024;

/// Copies the folder `from` as `to`, which must not exist.
///
/// # Errors
/// Names the first entry that could not be copied.
pub fn tree(from: &Path, to: &Path) -> Result<(), Failure> {
    let mut links = HashMap::new();
    entry(from, to, &mut links)
}

/// Where the first name of a file with several was copied, by device and inode.
type Links = HashMap<(u64, u64), PathBuf>;

fn entry(from: &Path, to: &Path, links: &mut Links) -> Result<(), Failure> {
    let attempt = || during::<io::Error>(format!("copy {}", from.display()));
    let found = fs::symlink_metadata(from).map_err(attempt())?;
    if found.is_dir() {
        fs::create_dir(to).map_err(attempt())?;
        for child in fs::read_dir(from).map_err(attempt())? {
            let name = child.map_err(attempt())?.file_name();
            entry(&from.join(&name), &to.join(&name), links)?;
        }
    } else if let Some(first) = known_link(&found, to, links) {
        return fs::hard_link(first, to).map_err(attempt());
    } else {
        content(from, to, &found).map_err(attempt())?;
    }
    attributes(from, to, &found).map_err(attempt())
}

/// The copy of another name of this file; else notes this one as the first.
fn known_link(found: &Metadata, to: &Path, links: &mut Links) -> Option<PathBuf> {
    if found.nlink() < 2 {
        return None;
    }
    let identity = (found.dev(), found.ino());
    let first = links.get(&identity).cloned();
    if first.is_none() {
        links.insert(identity, to.to_owned());
    }
    first
}

fn content(from: &Path, to: &Path, found: &Metadata) -> io::Result<()> {
    let kind = found.file_type();
    if kind.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if kind.is_file() {
        let mut target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)?;
        io::copy(&mut File::open(from)?, &mut target)?;
        return begin_writing(&target);
    }
    let node = match () {
        () if kind.is_fifo() => FileType::Fifo,
        () if kind.is_char_device() => FileType::CharacterDevice,
        () if kind.is_block_device() => FileType::BlockDevice,
        () => FileType::Socket,
    };
    Ok(mknodat(
        CWD,
        to,
        node,
        Mode::from_raw_mode(0o600),
        found.rdev(),
    )?)
}

/// So that a later rename of the whole tree reaches the disk after its content.
fn begin_writing(target: &File) -> io::Result<()> {
    match ext4::allocate_delayed(target) {
        // Only work disks, which are ext4, depend on it.
        Err(Errno::NOTTY) => Ok(()),
        begun => Ok(begun?),
    }
}

/// Owner before mode and attributes, which a change of owner takes away; times last.
fn attributes(from: &Path, to: &Path, found: &Metadata) -> io::Result<()> {
    let owner = Some(Uid::from_raw(found.uid()));
    let group = Some(Gid::from_raw(found.gid()));
    chownat(CWD, to, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
    if !found.file_type().is_symlink() {
        fs::set_permissions(to, found.permissions())?;
    }
    extended(from, to)?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: found.atime(),
            tv_nsec: found.atime_nsec(),
        },
        last_modification: Timespec {
            tv_sec: found.mtime(),
            tv_nsec: found.mtime_nsec(),
        },
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn extended(from: &Path, to: &Path) -> io::Result<()> {
    let names = match filled(|buffer| llistxattr(from, buffer)) {
        Err(Errno::NOTSUP) => return Ok(()),
        names => names?,
    };
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let value = filled(|buffer| lgetxattr(from, name, buffer))?;
        lsetxattr(to, name, &value, XattrFlags::empty())?;
    }
    Ok(())
}

/// What a call fills in: into a short buffer, or else the longest, which the kernel and we
/// would have to clear for each file.
fn filled(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let into = |size: usize| {
        let mut buffer = vec![0_u8; size];
        let length = call(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    };
    match into(XATTR_USUAL) {
        Err(Errno::RANGE) => into(XATTR_LIMIT),
        filled => filled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn kinds_modes_times_attributes_and_hard_links_survive() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let to = dir.path().join("to");
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/file"), "text").unwrap();
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("sub/file"), from.join("second")).unwrap();
        let large = vec![7; 100_000];
        fs::write(from.join("large"), &large).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        mknodat(
            CWD,
            from.join("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o640),
            0,
        )
        .unwrap();
        let long = [b'x'; 2 * XATTR_USUAL];
        for (name, value) in [("user.note", &b"kept"[..]), ("user.long", &long)] {
            lsetxattr(from.join("sub/file"), name, value, XattrFlags::empty()).unwrap();
        }
        fs::set_permissions(&from, fs::Permissions::from_mode(0o700)).unwrap();

        tree(&from, &to).unwrap();

        let before = fs::metadata(from.join("sub/file")).unwrap();
        let after = fs::metadata(to.join("sub/file")).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "text");
        assert_eq!(after.mode(), before.mode());
        assert_eq!(
            (after.mtime(), after.mtime_nsec()),
            (before.mtime(), before.mtime_nsec())
        );
        assert_eq!(fs::metadata(to.join("second")).unwrap().ino(), after.ino());
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("/nowhere")
        );
        assert!(fs::metadata(to.join("fifo")).unwrap().file_type().is_fifo());
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::read(to.join("large")).unwrap(), large);
        let mut value = [0_u8; XATTR_LIMIT];
        let length = lgetxattr(to.join("sub/file"), "user.note", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"kept");
        let length = lgetxattr(to.join("sub/file"), "user.long", &mut value[..]).unwrap();
        assert_eq!(value[..length], long);
    }
}
