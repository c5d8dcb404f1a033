//! What needs device-mapper, on the kernel of a guest of ours: this machine's kernel need
//! not have it. Each test below is an ordinary one as well, and skips by name here.

use super::support::Banger;
use super::support::inside::Inside;

/// The tests that a guest with device-mapper runs.
const TESTS: [&str; 17] = [
    "roots::loop_devices_are_made_and_removed_twice",
    "roots::a_device_in_use_is_busy_lets_go_with_its_user_and_is_not_taken_for_a_good_one",
    "roots::every_object_of_a_snapshot_is_made_and_removed_twice",
    "roots::a_snapshot_shows_the_image_keeps_changes_and_leaves_the_image_alone",
    "roots::a_snapshot_in_use_is_busy_and_goes_with_its_user",
    "roots::a_half_made_snapshot_is_seen_and_made_whole",
    "roots::a_whole_root_can_change_without_overflow_and_its_level_is_told",
    "roots::a_store_that_is_full_refuses_changes_keeps_what_it_has_and_grows",
    "roots::a_store_that_could_not_be_written_is_refused_with_the_way_out",
    "roots::our_devices_are_listed_by_vm",
    "both::world_and_kernel_agree_on_snapshots",
    "faulty_disk::a_store_whose_disk_refuses_writes_is_invalid_told_and_taken_away",
    "faulty_disk::steps_on_a_disk_that_refuses_writes_say_so_and_leave_nothing",
    "faulty_disk::what_a_disk_forgets_is_as_if_it_had_not_been_done",
    "barriers::what_was_reported_and_not_synced_is_missed_at_some_barrier",
    "barriers::what_was_reported_of_vms_is_on_the_disk_at_every_barrier",
    "barriers::what_was_synced_to_a_snapshot_is_on_the_disk_at_every_barrier",
];

/// The kernel's modules that the tests use.
pub const MODULES: [&str; 5] = [
    "dm-snapshot",
    "dm-zero",
    "dm-flakey",
    "dm-log-writes",
    "loop",
];

/// Loads what a guest needs before device-mapper can be used in it.
#[track_caller]
pub fn load_modules(banger: &Banger, vm: &str) {
    banger.exec(vm, &[&["modprobe", "-a"][..], &MODULES].concat());
}

#[test]
fn device_mapper_steps_hold_on_the_kernel_of_a_guest() {
    let banger = Banger::with_images(&["debian-bookworm"]);
    banger.ok(&["vm", "run", "-d", "--name", "a"]);
    load_modules(&banger, "a");
    let inside = Inside::bring(&banger, "a");
    for test in TESTS {
        inside.run(test);
        println!("in a guest: {test} ... ok");
    }
}
