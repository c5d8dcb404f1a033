//! End to end: a VM that runs gets a memory target and a longer work disk.

mod support;

use support::disk::SmallDisk;
use support::events::{ask_until, kill_and_wait};
use support::{Banger, is_root, skip};

const IMAGE: &str = "debian-minimal";

/// What the guest can give to programs, MiB. MemTotal stays what it is: a balloon that lets
/// go under pressure takes only what is free (drivers/virtio/virtio_balloon.c).
fn available(banger: &Banger) -> u64 {
    let text = banger.exec("a", &["cat", "/proc/meminfo"]);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kibibytes: u64 = number.and_then(|n| n.parse().ok()).expect("a number");
    kibibytes >> 10
}

/// Waits until so much memory is available to the guest, whatever the machine's speed.
#[track_caller]
fn wait_for_memory(banger: &Banger, is_so: impl Fn(u64) -> bool) {
    ask_until(|| available(banger), |mebibytes| is_so(*mebibytes));
}

fn boot(banger: &Banger, more: &[&str]) {
    let run = ["vm", "run", "-d", "--name", "a", "--image", IMAGE];
    banger.ok(&[&run[..], more].concat());
}

fn shown(banger: &Banger, key: &str) -> Option<u64> {
    banger.json(&["vm", "show", "a"])[key].as_u64()
}

#[test]
fn target_takes_memory_of_a_running_guest_and_gives_it_back_whatever_dies() {
    let banger = Banger::with_images(&[IMAGE]);
    boot(&banger, &["--memory", "512M"]);
    let whole = available(&banger);
    assert_eq!(shown(&banger, "memory_actual"), Some(512 << 20));
    banger.ok(&["vm", "set", "a", "--memory-target", "256M"]);
    wait_for_memory(&banger, |now| now + 200 <= whole);
    assert_eq!(shown(&banger, "memory_target"), Some(256 << 20));
    let actual = shown(&banger, "memory_actual").expect("QEMU tells");
    assert!(actual < 320 << 20, "{actual}");
    assert!(shown(&banger, "memory_resident").is_some_and(|bytes| bytes > 0));

    banger.kill_daemon();
    // Another daemon takes the VM over, with what was asked.
    assert_eq!(shown(&banger, "memory_target"), Some(256 << 20));
    wait_for_memory(&banger, |now| now + 200 <= whole);
    banger.ok(&["vm", "set", "a", "--memory-target", "512M"]);
    wait_for_memory(&banger, |now| now + 50 >= whole);
    assert_eq!(shown(&banger, "memory_target"), None);

    banger.ok(&["vm", "set", "a", "--memory-target", "200M"]);
    banger.ok(&["vm", "restart", "a"]);
    wait_for_memory(&banger, |now| now + 250 <= whole);
    let table = banger.ok(&["vm", "show", "a"]);
    assert!(table.contains("target 200M"), "{table}");
}

#[test]
fn guest_lives_with_the_least_target_and_takes_back_what_it_needs() {
    let banger = Banger::with_images(&[IMAGE]);
    boot(&banger, &["--memory", "512M"]);
    banger.ok(&["vm", "set", "a", "--memory-target", "96M"]);
    wait_for_memory(&banger, |now| now < 150);
    // More than the target leaves: the guest takes it out of the balloon.
    let fill = "head -c 150M /dev/zero > /dev/shm/f && rm /dev/shm/f && echo lives";
    assert_eq!(banger.exec("a", &["sh", "-c", fill]), "lives");
    assert_eq!(banger.phase("a"), "running");
}

#[test]
fn targets_out_of_bounds_and_of_a_vm_at_rest_are_refused_with_what_to_type() {
    let banger = Banger::with_images(&[IMAGE]);
    boot(&banger, &["--memory", "256M"]);
    for (size, code, word) in [("1G", 2, "256M of memory"), ("64M", 2, "96M")] {
        let ran = banger.run(&["vm", "set", "a", "--memory-target", size]);
        assert_eq!(ran.code(), Some(code), "{ran:?}");
        assert!(ran.error().contains(word), "{ran:?}");
    }
    banger.ok(&["vm", "stop", "a"]);
    let ran = banger.run(&["vm", "set", "a", "--memory-target", "128M"]);
    assert_eq!(ran.code(), Some(5), "{ran:?}");
    assert!(ran.error().contains("banger vm start a"), "{ran:?}");
    assert_eq!(shown(&banger, "memory_target"), None);
}

/// MiB of the work disk's file system.
fn home(banger: &Banger) -> u64 {
    let text = banger.exec("a", &["df", "--output=size", "-BM", "/root"]);
    let last = text.lines().last().expect("df has a line").trim();
    last.trim_end_matches('M').parse().expect("a number")
}

#[test]
fn work_disk_grows_under_a_running_guest_and_stays_so() {
    let banger = Banger::with_images(&[IMAGE]);
    boot(&banger, &["--disk-size", "256M"]);
    banger.exec("a", &["sh", "-c", "echo kept > /root/mark"]);
    assert!(home(&banger) < 256);
    banger.ok(&["vm", "set", "a", "--disk-size", "3G"]);
    assert!(home(&banger) > 2700, "{}", home(&banger));
    let mounted = banger.exec("a", &["grep", " /root ", "/proc/mounts"]);
    assert!(
        mounted.contains("ext4 rw,relatime,noinit_itable"),
        "{mounted}"
    );
    // The new end of the disk holds what is written to it.
    let fill = "head -c 400M /dev/zero > /root/large && sync && rm /root/large";
    banger.exec("a", &["sh", "-c", fill]);

    let shrunk = banger.run(&["vm", "set", "a", "--disk-size", "1G"]);
    assert_eq!(shrunk.code(), Some(2), "{shrunk:?}");
    assert!(shrunk.error().contains("disks only grow"), "{shrunk:?}");
    let at_rest = banger.run(&["vm", "set", "a", "--disk-size", "4G", "--vcpu", "2"]);
    assert_eq!(at_rest.code(), Some(5), "{at_rest:?}");
    assert_eq!(shown(&banger, "work_disk"), Some(3 << 30));
    // Said again, it is done again.
    banger.ok(&["vm", "set", "a", "--disk-size", "3G"]);

    banger.ok(&["vm", "restart", "a"]);
    assert_eq!(banger.exec("a", &["cat", "/root/mark"]), "kept");
    assert!(home(&banger) > 2700);
}

/// Waits until the work disk's file system has so many MiB.
#[track_caller]
fn wait_for_home(banger: &Banger, least: u64) {
    ask_until(|| home(banger), |mebibytes| *mebibytes > least);
}

#[test]
fn growth_that_a_killed_daemon_began_is_finished_by_the_next_and_one_that_fails_when_said_again() {
    let test = "growth_that_a_killed_daemon_began_is_finished_by_the_next";
    if !is_root() {
        return skip(test, "needs root");
    }
    let disk = SmallDisk::mount(1024);
    let Some((banger, point)) = Banger::with_fail_point(&[IMAGE], &disk) else {
        return skip(test, "no program with fail-points");
    };
    boot(&banger, &["--disk-size", "256M"]);
    banger.exec("a", &["sh", "-c", "echo kept > /root/mark"]);
    // Refused as long as the next daemon is at what the last one began.
    let set = |size| {
        let ask = || banger.run(&["vm", "set", "a", "--disk-size", size]);
        ask_until(ask, |ran| ran.code() != Some(5))
    };
    let places = [
        ("save.after", "512M", 450),
        ("work-disk.ensure.after", "768M", 690),
        ("adjusted.ensure.before", "1G", 920),
        ("adjusted.ensure.after", "1280M", 1150),
    ];
    for (place, size, least) in places {
        let daemon = banger.daemon().expect("a daemon runs");
        point.arm(&format!("{place} exit"));
        let cut = set(size);
        // It killed itself: what is waited for is that it is gone.
        kill_and_wait(daemon);
        assert_ne!(cut.code(), Some(0), "{place}: {cut:?}");
        assert_eq!(banger.phase("a"), "running", "{place}");
        wait_for_home(&banger, least);
    }
    point.arm("adjusted.ensure.before ebusy");
    let refused = set("2G");
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(refused.error().contains("banger vm set a"), "{refused:?}");
    assert_eq!(set("2G").code(), Some(0));
    assert!(home(&banger) > 1800);
    assert_eq!(banger.exec("a", &["cat", "/root/mark"]), "kept");
}
