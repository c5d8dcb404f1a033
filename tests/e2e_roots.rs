//! End to end: VMs whose root is one writable disk.

#![allow(clippy::unwrap_used, reason = "a test's helper fails its test")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Banger, is_root, seed, skip};

const IMAGE: &str = "debian-minimal";

/// A file system in a file, mounted until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn xfs(image: &Path, at: &Path) -> Mounted {
        let file = std::fs::File::create(image).unwrap();
        file.set_len(3 << 30).unwrap();
        run(Command::new("mkfs.xfs").arg("-q").arg(image));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(at));
        Mounted(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What still has a file open there keeps it alive and unseen.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn lack() -> Option<&'static str> {
    match () {
        () if !is_root() => Some("needs root, to mount a file"),
        () if seed::find_tool("mkfs.xfs").is_none() => Some("needs mkfs.xfs"),
        () => None,
    }
}

/// Mebibytes of the guest's root file system.
fn root_size(banger: &Banger, vm: &str) -> u64 {
    let said = banger.exec(vm, &["df", "--block-size=1M", "--output=size", "/"]);
    said.split_whitespace().last().unwrap().parse().unwrap()
}

#[test]
fn a_root_that_shares_blocks_has_its_size_keeps_changes_and_is_renewed_by_reset() {
    if let Some(lack) = lack() {
        return skip("a_root_that_shares_blocks", lack);
    }
    let banger = Banger::new();
    let _xfs = Mounted::xfs(&banger.home().join("xfs.img"), &banger.state());
    let from = seed::prepare(&[IMAGE]).join(".");
    run(Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([&from, &banger.state()]));

    let run = "vm run -d --name a --image debian-minimal --net none --root-size 2G";
    banger.ok(&run.split(' ').collect::<Vec<_>>());
    let view = banger.json(&["vm", "show", "a"]);
    assert_eq!(view["root_mode"], "reflink", "auto takes it here: {view}");
    let size = root_size(&banger, "a");
    assert!((1900..=2048).contains(&size), "{size} MiB of 2048");
    assert_eq!(view["warnings"], serde_json::json!([]));
    banger.exec(
        "a",
        &["sh", "-c", "echo root > /etc/mark; echo work > /root/mark"],
    );

    banger.ok(&["vm", "stop", "a"]);
    banger.ok(&["vm", "start", "a"]);
    let marks = banger.exec("a", &["cat", "/etc/mark", "/root/mark"]);
    assert_eq!(marks, "root\nwork");
    assert_eq!(root_size(&banger, "a"), size);

    banger.ok(&["vm", "stop", "a"]);
    banger.ok(&["vm", "reset", "a"]);
    banger.ok(&["vm", "start", "a"]);
    assert_eq!(banger.exec("a", &["cat", "/root/mark"]), "work");
    let ran = banger.run(&["vm", "exec", "a", "--", "test", "-e", "/etc/mark"]);
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    assert_eq!(root_size(&banger, "a"), size);
    banger.ok(&["vm", "delete", "a", "--force"]);
    banger.ok(&["daemon", "stop"]);
}

#[test]
fn a_root_mode_that_this_host_lacks_is_refused_with_the_reason() {
    if Path::new("/dev/mapper/control").exists() {
        return skip("a_root_mode_that_this_host_lacks", "it has device-mapper");
    }
    let banger = Banger::with_images(&[IMAGE]);
    let create = "vm create --image debian-minimal --root-mode dm-snapshot";
    let ran = banger.run(&create.split(' ').collect::<Vec<_>>());
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    let text = ran.error();
    assert!(text.contains("use root mode dm-snapshot"), "{text}");
    assert!(text.contains("/dev/mapper/control"), "{text}");
    assert!(text.contains("--root-mode overlay"), "{text}");
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "");
}
