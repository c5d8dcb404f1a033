//! End to end: a VM whose Firecracker is in its jail, made by the daemon, and what is left
//! of it when the daemon or the VMM is killed. The guest is a kernel of twenty bytes, which
//! runs on every KVM and never becomes usable; that this one is fit the daemon is told by
//! what it remembers of a trial.

#[path = "vmm/kernel.rs"]
mod kernel;
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use banger::host::identity::owners;
use banger::host::jail;
use banger::host::process::find;
use banger::host::program::Programs;
use banger::model::ids::VmId;
use banger::model::vm::VmmKind;
use banger::vmm::of;

use support::census::Census;
use support::events::{ask_until, kill_and_wait, wait_for_change};
use support::running::Running;
use support::{Banger, DEADLINE, seed, skip};

const IMAGE: &str = "debian-minimal";

/// A state in which a VM `a` waits for its first start, or a line that says why not.
fn with_a_vm(test: &str) -> Option<(Banger, VmId)> {
    let programs = Programs::new([].into(), seed::tools());
    if let Err(why) = jail::fitness(&programs) {
        skip(test, &why);
        return None;
    }
    if !Path::new("/dev/kvm").exists() {
        skip(test, "there is no /dev/kvm");
        return None;
    }
    let mut banger = Banger::with_images(&[IMAGE]);
    let cache = banger.home().join("cache");
    fs::create_dir(&cache).expect("a fresh home takes a folder");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux has one");
    fs::write(
        cache.join("kvm-fitness"),
        format!("{boot}fit so says a test\n"),
    )
    .expect("a fresh folder takes a file");
    banger.set("BANGER_CACHE_DIR", cache);
    replace_kernels(&banger.state().join("kernels"));
    let words = ["create", "--no-start", "--name", "a", "--image", IMAGE];
    banger.ok(&[&["vm"], &words[..], &["--vmm", "firecracker"]].concat());
    let id = banger.json(&["vm", "show", "a"])["id"].clone();
    let id = id.as_str().and_then(|id| id.parse().ok());
    Some((banger, id.expect("a VM has an id")))
}

/// The files are links of the seed's: they are not written to.
fn replace_kernels(folder: &Path) {
    let entries = fs::read_dir(folder)
        .expect("the seed has kernels")
        .flatten();
    let images = entries.map(|kernel| kernel.path().join("vmlinux"));
    for path in images.filter(|path| path.exists()) {
        let length = fs::metadata(&path).expect("it exists").len();
        fs::remove_file(&path).expect("a link can be removed");
        fs::write(&path, kernel::image()).expect("its folder takes another");
        // As long as it is to be: that is looked at before a start.
        let file = fs::File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(length))
            .expect("it can be made longer");
    }
}

/// Starts the VM and waits for the guest's first words; the command, and the VMM.
fn start(banger: &Banger, vm: VmId) -> (Running, u32) {
    let folder = banger.state().join("vms").join(vm.to_string());
    let console = folder.join("console.log");
    fs::remove_file(&console).ok();
    let starting = banger.start(&["vm", "start", "a"]);
    wait_for_change(&folder, || {
        let said = fs::read(&console).unwrap_or_default();
        String::from_utf8_lossy(&said)
            .contains(kernel::GREETING)
            .then_some(())
    });
    let marker = of(VmmKind::Firecracker).marker(vm);
    let found = find(&[marker], &owners(vm), None).expect("proc is mounted");
    assert_eq!(found.len(), 1);
    (starting, found[0].pid())
}

/// Without control groups and block devices of others, who may be at work here too.
fn census(banger: &Banger, vm: VmId) -> Census {
    let name = vm.to_string();
    let is_shared = |object: &str| {
        let kinds = ["cgroup ", "loop ", "dm "];
        kinds.iter().any(|kind| object.starts_with(kind))
    };
    Census::take(banger).keep(|object| !is_shared(object) || object.contains(&name))
}

fn mounts(banger: &Banger) -> Census {
    Census::take(banger).keep(|object| object.starts_with("mount "))
}

/// Stopped, by whatever was under way.
fn stop(banger: &Banger) {
    let at_rest = |phase: &String| ["running", "stopped"].contains(&phase.as_str());
    ask_until(|| banger.phase("a"), at_rest);
    banger.ok(&["vm", "stop", "a"]);
}

#[test]
fn a_jailed_vm_of_the_daemon_is_shut_in_and_no_crash_leaves_anything_of_it() {
    let test = "a_jailed_vm_of_the_daemon_is_shut_in_and_no_crash_leaves_anything_of_it";
    let Some((banger, vm)) = with_a_vm(test) else {
        return;
    };
    let unmounted = mounts(&banger);

    let (starting, vmm) = start(&banger, vm);
    let view = banger.json(&["vm", "show", "a"]);
    assert_eq!(view["confinement"], "jailer", "{view}");
    let text = banger.ok(&["vm", "show", "a"]);
    assert!(text.contains("confined by  jailer"), "{text}");
    let root = fs::read_dir(format!("/proc/{vmm}/root")).expect("it runs");
    let seen: Vec<_> = root.flatten().map(|entry| entry.file_name()).collect();
    assert!(seen.iter().any(|name| name == "firecracker"), "{seen:?}");
    assert!(!seen.iter().any(|name| name == "etc"), "{seen:?}");
    let owner = fs::metadata(format!("/proc/{vmm}")).expect("it runs").uid();
    assert_eq!(owner, owners(vm)[1]);
    assert_eq!(unmounted.changes(&mounts(&banger)), [""; 0]);

    // The first one also makes what VMs share, and what is kept of one.
    banger.ok(&["vm", "kill", "a"]);
    starting.finish(DEADLINE);
    stop(&banger);
    let nothing = census(&banger, vm);

    let (starting, _) = start(&banger, vm);
    banger.kill_daemon();
    starting.finish(DEADLINE);
    stop(&banger);
    assert_eq!(nothing.changes(&census(&banger, vm)), [""; 0]);

    let (starting, vmm) = start(&banger, vm);
    kill_and_wait(vmm);
    starting.finish(DEADLINE);
    stop(&banger);
    assert_eq!(nothing.changes(&census(&banger, vm)), [""; 0]);
    banger.ok(&["vm", "delete", "a"]);
}
