//! A network namespace of a test's own: nothing of this host's network is touched.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with its loopback on; removed when dropped.
pub struct Namespace {
    /// As `ip netns` knows it.
    pub name: String,
}

impl Namespace {
    /// Makes one; the name says of which role.
    pub fn new(role: &str) -> Namespace {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bt-{role}-{}-{count}", std::process::id());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Namespace { name }
    }

    /// Moves the calling thread, and what it starts from now on.
    pub fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.name));
        let file = file.expect("iproute2 keeps namespaces there");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter a namespace");
    }

    /// Does something in it, on a thread that does nothing else.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let done = scope.spawn(|| {
                self.enter();
                what()
            });
            done.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Not asserted: a second panic would hide the first.
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
    }
}

/// Runs `ip` in the namespace of the calling thread.
#[track_caller]
pub fn ip(arguments: &str) {
    run_program("ip", arguments);
}

/// Runs a program in the namespace of the calling thread and gives its output.
#[track_caller]
pub fn run_program(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments}: {complaint}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
