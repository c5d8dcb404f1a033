//! Control groups on the real kernel: this machine's, and that of a guest whose systemd
//! has the one hierarchy of version 2 with every controller.

use banger::host::cgroup::Groups;
use banger::plan::step::{GroupLimits, Step};

use super::support::inside::Inside;
use super::support::{Banger, skip};
use super::{VM, lab, make_and_remove_twice};

/// The test that the guest runs too.
const MADE_TWICE: &str = "cgroup::a_control_group_is_made_and_removed_twice";

#[test]
fn a_control_group_is_made_and_removed_twice() {
    if Groups::discover().is_none() {
        return skip(MADE_TWICE, "no cgroup v2 hierarchy is ours to use");
    }
    let limits = GroupLimits {
        cpu_weight: Some(200),
    };
    let weighed = Step::Cgroup { vm: VM, limits };
    lab::on_this_machine(|host| make_and_remove_twice(host, &weighed));
}

#[test]
fn control_groups_of_a_machine_with_systemd_are_made_alike() {
    let banger = Banger::with_images(&["debian-bookworm"]);
    banger.ok(&["vm", "run", "-d", "--name", "a"]);
    let inside = Inside::bring(&banger, "a");
    inside.run(MADE_TWICE);
}
