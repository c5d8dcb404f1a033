//! Ends builds whose daemon was killed.
//!
//! As root a build dies with us: its namespaces do. As a user, only the first process of
//! mmdebstrap gets the signal of our death, and those in its user namespace would go on
//! for a minute, writing to folders that are being swept. They are known by the folder
//! on their command line, which is readable for everybody, and killed by their group.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpgid, kill_process_group, pidfd_open};

/// The kernel needs milliseconds to end a killed process; this bounds a broken one.
const DEATH: Timespec = Timespec {
    tv_sec: 3,
    tv_nsec: 0,
};

/// Kills the process groups that name a folder on a command line, and waits for them.
pub fn end(folder: &Path) {
    for pid in naming(folder) {
        let Ok(ended) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // Looked at again now that the id cannot pass to another process unnoticed.
        let group = getpgid(Some(pid)).ok().filter(|_| names(pid, folder));
        let Some(group) = group else { continue };
        log::warn!(
            "end process group {group:?}, left over in {}",
            folder.display()
        );
        let _gone = kill_process_group(group, Signal::KILL);
        let _late = poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&DEATH));
    }
}

fn naming(folder: &Path) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .filter(|pid| names(*pid, folder))
        .collect()
}

fn names(pid: Pid, folder: &Path) -> bool {
    let arguments = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
    let folder = folder.as_os_str().as_bytes();
    arguments.is_ok_and(|bytes| {
        bytes
            .split(|byte| *byte == 0)
            .any(|argument| argument.starts_with(folder))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    use super::*;

    #[test]
    fn only_the_group_that_names_the_folder_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let sleeper = |argument: &Path| {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 1000; true", "sh"]).arg(argument);
            command.process_group(0).spawn().unwrap()
        };
        let mut orphan = sleeper(&folder.path().join("debian.sources"));
        let mut other = sleeper(Path::new("/elsewhere"));
        end(folder.path());
        assert_eq!(orphan.wait().unwrap().signal(), Some(9));
        assert!(other.try_wait().unwrap().is_none());
        let _gone = kill_process_group(Pid::from_child(&other), Signal::KILL);
        other.wait().unwrap();
    }
}
