//! What is done to an operation at a boundary.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::lab::Lab;
use crate::operation::Operation;
use crate::support::events::{ask_until, kill_and_wait};

/// One column of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to bangerd.
    KillDaemon,
    /// SIGKILL to the VMM.
    KillVmm,
    /// SIGKILL to vhost-device-vsock.
    KillVsock,
    /// The step says EBUSY.
    Busy,
    /// No byte is free on the disk of the state directory.
    NoSpace,
    /// An object is removed behind the daemon's back.
    Gone(Object),
}

/// What can be removed behind the daemon's back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// The VM's tap.
    Tap,
    /// Both nftables tables.
    Tables,
    /// The folder with the sockets.
    RunDirectory,
    /// The upper disk.
    Disk,
    /// The work disk.
    WorkDisk,
    /// The VM's folder, with its disks.
    Folder,
    /// The control group, with what lives in it.
    Cgroup,
    /// The VMM's control socket.
    Socket,
    /// The folder in which an image or a kernel is made.
    Staging,
}

const DISKS: [Fault; 6] = [
    Fault::KillDaemon,
    Fault::Busy,
    Fault::NoSpace,
    Fault::Gone(Object::Disk),
    Fault::Gone(Object::WorkDisk),
    Fault::Gone(Object::Folder),
];

const RUNS: [Fault; 13] = [
    Fault::KillDaemon,
    Fault::KillVmm,
    Fault::KillVsock,
    Fault::Busy,
    Fault::NoSpace,
    Fault::Gone(Object::Tap),
    Fault::Gone(Object::Tables),
    Fault::Gone(Object::RunDirectory),
    Fault::Gone(Object::Disk),
    Fault::Gone(Object::WorkDisk),
    Fault::Gone(Object::Folder),
    Fault::Gone(Object::Cgroup),
    Fault::Gone(Object::Socket),
];

const PULLS: [Fault; 4] = [
    Fault::KillDaemon,
    Fault::Busy,
    Fault::NoSpace,
    Fault::Gone(Object::Staging),
];

impl Fault {
    /// The columns of an operation.
    pub fn of(operation: Operation) -> &'static [Fault] {
        match operation {
            Operation::Create | Operation::Reset | Operation::Delete => &DISKS,
            Operation::Start
            | Operation::Run
            | Operation::Adjust
            | Operation::Stop
            | Operation::Remove => &RUNS,
            Operation::Pull | Operation::Build => &PULLS,
        }
    }

    /// For the table.
    pub fn word(self) -> &'static str {
        match self {
            Fault::KillDaemon => "kill bangerd",
            Fault::KillVmm => "kill VMM",
            Fault::KillVsock => "kill vsock",
            Fault::Busy => "EBUSY",
            Fault::NoSpace => "ENOSPC",
            Fault::Gone(Object::Tap) => "tap gone",
            Fault::Gone(Object::Tables) => "tables gone",
            Fault::Gone(Object::RunDirectory) => "run dir gone",
            Fault::Gone(Object::Disk) => "disk gone",
            Fault::Gone(Object::WorkDisk) => "work disk gone",
            Fault::Gone(Object::Folder) => "VM folder gone",
            Fault::Gone(Object::Cgroup) => "cgroup gone",
            Fault::Gone(Object::Socket) => "socket gone",
            Fault::Gone(Object::Staging) => "staging gone",
        }
    }

    /// Whether a change of the census is the fault's own.
    pub fn took(self, change: &str) -> bool {
        let file = |name: &str| change.starts_with("- file ") && change.ends_with(name);
        match self {
            Fault::Gone(Object::Disk) => file("/upper.ext4"),
            Fault::Gone(Object::WorkDisk) => file("/work.ext4"),
            Fault::Gone(Object::Folder) => ["/vms/ID", "/upper.ext4", "/work.ext4"]
                .into_iter()
                .any(file),
            Fault::Gone(Object::Tables) => change.starts_with("- nft "),
            _ => false,
        }
    }

    /// What the fail-point does: the fault itself, or it waits until it was done.
    pub fn action(self) -> &'static str {
        match self {
            Fault::KillDaemon => "exit",
            Fault::Busy => "ebusy",
            Fault::KillVmm | Fault::KillVsock | Fault::NoSpace | Fault::Gone(_) => "hang",
        }
    }

    /// Does it to a daemon that waits; false where there is nothing to do it to.
    pub fn strike(self, lab: &Lab) -> bool {
        match self {
            Fault::KillDaemon => {
                lab.banger.kill_daemon();
                true
            }
            Fault::KillVmm => kill(lab, &["qemu-system", "firecracker"]),
            Fault::KillVsock => kill(lab, &["vhost-device"]),
            Fault::Busy => true,
            Fault::NoSpace => {
                lab.disk.fill();
                true
            }
            Fault::Gone(object) => remove(lab, object),
        }
    }
}

fn kill(lab: &Lab, programs: &[&str]) -> bool {
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let is_wanted = |pid: &u32| {
        programs
            .iter()
            .any(|program| name(*pid).starts_with(program))
    };
    let found: Vec<u32> = lab
        .banger
        .processes()
        .into_iter()
        .filter(is_wanted)
        .collect();
    for pid in &found {
        kill_and_wait(*pid);
    }
    !found.is_empty()
}

fn remove(lab: &Lab, object: Object) -> bool {
    if object == Object::Staging {
        return staging(lab)
            .iter()
            .any(|path| fs::remove_dir_all(path).is_ok());
    }
    let Some(id) = lab.vm_id() else { return false };
    let run = lab.banger.runtime().join("vms").join(&id);
    let disks = lab.banger.state().join("vms").join(&id);
    match object {
        Object::Tap => ran("ip", &["link", "delete", &format!("bgr-{id}")]),
        Object::Tables => {
            let table = format!("banger_{}", lab.bridge());
            let families = ["inet", "bridge"].map(|f| ran("nft", &["delete", "table", f, &table]));
            families.contains(&true)
        }
        Object::RunDirectory => fs::remove_dir_all(run).is_ok(),
        Object::Disk => fs::remove_file(disks.join("upper.ext4")).is_ok(),
        Object::WorkDisk => fs::remove_file(disks.join("work.ext4")).is_ok(),
        Object::Folder => fs::remove_dir_all(disks).is_ok(),
        Object::Cgroup => lab
            .control_group(&id)
            .is_some_and(|group| end_group(&group)),
        Object::Socket => fs::remove_file(run.join("vmm.sock")).is_ok(),
        Object::Staging => false,
    }
}

fn staging(lab: &Lab) -> Vec<std::path::PathBuf> {
    let folders = ["images", "kernels"].map(|folder| lab.banger.state().join(folder));
    let entries = folders.iter().filter_map(|folder| folder.read_dir().ok());
    let paths = entries.flatten().flatten().map(|entry| entry.path());
    let is_staging = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(".making-")
    };
    paths.filter(is_staging).collect()
}

/// Kills what lives in a control group and removes it, as an administrator may.
fn end_group(group: &Path) -> bool {
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()) {
        kill_and_wait(pid);
    }
    // An ended process leaves its group a moment later.
    ask_until(
        || fs::remove_dir(group).is_ok() || !group.exists(),
        |gone| *gone,
    )
}

fn ran(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}
