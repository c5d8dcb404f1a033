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

/// In the guest: calls the host's port with garbage; must be cut off each time.
const CALLER: &str = r#"
for $bytes ("\x01\xff\xff\xff\xff", "\x77\0\0\0\0", "\x01\0\0\0\4xxxx") {
    socket($s, 40, 1, 0) or die "socket: $!";
    connect($s, pack("SSLLCx3", 40, 0, 1023, 2, 0)) or die "connect: $!";
    syswrite $s, $bytes;
    $got = sysread $s, $rest, 100;
    print "cut off\n" unless $got;
    close $s;
}
"#;

#[test]
fn guest_with_an_agent_of_its_own_harms_nobody_else() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("evil");
    banger.boot("good");
    let daemon = banger.daemon();

    assert_eq!(
        banger.exec("evil", &["perl", "-e", CALLER]),
        "cut off\ncut off\ncut off"
    );
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
