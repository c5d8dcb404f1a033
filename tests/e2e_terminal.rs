//! End to end: a real terminal. Size, resize, Ctrl-C, job control, colours, UTF-8.

mod support;

use support::terminal::Terminal;
use support::{Banger, in_shell};

const IMAGE: &str = "debian-minimal";

#[test]
fn shell_has_a_terminal_of_the_callers_size_and_follows_it() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let mut terminal = Terminal::start(&banger, &["vm", "shell", "a"], 120, 40);

    terminal.type_in("echo size $(stty size) $TERM\n");
    terminal.wait_for("size 40 120 xterm-256color");
    terminal.type_in("trap 'echo new $(stty size)' WINCH; echo arm''ed\n");
    terminal.wait_for("armed\r\n");
    terminal.resize(100, 30);
    terminal.type_in("\n");
    terminal.wait_for("new 30 100");

    terminal.type_in("printf 'gr\\303\\274n %s\\n' ok\n");
    terminal.wait_for("grün ok");
    terminal.type_in("exit 3\n");
    assert_eq!(terminal.finish(), Some(3));
    assert_eq!(banger.phase("a"), "running");
}

#[test]
fn control_characters_act_inside_the_guest() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let mut terminal = Terminal::start(&banger, &["vm", "shell", "a"], 80, 24);

    // The job itself says when it is in the foreground; a key before that is the shell's.
    let job = "sh -c 'echo wa\"\"iting; exec sleep 1000'\n";
    terminal.type_in(job);
    terminal.wait_for("waiting");
    terminal.type_in("\x03");
    terminal.type_in("echo interrupted $?\n");
    terminal.wait_for("interrupted 130");

    terminal.type_in(job);
    terminal.wait_for("waiting");
    terminal.type_in("\x1a");
    terminal.wait_for("Stopped");
    // Waited for: a shell that is left with a stopped job says so and stays.
    terminal.type_in("bg; kill %1; wait %1; echo job $?\n");
    terminal.wait_for("job 143");
    terminal.wait_for("# ");
    terminal.type_in("\x04");
    terminal.finish();
}

#[test]
fn exec_allocates_a_terminal_when_both_ends_are_one() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let mut terminal = Terminal::start(
        &banger,
        &[
            "vm",
            "exec",
            "a",
            "--",
            "sh",
            "-c",
            "test -t 0 && test -t 1 && echo yes",
        ],
        80,
        24,
    );
    terminal.wait_for("yes");
    terminal.type_in("");
    assert_eq!(terminal.finish(), Some(0));
    // Not with pipes, unless it is forced.
    let ran = banger.run(&in_shell("a", "test -t 1"));
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    for switches in ["-t", "-it", "-ti"] {
        let ran = banger.run(&["vm", "exec", switches, "a", "sh", "-c", "test -t 1"]);
        assert_eq!(ran.code(), Some(0), "{switches}: {ran:?}");
    }
    // Input is passed on with `-i` and without.
    for command in [&["-i", "a", "cat"][..], &["a", "cat"]] {
        let command = [&["vm", "exec"], command].concat();
        let ran = banger.run_with_input(&command, b"typed".to_vec());
        assert_eq!(ran.text(), "typed", "{ran:?}");
    }
}

#[test]
fn shell_of_a_guest_under_systemd_is_a_whole_terminal() {
    let banger = Banger::with_images(&["debian-bookworm"]);
    banger.ok(&[
        "vm",
        "run",
        "-d",
        "--name",
        "a",
        "--image",
        "debian-bookworm",
    ]);
    assert_eq!(banger.exec("a", &["cat", "/proc/1/comm"]), "systemd");
    let mut terminal = Terminal::start(&banger, &["vm", "shell", "a"], 120, 40);

    terminal.type_in("echo size $(stty size) colours $(tput colors) $TERM\n");
    terminal.wait_for("size 40 120 colours 256 xterm-256color");
    // A program in the foreground hears of the new size, and reads it.
    terminal.type_in(
        "bash -c 'trap \"stty size; exit\" WINCH; echo wa\"\"iting; while :; do sleep 0.2; done'\n",
    );
    terminal.wait_for("waiting");
    terminal.resize(101, 31);
    terminal.wait_for("31 101");

    // UTF-8 through the line editor both ways: the letter is erased as one.
    terminal.type_in("echo 'grün日本x\x7f😀' | od -An -tx1 | tr -d ' \\n'; echo\n");
    terminal.wait_for("6772c3bc6ee697a5e69cacf09f98800a");
    terminal.type_in("printf '\\xe6\\x97\\xa5\\n'\n");
    terminal.wait_for("日\r\n");
    terminal.type_in("printf '\\033[38;5;208m%s\\033[0m\\n' colour\n");
    terminal.wait_for("\x1b[38;5;208mcolour\x1b[0m");

    // Jobs: stopped, listed, brought back, interrupted.
    terminal.type_in(
        "bash -c 'trap \"echo con\\\"\\\"tinued\" CONT; echo wa\"\"iting; while :; do sleep 0.2; done'\n",
    );
    terminal.wait_for("waiting");
    terminal.type_in("\x1a");
    terminal.wait_for("Stopped");
    terminal.type_in("jobs; echo li''sted\n");
    terminal.wait_for("[1]+  Stopped");
    terminal.wait_for("listed");
    terminal.type_in("fg\n");
    // Not what the shell prints: it does so before the job has the terminal.
    terminal.wait_for("continued");
    terminal.type_in("\x03");
    terminal.type_in("echo interrupted $?\n");
    terminal.wait_for("interrupted 130");
    terminal.type_in("exit 4\n");
    assert_eq!(terminal.finish(), Some(4));
}
