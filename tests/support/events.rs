//! Waiting for what happens on this host: a process's end, a file, a state.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::DEADLINE;

/// Kills a process by its id and waits for its end.
pub fn kill_and_wait(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        pidfd_send_signal(&process, Signal::KILL).ok();
        wait_readable(&process, DEADLINE);
    }
}

/// Waits until a descriptor is readable: a pidfd is when its process has ended.
pub fn wait_readable(descriptor: &impl AsFd, deadline: Duration) -> bool {
    let deadline = Timespec::try_from(deadline).expect("a deadline of minutes fits");
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    poll(&mut polled, Some(&deadline)).expect("poll takes one descriptor") > 0
}

/// Waits until a folder is as wished; looks at each change in it. It must exist, unless
/// what is wished for is so without it.
#[track_caller]
pub fn wait_for_folder(folder: &Path, wished: impl Fn(&Path) -> bool) {
    let watch = inotify::init(CreateFlags::CLOEXEC).expect("inotify is there");
    let changes = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE_SELF;
    match inotify::add_watch(&watch, folder, changes) {
        // What removes it may have been quicker than we.
        Err(Errno::NOENT) if wished(folder) => return,
        added => added.expect("the folder to wait for exists"),
    };
    let end = Instant::now() + DEADLINE;
    let mut buffer = [0; 16 * 1024];
    while !wished(folder) {
        let left = end.saturating_duration_since(Instant::now());
        assert!(
            wait_readable(&watch, left),
            "{} is not as wished",
            folder.display()
        );
        rustix::io::read(&watch, &mut buffer[..]).expect("a readable watch can be read");
    }
}

/// Waits until a file is there or a process has ended; whether the file is there.
pub fn wait_for_file_or_end(folder: &Path, file: &Path, pid: u32) -> bool {
    let watch = inotify::init(CreateFlags::CLOEXEC).expect("inotify is there");
    let changes = WatchFlags::CREATE | WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, folder, changes).expect("the folder to wait for exists");
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = pidfd_open(pid.expect("a process has an id"), PidfdFlags::empty());
    let process = process.expect("a child that was not reaped has a pidfd");
    let mut buffer = [0; 16 * 1024];
    while !file.exists() {
        let mut polled = [
            PollFd::new(&watch, PollFlags::IN),
            PollFd::new(&process, PollFlags::IN),
        ];
        poll(&mut polled, None).expect("poll takes two descriptors");
        if !polled[1].revents().is_empty() {
            return file.exists();
        }
        rustix::io::read(&watch, &mut buffer[..]).expect("a readable watch can be read");
    }
    true
}

/// Waits until `look` finds something; looks at each change of a file in the folder.
#[track_caller]
pub fn wait_for_change<T>(folder: &Path, look: impl Fn() -> Option<T>) -> T {
    let watch = inotify::init(CreateFlags::CLOEXEC).expect("inotify is there");
    let changes = WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, folder, changes).expect("the folder to watch exists");
    let end = Instant::now() + DEADLINE;
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Some(found) = look() {
            return found;
        }
        let left = end.saturating_duration_since(Instant::now());
        let changed = wait_readable(&watch, left);
        assert!(changed, "{} does not change as wished", folder.display());
        rustix::io::read(&watch, &mut buffer[..]).expect("a readable watch can be read");
    }
}

/// Asks again and again until the answer pleases. For what has no event that a test
/// could wait for; the question itself takes the time of a process.
#[track_caller]
pub fn ask_until<T: std::fmt::Debug>(ask: impl Fn() -> T, pleases: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        let answer = ask();
        if pleases(&answer) {
            return answer;
        }
        assert!(Instant::now() < end, "still {answer:?}");
    }
}
