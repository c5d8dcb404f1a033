//! End to end: what a guest may take of its host, and other sizes for one that is there.

mod support;

use std::time::Instant;

use support::events::ask_until;
use support::{Banger, skip};

const IMAGE: &str = "debian-minimal";

/// 4 KiB blocks of a file system, as the guest's own `df` counts them.
fn mebibytes(banger: &Banger, at: &str) -> u64 {
    let text = banger.exec("a", &["df", "--output=size", "-BM", at]);
    let last = text.lines().last().expect("df has a line");
    let digits = last.trim().trim_end_matches('M');
    digits.parse().expect("a number of mebibytes")
}

#[test]
fn a_stopped_vm_gets_other_sizes_and_its_file_systems_grow_with_their_disks() {
    let banger = Banger::with_images(&[IMAGE]);
    let sizes = ["--disk-size", "256M", "--root-size", "512M"];
    let memory = ["--vcpu", "1", "--memory", "256M"];
    let small = [
        &["vm", "run", "-d", "--name", "a", "--image", IMAGE],
        &sizes[..],
        &memory[..],
    ];
    banger.ok(&small.concat());
    banger.exec(
        "a",
        &["sh", "-c", "echo kept > /root/mark; echo kept > /etc/mark"],
    );
    assert!(mebibytes(&banger, "/root") < 256);
    assert!(mebibytes(&banger, "/") < 512);

    let refused = banger.run(&["vm", "set", "a", "--vcpu", "2"]);
    assert_eq!(refused.code(), Some(5), "{refused:?}");
    banger.ok(&["vm", "stop", "a"]);
    let now = banger.json(&["vm", "set", "a"]);
    assert_eq!(now, banger.json(&["vm", "show", "a"]));
    let larger = [
        "--disk-size",
        "3G",
        "--root-size",
        "2G",
        "--vcpu",
        "2",
        "--memory",
        "320M",
    ];
    banger.ok(&[&["vm", "set", "a"], &larger[..]].concat());
    let shrunk = banger.run(&["vm", "set", "a", "--disk-size", "1G"]);
    assert_eq!(shrunk.code(), Some(2), "{shrunk:?}");
    assert!(shrunk.error().contains("disks only grow"), "{shrunk:?}");

    banger.ok(&["vm", "start", "a"]);
    assert_eq!(
        banger.exec("a", &["cat", "/root/mark", "/etc/mark"]),
        "kept\nkept"
    );
    assert!(mebibytes(&banger, "/root") > 2700);
    assert!(mebibytes(&banger, "/") > 1800);
    assert_eq!(banger.exec("a", &["nproc"]), "2");
    let view = banger.json(&["vm", "show", "a"]);
    assert_eq!(view["warnings"].as_array().map(Vec::len), Some(0), "{view}");
    // The new end of the disk holds what is written to it.
    banger.exec(
        "a",
        &[
            "sh",
            "-c",
            "head -c 300M /dev/zero > /root/large && sync && rm /root/large",
        ],
    );
}

#[test]
fn a_disk_with_a_limit_takes_at_least_the_time_that_its_requests_need() {
    let banger = Banger::with_images(&[IMAGE]);
    let limits = ["--disk-iops", "100", "--cpu-weight", "200"];
    let run = ["vm", "run", "-d", "--name", "a", "--image", IMAGE];
    banger.ok(&[&run[..], &limits[..]].concat());
    let view = banger.json(&["vm", "show", "a"]);
    assert_eq!(view["limits"]["disk_iops"], 100, "{view}");
    assert_eq!(view["limits"]["cpu_weight"], 200, "{view}");
    // 400 requests past the cache: a second's worth may be free, the others are not.
    let begun = Instant::now();
    banger.exec(
        "a",
        &[
            "dd",
            "if=/dev/zero",
            "of=/root/f",
            "bs=4k",
            "count=400",
            "oflag=direct",
        ],
    );
    let took = begun.elapsed().as_secs_f64();
    assert!(took >= 2.9, "400 requests at 100 a second took {took} s");
}

/// Kibibytes of the guest's memory that the host holds: all that a VMM shares is that. What
/// an emulator translates is its own and grows with every command, so the process's whole
/// size says nothing.
fn guest_memory(pid: u64) -> u64 {
    number_in(pid, "RssShmem:")
}

fn number_in(pid: u64, row: &str) -> u64 {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).expect("the VMM lives");
    let line = text.lines().find_map(|line| line.strip_prefix(row));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

/// Kibibytes that a process has for itself.
fn own_memory(pid: u64) -> u64 {
    number_in(pid, "RssAnon:")
}

#[test]
fn memory_that_a_guest_no_longer_uses_comes_back_to_the_host() {
    let banger = Banger::with_images(&[IMAGE]);
    let run = ["vm", "run", "-d", "--name", "a", "--image", IMAGE];
    banger.ok(&[&run[..], &["--memory", "512M"]].concat());
    let fill = "head -c 200M /dev/urandom > /dev/shm/f";
    banger.exec("a", &["sh", "-c", fill]);
    let pid = banger.json(&["vm", "show", "a"])["pid"].as_u64();
    let pid = pid.expect("a running VM has a process");
    let full = guest_memory(pid);
    assert!(full > 200 << 10, "{full} K with 200 MiB written");
    banger.exec("a", &["rm", "/dev/shm/f"]);
    // A guest's kernel reports what became free two seconds later.
    let goal = full - (120 << 10);
    let look = || {
        banger.exec("a", &["true"]);
        guest_memory(pid)
    };
    ask_until(look, |kibibytes| *kibibytes < goal);
}

/// With other addresses for each process, an emulator translates its libraries anew: more
/// than a mebibyte for each.
#[test]
fn an_emulator_translates_a_program_once_and_not_for_each_process() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.ok(&["vm", "run", "-d", "--name", "a", "--image", IMAGE]);
    let view = banger.json(&["vm", "show", "a"]);
    if view["vmm"] != "qemu-tcg" {
        let name = "an_emulator_translates_a_program_once_and_not_for_each_process";
        return skip(name, "guests are not emulated here");
    }
    let pid = view["pid"].as_u64().expect("a running VM has a process");
    let hundred = "for i in $(seq 100); do /bin/true; done";
    banger.exec("a", &["sh", "-c", hundred]);
    let before = own_memory(pid);
    banger.exec("a", &["sh", "-c", hundred]);
    let grown = own_memory(pid).saturating_sub(before);
    assert!(grown < 40 << 10, "{grown} K for a hundred processes");
}
