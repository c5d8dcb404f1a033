//! What every long piece of work here is given: where to put things, whom to tell, and
//! how to learn that it is no longer wanted.
//!
//! A [`Cancel`] is a flag and a descriptor in one: loops over bytes look at the flag once
//! per chunk, waits for a child poll the descriptor, so nobody wakes up to ask.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use crate::failure::{Failure, FailureKind};
use crate::host::layout::Layout;

/// What a pull needs from its caller.
pub struct Job<'a> {
    /// Where images, kernels and caches lie.
    pub layout: &'a Layout,
    /// Says that the work is no longer wanted.
    pub cancel: &'a Cancel,
    /// Is told of every stage; called from the thread that does the work.
    pub progress: &'a dyn Fn(Stage),
}

/// How far a pull is; the same fields as a progress line on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stage {
    /// For people: `download packages`.
    pub stage: String,
    /// What it is doing now; empty for nothing to say.
    pub detail: String,
    /// How much is done, in units of `total`.
    pub current: Option<u64>,
    /// How much there is, bytes or entries.
    pub total: Option<u64>,
}

impl Job<'_> {
    /// Tells the caller of a stage.
    pub fn stage(&self, stage: &str, detail: impl Into<String>) {
        (self.progress)(Stage {
            stage: stage.to_owned(),
            detail: detail.into(),
            ..Stage::default()
        });
    }

    /// Tells the caller how much of a stage is done.
    pub fn count(&self, stage: &str, current: u64, total: u64) {
        (self.progress)(Stage {
            stage: stage.to_owned(),
            detail: String::new(),
            current: Some(current),
            total: Some(total),
        });
    }

    /// Ends the work here if it is no longer wanted.
    ///
    /// # Errors
    /// Cancelled.
    pub fn check(&self, what: &str) -> Result<(), Failure> {
        match self.cancel.is_set() {
            true => Err(Failure::new(FailureKind::Cancelled, what).because("cancelled")),
            false => Ok(()),
        }
    }

    /// A reader that fails as soon as the work is no longer wanted.
    pub fn watched<R: Read>(&self, inner: R) -> Watched<'_, R> {
        Watched {
            inner,
            cancel: self.cancel,
        }
    }

    /// What a failed read or write means: the cancel that caused it, a full disk, or
    /// the error itself.
    pub fn fault(&self, what: impl Into<String>, error: &io::Error) -> Failure {
        let what = what.into();
        match self.check(&what) {
            Err(cancelled) => cancelled,
            Ok(()) => disk_failure(what, error),
        }
    }
}

/// A failed file operation: a full disk is told apart, for it has its own remedy.
pub fn disk_failure(what: impl Into<String>, error: &io::Error) -> Failure {
    let full = matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    );
    match full {
        true => Failure::new(FailureKind::Storage, what)
            .because(error)
            .hint("Make room on this disk, or point BANGER_STATE_DIR and BANGER_CACHE_DIR to another one."),
        false => Failure::failed(what).because(error),
    }
}

/// Names the attempt and the path of a failed file operation.
pub fn at(attempt: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let what = format!("{attempt} {}", path.display());
    move |error| disk_failure(what, &error)
}

/// Tells running work that it is no longer wanted; shared by reference or `Arc`.
#[derive(Debug)]
pub struct Cancel {
    set: AtomicBool,
    /// Readable once set.
    event: OwnedFd,
}

impl Cancel {
    /// Not set.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> Result<Cancel, Failure> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Failure::failed("make an eventfd for cancelling").because(error))?;
        Ok(Cancel {
            set: AtomicBool::new(false),
            event,
        })
    }

    /// Asks the work to end; it cannot be taken back.
    pub fn set(&self) {
        self.set.store(true, Ordering::Release);
        // The counter can only be full, and then it is readable already.
        let _full = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Whether the work should end.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// See [`Job::watched`].
pub struct Watched<'a, R> {
    inner: R,
    cancel: &'a Cancel,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_set() {
            // Not `Interrupted`: that one is retried by everybody.
            return Err(io::Error::other("cancelled"));
        }
        self.inner.read(buffer)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs `work` with a quiet job over a fresh folder.
    pub(crate) fn with_job<T>(work: impl FnOnce(&Job) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout {
            state: folder.path().join("state"),
            cache: folder.path().join("cache"),
            runtime: folder.path().join("run"),
        };
        let cancel = Cancel::new().unwrap();
        work(&Job {
            layout: &layout,
            cancel: &cancel,
            progress: &|_| (),
        })
    }

    #[test]
    fn a_cancelled_reader_fails_and_the_failure_says_so() {
        with_job(|job| {
            let mut reader = job.watched(&b"bytes"[..]);
            job.cancel.set();
            let error = reader.read(&mut [0; 4]).unwrap_err();
            let failure = job.fault("read /x", &error);
            assert_eq!(failure.kind, FailureKind::Cancelled);
        });
    }

    #[test]
    fn a_full_disk_is_a_storage_failure_with_a_remedy() {
        let error = io::Error::from(rustix::io::Errno::NOSPC);
        let failure = disk_failure("write /x", &error);
        assert_eq!(failure.kind, FailureKind::Storage);
        assert!(failure.hint.unwrap().contains("BANGER_STATE_DIR"));
    }
}
