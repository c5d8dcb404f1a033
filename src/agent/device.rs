//! Waits until a device node exists, told by inotify: mostly it is there already,
//! since a driver probes its devices while it is loaded.

use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use super::during;
use crate::failure::Failure;

/// How long a disk may take to appear. Under emulation on a loaded host it has been
/// seen to take over a second.
const LIMIT: Duration = Duration::from_secs(20);

/// The path of a device once its node exists.
///
/// # Errors
/// It did not appear within 20 s.
pub fn wait_for(name: &str) -> Result<PathBuf, Failure> {
    appear(Path::new("/dev"), name, LIMIT)
}

fn appear(folder: &Path, name: &str, limit: Duration) -> Result<PathBuf, Failure> {
    let path = folder.join(name);
    if path.exists() {
        return Ok(path);
    }
    let attempt = format!("wait for {}", path.display());
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(during(attempt.clone()))?;
    inotify::add_watch(&watch, folder, inotify::WatchFlags::CREATE)
        .map_err(during(attempt.clone()))?;
    let deadline = Instant::now() + limit;
    // Looked at again only after the watch stands: what appeared in between is seen.
    while !path.exists() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::failed(attempt)
                .because("it did not appear; is the disk attached and its driver loaded?"));
        }
        let timeout = Timespec::try_from(left).expect("twenty seconds fit a timespec");
        match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => drain(&watch),
            Err(error) => return Err(during(attempt)(error)),
        }
    }
    Ok(path)
}

fn drain(watch: &rustix::fd::OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch, &mut buffer);
    while events.next().is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_appears_later_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        let waiter = std::thread::spawn(move || appear(&folder, "vda", LIMIT));
        std::fs::write(dir.path().join("other"), "").unwrap();
        std::fs::write(dir.path().join("vda"), "").unwrap();
        assert_eq!(waiter.join().unwrap().unwrap(), dir.path().join("vda"));
    }

    #[test]
    fn a_node_that_never_appears_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let failure = appear(dir.path(), "vdz", Duration::from_millis(5)).unwrap_err();
        assert!(failure.what.contains("vdz"), "{failure}");
    }
}
