//! End to end: a step that cannot be undone. The VM is shown as stuck with the reason
//! and what to type, tried again on request and at the daemon's next start, and never
//! dropped; once the obstacle is gone nothing is left of it.

mod support;

use support::census::Census;
use support::disk::SmallDisk;
use support::fail_point::FailPoint;
use support::running::Ran;
use support::{Banger, is_root, skip};

const IMAGE: &str = "debian-minimal";

/// A daemon that can be interrupted, or a line that says why there is none.
fn interruptible(test: &str, disk: &SmallDisk) -> Option<(Banger, FailPoint)> {
    let made = Banger::with_fail_point(&[IMAGE], disk);
    if made.is_none() {
        skip(
            test,
            "BANGER_FAIL_POINTS_BIN names no program with fail-points",
        );
    }
    made
}

fn assert_says_stuck(ran: &Ran, retry: &str) {
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    let error = ran.error();
    for words in [
        "clear up vm a: it is stuck",
        "absent tap: resource busy",
        "banger vm show a",
        retry,
    ] {
        assert!(error.contains(words), "no {words:?} in: {error}");
    }
}

#[test]
fn tap_that_stays_busy_is_shown_tried_again_and_never_dropped() {
    let test = "tap_that_stays_busy_is_shown_tried_again_and_never_dropped";
    if !is_root() {
        return skip(test, "taps and loop devices need root");
    }
    let disk = SmallDisk::mount(96);
    let Some((banger, point)) = interruptible(test, &disk) else {
        return;
    };
    banger.ok(&["vm", "run", "--rm", "--image", IMAGE, "--", "true"]);
    let before = Census::take(&banger);
    banger.ok(&["vm", "create", "--name", "a", "--image", IMAGE]);
    // The start fails half-way, and its way down does not get past the tap.
    point.arm("tap.absent.before ebusy always");
    banger.ok(&["vm", "start", "a"]);
    assert_says_stuck(&banger.run(&["vm", "stop", "a"]), "`banger vm stop a`");

    let list = banger.run(&["vm", "list"]);
    assert!(list.text().contains("stuck"), "{list:?}");
    let told = "vm a is stuck: absent tap: resource busy: `banger vm stop a`";
    assert!(list.error().contains(told), "{list:?}");
    let show = banger.ok(&["vm", "show", "a"]);
    assert!(show.contains("stuck (absent tap: resource busy)"), "{show}");
    assert!(show.contains("`banger vm delete a` removes"), "{show}");
    let doctor = banger.run(&["doctor"]).text();
    assert!(doctor.contains("vm a is stuck"), "{doctor}");
    assert!(doctor.contains("banger vm stop a"), "{doctor}");

    assert_says_stuck(&banger.run(&["vm", "stop", "a"]), "`banger vm stop a`");
    assert_says_stuck(
        &banger.run(&["vm", "delete", "a"]),
        "`banger vm delete a` tries",
    );
    banger.kill_daemon();
    assert_eq!(banger.phase("a"), "deleting");
    point.clear();
    support::events::ask_until(
        || banger.ok(&["vm", "list", "--quiet"]),
        |names| names.is_empty(),
    );
    assert_eq!(before.changes(&Census::take(&banger)), [""; 0]);
}
