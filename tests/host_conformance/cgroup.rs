//! Control groups on the real kernel: this machine's, and that of a guest whose systemd
//! has the one hierarchy of version 2 with every controller.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};

use banger::host::Host;
use banger::host::cgroup::Groups;
use banger::model::ids::VmId;
use banger::model::units::Bytes;
use banger::plan::step::{GroupLimits, Presence, Step};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::support::inside::Inside;
use super::support::{Banger, skip};
use super::{VM, lab, make_and_remove_twice};

/// The tests that the guest runs too.
const MADE_TWICE: &str = "cgroup::a_control_group_is_made_and_removed_twice";
const WEIGHED: &str = "cgroup::a_group_gets_processor_time_by_its_weight";
const HELD: &str = "cgroup::a_group_holds_its_members_to_its_limits";

fn group(limits: GroupLimits) -> Step {
    Step::Cgroup { vm: VM, limits }
}

fn limits() -> GroupLimits {
    GroupLimits {
        memory: Some(Bytes::mib(64)),
        swap: Some(Bytes(0)),
        tasks: Some(8),
        processors: Some(2),
        ..GroupLimits::default()
    }
}

fn weight() -> GroupLimits {
    GroupLimits {
        cpu_weight: Some(200),
        ..GroupLimits::default()
    }
}

#[test]
fn a_control_group_is_made_and_removed_twice() {
    if Groups::discover().is_none() {
        return skip(MADE_TWICE, "no cgroup v2 hierarchy is ours to use");
    }
    lab::on_this_machine(|host| {
        make_and_remove_twice(host, &group(GroupLimits::default()));
        make_and_remove_twice(host, &group(limits()));
        make_and_remove_twice(host, &group(weight()));
    });
}

#[test]
fn a_group_holds_its_members_to_its_limits() {
    let groups = Groups::discover();
    let Some(groups) = groups.filter(|groups| groups.controllers().len() == 3) else {
        return skip(
            HELD,
            "no cgroup v2 hierarchy with controllers of cpu, memory and pids",
        );
    };
    lab::on_this_machine(|host| {
        let step = group(limits());
        host.ensure(&group(GroupLimits::default())).unwrap();
        assert_eq!(host.probe(&step), Ok(Presence::Different));
        host.ensure(&step).unwrap();
        assert_eq!(host.probe(&step), Ok(Presence::Present));
        let path = groups.path(VM);
        let read = |file: &str| fs::read_to_string(path.join(file)).unwrap();
        assert_eq!(read("memory.max").trim(), (64 << 20).to_string());
        assert_eq!(read("pids.max"), "8\n");
        assert_eq!(read("cpu.max"), "200000 100000\n");

        // dd takes its block in memory: 32 MiB are allowed, 128 are its end.
        let joined = format!("echo $$ >{}/cgroup.procs; ", path.display());
        let block = |size: &str| format!("{joined} dd if=/dev/zero of=/dev/null bs={size} count=1");
        assert!(run(&block("32M")).success());
        assert!(!run(&block("128M")).success());
        assert!(
            read("memory.events").contains("oom_kill 1"),
            "{}",
            read("memory.events")
        );

        let many = format!("{joined} for n in 1 2 3 4 5 6 7 8 9; do tail -f /dev/null & done");
        let _refused_at_the_eighth = run(&many);
        assert!(
            !read("pids.events").starts_with("max 0"),
            "{}",
            read("pids.events")
        );
        host.absent(&step).unwrap();
        assert_eq!(host.probe(&step), Ok(Presence::Absent));
    });
}

/// Both on one processor: a group that spins as long as it lives, and then one of four times
/// its weight that spins a while. Whose share is whose is asked of the kernel, not of a clock.
#[test]
fn a_group_gets_processor_time_by_its_weight() {
    let groups = Groups::discover();
    let Some(groups) = groups.filter(|groups| groups.controllers().contains(&"cpu")) else {
        return skip(WEIGHED, "no cgroup v2 hierarchy with a controller of cpu");
    };
    lab::on_this_machine(|host| {
        let of = |vm, cpu_weight| {
            let cpu_weight = Some(cpu_weight);
            let limits = GroupLimits {
                cpu_weight,
                ..GroupLimits::default()
            };
            Step::Cgroup { vm, limits }
        };
        let other = VmId::from_bits(!std::process::id());
        let steps = [of(VM, 100), of(other, 400)];
        steps.iter().for_each(|step| host.ensure(step).unwrap());
        on_one_processor();
        let joined = |vm| format!("echo $$ >{}/cgroup.procs; ", groups.path(vm).display());
        let used = |vm| used_us(&groups.path(vm));
        let endless = format!("{} while :; do :; done", joined(VM));
        let mut light = Command::new("sh").args(["-c", &endless]).spawn().unwrap();
        let before = used(VM);
        let work = "n=0; while [ $n -lt 300000 ]; do n=$((n+1)); done";
        assert!(run(&format!("{} {work}", joined(other))).success());
        let (lighter, heavier) = (used(VM) - before, used(other));
        light.kill().unwrap();
        light.wait().unwrap();
        steps.iter().for_each(|step| host.absent(step).unwrap());
        assert!(lighter > 0 && heavier > 2 * lighter, "{lighter} {heavier}");
    });
}

/// For the programs that this thread starts from now on.
fn on_one_processor() {
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first).unwrap();
}

/// Microseconds of processor time (cgroup-v2.rst, `cpu.stat`).
fn used_us(group: &Path) -> u64 {
    let text = fs::read_to_string(group.join("cpu.stat")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    line.unwrap().parse().unwrap()
}

fn run(script: &str) -> ExitStatus {
    Command::new("sh").args(["-c", script]).status().unwrap()
}

#[test]
fn control_groups_of_a_machine_with_systemd_are_made_and_hold() {
    let banger = Banger::with_images(&["debian-bookworm"]);
    banger.ok(&["vm", "run", "-d", "--name", "a"]);
    let inside = Inside::bring(&banger, "a");
    inside.run(MADE_TWICE);
    inside.run(HELD);
    inside.run(WEIGHED);
}
