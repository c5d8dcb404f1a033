//! End to end: a VM of root's daemon lives its whole life as a user of its own.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use support::census::Census;
use support::{Banger, is_root, skip};

const IMAGE: &str = "debian-minimal";

/// The first uid of VMs (docs/privileges.md).
const FIRST: u32 = 0x7800_0000;

/// Program and uid of each process that works for a VM: they work in the runtime
/// directory, the daemon does not.
fn processes(banger: &Banger) -> Vec<(String, u32)> {
    let works_there = |pid: &u32| {
        let place = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        place.starts_with(banger.runtime())
    };
    let pids = banger.processes().into_iter().filter(works_there);
    let mut found: Vec<(String, u32)> = pids
        .map(|pid| {
            let folder = format!("/proc/{pid}");
            let name = fs::read_to_string(format!("{folder}/comm")).expect("it runs");
            (
                name.trim().to_owned(),
                fs::metadata(folder).expect("it runs").uid(),
            )
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_vm_of_roots_daemon_lives_and_dies_as_a_user_of_its_own() {
    let test = "a_vm_of_roots_daemon_lives_and_dies_as_a_user_of_its_own";
    if !is_root() {
        return skip(test, "needs root");
    }
    let banger = Banger::with_images(&[IMAGE]);
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    let before = Census::take(&banger);
    banger.boot("a");
    banger.boot("b");

    let all = processes(&banger);
    assert_eq!(all.len(), 6, "{all:?}");
    assert!(
        all.iter().any(|(name, _)| name.starts_with("qemu")),
        "{all:?}"
    );
    let mut users: Vec<u32> = all.iter().map(|(_, uid)| *uid).collect();
    users.sort_unstable();
    users.dedup();
    assert_eq!(users.len(), 2, "each VM has its own: {all:?}");
    assert!(users.iter().all(|uid| *uid >= FIRST), "{all:?}");

    banger.kill_daemon();
    let boot_id = banger.exec("a", &["cat", "/proc/sys/kernel/random/boot_id"]);
    assert_eq!(processes(&banger), all, "adopted, not started anew");
    banger.exec("a", &["sh", "-c", "echo kept > /root/mark"]);
    banger.ok(&["vm", "restart", "a"]);
    let later = banger.exec("a", &["cat", "/proc/sys/kernel/random/boot_id"]);
    assert_ne!(boot_id, later);
    banger.ok(&["vm", "stop", "a"]);
    banger.ok(&["vm", "reset", "a"]);
    banger.ok(&["vm", "start", "a"]);
    assert_eq!(banger.exec("a", &["cat", "/root/mark"]), "kept");
    assert_eq!(processes(&banger), all);

    banger.ok(&["vm", "delete", "a", "b"]);
    assert_eq!(before.changes(&Census::take(&banger)), [""; 0]);
}
