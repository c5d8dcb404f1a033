//! How fast a VM is, against what the same guest takes without us: ratios of one run.
//!
//! `scripts/bench.sh` runs it with the release binary; docs/benchmarks.md explains the
//! rows and keeps figures. Nothing here passes or fails: a time is no test.

// A benchmark's output is what it is for.
#![allow(clippy::print_stdout)]

mod bare;
mod instant;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bare::Bare;
use rustix::event::{Timespec, poll};
use support::Banger;

const IMAGE: &str = "debian-minimal";
const ROUNDS: usize = 10;
const QUICK_ROUNDS: usize = 50;
/// How long an idle daemon is watched.
const IDLE: Duration = Duration::from_secs(20);

fn main() {
    instant::play();
    own_share();
    let cold = Banger::with_images(&[IMAGE]);
    fs::write(cold.config(), "templates = false\n").expect("a fresh folder takes it");
    let banger = Banger::with_images(&[IMAGE]);
    // For `waits`.
    fs::write(banger.config(), "log_level = \"debug\"\n").expect("a fresh folder takes it");
    for banger in [&cold, &banger] {
        banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    }
    start(&banger, &cold);
    banger.boot("a");
    exec(&banger);
    processes(&banger);
    banger.ok(&["vm", "delete", "a"]);
    delete(&banger);
    idle(&banger);
}

/// What creation and deletion take where VMM and guest take nothing.
fn own_share() {
    let banger = Banger::with_images(&[IMAGE]);
    instant::install(&banger);
    let create = || {
        banger.ok(&[
            "vm", "create", "--name", "a", "--image", IMAGE, "--vmm", "qemu",
        ]);
    };
    let delete = || {
        banger.ok(&["vm", "delete", "a"]);
    };
    create();
    delete();
    let (mut created, mut deleted) = (Vec::new(), Vec::new());
    for _ in 0..QUICK_ROUNDS {
        created.push(time(create));
        deleted.push(time(delete));
    }
    row("our share of create to ready", &Times::of(created));
    row("our share of vm delete", &Times::of(deleted));
}

/// `vm run --rm -- true` against the bare VMM, taken in turns: from a template, and in a
/// daemon that has none.
fn start(banger: &Banger, cold: &Banger) {
    let bare = Bare::of(cold);
    let run = |banger: &Banger| {
        time(|| {
            banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
        })
    };
    let (mut ours, mut booted) = (Vec::new(), Vec::new());
    let (mut theirs, mut modules) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(run(banger));
        booted.push(run(cold));
        theirs.push(bare.time_to_call());
        modules.push(bare::time_in_init(cold));
    }
    let (ours, booted) = (Times::of(ours), Times::of(booted));
    let (theirs, modules) = (Times::of(theirs), Times::of(modules));
    row("vm run --rm -- true", &ours);
    row("  waiting for its memory", &Times::of(waits(banger)));
    row("  its kernel booted, no template", &booted);
    row("bare VMM to the guest's call", &theirs);
    row("  of it /init, loading modules", &modules);
    let to_init = theirs.median.saturating_sub(modules.median);
    let name = "  so to /init";
    println!("{name:<36} {:>9.1} ms", milliseconds(to_init));
    for (name, ours, bare) in [
        ("  ratio to the call", &ours, theirs.median),
        ("  ratio to /init", &ours, to_init),
        ("  without a template, to the call", &booted, theirs.median),
        ("  without a template, to /init", &booted, to_init),
    ] {
        let ratio = ours.median.as_secs_f64() / bare.as_secs_f64();
        println!("{name:<36} {ratio:>9.2}");
    }
}

/// How long each start from a template had to wait for its memory, after its VMM had come up
/// and taken its machine over. The first one compares a sum besides, and is left out.
fn waits(banger: &Banger) -> Vec<Duration> {
    let log = fs::read_to_string(banger.state().join("bangerd.log")).expect("the daemon logs");
    let waited = log.lines().filter(|line| line.contains("memory filled"));
    let waited = waited.map(|line| Duration::from_micros(number(line, " waited_us=")));
    waited.skip(1).collect()
}

fn exec(banger: &Banger) {
    let agent = bare::agent_socket(banger);
    let (mut whole, mut guest) = (Vec::new(), Vec::new());
    for _ in 0..QUICK_ROUNDS {
        whole.push(time(|| {
            banger.exec("a", &["true"]);
        }));
        guest.push(time(|| bare::exec_true(&agent)));
    }
    let (whole, guest) = (Times::of(whole), Times::of(guest));
    row("vm exec a -- true", &whole);
    row("  of it the stream and the guest", &guest);
    let ours = whole.median.saturating_sub(guest.median);
    println!(
        "{:<36} {:>9.1} ms",
        "  so the host's share",
        milliseconds(ours)
    );
}

/// A hundred processes in the guest, with the addresses that it is started with and with
/// random ones: what an emulator translates anew shows here.
fn processes(banger: &Banger) {
    let setting = "/proc/sys/kernel/randomize_va_space";
    let started_with = banger.exec("a", &["cat", setting]);
    let hundred = || {
        banger.exec(
            "a",
            &["sh", "-c", "for i in $(seq 100); do /bin/true; done"],
        );
    };
    let set = |value: &str| {
        let write = format!("echo {value} > {setting}");
        banger.exec("a", &["sh", "-c", &write]);
    };
    let (mut ours, mut random) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        set(started_with.trim());
        ours.push(time(hundred));
        set("2");
        random.push(time(hundred));
    }
    row("100 processes in the guest", &Times::of(ours));
    row("  with random addresses", &Times::of(random));
}

fn delete(banger: &Banger) {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        banger.boot("b");
        times.push(time(|| {
            banger.ok(&["vm", "delete", "b"]);
        }));
    }
    row("vm delete of a running VM", &Times::of(times));
}

/// What the daemon takes when nobody asks it anything.
fn idle(banger: &Banger) {
    let pid = banger.daemon().expect("a daemon runs");
    // Threads of the pool end after half a second without work.
    wait(Duration::from_secs(2));
    let before = switches(pid);
    wait(IDLE);
    let after = switches(pid);
    let woken = |(task, count): (&String, &u64)| count - before.get(task).unwrap_or(&0);
    let wakes: u64 = after.iter().map(woken).sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let resident = number(&status, "VmRSS:");
    println!(
        "{:<36} {:>9.1} MiB",
        "idle daemon, resident",
        resident as f64 / 1024.0
    );
    println!(
        "{:<36} {wakes:>9} in {} s",
        "idle daemon, wake-ups",
        IDLE.as_secs()
    );
}

fn wait(time: Duration) {
    let limit = Timespec::try_from(time).expect("seconds fit");
    poll(&mut [], Some(&limit)).expect("poll waits");
}

/// Context switches of each thread of a process.
fn switches(pid: u32) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon lives");
    let count = |task: &Path| {
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        number(&status, "\nvoluntary_ctxt_switches:")
    };
    tasks
        .flatten()
        .map(|task| {
            (
                task.file_name().to_string_lossy().into_owned(),
                count(&task.path()),
            )
        })
        .collect()
}

fn number(status: &str, field: &str) -> u64 {
    let rest = status.split(field).nth(1).unwrap_or_default();
    let word = rest.split_whitespace().next().unwrap_or_default();
    word.parse().unwrap_or(0)
}

fn time(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

/// The best, the middle and the worst of several times.
struct Times {
    best: Duration,
    median: Duration,
    worst: Duration,
}

impl Times {
    fn of(mut all: Vec<Duration>) -> Times {
        all.sort();
        Times {
            best: all[0],
            median: all[all.len() / 2],
            worst: all[all.len() - 1],
        }
    }
}

fn row(name: &str, times: &Times) {
    println!(
        "{name:<36} {:>9.1} ms   ({:.1} to {:.1})",
        milliseconds(times.median),
        milliseconds(times.best),
        milliseconds(times.worst)
    );
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
