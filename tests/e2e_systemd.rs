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

/// What a worker in the sandbox does to a repository: every kind of change there is.
const WORK: &str = r#"
    set -e
    echo committed > changed
    git commit --quiet --all --message "committed in the guest"
    echo again >> changed
    rm deleted
    mkdir -p new/folder && printf 'new, with no line feed' > new/folder/file
    printf '\000\377\001\r\n\032' > binary
    head --bytes 100000 /dev/urandom > random
    chmod +x script
    printf '#!/bin/sh\n' > tool && chmod +x tool
    ln -s new/folder link
    echo 'gr\303\274n' > 'a name with spaces'
    git mv moved moved-away
    echo built > ignored
"#;

#[test]
fn export_of_the_guests_changes_applies_to_a_clone_and_gives_the_same_tree() {
    let banger = Banger::with_images(&[IMAGE]);
    let (folder, clone) = (banger.home().join("project"), banger.home().join("clone"));
    std::fs::create_dir(&folder).unwrap();
    let git = |folder: &Path, arguments: &[&str]| {
        let mut command = Command::new("git");
        let output = command.args(arguments).current_dir(folder).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    git(&folder, &["init", "-q", "-b", "work"]);
    // Commits in the guest carry the name that commits here would.
    git(&folder, &["config", "user.name", "Ada"]);
    git(&folder, &["config", "user.email", "ada@example.org"]);
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    for name in ["changed", "deleted", "script", "moved", "untouched"] {
        write(name, format!("{name}\n").as_bytes());
    }
    write("binary", &[7, 0, 255, 10]);
    write(".gitignore", b"ignored\n");
    git(&folder, &["add", "."]);
    git(&folder, &["commit", "-q", "-m", "first"]);
    git(
        banger.home().as_path(),
        &["clone", "-q", "project", "clone"],
    );
    let path = folder.to_str().unwrap();
    banger.ok(&["vm", "run", "-d", "--name", "a", path]);
    let work = ["vm", "exec", "a", "-w", "/root/repo", "--", "bash", "-c"];
    banger.ok(&[&work[..], &[WORK]].concat());
    let status = ["vm", "exec", "a", "-w", "/root/repo", "--", "git", "status"];
    let status = [&status[..], &["--porcelain"]].concat();
    let before = banger.ok(&status);

    let patch = banger.home().join("a.patch");
    let patch = patch.to_str().unwrap();
    banger.ok(&["vm", "workspace", "export", "a", "-o", patch]);

    git(&clone, &["apply", "--index", patch]);
    // The tree's name is made of all names, modes and contents.
    let tree = "git add --all && git write-tree";
    let guests = [&work[..], &[tree]].concat();
    // Asked before the guest's own index changes: the export left it as it was.
    assert_eq!(banger.ok(&status), before);
    assert_eq!(git(&clone, &["write-tree"]).trim(), banger.ok(&guests));
    assert_eq!(
        std::fs::read(clone.join("changed")).unwrap(),
        b"committed\nagain\n"
    );
    assert!(!clone.join("ignored").exists());
    // The same bytes on standard output, for a pipe.
    let ran = banger.run(&["vm", "workspace", "export", "a"]);
    assert_eq!(ran.stdout, std::fs::read(patch).unwrap());
}

#[test]
fn export_leaves_out_what_was_changed_at_home_before() {
    let banger = Banger::with_images(&[IMAGE]);
    let folder = banger.home().join("project");
    std::fs::create_dir(&folder).unwrap();
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        let output = command.args(arguments).current_dir(&folder).output();
        assert!(output.unwrap().status.success(), "{arguments:?}");
    };
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    git(&["init", "-q", "-b", "work"]);
    git(&["config", "user.name", "Ada"]);
    git(&["config", "user.email", "ada@example.org"]);
    write("changed", "one\n");
    write("moved", "one\n");
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "first"]);
    write("changed", "home\n");
    write("added", "home\n");
    git(&["add", "added"]);
    git(&["mv", "moved", "to"]);
    let path = folder.to_str().unwrap();
    banger.ok(&["vm", "run", "-d", "--name", "a", path]);
    assert_eq!(banger.ok(&["vm", "workspace", "export", "a"]), "");
    let work = "cd /root/repo && git commit -qam all && echo guest >> added && echo new > new";
    banger.ok(&["vm", "exec", "a", "--", "sh", "-c", work]);
    let patch = banger.home().join("a.patch");
    let patch = patch.to_str().unwrap();
    banger.ok(&["vm", "workspace", "export", "a", "-o", patch]);
    git(&["apply", patch]);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(read("added"), "home\nguest\n");
    assert_eq!(
        (read("changed"), read("new")),
        ("home\n".to_owned(), "new\n".to_owned())
    );
}
