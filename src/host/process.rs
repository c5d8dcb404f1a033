//! Processes of a VM: found by what they were started as, watched and killed by pidfd.
//!
//! A process id is never stored and never trusted: it may belong to somebody else by
//! now. A process is recognised by consecutive words of its command line (its
//! [`Marker`]) and by its user (ours, or the VM's own), looked for in the VM's control
//! group where there is one, else in all of /proc. A launcher that has not yet become the
//! VMM carries the same words, so it is found too. Zombies have no command line and
//! are not found.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};

/// Consecutive words of a command line that only one VM's process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker(Vec<OsString>);

impl Marker {
    /// The words, in order.
    pub fn new(words: impl IntoIterator<Item = impl Into<OsString>>) -> Marker {
        Marker(words.into_iter().map(Into::into).collect())
    }

    /// Whether a command line (words closed by NUL, as in /proc/PID/cmdline) has them.
    fn is_in(&self, command_line: &[u8]) -> bool {
        let words: Vec<&OsStr> = command_line
            .split(|byte| *byte == 0)
            .map(OsStr::from_bytes)
            .collect();
        !self.0.is_empty()
            && words
                .windows(self.0.len())
                .any(|window| window.iter().eq(self.0.iter()))
    }
}

/// A live process, pinned: its pidfd never means another one.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

/// The live processes of these users with one of these markers, among the members of a
/// control group, or on the whole machine.
///
/// # Errors
/// /proc or the group cannot be read; a group that is gone has no members.
pub fn find(markers: &[Marker], users: &[u32], group: Option<&Path>) -> io::Result<Vec<Process>> {
    let candidates = match group {
        Some(group) => members(group)?,
        None => everyone()?,
    };
    let matches = |pid: Pid| {
        command_line(pid, users)
            .is_some_and(|line| markers.iter().any(|marker| marker.is_in(&line)))
    };
    let mut found = Vec::new();
    for pid in candidates.into_iter().filter(|pid| matches(*pid)) {
        match Process::pin(pid) {
            // Looked at again, because the id may have changed hands before the pidfd.
            Ok(process) if matches(pid) && process.is_alive() => found.push(process),
            Ok(_) => {}
            Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

impl Process {
    /// Pins the process that has this id now.
    pub fn pin(pid: Pid) -> Result<Process, Errno> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Process { pid, pidfd })
    }

    /// A child of ours, from its birth.
    pub fn born(pid: Pid, pidfd: OwnedFd) -> Process {
        Process { pid, pidfd }
    }

    /// To be reaped by, if it is a child of ours.
    pub fn child(&self) -> Pid {
        self.pid
    }

    /// For messages only.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The same, to keep.
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Waits for its end, at most this long; whether it has ended.
    pub fn ends_within(&self, limit: Duration) -> bool {
        matches!(ready(&[self.pidfd()], limit), Ok(Some(_)))
    }

    /// Sends SIGKILL; a process that has ended meanwhile is no error.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Kills all of them and waits; those that are still there after `limit`.
pub fn kill_all(processes: Vec<Process>, limit: Duration) -> io::Result<Vec<Process>> {
    for process in &processes {
        process.kill()?;
    }
    let deadline = Instant::now() + limit;
    Ok(processes
        .into_iter()
        .filter(|process| !process.ends_within(deadline.saturating_duration_since(Instant::now())))
        .collect())
}

/// Waits until one of the descriptors is readable (or has an error to tell); its index.
pub fn ready(descriptors: &[BorrowedFd<'_>], limit: Duration) -> io::Result<Option<usize>> {
    ready_for(descriptors, PollFlags::IN, limit)
}

/// Waits until one of the descriptors has one of these conditions, or an error.
pub fn ready_for(
    descriptors: &[BorrowedFd<'_>],
    conditions: PollFlags,
    limit: Duration,
) -> io::Result<Option<usize>> {
    let deadline = Instant::now() + limit;
    loop {
        let mut watched: Vec<PollFd<'_>> = descriptors
            .iter()
            .map(|descriptor| PollFd::new(descriptor, conditions))
            .collect();
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut watched, Some(&left)) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(watched.iter().position(|one| !one.revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ended children whose status is kept for whoever asks.
const STATUSES: usize = 64;

/// Children of this process that outlive the call that started them. Somebody must
/// take their exit status, or they stay zombies; nobody waits for it.
#[derive(Debug, Default)]
pub struct Children(Mutex<Family>);

#[derive(Debug, Default)]
struct Family {
    /// Their numbers mean nobody else until their status was taken.
    living: Vec<Pid>,
    /// The last few that ended, with how.
    ended: VecDeque<(Pid, WaitIdStatus)>,
}

impl Children {
    /// Takes a child over.
    pub fn adopt(&self, child: Pid) {
        let mut family = self.lock();
        // The number means this one from now on.
        family.ended.retain(|(pid, _)| *pid != child);
        family.living.push(child);
    }

    /// Lets the ended ones go. Called by every verb that looks at processes, so that
    /// at most the last VM's are left as zombies.
    pub fn reap(&self) {
        let Family { living, ended } = &mut *self.lock();
        living.retain(|child| {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let seen = waitid(WaitId::Pid(*child), options);
            if let Ok(Some(status)) = &seen {
                ended.push_back((*child, *status));
            }
            matches!(seen, Ok(None) | Err(Errno::INTR))
        });
        while ended.len() > STATUSES {
            ended.pop_front();
        }
    }

    /// How an adopted child ended, for people: `killed by signal 9`. Nothing is known of
    /// a process that an earlier daemon started.
    pub fn how_it_ended(&self, pid: u32) -> Option<String> {
        self.reap();
        let family = self.lock();
        let is_it = |ended: Pid| ended.as_raw_nonzero().get().unsigned_abs() == pid;
        let (_, status) = family.ended.iter().rev().find(|(ended, _)| is_it(*ended))?;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Family> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The command lines of all processes that can be read, with a NUL behind each word.
pub fn command_lines() -> io::Result<Vec<Vec<u8>>> {
    let line = |pid: Pid| fs::read(format!("/proc/{}/cmdline", number(pid))).ok();
    Ok(everyone()?.into_iter().filter_map(line).collect())
}

/// The processes in a control group and in those below it.
pub fn members_below(group: &Path) -> io::Result<Vec<u32>> {
    let mut all: Vec<u32> = members(group)?.into_iter().map(number).collect();
    let below = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
        other => other?,
    };
    for entry in below.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(members_below(&entry.path())?);
        }
    }
    Ok(all)
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn members(group: &Path) -> io::Result<Vec<Pid>> {
    match fs::read_to_string(group.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(pid).collect()),
        // NODEV: the group was removed between open and read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || Errno::from_io_error(&error) == Some(Errno::NODEV) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn everyone() -> io::Result<Vec<Pid>> {
    let names = fs::read_dir("/proc")?.filter_map(Result::ok);
    Ok(names
        .filter_map(|entry| pid(entry.file_name().to_str()?))
        .collect())
}

fn pid(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}

/// The command line of a live process of these users; unreadable means gone or foreign.
/// A process that has just changed its user belongs to root until it executes a program.
fn command_line(pid: Pid, users: &[u32]) -> Option<Vec<u8>> {
    let folder = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let owner = fs::metadata(&folder).ok()?.uid();
    let line = fs::read(folder.join("cmdline")).ok()?;
    (users.contains(&owner) && !line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell that waits for its standard input to close, with these extra words. It has
    /// spoken: spawning ends a moment before the kernel shows the words of the new program.
    fn waiting(words: &[&str]) -> Child {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "echo; read nothing", "sh"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.as_mut().unwrap();
        output.read_exact(&mut [0]).unwrap();
        child
    }

    fn unique(word: &str) -> String {
        format!("{word}-{}", std::process::id())
    }

    fn ours() -> [u32; 1] {
        [rustix::process::geteuid().as_raw()]
    }

    #[test]
    fn a_marker_matches_whole_consecutive_words_only() {
        let line = b"qemu\0-name\0banger-0000002a\0-m\x00512M\0";
        let matches = |words: &[&str]| Marker::new(words.iter().copied()).is_in(line);
        assert!(matches(&["-name", "banger-0000002a"]));
        assert!(!matches(&["-name", "banger-0000002"]));
        assert!(!matches(&["banger-0000002a", "-name"]));
        assert!(!matches(&["-name", "-m"]));
        assert!(!matches(&[]));
    }

    #[test]
    fn a_process_is_found_killed_and_its_zombie_not_found() {
        let word = unique("find-me");
        let mut child = waiting(&["--id", &word]);
        let markers = [Marker::new(["--id", word.as_str()])];

        let found = find(&markers, &ours(), None).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pid(), child.id());
        assert!(found[0].is_alive());
        let others = [ours()[0] + 1];
        assert!(find(&markers, &others, None).unwrap().is_empty());

        assert!(kill_all(found, Duration::from_secs(20)).unwrap().is_empty());
        assert!(find(&markers, &ours(), None).unwrap().is_empty());
        child.wait().unwrap();
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "being reaped is what is tried")]
    fn children_that_ended_are_let_go() {
        let children = Children::default();
        let child = waiting(&[]);
        let process = Process::pin(Pid::from_child(&child)).unwrap();
        children.adopt(process.child());
        children.reap();
        assert_eq!(children.lock().living.len(), 1);
        assert_eq!(children.how_it_ended(process.pid()), None);
        process.kill().unwrap();
        assert!(process.ends_within(Duration::from_secs(20)));
        children.reap();
        assert!(children.lock().living.is_empty());
        let how = children.how_it_ended(process.pid());
        assert_eq!(how.as_deref(), Some("killed by signal 9"));
    }

    #[test]
    fn a_group_that_is_gone_has_no_members() {
        let markers = [Marker::new(["x"])];
        let gone = Path::new("/nonexistent/group");
        assert!(find(&markers, &ours(), Some(gone)).unwrap().is_empty());
    }
}
