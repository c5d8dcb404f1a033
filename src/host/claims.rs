//! Whose guests need an interface's forwarding that one of us switched on: an empty file
//! for each interface and installation.
//!
//! ```text
//!  /run/banger-forwarding/<boot>.<network namespace>/<number of the interface>/<bridge>
//! ```
//!
//! Outside of nftables, since a flush of the ruleset takes our tables but no setting of
//! the kernel's; and shared by all installations of this machine, since they share its
//! uplinks: the last one that needs an interface switches it off. Written by root alone,
//! under a lock, before the setting is changed; read by anybody. Like the setting, a
//! claim ends with its interface, its network namespace and the boot: a file that outlives
//! them (/run on a disk, a number used again) is named after what it was true of.
//!
//! Which interfaces are switched on, and when, is decided in [`super::forwarding`].

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::sys::net_namespace;

/// Where they are kept.
pub const FOLDER: &str = "/run/banger-forwarding";
/// Beside the folders of claims.
const LOCK: &str = ".lock";

/// The claims in the network namespace of the thread that looks them up.
#[derive(Debug)]
pub struct Claims {
    root: PathBuf,
    folder: PathBuf,
}

/// While it exists, nobody else changes claims or what follows from them.
#[derive(Debug)]
pub struct Lock {
    _held: File,
}

impl Claims {
    /// Those that are kept below this folder, which need not exist.
    pub fn below(root: &Path) -> io::Result<Claims> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        // Older kernels tell them apart by a number that is used again.
        let namespace = match net_namespace::cookie()? {
            Some(cookie) => cookie,
            None => fs::metadata("/proc/thread-self/ns/net")?.ino(),
        };
        Ok(Claims {
            root: root.to_owned(),
            folder: root.join(format!("{}.{namespace}", boot.trim())),
        })
    }

    /// Waits for other installations that change something.
    pub fn lock(&self) -> io::Result<Lock> {
        create(&self.root)?;
        // Never removed: a lock on a file without a name excludes nobody. Whoever can open
        // a file can lock it for as long as he likes, so nobody but root can.
        let held = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.root.join(LOCK))?;
        flock(&held, FlockOperation::LockExclusive)?;
        Ok(Lock { _held: held })
    }

    /// The bridges whose installations claim an interface.
    pub fn of(&self, interface: u32) -> io::Result<BTreeSet<String>> {
        names(&self.interface(interface))
    }

    /// The interfaces that are claimed for a bridge, by number.
    pub fn all_for(&self, bridge: &str) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for number in names(&self.folder)?.iter().filter_map(|n| n.parse().ok()) {
            if self.of(number)?.contains(bridge) {
                found.push(number);
            }
        }
        Ok(found)
    }

    /// Claims an interface for a bridge.
    pub fn add(&self, _: &Lock, interface: u32, bridge: &str) -> io::Result<()> {
        create(&self.interface(interface))?;
        File::create(self.interface(interface).join(bridge)).map(drop)
    }

    /// Takes a claim back, if there is one.
    pub fn remove(&self, _: &Lock, interface: u32, bridge: &str) -> io::Result<()> {
        match fs::remove_file(self.interface(interface).join(bridge)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for folder in [self.interface(interface), self.folder.clone()] {
            match fs::remove_dir(folder) {
                Err(error) if !is_kept(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn interface(&self, number: u32) -> PathBuf {
        self.folder.join(number.to_string())
    }
}

/// A folder that is not empty stays, and one that is gone is no fault.
fn is_kept(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
    )
}

fn create(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder)
}

fn names(folder: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bridge_has_a_claim_of_its_own_and_the_last_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let claims = Claims::below(root.path()).unwrap();
        let lock = claims.lock().unwrap();
        for bridge in ["a", "b", "a"] {
            claims.add(&lock, 7, bridge).unwrap();
        }
        claims.add(&lock, 8, "b").unwrap();
        assert_eq!(claims.of(7).unwrap(), ["a", "b"].map(str::to_owned).into());
        assert_eq!(claims.all_for("b").unwrap().len(), 2);
        for interface in [7, 7, 8] {
            claims.remove(&lock, interface, "b").unwrap();
        }
        assert_eq!(claims.all_for("a").unwrap(), [7]);
        claims.remove(&lock, 7, "a").unwrap();
        let left = names(root.path()).unwrap();
        assert_eq!(left, BTreeSet::from([LOCK.to_owned()]));
    }

    #[test]
    fn what_was_never_claimed_is_nobodys() {
        let root = tempfile::tempdir().unwrap();
        let claims = Claims::below(&root.path().join("missing")).unwrap();
        assert_eq!(claims.of(7).unwrap(), BTreeSet::new());
        assert_eq!(claims.all_for("a").unwrap(), [0_u32; 0]);
    }

    #[test]
    fn a_second_one_waits_for_the_lock_which_nobody_else_can_hold() {
        let root = tempfile::tempdir().unwrap();
        let claims = Claims::below(root.path()).unwrap();
        let lock = claims.lock().unwrap();
        let other = File::open(root.path().join(LOCK)).unwrap();
        assert_eq!(other.metadata().unwrap().mode() & 0o777, 0o600);
        let now = FlockOperation::NonBlockingLockExclusive;
        assert!(flock(&other, now).is_err());
        drop(lock);
        flock(&other, now).unwrap();
    }
}
