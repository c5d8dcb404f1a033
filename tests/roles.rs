//! The binary itself: one static file whose name decides its role.

mod support;

use support::{Banger, binary, skip};

#[test]
fn binary_wants_no_loader_and_no_library() {
    let Ok(output) = std::process::Command::new("readelf")
        .arg("-hld")
        .arg(binary())
        .output()
    else {
        return skip(
            "binary_wants_no_loader_and_no_library",
            "readelf is not installed",
        );
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("DYN (Position-Independent"), "{text}");
    assert!(!text.contains("INTERP"), "{text}");
    assert!(!text.contains("NEEDED"), "{text}");
}

#[test]
fn version_is_one_line_under_every_spelling() {
    let banger = Banger::new();
    let line = banger.ok(&["--version"]);
    assert!(line.contains(env!("CARGO_PKG_VERSION")), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(banger.ok(&["version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn unknown_command_is_a_usage_error_on_standard_error() {
    let ran = Banger::new().run(&["frobnicate"]);
    assert_eq!(ran.code(), Some(2), "{ran:?}");
    assert_eq!(ran.text(), "");
    assert!(ran.error().contains("frobnicate"), "{ran:?}");
}

#[test]
fn daemon_that_ends_by_order_or_signal_takes_its_socket_with_it() {
    let banger = Banger::new();
    let socket = banger.runtime().join("bangerd.sock");
    let list = &["vm", "list", "--quiet"];

    banger.ok(list);
    assert!(socket.exists());
    banger.ok(&["daemon", "stop"]);
    assert!(!socket.exists());

    banger.ok(list);
    let pid = i32::try_from(banger.daemon().expect("the list started one")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_send_signal(&process, rustix::process::Signal::TERM).unwrap();
    assert!(support::events::wait_readable(&process, support::DEADLINE));
    assert!(!socket.exists());

    // One that crashed leaves its file, which is in nobody's way.
    banger.ok(list);
    banger.kill_daemon();
    assert!(socket.exists());
    banger.ok(list);
}

#[test]
fn command_that_a_dying_daemon_did_not_hear_is_answered_by_the_next_one() {
    let banger = Banger::new();
    banger.ok(&["daemon", "stop"]);
    std::fs::create_dir_all(banger.runtime()).unwrap();
    let socket = banger.runtime().join("bangerd.sock");
    // Stands for the daemon: it takes no connection, and ends with one waiting.
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();

    let list = banger.start(&["vm", "list", "--json"]);
    assert!(support::events::wait_readable(&listener, support::DEADLINE));
    drop(listener);

    let ran = list.finish(support::DEADLINE);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert_eq!(ran.text().trim(), "[]");
}
