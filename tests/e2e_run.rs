//! End to end: commands in real guests. Statuses, streams, environment, and what
//! `--rm` leaves behind.

mod support;

use std::time::Duration;

use rustix::process::Signal;
use sha2::{Digest, Sha256};
use support::census::Census;
use support::events::{ask_until, wait_for_folder};
use support::output::{self, ends_quietly_unread, fails_unwritable};
use support::running::Running;
use support::{Banger, COMMAND_DEADLINE, DEADLINE, binary, in_shell};

const IMAGE: &str = "debian-minimal";

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn run_rm_prints_the_guests_kernel_and_leaves_nothing() {
    let banger = Banger::with_images(&[IMAGE]);
    // The bridge and the table stay for the next VM; so the first one comes before.
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    let before = Census::take(&banger);

    let guest = banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "uname", "-r"]);

    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(guest, host.trim());
    assert!(guest.starts_with("6."), "{guest}");
    assert_eq!(before.changes(&Census::take(&banger)), [""; 0]);
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "");
}

#[test]
fn run_rm_with_a_failing_command_gives_its_status_and_leaves_nothing() {
    let banger = Banger::with_images(&[IMAGE]);
    let ran = banger.run(&[
        "vm", "run", "--rm", "--image", IMAGE, "--", "sh", "-c", "exit 42",
    ]);
    assert_eq!(ran.code(), Some(42), "{ran:?}");
    // A VM that goes with its command is not said to run on.
    let said = ran.error();
    assert!(
        !said.contains("running") && !said.contains("runs"),
        "{said}"
    );
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "");
}

#[test]
fn run_rm_whose_client_is_killed_is_deleted_all_the_same() {
    let banger = Banger::with_images(&[IMAGE]);
    let client = banger.start(&[
        "vm",
        "run",
        "--rm",
        "--name",
        "gone",
        "--image",
        IMAGE,
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]);
    client.wait_for_output("up");

    client.signal(Signal::KILL);
    client.finish(DEADLINE);

    wait_for_folder(&banger.state().join("vms"), |folder| {
        folder.read_dir().is_ok_and(|mut vms| vms.next().is_none())
    });
    let names = ask_until(|| banger.ok(&["vm", "list", "--quiet"]), String::is_empty);
    assert_eq!(names, "");
}

#[test]
fn exec_passes_the_commands_status_through() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let status = |command: &[&str]| {
        let ran = banger.run(&[&["vm", "exec", "a", "--"], command].concat());
        ran.code().unwrap_or_else(|| panic!("{ran:?}"))
    };
    assert_eq!(status(&["true"]), 0);
    assert_eq!(status(&["sh", "-c", "exit 42"]), 42);
    assert_eq!(status(&["sh", "-c", "kill -9 $$"]), 137);
    assert_eq!(status(&["sh", "-c", "kill -15 $$"]), 143);
    assert_eq!(status(&["no-such-program"]), 127);
    assert_eq!(status(&["/etc/passwd"]), 126);
}

#[test]
fn exec_in_an_unknown_vm_is_a_failure_of_ours_that_names_it() {
    let banger = Banger::with_images(&[IMAGE]);
    let ran = banger.run(&["vm", "exec", "nobody", "--", "true"]);
    assert_eq!(ran.code(), Some(125), "{ran:?}");
    assert!(ran.error().contains("nobody"), "{ran:?}");
    assert_eq!(ran.text(), "");
}

#[test]
fn exec_keeps_streams_apart_and_bytes_as_they_are() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");

    let ran = banger.run(&in_shell("a", "echo out; echo err >&2"));
    assert_eq!(
        (ran.text().as_str(), ran.error().as_str()),
        ("out\n", "err\n")
    );

    let every_byte: Vec<u8> = (0..=255).collect();
    let ran = banger.run_with_input(&["vm", "exec", "a", "--", "cat"], every_byte.clone());
    assert_eq!(ran.stdout, every_byte);

    // Arguments travel as a list: nothing splits or expands them.
    let odd = ["a b", "$HOME", "", "'\"", "*", "ä\n"];
    let ran = banger.run(&[&["vm", "exec", "a", "--", "printf", "%s|"], odd.as_slice()].concat());
    assert_eq!(ran.text(), odd.map(|word| format!("{word}|")).concat());
}

#[test]
fn exec_brings_64_mib_there_and_back_unchanged() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let block: Vec<u8> = (0..=255u8).cycle().take(65_521).collect();
    let sent: Vec<u8> = block.iter().copied().cycle().take(64 << 20).collect();
    let ran = banger.run_with_input(&["vm", "exec", "a", "--", "cat"], sent.clone());
    assert_eq!(ran.code(), Some(0), "{}", ran.error());
    assert_eq!(ran.stdout.len(), sent.len());
    assert_eq!(sha256(&ran.stdout), sha256(&sent));
}

#[test]
fn exec_takes_environment_and_directory() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let text = banger.ok(&[
        "vm",
        "exec",
        "--env",
        "WORD=two words",
        "--workdir",
        "/usr/share",
        "a",
        "--",
        "sh",
        "-c",
        "echo \"$WORD\"; pwd",
    ]);
    assert_eq!(text, "two words\n/usr/share");
    assert_eq!(banger.exec("a", &["pwd"]), "/root");
}

#[test]
fn exec_of_a_command_that_leaves_a_child_returns_at_once() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    // The child holds all three pipes, and lives on when the command's end is told.
    let ran = banger.run(&in_shell("a", "sleep 30 & echo $!"));
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    let look = format!("kill -0 {} && echo alive", ran.text().trim());
    let found = banger.run(&in_shell("a", &look));
    assert_eq!(found.text(), "alive\n", "{found:?}");
}

#[test]
fn ten_commands_at_once_keep_their_own_streams() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let commands: Vec<Running> = (0..10)
        .map(|n| {
            let script = format!("read word; echo $word {n}; exit {n}");
            let command = banger.command(&in_shell("a", &script));
            Running::spawn(command, format!("hello{n}\n").into_bytes())
        })
        .collect();
    for (n, command) in commands.into_iter().enumerate() {
        let ran = command.finish(DEADLINE);
        assert_eq!(ran.text(), format!("hello{n} {n}\n"), "{ran:?}");
        assert_eq!(ran.code(), i32::try_from(n).ok(), "{ran:?}");
    }
}

#[test]
fn interrupt_reaches_the_guests_process_group() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 1; done";
    let command = banger.start(&in_shell("a", script));
    command.wait_for_output("ready");
    command.signal(Signal::INT);
    let ran = command.finish(Duration::from_secs(60));
    assert_eq!(
        (ran.code(), ran.text().as_str()),
        (Some(7), "caught\n"),
        "{ran:?}"
    );
}

#[test]
fn hang_up_that_was_ignored_before_the_client_stays_so() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
    command.arg(binary());
    command.args(in_shell("a", "echo on; read word; echo got $word"));
    command.env_clear().envs(banger.environment());
    let mut client = Running::with_open_input(command);
    client.wait_for_output("on");
    client.signal(Signal::HUP);
    client.type_in("it\n");
    let ran = client.finish(DEADLINE);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert!(ran.text().contains("got it"), "{ran:?}");
}

#[test]
fn burst_of_more_commands_than_a_guest_takes_is_run_or_told_why() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let run = |_| banger.start(&["vm", "exec", "a", "--", "true"]);
    let clients: Vec<Running> = (0..200).map(run).collect();
    for client in clients {
        let ran = client.finish(COMMAND_DEADLINE);
        let told = ran.error().contains("takes no more at once");
        assert!(ran.code() == Some(0) || told, "{ran:?}");
    }
    banger.exec("a", &["true"]);
}

#[test]
fn second_interrupt_ends_the_client_and_rm_deletes_all_the_same() {
    let banger = Banger::with_images(&[IMAGE]);
    // Nothing in this guest is impressed by an interrupt.
    let script = "trap '' INT; echo ready; while :; do sleep 1000; done";
    let client = banger.start(&[
        "vm", "run", "--rm", "--image", IMAGE, "--", "sh", "-c", script,
    ]);
    client.wait_for_output("ready");

    client.signal(Signal::INT);
    // A second one that came before the first was taken would be the same one.
    ask_until(|| client.is_pending(Signal::INT), |pending| !pending);
    client.signal(Signal::INT);

    let ran = client.finish(DEADLINE);
    assert_eq!(ran.code(), Some(130), "{ran:?}");
    let names = ask_until(|| banger.ok(&["vm", "list", "--quiet"]), String::is_empty);
    assert_eq!(names, "");
}

#[test]
fn ten_runs_at_once_have_their_own_output_and_leave_nothing() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    let before = Census::take(&banger);
    let small = ["vm", "run", "--rm", "--memory", "256M", "--image", IMAGE];

    let clients: Vec<Running> = (0..10)
        .map(|n| {
            let script = format!("read word; echo $word $(hostname); echo own {n} >&2; exit {n}");
            let name = format!("v{n}");
            let rest = ["--name", &name, "--", "sh", "-c", &script];
            let command = banger.command(&[small.as_slice(), rest.as_slice()].concat());
            Running::spawn(command, format!("hello{n}\n").into_bytes())
        })
        .collect();

    for (n, client) in clients.into_iter().enumerate() {
        let ran = client.finish(COMMAND_DEADLINE);
        assert_eq!(ran.text(), format!("hello{n} v{n}\n"), "{ran:?}");
        assert!(ran.error().contains(&format!("own {n}\n")), "{ran:?}");
        assert_eq!(ran.code(), i32::try_from(n).ok(), "{ran:?}");
    }
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "");
    assert_eq!(before.changes(&Census::take(&banger)), [""; 0]);
}

#[test]
fn output_of_a_command_that_cannot_be_written_is_our_failure() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    fails_unwritable(&banger, "vm exec a -- echo hello", 125);
    let quiet = output::led(&banger, "vm exec a -- true", ">&-");
    assert_eq!(quiet.status.code(), Some(0), "{quiet:?}");
    for words in [
        "vm list --quiet",
        "vm show a",
        "vm show a --json",
        "image show debian-minimal",
        "kernel show debian-6.1-cloud",
    ] {
        fails_unwritable(&banger, words, 1);
        ends_quietly_unread(&banger, words);
    }
    let run = format!("vm run --rm --image {IMAGE} -- uname");
    fails_unwritable(&banger, &run, 125);
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "a");
}
