//! Switches the machine off quickly and without losing a write.
//!
//! Every process gets SIGTERM and a second to end; then everything is written back,
//! what can be is mounted read-only, and the kernel is told. The image's init is not
//! asked: its orderly way takes seconds under emulation, up to minutes when a service
//! hangs, and gives the disks nothing that this does not.

use std::fs;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use rustix::system::{RebootCommand, reboot};

use super::during;
use crate::failure::Failure;

/// What a process gets to end by itself; most need milliseconds.
const GRACE: Duration = Duration::from_secs(1);
/// What a killed process gets to be gone: one stuck in the kernel is left behind.
const KILL_GRACE: Duration = Duration::from_millis(200);

/// How this machine is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Off {
    /// By the power-off of its firmware (QEMU with ACPI).
    #[default]
    PowerOff,
    /// By a reset, which its VMM takes for the end (Firecracker).
    Reboot,
}

impl Off {
    /// The word of the command line and of the boot record.
    pub fn word(self) -> &'static str {
        match self {
            Off::PowerOff => "poweroff",
            Off::Reboot => "reboot",
        }
    }
}

impl FromStr for Off {
    type Err = Failure;

    fn from_str(word: &str) -> Result<Off, Failure> {
        [Off::PowerOff, Off::Reboot]
            .into_iter()
            .find(|off| off.word() == word)
            .ok_or_else(|| Failure::failed(format!("switch off by {word:?}: poweroff or reboot")))
    }
}

/// Ends everything, writes everything back, switches off. Returns only the reason why
/// the machine is still on.
pub fn switch_off(off: Off) -> Failure {
    end_processes();
    rustix::fs::sync();
    close_disks();
    at_once(off)
}

/// Switches off without ending or writing anything: before there is anything.
pub fn at_once(off: Off) -> Failure {
    let command = match off {
        Off::PowerOff => RebootCommand::PowerOff,
        Off::Reboot => RebootCommand::Restart,
    };
    match reboot(command) {
        Ok(()) => Failure::failed("switch off").because("the kernel came back from it"),
        Err(error) => during("switch off")(error),
    }
}

fn end_processes() {
    let processes = others();
    for process in &processes {
        process.signal(Signal::TERM);
        // A shell on a terminal ignores SIGTERM; losing the terminal ends it.
        if process.has_terminal {
            process.signal(Signal::HUP);
        }
        process.signal(Signal::CONT);
    }
    let left = wait_for_end(processes, GRACE);
    left.iter().for_each(|process| process.signal(Signal::KILL));
    wait_for_end(left, KILL_GRACE);
}

struct Process {
    pidfd: OwnedFd,
    has_terminal: bool,
}

impl Process {
    /// The process may be gone already, which is what is wanted.
    fn signal(&self, signal: Signal) {
        let _gone_already = pidfd_send_signal(&self.pidfd, signal);
    }
}

/// Every process but this one, process 1 and the kernel's own threads.
fn others() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != 1 && *pid != getpid().as_raw_pid())
        .filter_map(open_process)
        .collect()
}

/// A kernel thread and a dead process have no executable: both are passed over.
fn open_process(pid: i32) -> Option<Process> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(Process {
        pidfd: pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?,
        has_terminal: has_terminal(&status),
    })
}

/// Field 7 of proc_pid_stat(5); the name in field 2 may hold anything but ends at the
/// last parenthesis.
fn has_terminal(status: &str) -> bool {
    let after_name = status.rsplit(')').next().unwrap_or_default();
    after_name
        .split_ascii_whitespace()
        .nth(4)
        .is_some_and(|terminal| terminal != "0")
}

/// Waits until all have ended; gives those that have not within the limit.
fn wait_for_end(mut processes: Vec<Process>, limit: Duration) -> Vec<Process> {
    let deadline = Instant::now() + limit;
    while !processes.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("a second fits a timespec");
        let mut fds: Vec<_> = processes
            .iter()
            .map(|process| PollFd::new(&process.pidfd, PollFlags::IN))
            .collect();
        match poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) => continue,
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let mut ended = fds
            .iter()
            .map(|fd| !fd.revents().is_empty())
            .collect::<Vec<_>>()
            .into_iter();
        processes.retain(|_| !ended.next().unwrap_or(false));
    }
    processes
}

/// Mounts disks read-only, so that the next start need not replay their journals.
/// A busy one stays as it is: it is written back already.
fn close_disks() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in writable_disks(&mounts) {
        let _written_back_already = mount_remount(target, MountFlags::RDONLY, "");
    }
}

fn writable_disks(mounts: &str) -> Vec<&str> {
    let mut targets: Vec<_> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (target, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            let wanted = matches!(kind, "ext4" | "overlay") && options.starts_with("rw");
            wanted.then_some(target)
        })
        .collect();
    // Last mounted, first closed.
    targets.reverse();
    targets
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_terminal_is_found_behind_any_name() {
        assert!(has_terminal("12 (a) b) S 1 12 12 34816 12 4194304"));
        assert!(!has_terminal("12 (sh) S 1 12 12 0 -1 4194304"));
    }

    #[test]
    fn disks_are_closed_in_reverse_order_and_read_only_ones_left_alone() {
        let mounts = "overlay / overlay rw,relatime 0 0\nproc /proc proc rw 0 0\n/dev/vdc /root ext4 rw,relatime 0 0\n/dev/vdd /lib/modules/6.1 ext4 ro 0 0\n";
        assert_eq!(writable_disks(mounts), ["/root", "/"]);
    }

    #[test]
    fn a_process_that_ignores_the_signal_is_what_is_left() {
        let mut stubborn = Command::new("/bin/sh")
            .args(["-c", "trap '' TERM; echo; read x"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The line says that the trap stands.
        std::io::Read::read(&mut stubborn.stdout.take().unwrap(), &mut [0; 1]).unwrap();
        let mut obedient = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let both = [&stubborn, &obedient].map(|child| open_process(child.id() as i32).unwrap());
        both.iter().for_each(|process| process.signal(Signal::TERM));
        obedient.wait().unwrap();
        let left = wait_for_end(Vec::from(both), Duration::from_millis(1));
        assert_eq!(left.len(), 1);
        left.iter().for_each(|process| process.signal(Signal::KILL));
        assert!(wait_for_end(left, Duration::from_secs(20)).is_empty());
        stubborn.wait().unwrap();
    }
}
