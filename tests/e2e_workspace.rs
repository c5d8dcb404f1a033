//! End to end: a git repository in the guest, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test's helper fails its test")]

mod support;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use support::Banger;

const IMAGE: &str = "debian-minimal";
/// Bytes of a file that takes seconds to copy into a guest.
const NOISE: u64 = 32 << 20;

/// Runs git as the user who calls banger.
fn git(banger: &Banger, folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]);
    command
        .args(arguments)
        .current_dir(folder)
        .env("HOME", banger.home());
    let output = command.output().expect("git is installed");
    assert!(output.status.success(), "git {arguments:?}: {output:?}");
}

/// A repository with three commits, an uncommitted change, an untracked and an
/// ignored file.
fn repository(banger: &Banger) -> PathBuf {
    let folder = banger.home().join("project");
    std::fs::create_dir(&folder).expect("a fresh home takes a folder");
    let git = |arguments: &[&str]| git(banger, &folder, arguments);
    let write = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).expect("a fresh folder takes a file");
    };
    git(&["init", "-q", "-b", "work"]);
    for n in 1..=3 {
        write("tracked", &format!("{n}\n"));
        write(".gitignore", "ignored\n");
        git(&["add", "."]);
        git(&["commit", "-q", "-m", &format!("commit {n}")]);
    }
    write("tracked", "changed\n");
    write("untracked", "secret\n");
    write("ignored", "built\n");
    folder
}

#[test]
fn run_with_a_path_brings_tracked_files_and_says_what_stayed_behind() {
    let banger = Banger::with_images(&[IMAGE]);
    let folder = repository(&banger);
    let path = folder.to_str().unwrap();
    let ran = banger.run(&[
        "vm",
        "run",
        "--rm",
        "--image",
        IMAGE,
        path,
        "--",
        "sh",
        "-c",
        "pwd; cat tracked; ls -A",
    ]);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert_eq!(
        ran.text(),
        "/root/repo\nchanged\n.git\n.gitignore\ntracked\n",
        "{ran:?}"
    );
    assert!(ran.error().contains("--include-untracked"), "{ran:?}");

    let ran = banger.run(&[
        "vm",
        "run",
        "--rm",
        "--image",
        IMAGE,
        "--include-untracked",
        path,
        "--",
        "ls",
        "-A",
    ]);
    assert_eq!(
        ran.text(),
        ".git\n.gitignore\ntracked\nuntracked\n",
        "{ran:?}"
    );
}

#[test]
fn paths_that_are_no_repository_are_refused_before_anything_is_made() {
    let banger = Banger::with_images(&[IMAGE]);
    let bare = banger.home().join("bare");
    let made = Command::new("git")
        .args(["init", "-q", "--bare"])
        .arg(&bare)
        .status();
    assert!(made.unwrap().success());
    let plain = banger.home().join("plain");
    std::fs::create_dir(&plain).unwrap();
    for folder in [bare, plain, banger.home().join("missing")] {
        let path = folder.to_str().unwrap();
        let ran = banger.run(&["vm", "run", "--rm", "--image", IMAGE, path, "--", "true"]);
        assert_eq!(ran.code(), Some(125), "{ran:?}");
        assert!(ran.error().contains(path), "{ran:?}");
    }
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "");
}

#[test]
fn damaged_objects_are_found_before_anything_is_made() {
    let banger = Banger::with_images(&[IMAGE]);
    let folder = repository(&banger);
    // HEAD is there, the objects below it are not.
    let tree = Command::new("git")
        .args(["rev-parse", "HEAD^{tree}"])
        .current_dir(&folder)
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    let (start, rest) = tree.trim().split_at(2);
    std::fs::remove_file(folder.join(".git/objects").join(start).join(rest)).unwrap();
    let ran = banger.run(&["vm", "run", "--image", IMAGE, folder.to_str().unwrap()]);
    assert_eq!(ran.code(), Some(125), "{ran:?}");
    assert!(!ran.error().contains("is ready"), "{ran:?}");
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "");
}

#[test]
fn a_kept_vm_whose_first_command_cannot_run_is_named() {
    let banger = Banger::with_images(&[IMAGE]);
    let ran = banger.run(&[
        "vm",
        "run",
        "--name",
        "kept",
        "--image",
        IMAGE,
        "--workdir",
        "/nope",
        "--",
        "true",
    ]);
    assert_eq!(ran.code(), Some(125), "{ran:?}");
    assert!(ran.error().contains("banger vm delete kept"), "{ran:?}");
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]).lines().count(), 1);
    banger.ok(&["vm", "delete", "--force", "kept"]);
}

#[test]
fn a_copy_on_its_way_holds_up_neither_stop_nor_delete() {
    let banger = Banger::with_images(&[IMAGE]);
    let folder = repository(&banger);
    // What no packing makes smaller, so that its copy takes seconds.
    let mut noise = Vec::new();
    let source = std::fs::File::open("/dev/urandom").unwrap();
    source.take(NOISE).read_to_end(&mut noise).unwrap();
    std::fs::write(folder.join("noise"), noise).unwrap();
    git(&banger, &folder, &["add", "noise"]);
    let path = folder.to_str().unwrap();
    let run = [
        "vm", "run", "--name", "w", "--image", IMAGE, path, "--", "true",
    ];
    let copy = banger.start(&run);
    copy.wait_for_message("copy the workspace");
    copy.signal(Signal::STOP);

    banger.ok(&["vm", "stop", "w"]);
    assert_eq!(banger.phase("w"), "stopped");
    banger.ok(&["vm", "delete", "w"]);

    copy.signal(Signal::CONT);
    let ran = copy.finish(support::DEADLINE);
    assert_eq!(ran.code(), Some(125), "{ran:?}");
}
