//! The control group of a VM, `banger/<id>` in the cgroup v2 hierarchy, where that is
//! ours to use: it holds every process of the VM, and its `cgroup.kill` ends them all,
//! whatever they forked (kernel 5.14; Documentation/admin-guide/cgroup-v2.rst).
//!
//! Where no cgroup v2 hierarchy is mounted or writable (ordinary users, most
//! containers) there is no such object: `ensure` and `absent` do nothing, and
//! processes are found by their command lines alone. Where the hierarchy has no controller
//! for a limit (version 1 may have it, which is not ours), the limit is left out: doctor
//! says so.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

use crate::model::ids::VmId;
use crate::model::units::Bytes;
use crate::plan::step::{Fault, FaultKind, GroupLimits, Presence};

use super::fault::fault;
use super::process::ready_for;

/// How long killed processes may take to vanish.
const EMPTY_LIMIT: Duration = Duration::from_secs(10);

/// What VMs are limited by.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

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

    /// The controllers that the hierarchy has, of those that VMs are limited by.
    pub fn controllers(&self) -> Vec<&'static str> {
        let listed = fs::read_to_string(self.root().join("cgroup.controllers"));
        let listed = listed.unwrap_or_default();
        let has = |name: &&str| listed.split_whitespace().any(|word| word == *name);
        CONTROLLERS.into_iter().filter(has).collect()
    }

    fn root(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }

    fn can_limit(&self, limit: &Limit) -> bool {
        self.controllers().contains(&limit.controller)
    }

    /// Gives a controller to the groups of VMs. Neither group above has members of its own
    /// but the root, which may (the rule of no inner processes).
    fn hand_down(&self, controller: &str) -> io::Result<()> {
        for folder in [self.root(), &self.folder] {
            let file = folder.join("cgroup.subtree_control");
            let given = fs::read_to_string(&file)?;
            if !given.split_whitespace().any(|word| word == controller) {
                fs::write(&file, format!("+{controller}"))?;
            }
        }
        Ok(())
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
        Some(groups) if groups.controllers().contains(&"cpu") => Ok(()),
        Some(_) => Err("the control groups of version 2 have no cpu controller".to_owned()),
    }
}

/// Whether everything that a VM's processes take can be limited here; if not, what cannot.
///
/// # Errors
/// For people: `cpu and memory not held: …`.
pub fn limits() -> Result<(), String> {
    let groups = Groups::discover();
    missing_limits(groups.as_ref().map(Groups::controllers).as_deref())
}

/// `None`: there are no groups.
fn missing_limits(controllers: Option<&[&str]>) -> Result<(), String> {
    let missing = |one: &&str| !controllers.is_some_and(|all| all.contains(one));
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(missing).collect();
    let missing = match missing.split_last() {
        None => return Ok(()),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    };
    let why = match controllers {
        None => "no control groups of version 2 that we may use",
        Some(_) => "the control groups of version 2 have no controller for it here",
    };
    Err(format!("{missing} not held: {why}"))
}

/// Makes the VM's group, with what its members may take. A limit that no controller keeps
/// is left out: doctor says so, of a weight the mind.
pub fn ensure(groups: Option<&Groups>, vm: VmId, limits: GroupLimits) -> Result<(), Fault> {
    let Some(groups) = groups else { return Ok(()) };
    let path = groups.path(vm);
    fs::create_dir_all(&path).map_err(|error| fault(attempt("create", &path), error))?;
    for limit in files(limits) {
        if !groups.can_limit(&limit) || limit.is_set(&path) {
            continue;
        }
        groups
            .hand_down(limit.controller)
            .and_then(|()| limit.set(&path))
            .map_err(|error| fault(attempt("limit", &path), error))?;
    }
    Ok(())
}

/// A limit as the kernel takes it.
struct Limit {
    controller: &'static str,
    file: &'static str,
    value: String,
    /// Files that a controller need not have (no swap, no bandwidth in the kernel).
    is_optional: bool,
}

impl Limit {
    fn is_set(&self, group: &Path) -> bool {
        match fs::read_to_string(group.join(self.file)) {
            Ok(found) => found.trim() == self.value,
            // A controller that was not handed down yet shows no file at all.
            Err(_) => self.is_optional && has_controller(group, self.controller),
        }
    }

    /// Of a group that has the controller.
    fn set(&self, group: &Path) -> io::Result<()> {
        match self.is_set(group) {
            true => Ok(()),
            false => fs::write(group.join(self.file), &self.value),
        }
    }
}

fn has_controller(group: &Path, controller: &str) -> bool {
    let given = fs::read_to_string(group.join("cgroup.controllers"));
    given.is_ok_and(|given| given.split_whitespace().any(|word| word == controller))
}

/// The span over which processor time is counted, microseconds (`cpu.max`; the kernel's own).
const PERIOD_US: u64 = 100_000;

fn files(limits: GroupLimits) -> Vec<Limit> {
    let limit = |controller, file, value: Option<String>, is_optional| {
        Some(Limit {
            controller,
            file,
            value: value?,
            is_optional,
        })
    };
    let bytes = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0.to_string());
    let weight = limits.cpu_weight.map(|weight| weight.to_string());
    let time = |processors| format!("{} {PERIOD_US}", u64::from(processors) * PERIOD_US);
    let tasks = limits.tasks.map(|tasks| tasks.to_string());
    let all = [
        limit("cpu", "cpu.weight", weight, false),
        limit("cpu", "cpu.max", limits.processors.map(time), true),
        limit("memory", "memory.max", bytes(limits.memory), false),
        limit("memory", "memory.swap.max", bytes(limits.swap), true),
        limit("pids", "pids.max", tasks, false),
    ];
    all.into_iter().flatten().collect()
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
    let Some(groups) = groups else {
        return Ok(Presence::Present);
    };
    let path = groups.path(vm);
    let mut wanted = files(limits).into_iter();
    let is_so = wanted.all(|limit| !groups.can_limit(&limit) || limit.is_set(&path));
    Ok(match (path.is_dir(), is_so) {
        (false, _) => Presence::Absent,
        (true, true) => Presence::Present,
        (true, false) => Presence::Different,
    })
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
    fn what_no_controller_holds_is_named() {
        assert_eq!(missing_limits(Some(&["pids", "memory", "cpu"])), Ok(()));
        let why = |controllers| missing_limits(controllers).unwrap_err();
        let none = why(None);
        assert!(none.starts_with("cpu, memory and pids not held: no control groups"));
        assert!(why(Some(&["pids"])).starts_with("cpu and memory not held: "));
        assert!(why(Some(&["cpu", "pids"])).starts_with("memory not held: "));
    }

    #[test]
    fn without_a_hierarchy_every_verb_has_nothing_to_do() {
        let vm = VmId::from_bits(1);
        let limits = GroupLimits {
            cpu_weight: Some(200),
            ..GroupLimits::default()
        };
        ensure(None, vm, limits).unwrap();
        assert_eq!(probe(None, vm, limits).unwrap(), Presence::Present);
        absent(None, vm).unwrap();
    }

    #[test]
    fn processor_time_is_so_much_of_each_period_as_the_processors_have() {
        let limits = GroupLimits {
            processors: Some(3),
            ..GroupLimits::default()
        };
        let written: Vec<_> = files(limits)
            .into_iter()
            .map(|limit| (limit.file, limit.value))
            .collect();
        assert_eq!(written, [("cpu.max", "300000 100000".to_owned())]);
    }

    /// Symptom: taken for set, the controller was never handed down.
    #[test]
    fn optional_limit_of_a_controller_that_is_not_there_yet_is_not_set() {
        let group = tempfile::tempdir().unwrap();
        let limits = GroupLimits {
            processors: Some(3),
            ..GroupLimits::default()
        };
        let limit = files(limits).remove(0);
        assert!(!limit.is_set(group.path()));
        fs::write(group.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
        assert!(limit.is_set(group.path()), "a kernel without bandwidth");
        fs::write(group.path().join("cpu.max"), "max 100000\n").unwrap();
        limit.set(group.path()).unwrap();
        let found = fs::read_to_string(group.path().join("cpu.max"));
        assert_eq!(found.unwrap(), "300000 100000");
    }

    #[test]
    fn what_is_not_limited_is_not_written() {
        let limits = GroupLimits {
            tasks: Some(7),
            ..GroupLimits::default()
        };
        let written: Vec<_> = files(limits)
            .into_iter()
            .map(|limit| (limit.file, limit.value))
            .collect();
        assert_eq!(written, [("pids.max", "7".to_owned())]);
        assert!(files(GroupLimits::default()).is_empty());
    }
}
