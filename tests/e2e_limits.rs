//! End to end: what a guest may take of its host, and other sizes for one that is there.

mod support;

use std::time::Instant;

use support::Banger;

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
