//! A VM's two folders: made private, removed whole. That one is gone is on the disk when
//! it is reported; that it is there, with the first file in it.
//!
//! Nothing here follows a symbolic link inside a folder: what a guest's VMM (or an
//! attacker as the same user) left there is removed as a link, never through it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use crate::plan::step::{Fault, FaultKind, Presence};

use super::durable::sync_name;
use super::fault::fault;

/// Sockets and disks are nobody else's business.
const PRIVATE: u32 = 0o700;

/// A folder of ours in which a VM's processes may make files too, and remove their own
/// (sticky); what is made there belongs to its group.
const SHARED: u32 = 0o3770;

/// Whose a folder is besides ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody's.
    Private,
    /// This group's: a VM's processes, where they have a user of their own.
    Shared(u32),
}

/// Makes the folder, and its parents, private, where they are missing.
pub fn ensure(path: &Path, access: Access) -> Result<(), Fault> {
    if probe(path, access)? == Presence::Absent {
        create(path).map_err(|error| fault(attempt("create", path), error))?;
    }
    let found =
        fs::symlink_metadata(path).map_err(|error| fault(attempt("examine", path), error))?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(Fault::new(
            FaultKind::Denied,
            format!(
                "use directory {}: it is not a directory of ours; move it away",
                path.display()
            ),
        ));
    }
    let closed = match access {
        Access::Private => Ok(PRIVATE),
        // The group first: a change of it takes the set-group-id bit away.
        Access::Shared(group) if found.gid() != group => {
            chown(path, None, Some(group)).map(|()| SHARED)
        }
        Access::Shared(_) => Ok(SHARED),
    };
    closed
        .and_then(|mode| set_mode(path, &found, mode))
        .map_err(|error| fault(attempt("set who may use", path), error))
}

/// Makes the folder and its missing parents, whose names are on the disk afterwards; its
/// own is with the first file in it ([`super::durable::sync_way`]).
fn create(path: &Path) -> io::Result<()> {
    let parents = path.ancestors().skip(1);
    let missing = parents.take_while(|folder| !folder.exists());
    let missing: Vec<&Path> = missing.collect();
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(PRIVATE).create(path)?;
    missing.into_iter().rev().try_for_each(sync_name)
}

/// Lets others go through a folder of ours, without seeing what is in it.
pub fn let_through(path: &Path) -> Result<(), Fault> {
    let found = fs::symlink_metadata(path);
    found
        .and_then(|found| set_mode(path, &found, PRIVATE | 0o011))
        .map_err(|error| fault(attempt("open", path), error))
}

fn set_mode(path: &Path, found: &fs::Metadata, wanted: u32) -> io::Result<()> {
    match mode(found) == wanted {
        true => Ok(()),
        false => fs::set_permissions(path, fs::Permissions::from_mode(wanted)),
    }
}

/// Removes the folder with all it holds.
///
/// `remove_dir_all` works by `openat` and `unlinkat` with O_NOFOLLOW, so a link put
/// in its way while it runs is unlinked and not followed (CVE-2022-21658).
pub fn absent(path: &Path) -> Result<(), Fault> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(fault(attempt("remove", path), error))
        }
        // Also where it was gone: an attempt before this one may have failed right here.
        _ => sync_name(path).map_err(|error| fault(attempt("remove", path), error)),
    }
}

/// Present means a real directory, used by whom it should be and nobody else.
pub fn probe(path: &Path, access: Access) -> Result<Presence, Fault> {
    let is_so = |found: &fs::Metadata| match access {
        Access::Private => mode(found) == PRIVATE,
        Access::Shared(group) => mode(found) == SHARED && found.gid() == group,
    };
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() && is_so(&found) => Ok(Presence::Present),
        Ok(_) => Ok(Presence::Different),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Presence::Absent),
        Err(error) => Err(fault(attempt("examine", path), error)),
    }
}

fn mode(found: &fs::Metadata) -> u32 {
    found.permissions().mode() & 0o7777
}

fn attempt(verb: &str, path: &Path) -> String {
    format!("{verb} directory {}", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn made_twice_is_private_and_keeps_its_content() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("vms/0000002a");
        ensure(&path, Access::Private).unwrap();
        fs::write(path.join("kept"), "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(probe(&path, Access::Private).unwrap(), Presence::Different);
        ensure(&path, Access::Private).unwrap();
        assert_eq!(probe(&path, Access::Private).unwrap(), Presence::Present);
        assert!(path.join("kept").exists());
    }

    #[test]
    fn removed_twice_leaves_what_its_links_point_to() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        let path = root.path().join("vm");
        ensure(&path, Access::Private).unwrap();
        symlink(&outside, path.join("link")).unwrap();
        absent(&path).unwrap();
        absent(&path).unwrap();
        assert_eq!(probe(&path, Access::Private).unwrap(), Presence::Absent);
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_refused_and_removed_as_a_link() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let path = root.path().join("vm");
        symlink(&outside, &path).unwrap();
        assert_eq!(
            ensure(&path, Access::Private).unwrap_err().kind,
            FaultKind::Denied
        );
        absent(&path).unwrap();
        assert!(outside.exists());
        assert_eq!(probe(&path, Access::Private).unwrap(), Presence::Absent);
    }
}
