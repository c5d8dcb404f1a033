//! Folders named by their content, made aside and renamed.
//!
//! ```text
//!  <state>/images/<content id>/…          whole and on the disk, or not there
//!  <state>/images/.making-<pid>-<n>/      a maker's, locked while it lives
//!  <state>/images/.pull-<name>            locked by the puller of a name; when it is
//!                                         done, holds the content id it made
//! ```
//!
//! The kernels' folder is alike. Who uses an image is not known here: the caller says
//! when one may go.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, renameat_with};

use super::job::at;
use super::{orphans, program};
use crate::fail_point;
use crate::failure::{Failure, FailureKind};
use crate::model::ids::ContentId;

/// Begins the name of a folder that is being made or removed.
pub const ASIDE: &str = ".making-";
/// The lock of such a folder's owner.
const OWNER: &str = ".owner";

/// A folder that becomes `<content id>`, or vanishes with this value.
pub struct Aside {
    parent: PathBuf,
    path: PathBuf,
    kept: bool,
    _owner: File,
}

impl Aside {
    /// Makes an empty folder beside the finished ones, in the same file system.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(parent: &Path) -> Result<Aside, Failure> {
        Aside::named(parent, ASIDE)
    }

    /// Makes an empty folder that everybody may enter and write to, as in /tmp; it is
    /// never kept.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn shared(parent: &Path, prefix: &str) -> Result<Aside, Failure> {
        let aside = Aside::named(parent, prefix)?;
        let mode = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(&aside.path, mode).map_err(at("open", &aside.path))?;
        Ok(aside)
    }

    fn named(parent: &Path, prefix: &str) -> Result<Aside, Failure> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{prefix}{}-{number}", std::process::id()));
        // Another process may have had our number in another boot or PID namespace.
        discard(&path)?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(at("create", &path))?;
        let owner_path = path.join(OWNER);
        let owner = File::create(&owner_path).map_err(at("create", &owner_path))?;
        owner.lock().map_err(at("lock", &owner_path))?;
        Ok(Aside {
            parent: parent.to_owned(),
            path,
            kept: false,
            _owner: owner,
        })
    }

    /// Where to put files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder its name, once everything in it is on the disk.
    ///
    /// A folder of that name already there has the same content: it stays, unless
    /// `sound` says that it is damaged.
    ///
    /// # Errors
    /// Something cannot be written to the disk or renamed.
    pub fn keep(
        mut self,
        content: &ContentId,
        sound: impl FnOnce(&Path) -> bool,
    ) -> Result<PathBuf, Failure> {
        let target = self.parent.join(content.as_str());
        let damaged = target.exists();
        if damaged && sound(&target) {
            return Ok(target);
        }
        let owner = self.path.join(OWNER);
        fs::remove_file(&owner).map_err(at("remove", &owner))?;
        sync_tree(&self.path)?;
        fail_point::hit("keep.before").map_err(at("rename", &self.path))?;
        match damaged {
            // The damaged one has our name then, and goes with us.
            true => exchange(&self.path, &target)?,
            false => {
                fs::rename(&self.path, &target).map_err(at("rename", &self.path))?;
                self.kept = true;
            }
        }
        fail_point::hit("keep.after").map_err(at("write to the disk", &target))?;
        sync(&self.parent)?;
        Ok(target)
    }
}

/// Changes two folders in one moment, so that a VM that starts finds one or the other. A
/// file system that cannot (renameat2(2) says EINVAL) has a moment with neither.
fn exchange(made: &Path, damaged: &Path) -> Result<(), Failure> {
    match renameat_with(CWD, made, CWD, damaged, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL) => {
            let old = made.with_extension("old");
            fs::rename(damaged, &old).map_err(at("rename", damaged))?;
            fs::rename(made, damaged).map_err(at("rename", made))?;
            discard(&old)
        }
        Err(error) => Err(at("rename", made)(error.into())),
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.kept
            && let Err(failure) = discard(&self.path)
        {
            log::warn!("{failure}");
        }
    }
}

/// Removes what makers that are dead have left; called when the daemon starts.
///
/// # Errors
/// A leftover cannot be removed.
pub fn sweep(parent: &Path, prefix: &str) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for path in left_over(parent, prefix) {
        orphans::end(&path);
        outcome = outcome.and(discard(&path));
    }
    outcome
}

/// What makers that are dead have left. In a folder that is everybody's, others may have
/// put anything under such a name: only what is a folder and ours counts.
pub fn left_over(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let aside = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let mut found: Vec<PathBuf> = aside.map(|entry| entry.path()).collect();
    found.retain(|path| is_our_folder(path) && !has_maker(path));
    found.sort();
    found
}

fn is_our_folder(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == own)
}

/// Whether the maker of a folder lives: it holds the lock. A pipe in the lock's place must
/// not make us wait for its writer.
fn has_maker(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(owner) = rustix::fs::open(path.join(OWNER), flags, Mode::empty()) else {
        return false;
    };
    let owner = File::from(owner);
    owner.metadata().is_ok_and(|found| found.is_file())
        && matches!(owner.try_lock(), Err(TryLockError::WouldBlock))
}

/// The finished folders.
///
/// # Errors
/// The parent cannot be read.
pub fn list(parent: &Path) -> Result<Vec<ContentId>, Failure> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at("read", parent)(error)),
    };
    let mut found: Vec<ContentId> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    found.sort();
    Ok(found)
}

/// Removes a finished folder; one that is not there is fine.
///
/// It loses its name first, so that a crash in between leaves nothing half.
///
/// # Errors
/// It cannot be renamed or removed.
pub fn remove(parent: &Path, content: &ContentId) -> Result<(), Failure> {
    let path = parent.join(content.as_str());
    let aside = parent.join(format!("{ASIDE}{}-{content}", std::process::id()));
    match fs::rename(&path, &aside) {
        Ok(()) => discard(&aside),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at("rename", &path)(error)),
    }
}

/// Removes a folder and all in it; not being there is fine.
///
/// # Errors
/// Something in it cannot be removed.
pub fn discard(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            discard_mapped(path, error)
        }
        Err(error) => Err(at("remove", path)(error)),
    }
}

/// Removes what a user namespace of ours has left: its files belong to users that only
/// exist there.
fn discard_mapped(path: &Path, error: std::io::Error) -> Result<(), Failure> {
    let mut command = program::command("mmdebstrap", "mmdebstrap")?;
    command
        .args(["--unshare-helper", "rm", "-rf", "--"])
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let done = command.status().is_ok_and(|status| status.success());
    match done || fs::remove_dir_all(path).is_ok() || !path.exists() {
        true => Ok(()),
        false => Err(at("remove", path)(error)),
    }
}

/// Refuses before the work what would fail in the middle of it.
///
/// # Errors
/// The file system has less room than `needed` bytes, or cannot be asked.
pub fn require_space(folder: &Path, needed: u64, what: &str) -> Result<(), Failure> {
    let facts = rustix::fs::statvfs(folder)
        .map_err(|error| at("ask for the free space of", folder)(error.into()))?;
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    match free >= needed {
        true => Ok(()),
        false => Err(Failure::new(FailureKind::Storage, what)
            .because(format!(
                "{} MiB are needed in {}, {} MiB are free",
                needed >> 20,
                folder.display(),
                free >> 20
            ))
            .hint("Make room there, or point BANGER_STATE_DIR to a larger disk.")),
    }
}

fn sync_tree(folder: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(folder).map_err(at("read", folder))? {
        let entry = entry.map_err(at("read", folder))?;
        let kind = entry.file_type().map_err(at("read", folder))?;
        match kind.is_dir() {
            true => sync_tree(&entry.path())?,
            false => sync(&entry.path())?,
        }
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<(), Failure> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(at("write to the disk", path))
}

#[cfg(test)]
mod tests {
    use rustix::fs::FileType;

    use super::*;

    fn id(text: &str) -> ContentId {
        text.parse().unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_kept_folder_has_its_name_and_nothing_else_is_left() {
        let root = tempfile::tempdir().unwrap();
        let aside = Aside::make(root.path()).unwrap();
        fs::write(aside.path().join("file"), "x").unwrap();
        let kept = aside.keep(&id("00ff"), |_| true).unwrap();
        assert_eq!(names(root.path()), ["00ff"]);
        assert_eq!(names(&kept), ["file"]);
    }

    #[test]
    fn an_abandoned_folder_vanishes() {
        let root = tempfile::tempdir().unwrap();
        drop(Aside::make(root.path()).unwrap());
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn the_sweep_takes_the_folders_of_the_dead_only() {
        let root = tempfile::tempdir().unwrap();
        let alive = Aside::make(root.path()).unwrap();
        fs::create_dir(root.path().join(".making-1-0")).unwrap();
        fs::create_dir_all(root.path().join(".making-2-0")).unwrap();
        fs::write(root.path().join(".making-2-0").join(OWNER), "").unwrap();
        fs::create_dir(root.path().join("00ff")).unwrap();
        sweep(root.path(), ASIDE).unwrap();
        let alive = alive.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(names(root.path()), [alive, "00ff"]);
    }

    /// Symptom: any user could put a pipe under such a name into /var/tmp, and the daemon
    /// of another waited for its writer for ever.
    #[test]
    fn a_pipe_in_the_place_of_the_lock_is_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(".making-1-0");
        fs::create_dir(&folder).unwrap();
        let pipe = folder.join(OWNER);
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        sweep(root.path(), ASIDE).unwrap();
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn what_is_no_folder_of_ours_stays_and_keeps_nothing_else_from_being_swept() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let named = |name: &str| root.path().join(name);
        std::os::unix::fs::symlink(elsewhere.path(), named(".making-1-0")).unwrap();
        fs::write(named(".making-2-0"), "").unwrap();
        fs::create_dir(named(".making-3-0")).unwrap();
        fs::create_dir(named(".making-4-0")).unwrap();
        let given = std::os::unix::fs::chown(named(".making-3-0"), Some(65534), None);
        sweep(root.path(), ASIDE).unwrap();
        let mut left = vec![".making-1-0", ".making-2-0"];
        // Only root gives a folder away.
        left.extend(given.is_ok().then_some(".making-3-0"));
        assert_eq!(names(root.path()), left);
        assert!(elsewhere.path().exists());
    }

    #[test]
    fn a_damaged_folder_of_the_same_content_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("00ff")).unwrap();
        let aside = Aside::make(root.path()).unwrap();
        fs::write(aside.path().join("file"), "x").unwrap();
        aside
            .keep(&id("00ff"), |old| old.join("file").exists())
            .unwrap();
        assert_eq!(names(&root.path().join("00ff")), ["file"]);
    }

    #[test]
    fn a_disk_without_room_is_refused_with_both_numbers() {
        let failure = require_space(Path::new("/"), u64::MAX / 2, "build x").unwrap_err();
        assert_eq!(failure.kind, FailureKind::Storage);
        assert!(failure.to_string().contains("MiB are free"));
    }
}
