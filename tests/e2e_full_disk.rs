//! End to end: a state directory on a file system that is full, or becomes so in the
//! middle of things. What was begun is rolled back, what was durable stays, and the
//! words say which disk it is and what to type.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use support::census::Census;
use support::events::ask_until;
use support::{Banger, DEADLINE, in_shell, is_root, skip};

const IMAGE: &str = "debian-minimal";

/// A banger whose state directory is a tmpfs of its own; unmounted when dropped.
struct Small {
    banger: Banger,
    state: PathBuf,
}

impl Small {
    /// The images stay where they are: a link leads to each.
    fn new() -> Small {
        let banger = Banger::with_images(&[IMAGE]);
        let state = banger.state();
        let real = banger.home().join("real");
        fs::rename(&state, &real).expect("a folder can be renamed beside itself");
        fs::create_dir(&state).expect("its place is free");
        must(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=200M,mode=700", "small"])
                .arg(&state),
        );
        fs::copy(real.join("store.redb"), state.join("store.redb")).expect("there is room");
        for folder in ["images", "kernels"] {
            std::os::unix::fs::symlink(real.join(folder), state.join(folder))
                .expect("there is room");
        }
        Small { banger, state }
    }

    fn banger(&self) -> &Banger {
        &self.banger
    }

    /// Lets the file system have so many files more.
    fn allow_files(&self, more: usize) {
        let facts = rustix::fs::statvfs(&self.state).expect("it is mounted");
        let used = facts.f_files - facts.f_ffree;
        let limit = format!("remount,nr_inodes={}", used + more as u64);
        must(Command::new("mount").args(["-o", &limit]).arg(&self.state));
    }

    /// Takes all the room there is; the file that has it.
    fn fill(&self) -> PathBuf {
        let path = self.state.join("filler");
        let mut file = File::create(&path).expect("an empty file takes no room");
        while file.write_all(&[1; 4096]).is_ok() {}
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        must(
            Command::new("mount")
                .args(["-o", "remount,nr_inodes=0"])
                .arg(&self.state),
        );
        fs::remove_file(self.state.join("filler")).ok();
        // The daemon has files open there.
        self.banger().end();
        must(Command::new("umount").arg(&self.state));
    }
}

fn must(command: &mut Command) {
    let output = command.output().expect("the command is installed");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[test]
fn disk_that_is_full_at_any_step_of_a_run_rolls_all_of_it_back() {
    if !is_root() {
        return skip(
            "disk_that_is_full_at_any_step_of_a_run_rolls_all_of_it_back",
            "cannot mount",
        );
    }
    let small = Small::new();
    let banger = small.banger();
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    let before = Census::take(banger);
    let run = ["vm", "run", "-d", "--name", "a", "--image", IMAGE];
    // So many files more and not one: each step that makes one fails in its turn, after
    // the look at the free space has found enough.
    for (more, lacking) in ["vms/", "upper.ext4", "work.ext4", "console.log"]
        .iter()
        .enumerate()
    {
        small.allow_files(more);
        let ran = banger.run(&run);
        assert_eq!(ran.code(), Some(125), "{ran:?}");
        let state = banger.state().display().to_string();
        let words = [lacking, state.as_str(), "no space left", "banger vm prune"];
        for word in words {
            assert!(ran.error().contains(word), "no {word}: {ran:?}");
        }
        assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "");
        assert_eq!(before.changes(&Census::take(banger)), [""; 0]);
    }
    small.allow_files(100);
    banger.ok(&run);
    banger.ok(&["vm", "stop", "a"]);

    // No room at all is seen before anything is begun.
    let filler = small.fill();
    let ran = banger.run(&["vm", "run", "-d", "--name", "b", "--image", IMAGE]);
    assert_eq!(ran.code(), Some(125), "{ran:?}");
    assert!(ran.error().contains("the disk is full"), "{ran:?}");
    assert!(ran.error().contains("banger vm prune"), "{ran:?}");
    let ran = banger.run(&["vm", "start", "a"]);
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    assert!(
        ran.error().contains("start vm a: the disk is full"),
        "{ran:?}"
    );
    // What is durable stays, for a daemon that begins on the full disk too.
    banger.kill_daemon();
    assert_eq!(banger.phase("a"), "stopped");
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "a");
    fs::remove_file(filler).expect("the filler is ours");
    banger.ok(&["vm", "start", "a"]);
    assert_eq!(banger.exec("a", &["echo", "back"]), "back");
}

/// Symptom: QEMU halted such a guest and nobody ever let it go on; `vm stop` took ten seconds.
#[test]
fn guest_on_a_disk_that_fills_up_waits_and_goes_on_when_there_is_room() {
    if !is_root() {
        return skip(
            "guest_on_a_disk_that_fills_up_waits_and_goes_on_when_there_is_room",
            "cannot mount",
        );
    }
    let small = Small::new();
    let banger = small.banger();
    banger.boot("a");
    let filler = small.fill();
    let write = "head -c 8000000 /dev/urandom >/root/x && sync && echo written";
    let writing = banger.start(&in_shell("a", write));

    let show = || banger.ok(&["vm", "show", "a"]);
    ask_until(show, |said| {
        said.contains("the disk of this machine is full")
    });
    // A daemon that was not there finds it out before it sends anything, which would cut
    // the guest off.
    banger.kill_daemon();
    let ran = banger.run(&["vm", "exec", "a", "--", "true"]);
    assert_eq!(ran.code(), Some(125), "{ran:?}");
    assert!(ran.error().contains("once there is room"), "{ran:?}");
    assert!(show().contains("is halted"));
    fs::remove_file(filler).expect("the filler is ours");

    let ran = writing.finish(DEADLINE);
    assert_eq!(ran.text(), "written\n", "{ran:?}");
    ask_until(show, |said| !said.contains("halted"));
    assert_eq!(banger.exec("a", &["echo", "back"]), "back");
}

/// Symptom: `vm stop` killed a guest that could have gone on, and did not say so.
#[test]
fn guest_that_is_stopped_while_halted_writes_its_files_back_if_there_is_room() {
    if !is_root() {
        return skip(
            "guest_that_is_stopped_while_halted_writes_its_files_back_if_there_is_room",
            "cannot mount",
        );
    }
    let small = Small::new();
    let banger = small.banger();
    // Nobody holds a stream to the guest when it is halted.
    let write = "echo kept >/root/kept; nohup sh -c \
        'head -c 8000000 /dev/urandom >/root/x; sync' >/dev/null 2>&1 &";
    let show = || banger.ok(&["vm", "show", "a"]);
    let halt = || {
        banger.boot("a");
        let filler = small.fill();
        banger.exec("a", &["sh", "-c", write]);
        ask_until(show, |said| said.contains("is halted"));
        filler
    };

    let filler = halt();
    fs::remove_file(filler).expect("the filler is ours");
    banger.ok(&["vm", "stop", "a"]);
    assert!(!show().contains("killed"), "{}", show());
    banger.ok(&["vm", "start", "a"]);
    assert_eq!(banger.exec("a", &["cat", "/root/kept"]), "kept");
    banger.ok(&["vm", "delete", "a"]);

    let filler = halt();
    banger.ok(&["vm", "stop", "a"]);
    let said = show();
    assert!(
        said.contains("killed: ") && said.contains("is halted"),
        "{said}"
    );
    fs::remove_file(filler).expect("the filler is ours");
}

/// Symptom: the guest went on, and each command waited ten seconds and said to try again.
#[test]
fn guest_whose_client_left_while_it_was_halted_is_told_to_be_cut_off() {
    if !is_root() {
        return skip(
            "guest_whose_client_left_while_it_was_halted_is_told_to_be_cut_off",
            "cannot mount",
        );
    }
    let small = Small::new();
    let banger = small.banger();
    banger.boot("a");
    banger.exec("a", &["sh", "-c", "echo kept >/root/kept && sync"]);
    let filler = small.fill();
    let write = "head -c 8000000 /dev/urandom >/root/x && sync";
    let writing = banger.start(&in_shell("a", write));
    let show = || banger.ok(&["vm", "show", "a"]);
    ask_until(show, |said| said.contains("is halted"));
    writing.signal(Signal::KILL);
    writing.finish(DEADLINE);
    fs::remove_file(filler).expect("the filler is ours");

    let told = |said: &str| {
        said.contains("nobody reaches its agent") && said.contains("banger vm restart a")
    };
    ask_until(show, |said| told(said));
    let ran = banger.run(&["vm", "exec", "a", "--", "true"]);
    assert_eq!(ran.code(), Some(125), "{ran:?}");
    assert!(ran.error().contains("banger vm restart a"), "{ran:?}");
    // A daemon that was not there finds it out and keeps it in mind.
    banger.kill_daemon();
    let ran = banger.run(&["vm", "exec", "a", "--", "true"]);
    assert!(ran.error().contains("banger vm restart a"), "{ran:?}");
    assert!(ran.error().contains("nobody reaches its agent"), "{ran:?}");
    assert!(told(&show()));
    banger.ok(&["vm", "restart", "a"]);
    assert_eq!(banger.exec("a", &["cat", "/root/kept"]), "kept");
}

#[test]
fn store_that_cannot_be_made_on_a_full_disk_says_so_and_is_made_later() {
    if !is_root() {
        return skip(
            "store_that_cannot_be_made_on_a_full_disk_says_so_and_is_made_later",
            "cannot mount",
        );
    }
    let small = Small::new();
    let banger = small.banger();
    fs::remove_file(banger.state().join("store.redb")).expect("no daemon has it open");
    let filler = small.fill();

    let ran = banger.run(&["vm", "list"]);

    assert_eq!(ran.code(), Some(74), "{ran:?}");
    for word in ["store.redb", "No space left", "`df`"] {
        assert!(ran.error().contains(word), "no {word}: {ran:?}");
    }
    fs::remove_file(filler).expect("the filler is ours");
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "");
}
