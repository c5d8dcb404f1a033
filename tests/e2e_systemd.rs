//! End to end: the default image, handed over to systemd.

mod support;

use std::path::Path;
use std::process::Command;

use support::Banger;

const IMAGE: &str = "debian-bookworm";

#[test]
fn default_image_boots_into_systemd_and_reaches_its_target() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.ok(&["vm", "run", "-d", "--name", "a"]);
    let state = banger.run(&[
        "vm",
        "exec",
        "a",
        "--",
        "systemctl",
        "is-system-running",
        "--wait",
    ]);
    let failed = banger.exec("a", &["systemctl", "--failed", "--no-legend", "--plain"]);
    assert_eq!(
        (state.text().trim(), failed.as_str()),
        ("running", ""),
        "{state:?}"
    );
    assert_eq!(banger.exec("a", &["cat", "/proc/1/comm"]), "systemd");
    assert_eq!(banger.exec("a", &["hostname"]), "a");
    // The whole module tree of the kernel is there, whatever the image brought.
    banger.exec("a", &["modprobe", "overlay"]);
    banger.exec("a", &["modprobe", "nft_masq"]);
    banger.ok(&["vm", "stop", "a"]);
    assert_eq!(banger.phase("a"), "stopped");
}

#[test]
fn repository_in_the_guest_has_its_history_and_branch() {
    let banger = Banger::with_images(&[IMAGE]);
    let folder = banger.home().join("project");
    std::fs::create_dir(&folder).unwrap();
    let git = |folder: &Path, arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]);
        let output = command
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    git(&folder, &["init", "-q", "-b", "work"]);
    std::fs::write(folder.join("file"), "1\n").unwrap();
    git(&folder, &["add", "."]);
    git(&folder, &["commit", "-q", "-m", "first"]);
    std::fs::write(folder.join("file"), "2\n").unwrap();
    let script = "git branch --show-current; git log --format=%s; git status --short";
    let ran = banger.run(&[
        "vm",
        "run",
        "--rm",
        folder.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(ran.text(), "work\nfirst\n M file\n", "{ran:?}");
}
