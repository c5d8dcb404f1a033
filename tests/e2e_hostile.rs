//! End to end: guests that mean harm. Garbage on the host's sockets while a VM starts
//! and while it runs, and an agent that was replaced by another program. That one
//! connection ends; the daemon, the VM and the other VMs go on.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use support::events::{ask_until, wait_for_folder};
use support::{Banger, DEADLINE, in_shell};

const IMAGE: &str = "debian-minimal";

/// What no guest of ours ever sends: kind, length in four bytes, payload.
const GARBAGE: [(&str, &[u8]); 7] = [
    ("frame too long", b"\x01\xff\xff\xff\xff"),
    ("data frame too long", b"\x82\x7f\xff\xff\xffdata"),
    ("unknown kind", b"\x77\0\0\0\x04what"),
    ("no JSON", b"\x01\0\0\0\x04\xff\xfe{["),
    (
        "a number of 2^63",
        b"\x01\0\0\0\x45{\"say\":\"hello\",\"version\":9223372036854775808,\"kernel_release\":\"6.1\"} ",
    ),
    ("another protocol", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("out of order", b"\x85\0\0\0\x02{}"),
];

/// The first entry of a folder, once it has one.
fn first_entry(folder: &Path) -> PathBuf {
    wait_for_folder(folder, |folder| {
        folder
            .read_dir()
            .is_ok_and(|mut entries| entries.next().is_some())
    });
    let mut entries = folder.read_dir().expect("the folder was just read");
    let entry = entries.next().expect("it has an entry");
    entry.expect("an entry can be read").path()
}

/// Reads until the other side closes; a reset is a close too.
fn closed_by_the_other_side(mut stream: UnixStream) -> bool {
    let deadline = stream.set_read_timeout(Some(DEADLINE));
    deadline.expect("a socket takes a deadline");
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn garbage_while_a_vm_starts_is_cut_off_and_the_real_guest_still_starts() {
    let banger = Banger::with_images(&[IMAGE]);
    // A daemon first, so that its folders are there to be watched.
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    let daemon = banger.daemon();
    let client = banger.start(&["vm", "run", "-d", "--name", "a", "--image", IMAGE]);
    let run = first_entry(&banger.runtime().join("vms"));
    let socket = run.join("vsock_1023");
    wait_for_folder(&run, |_| socket.exists());

    for (what, bytes) in GARBAGE {
        let mut stream = UnixStream::connect(&socket).expect("the daemon listens");
        stream.write_all(bytes).expect("the daemon reads");
        assert!(closed_by_the_other_side(stream), "{what}");
    }
    // Truncated: the claim of a payload, then the end.
    let mut stream = UnixStream::connect(&socket).expect("the daemon listens");
    stream
        .write_all(b"\x01\0\0\x10\0{")
        .expect("the daemon reads");
    drop(stream);
    // One that says nothing for as long as it may, with the real guest behind it.
    let silent = UnixStream::connect(&socket).expect("the daemon listens");

    let ran = client.finish(DEADLINE);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    drop(silent);
    assert_eq!(banger.exec("a", &["echo", "real"]), "real");
    assert_eq!(banger.daemon(), daemon);
}

/// In the guest: takes the agent's place on its port and answers every call with what
/// the host must not trust. Process 1 starts it in the agent's stead. `AF_VSOCK` is 40,
/// `VMADDR_CID_ANY` -1 (linux/vm_sockets.h).
const IMPOSTOR: &str = r##"#!/usr/bin/perl
socket($l, 40, 1, 0) or die "socket: $!";
bind($l, pack("SSLLCx3", 40, 0, 1024, 0xffffffff, 0)) or die "bind: $!";
listen($l, 8) or die "listen: $!";
@answers = ("\x82\xff\xff\xff\xff", "\x7f" x 64, "\x82\0\0\1\0cut", "\x84\0\0\0\x08" . "\xff" x 8, "\x85\0\0\0\x1e{\"status\":9223372036854775808}");
while (accept($c, $l)) { sysread $c, $asked, 65536; $a = shift @answers; push @answers, $a; syswrite $c, $a; close $c }
"##;

/// In the guest: calls the host's port and says what came of it, each outcome once. The
/// arguments: how many times, then what to send.
const CALLER: &str = r#"
($times, @calls) = @ARGV;
for (1 .. $times) {
    for $call (@calls) {
        socket($s, 40, 1, 0) or die "socket: $!";
        if (!connect($s, pack("SSLLCx3", 40, 0, 1023, 2, 0))) { $seen{"refused"} = 1; next }
        syswrite $s, "\x01" . pack("N", length $call) . $call;
        $got = sysread $s, $answer, 65536;
        $seen{$got ? "answered: $answer" : "cut off"} = 1;
        close $s;
    }
}
print join("; ", sort keys %seen);
"#;

/// What a guest may say on its way up, and what none would.
const CALLS: [&str; 4] = [
    r#"{"say":"hello","version":1,"kernel_release":"6.1"}"#,
    r#"{"say":"ready","version":1,"token":"","init":"mine","phases":[],"warnings":[]}"#,
    r#"{"say":"failed","token":null,"what":"a lie"}"#,
    "{\"say\":\"A\u{1b}[2JA",
];

/// Calls the host from a process of the guest that may do nothing there.
fn call_as_nobody(banger: &Banger, vm: &str, times: &str, calls: &[&str]) -> String {
    let drop = "$< = $> = 65534; exec @ARGV";
    let command = ["perl", "-e", drop, "perl", "-e", CALLER, times];
    banger.exec(vm, &[&command, calls].concat())
}

#[test]
fn process_of_a_running_guest_is_heard_by_nobody_on_the_host() {
    let banger = Banger::with_images(&[IMAGE]);
    let run = ["vm", "run", "-d", "--name", "a", "--image", IMAGE];
    banger.ok(&[&run[..], &["--env", "SECRET=hunter2"]].concat());
    let boot = banger.json(&["vm", "show", "a"])["boot_phases"].clone();
    let log = banger.state().join("bangerd.log");
    let logged = || std::fs::metadata(&log).expect("a daemon logs").len();

    let before = logged();
    // The kernel of a guest takes 2 s to see that nobody listens.
    assert_eq!(call_as_nobody(&banger, "a", "3", &CALLS), "refused");
    // Two lines for the command that carried them, whatever they said.
    let grown = logged() - before;
    assert!(grown < 4096, "{grown} bytes for calls that nobody heard");

    // The daemon that takes the VM over has nothing to give it either.
    banger.kill_daemon();
    banger.ok(&["vm", "list"]);
    assert_eq!(call_as_nobody(&banger, "a", "1", &CALLS), "refused");
    assert_eq!(banger.json(&["vm", "show", "a"])["boot_phases"], boot);

    // Its agent is kept running, and has nobody to tell so.
    banger.run(&in_shell("a", "pkill -KILL -f banger-vsock-agent"));
    ask_until(
        || {
            banger
                .run(&["vm", "exec", "a", "--", "echo", "again"])
                .text()
        },
        |said| said == "again\n",
    );
    // A start is another run: its guest is configured anew.
    banger.ok(&["vm", "restart", "a"]);
    assert_eq!(banger.exec("a", &["printenv", "SECRET"]), "hunter2");
}

/// In the guest: asks the agent for a command through the guest's own loopback, as the
/// host would, and says what came back.
const LOOPBACK: &str = r#"
socket($s, 40, 1, 0) or die "socket: $!";
connect($s, pack("SSLLCx3", 40, 0, 1024, 1, 0)) or die "connect: $!";
$call = '{"version":1,"host_time_ns":0,"request":{"do":"exec","argv":["id","-u"],"env":[],"workdir":null,"terminal":null}}';
syswrite $s, "\x01" . pack("N", length $call) . $call;
$got = sysread $s, $answer, 65536;
print $got ? "answered: $answer" : "cut off";
"#;

/// In the guest, which has no modprobe: loads the loopback. finit_module is 313
/// (asm/unistd_64.h).
const LOAD_LOOPBACK: &str = r#"
($p) = glob "/lib/modules/*/kernel/net/vmw_vsock/vsock_loopback.ko";
open F, "<", $p or die "$p: $!";
$o = "";
syscall(313, fileno(F), $o, 0) == 0 or die "load $p: $!";
"#;

#[test]
fn agent_takes_no_orders_from_a_process_of_its_own_guest() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    banger.exec("a", &["perl", "-e", LOAD_LOOPBACK]);
    let drop = "$< = $> = 65534; exec @ARGV";
    let command = ["perl", "-e", drop, "perl", "-e", LOOPBACK];
    assert_eq!(banger.exec("a", &command), "cut off");
    assert_eq!(banger.exec("a", &["id", "-u"]), "0");
}

#[test]
fn guest_with_an_agent_of_its_own_harms_nobody_else() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("evil");
    banger.boot("good");
    let daemon = banger.daemon();

    let replace = "cat > /tmp/impostor && chmod +x /tmp/impostor \
        && mount --bind /tmp/impostor /run/banger/agent \
        && pkill -KILL -f banger-vsock-agent";
    let ran = banger.run_with_input(&in_shell("evil", replace), IMPOSTOR.into());
    // The agent that carried it was killed by it.
    assert_eq!(ran.code(), Some(125), "{ran:?}");

    // Each of its answers is a failure of ours, with words, and no more.
    let call = || {
        let ran = banger.run(&["vm", "exec", "evil", "--", "true"]);
        assert_eq!(ran.code(), Some(125), "{ran:?}");
        ran.error()
    };
    ask_until(call, |said| said.contains("frame of 4294967295 bytes"));
    // It closes without having read all: an end within a frame can be a reset too.
    let answers: [&[&str]; 4] = [
        &["unknown kind 0x7f"],
        &["before the end", "reset by peer"],
        &["Credit"],
        &["Exit"],
    ];
    for words in answers {
        let said = call();
        assert!(said.contains("was lost"), "{said}");
        let told = words.iter().any(|word| said.contains(word));
        assert!(told, "none of {words:?}: {said}");
    }
    assert_eq!(banger.exec("good", &["echo", "well"]), "well");
    // It cannot be asked to power off; it is stopped all the same.
    banger.ok(&["vm", "stop", "evil"]);
    assert_eq!(banger.phase("evil"), "stopped");
    assert_eq!(banger.phase("good"), "running");
    assert_eq!(banger.daemon(), daemon);
}
