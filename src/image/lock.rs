//! Locks between pulls, in one process or several.
//!
//! Each is flock(2) on a file, so it ends with its holder, however that ends. A wait for
//! one obeys a cancel.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::job::{Job, at};
use crate::failure::{Failure, FailureKind};
use crate::model::ids::ContentId;

/// A lock that ends with this value, or with the process.
#[derive(Debug)]
pub struct Locked {
    file: File,
    /// Somebody else held it before.
    pub waited: bool,
}

/// Takes an exclusive lock, waiting for its holder but not past a cancel.
///
/// # Errors
/// The file cannot be made; cancelled.
pub fn lock(job: &Job, path: &Path, holder: &str) -> Result<Locked, Failure> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(at("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(Locked {
            file,
            waited: false,
        }),
        Err(TryLockError::Error(error)) => Err(at("lock", path)(error)),
        Err(TryLockError::WouldBlock) => {
            job.stage("wait", format!("for {holder}"));
            wait_for(job, file, path)
        }
    }
}

/// Waits in a thread of its own: flock(2) cannot be polled, and a cancel must be heard.
/// When cancelled, the thread gives the lock back as soon as it gets it.
fn wait_for(job: &Job, file: File, path: &Path) -> Result<Locked, Failure> {
    let what = format!("wait for the lock {}", path.display());
    let broken = |error: std::io::Error| Failure::failed(what.clone()).because(error);
    let event = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| broken(error.into()))?;
    let told = event.try_clone().map_err(broken)?;
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let locked = file.lock().map(|()| file);
        // Nobody listens after a cancel: the file is dropped and with it the lock.
        let _cancelled = sender.try_send(locked);
        let _full = rustix::io::write(&told, &1u64.to_ne_bytes());
    });
    while !job.cancel.is_set() {
        let mut polled = [
            PollFd::new(job.cancel, PollFlags::IN),
            PollFd::new(&event, PollFlags::IN),
        ];
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(error) => return Err(broken(error.into())),
        }
        if let Ok(locked) = receiver.try_recv() {
            let file = locked.map_err(broken)?;
            return Ok(Locked { file, waited: true });
        }
    }
    Err(Failure::new(FailureKind::Cancelled, what).because("cancelled"))
}

/// The right to pull one name; see [`Pull::begin`].
pub struct Pull {
    lock: Locked,
    path: PathBuf,
}

impl Pull {
    /// Waits for other pulls of this name.
    ///
    /// # Errors
    /// The lock cannot be taken; cancelled.
    pub fn begin(job: &Job, folder: &Path, name: &str) -> Result<Pull, Failure> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(at("create", folder))?;
        let path = folder.join(format!(".pull-{name}"));
        let lock = lock(job, &path, &format!("another pull of {name}"))?;
        Ok(Pull { lock, path })
    }

    /// What the pull that this one waited for has made, if it did.
    pub fn shared(&mut self) -> Option<ContentId> {
        let mut text = String::new();
        if !self.lock.waited || self.lock.file.read_to_string(&mut text).is_err() {
            return None;
        }
        text.trim().parse().ok()
    }

    /// Says that this pull has nothing to share yet.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn start(&self) -> Result<(), Failure> {
        self.lock.file.set_len(0).map_err(at("write", &self.path))
    }

    /// Leaves the result to those who wait.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn done(self, content: &ContentId) -> Result<(), Failure> {
        self.start()?;
        let written = self.lock.file.write_all_at(content.as_str().as_bytes(), 0);
        written.map_err(at("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::with_job;
    use super::*;

    fn id(text: &str) -> ContentId {
        text.parse().unwrap()
    }

    #[test]
    fn a_second_pull_waits_and_shares_the_result() {
        let root = tempfile::tempdir().unwrap();
        with_job(|job| {
            let mut first = Pull::begin(job, root.path(), "x").unwrap();
            assert_eq!(first.shared(), None);
            first.start().unwrap();
            let folder = root.path().to_owned();
            let (waits, waiting) = mpsc::channel();
            let second = std::thread::spawn(move || {
                let cancel = super::super::job::Cancel::new().unwrap();
                let layout = crate::host::layout::Layout {
                    state: folder.clone(),
                    cache: folder.clone(),
                    runtime: folder.clone(),
                };
                let job = Job {
                    layout: &layout,
                    cancel: &cancel,
                    progress: &|stage| waits.send(stage.stage).unwrap(),
                };
                Pull::begin(&job, &folder, "x").unwrap().shared()
            });
            assert_eq!(waiting.recv().unwrap(), "wait");
            first.done(&id("00ff")).unwrap();
            assert_eq!(second.join().unwrap(), Some(id("00ff")));
        });
    }

    #[test]
    fn a_cancelled_wait_for_a_lock_ends() {
        with_job(|job| {
            fs::create_dir_all(&job.layout.state).unwrap();
            let path = job.layout.state.join("lock");
            let _held = lock(job, &path, "nobody").unwrap();
            job.cancel.set();
            let failure = lock(job, &path, "us").unwrap_err();
            assert_eq!(failure.kind, FailureKind::Cancelled);
        });
    }
}
