//! The real Firecracker under its real jailer: shut in a root of its own, as the VM's
//! user, in the VM's group; and nothing of the jail is on this machine, dead or alive.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use banger::daemon::survey::{Look, Whose, end_processes, survey};
use banger::host::Host;
use banger::host::identity::{Identity, Separation};
use banger::host::jail;
use banger::host::layout::Layout;
use banger::host::loopdev::{self, LoopDevice, Role};
use banger::model::vm::{Confinement, RootMode, VmmKind};
use banger::plan::step::{FaultKind, Presence, StepKind};
use banger::vmm::of;

use crate::confined::{pid_of, status};
use crate::kernel;
use crate::lab::{self, Lab, assert_sees};
use crate::support::{DEADLINE, skip};

/// A lab for a jailed Firecracker, and the VM's user; or a line that says why there is none.
fn jailed(test: &str, vm: u32) -> Option<(Lab, Identity)> {
    let mut lab = crate::firecracker::firecracker(test, vm)?;
    lab.machine.confinement = Confinement::Jailer;
    if let Err(why) = jail::fitness(&lab.host.settings().programs) {
        skip(test, &why);
        return None;
    }
    let user = Separation::discover().identity(lab.vm)?;
    Some((lab, user))
}

/// The mounts of a VM, or of a jail, that a process sees.
fn mounts_of(lab: &Lab, process: &str) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let root = lab.host.layout().state.parent().unwrap().to_str().unwrap();
    let is_its = |line: &&str| line.contains(root) || line.contains("banger-jail");
    table.lines().filter(is_its).map(str::to_owned).collect()
}

/// Nobody outside of a jail sees any.
#[track_caller]
fn assert_nothing_is_mounted(lab: &Lab) {
    assert_eq!(mounts_of(lab, "self"), [""; 0]);
}

/// What there is in a folder, and below it.
fn names_below(folder: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            names.extend(names_below(&path));
        }
        names.push(path);
    }
    names.sort();
    names
}

fn pid(lab: &Lab) -> u32 {
    pid_of(lab, of(VmmKind::Firecracker).marker(lab.vm))
}

#[test]
fn a_jailed_firecracker_is_shut_in_and_runs_a_guest() {
    let test = "a_jailed_firecracker_is_shut_in_and_runs_a_guest";
    let Some((lab, user)) = jailed(test, 0x51) else {
        return;
    };
    for word in ["vmm", "configured", "booted"] {
        for _ in 0..2 {
            lab.ensure_until(word);
            assert_sees(&lab, word, Presence::Present);
        }
    }
    assert_eq!(lab.console_with("runs\n"), kernel::GREETING);
    assert_is_shut_in(&lab, pid(&lab), &user);
    assert_nothing_is_mounted(&lab);
    let inside = mounts_of(&lab, &pid(&lab).to_string());
    // The root, the run directory, kernel, initrd and four disks.
    assert_eq!(inside.len(), 8, "{inside:?}");
    lab.remove_and_find_nothing();
    assert_eq!(
        names_below(&lab.host.layout().runtime),
        [lab.host.layout().run_directories()]
    );
}

/// By what the kernel says of it.
fn assert_is_shut_in(lab: &Lab, pid: u32, user: &Identity) {
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    assert_eq!(status(pid, "Uid"), [&*uid; 4].join(" "));
    assert_eq!(status(pid, "Gid"), [&*gid; 4].join(" "));
    assert_eq!(status(pid, "Groups"), "");
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    // SECCOMP_MODE_FILTER
    assert_eq!(status(pid, "Seccomp"), "2");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    // Of no use without a way to regain them: what the jailer's work took.
    let bound = u64::from_str_radix(&status(pid, "CapBnd"), 16).unwrap();
    let needed = jail::NEEDED.iter().map(|(one, _)| one.bits());
    assert_eq!(bound, needed.fold(0, |all, one| all | one));
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let is_grouped = membership.contains(&format!("banger/{}", lab.vm));
    assert_eq!(is_grouped, lab.host.vmms().groups().is_some());
    assert_sees_its_own_files_only(lab, Path::new(&format!("/proc/{pid}/root")));
}

fn assert_sees_its_own_files_only(lab: &Lab, root: &Path) {
    let layout = lab.host.layout();
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap());
    let same = |path: &Path| {
        let (here, there) = (
            fs::metadata(path).unwrap(),
            fs::metadata(inside(path)).unwrap(),
        );
        (here.dev(), here.ino()) == (there.dev(), there.ino())
    };
    assert!(same(&layout.work_disk(lab.vm)) && same(&layout.run_directory(lab.vm)));
    for nothing in ["/etc", "/proc", "/sys", "/bin", "/old_root"] {
        assert!(!inside(Path::new(nothing)).exists(), "{nothing}");
    }
    assert!(!inside(&layout.store()).exists());
    assert!(!inside(&layout.console_log(lab.vm)).exists());
    // What VMs share cannot be written there, whatever its mode.
    let shared = inside(&layout.image_rootfs(&lab.machine.image));
    let error = fs::File::options().write(true).open(shared).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_jailed_firecracker_on_a_tap_runs_and_gives_it_back() {
    let test = "a_jailed_firecracker_on_a_tap_runs_and_gives_it_back";
    let Some((lab, _)) = jailed(test, 0x52) else {
        return;
    };
    let lab = lab.on_a_tap();
    let ran = lab::in_a_network_of_its_own("jail", || crate::runs_on_a_tap(&lab));
    if !ran {
        skip(test, "no network namespace can be made");
    }
}

#[test]
fn a_jailed_firecracker_that_is_killed_anywhere_leaves_nothing_and_starts_again() {
    let test = "a_jailed_firecracker_that_is_killed_anywhere_leaves_nothing_and_starts_again";
    let Some((lab, _)) = jailed(test, 0x53) else {
        return;
    };
    for word in ["vmm", "configured", "booted"] {
        lab.ensure_until(word);
        let watched = lab.host.vmms().watch(lab.vm).unwrap().unwrap();
        watched.kill().unwrap();
        assert!(watched.ends_within(DEADLINE));
        assert_sees(&lab, "vmm", Presence::Absent);
        assert_nothing_is_mounted(&lab);
        let run = lab.host.layout().run_directory(lab.vm);
        let rest = names_below(&lab.host.layout().runtime);
        assert!(
            rest.iter()
                .all(|path| run.starts_with(path) || path.starts_with(&run)),
            "{rest:?}"
        );
    }
    lab.ensure_until("booted");
    assert_eq!(lab.console_with("runs\n"), kernel::GREETING);
    lab.remove_and_find_nothing();
    assert_nothing_is_mounted(&lab);
}

#[test]
fn a_jailed_firecracker_opens_a_root_that_is_a_block_device() {
    let test = "a_jailed_firecracker_opens_a_root_that_is_a_block_device";
    let Some((mut lab, user)) = jailed(test, 0x56) else {
        return;
    };
    if let Err(why) = loopdev::fitness() {
        return skip(test, &why);
    }
    lab.machine.root = RootMode::DmSnapshot;
    let layout = lab.host.layout().clone();
    // Any block device is a root for a kernel that does not read it.
    loopdev::ensure(&LoopDevice {
        vm: lab.vm,
        role: Role::Cow,
        file: &layout.upper_disk(lab.vm),
    })
    .unwrap();
    let found = loopdev::find(&loopdev::tag(lab.vm, Role::Cow)).unwrap();
    let node = PathBuf::from(format!("/dev/loop{}", found[0].number));
    symlink(&node, layout.root_device(lab.vm)).unwrap();

    lab.ensure_until("booted");
    assert_eq!(lab.console_with("runs\n"), kernel::GREETING);
    let root = format!("/proc/{}/root", pid(&lab));
    let inside = Path::new(&root).join(layout.root_device(lab.vm).strip_prefix("/").unwrap());
    let (here, there) = (fs::metadata(&node).unwrap(), fs::metadata(inside).unwrap());
    assert_eq!(there.rdev(), here.rdev());
    assert_eq!((there.uid(), there.gid()), (0, user.gid));
    lab.remove_and_find_nothing();
    loopdev::absent(lab.vm, Role::Cow).unwrap();
}

#[test]
fn a_jailed_firecracker_of_no_row_is_found_by_its_own_installation_only() {
    let test = "a_jailed_firecracker_of_no_row_is_found_by_its_own_installation_only";
    let Some((lab, _)) = jailed(test, 0x55) else {
        return;
    };
    let layout = lab.host.layout();
    let elsewhere = Layout {
        state: layout.state.with_file_name("another"),
        ..layout.clone()
    };
    let found = |layout: &Layout| {
        let (all, _) = survey(&Look {
            layout,
            bridge: "bgr-jailed",
            groups: lab.host.vmms().groups(),
        });
        let own = all.into_iter().filter(|one| one.vm == lab.vm);
        own.map(|one| (one.kind, one.whose)).collect::<Vec<_>>()
    };
    for word in ["vmm", "booted"] {
        lab.ensure_until(word);
        let own = found(layout);
        for kind in [StepKind::Vmm, StepKind::Cgroup, StepKind::RunDirectory] {
            let of_kind: Vec<_> = own.iter().filter(|(one, _)| *one == kind).collect();
            assert!(!of_kind.is_empty(), "{word}: no {kind:?} in {own:?}");
            assert!(
                of_kind.iter().all(|(_, whose)| *whose == Whose::Ours),
                "{own:?}"
            );
        }
    }
    let theirs = found(&elsewhere);
    assert!(
        matches!(theirs[..], [(StepKind::RunDirectory, Whose::Ask(_))]),
        "{theirs:?}"
    );
    let look = Look {
        layout,
        bridge: "bgr-jailed",
        groups: lab.host.vmms().groups(),
    };
    end_processes(&look, lab.vm).unwrap();
    assert_sees(&lab, "vmm", Presence::Absent);
    lab.remove_and_find_nothing();
}

#[test]
fn a_jail_that_cannot_be_made_is_told_and_leaves_nothing() {
    let test = "a_jail_that_cannot_be_made_is_told_and_leaves_nothing";
    let Some((mut lab, _)) = jailed(test, 0x54) else {
        return;
    };
    lab.ensure_until("cgroup");
    // A root that is a device, where there is a plain file.
    lab.machine.root = RootMode::DmSnapshot;
    fs::write(lab.host.layout().root_device(lab.vm), "no device").unwrap();
    let fault = lab.host.ensure(&lab.step("vmm")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Exited);
    assert!(fault.what.contains("make the jail"), "{fault}");
    assert!(
        fault.what.contains("root.device: it is no block device"),
        "{fault}"
    );
    lab.remove_and_find_nothing();
    assert_nothing_is_mounted(&lab);
}
