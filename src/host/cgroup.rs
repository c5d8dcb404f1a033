//! The control group of a VM, `banger/<id>` in the cgroup v2 hierarchy, where that is
//! ours to use: it holds every process of the VM, and its `cgroup.kill` ends them all,
//! whatever they forked (kernel 5.14; Documentation/admin-guide/cgroup-v2.rst).
//!
//! Where no cgroup v2 hierarchy is mounted or writable (ordinary users, most
//! containers) there is no such object: `ensure` and `absent` do nothing, and
//! processes are found by their command lines alone.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

use crate::model::ids::VmId;
use crate::plan::step::{Fault, FaultKind, GroupLimits, Presence};

use super::fault::fault;
use super::process::ready_for;

/// The file that holds a group's share of the processors.
const WEIGHT: &str = "cpu.weight";
/// How long killed processes may take to vanish.
const EMPTY_LIMIT: Duration = Duration::from_secs(10);

/// Our folder in a cgroup v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    folder: PathBuf,
}

impl Groups {
    /// The hierarchy of this machine, if we may make groups in it.
    pub fn discover() -> Option<Groups> {
        let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
        mount_points(&table)
            .into_iter()
            .map(|mount| Groups {
                folder: mount.join("banger"),
            })
            .find(Groups::is_ours_to_use)
    }

    /// The group of a VM, whether it exists or not.
    pub fn path(&self, vm: VmId) -> PathBuf {
        self.folder.join(vm.to_string())
    }

    /// Whether the hierarchy has the cpu controller: where version 1 has it, this has not.
    fn weighs_processors(&self) -> bool {
        let root = self.folder.parent().unwrap_or(&self.folder);
        let listed = fs::read_to_string(root.join("cgroup.controllers"));
        listed.is_ok_and(|listed| listed.split_whitespace().any(|name| name == "cpu"))
    }

    /// The groups that a VM's lies in, from the root.
    fn above(&self) -> impl Iterator<Item = &Path> {
        self.folder
            .parent()
            .into_iter()
            .chain([self.folder.as_path()])
    }

    fn is_ours_to_use(&self) -> bool {
        let parent = match self.folder.exists() {
            true => Some(self.folder.as_path()),
            false => self.folder.parent(),
        };
        parent.is_some_and(|parent| {
            let wanted = Access::WRITE_OK | Access::EXEC_OK;
            accessat(CWD, parent, wanted, AtFlags::EACCESS).is_ok()
                && accessat(
                    CWD,
                    parent.join("cgroup.procs"),
                    Access::WRITE_OK,
                    AtFlags::EACCESS,
                )
                .is_ok()
        })
    }
}

/// Whether a VM's share of the processors can be set here; if not, why.
///
/// # Errors
/// The reason, for people.
pub fn cpu_weights() -> Result<(), String> {
    match Groups::discover() {
        None => Err("no control groups of version 2 that we may use".to_owned()),
        Some(groups) if groups.weighs_processors() => Ok(()),
        Some(_) => Err("the control groups of version 2 have no cpu controller".to_owned()),
    }
}

/// Makes the VM's group, with what its members may take. A weight where nobody weighs is
/// left out: the mind has said so.
pub fn ensure(groups: Option<&Groups>, vm: VmId, limits: GroupLimits) -> Result<(), Fault> {
    let Some(groups) = groups else { return Ok(()) };
    let path = groups.path(vm);
    match fs::create_dir_all(&path) {
        Ok(()) => weigh(groups, &path, limits.cpu_weight),
        Err(error) => Err(fault(attempt("create", &path), error)),
    }
}

fn weigh(groups: &Groups, path: &Path, weight: Option<u16>) -> Result<(), Fault> {
    let Some(weight) = weight.filter(|_| groups.weighs_processors()) else {
        return Ok(());
    };
    let failed = |error| fault(attempt("set the weight of", path), error);
    for folder in groups.above() {
        fs::write(folder.join("cgroup.subtree_control"), "+cpu").map_err(failed)?;
    }
    fs::write(path.join(WEIGHT), weight.to_string()).map_err(failed)
}

/// Whether the group has this weight, or nobody weighs.
fn is_weighed(groups: &Groups, path: &Path, weight: Option<u16>) -> bool {
    let Some(weight) = weight.filter(|_| groups.weighs_processors()) else {
        return true;
    };
    let found = fs::read_to_string(path.join(WEIGHT));
    found.is_ok_and(|found| found.trim() == weight.to_string())
}

/// Kills what lives in the VM's group, waits until it is empty, removes it.
pub fn absent(groups: Option<&Groups>, vm: VmId) -> Result<(), Fault> {
    let Some(groups) = groups else { return Ok(()) };
    let path = groups.path(vm);
    if !path.exists() {
        return Ok(());
    }
    kill(&path).map_err(|error| fault(attempt("kill the processes of", &path), error))?;
    if !empties(&path).map_err(|error| fault(attempt("watch", &path), error))? {
        return Err(Fault::new(
            FaultKind::Busy,
            format!(
                "{}: processes are still in it {} s after they were killed",
                attempt("empty", &path),
                EMPTY_LIMIT.as_secs()
            ),
        ));
    }
    match fs::remove_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(fault(attempt("remove", &path), error))
        }
        _ => Ok(()),
    }
}

/// Whether the VM's group exists; where there are no groups, it counts as existing,
/// since nothing is missing.
pub fn probe(groups: Option<&Groups>, vm: VmId, limits: GroupLimits) -> Result<Presence, Fault> {
    match groups {
        Some(groups) if !groups.path(vm).is_dir() => Ok(Presence::Absent),
        Some(groups) if !is_weighed(groups, &groups.path(vm), limits.cpu_weight) => {
            Ok(Presence::Different)
        }
        _ => Ok(Presence::Present),
    }
}

/// Kernels before 5.14 have no `cgroup.kill`: the step of each process has killed its
/// own by then, and an empty group is all that is left.
fn kill(path: &Path) -> io::Result<()> {
    match fs::write(path.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Waits for `populated 0`; the kernel announces each change of the file as an
/// exceptional condition (poll(2), POLLPRI).
fn empties(path: &Path) -> io::Result<bool> {
    let deadline = Instant::now() + EMPTY_LIMIT;
    let events = match fs::File::open(path.join("cgroup.events")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    loop {
        let mut text = [0_u8; 256];
        let length = match rustix::io::pread(&events, &mut text, 0) {
            Err(Errno::NODEV) => return Ok(true),
            other => other?,
        };
        let text = String::from_utf8_lossy(&text[..length]);
        if text.lines().any(|line| line == "populated 0") {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // Not POLLIN: a plain file is always readable.
        if ready_for(&[events.as_fd()], PollFlags::PRI, left)?.is_none() {
            return Ok(false);
        }
    }
}

/// Where cgroup v2 hierarchies are mounted, from proc_pid_mountinfo(5): the fifth field
/// is the mount point (with octal escapes), the type follows a lone dash.
fn mount_points(table: &str) -> Vec<PathBuf> {
    table
        .lines()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let is_cgroup2 = kind.split(' ').next() == Some("cgroup2");
            let point = mount.split(' ').nth(4)?;
            // A mount point with escaped characters is none of a usual system's.
            (is_cgroup2 && !point.contains('\\')).then(|| PathBuf::from(point))
        })
        .collect()
}

fn attempt(verb: &str, path: &Path) -> String {
    format!("{verb} control group {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cgroup2_mounts_are_taken_from_mountinfo() {
        let table = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu rw shared:11 - cgroup cgroup rw,cpu
";
        assert_eq!(
            mount_points(table),
            [PathBuf::from("/sys/fs/cgroup/unified")]
        );
    }

    #[test]
    fn without_a_hierarchy_every_verb_has_nothing_to_do() {
        let vm = VmId::from_bits(1);
        let limits = GroupLimits {
            cpu_weight: Some(200),
        };
        ensure(None, vm, limits).unwrap();
        assert_eq!(probe(None, vm, limits).unwrap(), Presence::Present);
        absent(None, vm).unwrap();
    }
}
