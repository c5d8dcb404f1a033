//! End to end: a VM's life. Stop, start, reset, several at once, and a VMM that dies.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use support::census::Census;
use support::events::{ask_until, kill_and_wait};
use support::{Banger, DEADLINE, in_shell};

const IMAGE: &str = "debian-minimal";

#[test]
fn stop_and_start_keep_every_file_and_reset_keeps_the_work_disk() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    // Not synced on purpose: a stop must write back what the guest has in memory.
    banger.exec(
        "a",
        &["sh", "-c", "echo root > /etc/mark; echo work > /root/mark"],
    );

    banger.ok(&["vm", "stop", "a"]);
    assert_eq!(banger.phase("a"), "stopped");
    banger.ok(&["vm", "start", "a"]);
    assert_eq!(
        banger.exec("a", &["cat", "/etc/mark", "/root/mark"]),
        "root\nwork"
    );

    banger.ok(&["vm", "stop", "a"]);
    banger.ok(&["vm", "reset", "a"]);
    banger.ok(&["vm", "start", "a"]);
    assert_eq!(banger.exec("a", &["cat", "/root/mark"]), "work");
    let ran = banger.run(&["vm", "exec", "a", "--", "test", "-e", "/etc/mark"]);
    assert_eq!(ran.code(), Some(1), "{ran:?}");
}

#[test]
fn followed_logs_end_with_the_run_and_hold_all_of_it() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let log = banger.start(&["vm", "logs", "--follow", "a"]);
    let console = banger.start(&["vm", "logs", "--follow", "--console", "a"]);
    banger.exec("a", &["sh", "-c", "echo here > /dev/console"]);
    console.wait_for_output("here");

    banger.ok(&["vm", "stop", "a"]);

    let ran = log.finish(DEADLINE);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    let ran = console.finish(DEADLINE);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert!(ran.text().contains("reboot: Power down"), "{ran:?}");
}

#[test]
fn restart_boots_the_guest_again() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let boot_id = || banger.exec("a", &["cat", "/proc/sys/kernel/random/boot_id"]);
    let first = boot_id();
    banger.ok(&["vm", "restart", "a"]);
    assert_ne!(boot_id(), first);
}

#[test]
fn several_vms_are_handled_though_one_is_unknown() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    banger.boot("b");
    let ran = banger.run(&["vm", "stop", "a", "nobody", "b"]);
    assert_ne!(ran.code(), Some(0), "{ran:?}");
    assert!(ran.error().contains("nobody"), "{ran:?}");
    assert_eq!(
        (banger.phase("a"), banger.phase("b")),
        ("stopped".into(), "stopped".into())
    );
}

#[test]
fn delete_leaves_nothing_on_the_host() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    let before = Census::take(&banger);
    banger.boot("a");
    banger.boot("b");
    banger.ok(&["vm", "stop", "a"]);
    banger.ok(&["vm", "delete", "a"]);
    banger.ok(&["vm", "kill", "b"]);
    // No news is good news: a script gets a line for what it asked, and no stages.
    let ran = banger.run(&["vm", "delete", "b"]);
    assert_eq!(
        (ran.text(), ran.error()),
        ("b deleted\n".into(), String::new())
    );
    assert_eq!(before.changes(&Census::take(&banger)), [""; 0]);
}

#[test]
fn vmm_that_dies_makes_its_vm_stopped_with_the_reason() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let view = banger.json(&["vm", "show", "a"]);
    let pid = view["pid"].as_u64().expect("a running VM has a VMM");

    kill_and_wait(u32::try_from(pid).unwrap());

    ask_until(|| banger.phase("a"), |phase| phase == "stopped");
    let view = banger.json(&["vm", "show", "a"]);
    assert!(
        view["reason"].as_str().is_some_and(|why| !why.is_empty()),
        "{view}"
    );
    banger.ok(&["vm", "start", "a"]);
    assert_eq!(banger.exec("a", &["echo", "back"]), "back");
}

#[test]
fn guest_that_powers_off_is_stopped() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    // The agent is process 1 here: SIGTERM is its order to power off.
    banger.run(&in_shell("a", "kill -TERM 1"));
    ask_until(|| banger.phase("a"), |phase| phase == "stopped");
}

#[test]
fn guest_whose_clock_is_wrong_has_the_hosts_at_the_next_command() {
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.expect("the host's clock is right").as_secs()
    };
    // As after a pause or a laptop's sleep, but years.
    let set = ["sh", "-c", "date -s @1000000000 >/dev/null; date +%s"];
    assert!(banger.exec("a", &set).starts_with("100000000"));

    let before = now();
    let seen: u64 = banger.exec("a", &["date", "+%s"]).parse().unwrap();
    // It is off by 100 ms at most: the second may be another one.
    assert!((before - 1..=now() + 1).contains(&seen), "{before}: {seen}");
}
