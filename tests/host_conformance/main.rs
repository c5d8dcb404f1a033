//! The host plane on the real kernel: every step made, looked at and removed twice, in
//! agreement with the simulated world, and what guests may send, proved with real packets. Each test in network namespaces of
//! its own; skipped by name where we are not root.

#![allow(clippy::unwrap_used, reason = "a test's helper fails its test")]
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

mod barriers;
mod both;
mod cgroup;
mod faulty_disk;
mod firewalls;
mod forwarding;
mod guest;
mod in_a_guest;
mod lab;
mod limits;
mod mapped;
mod packets;
mod place;
mod power;
mod published;
mod real;
mod roots;
mod script;
#[path = "../support/mod.rs"]
mod support;
#[path = "../vmm/kernel.rs"]
mod tiny_kernel;
// The simulation's world itself, not a copy: it names the crate's rooms as `crate::…`.
#[allow(dead_code, reason = "the simulation uses the rest")]
#[path = "../../src/sim/world.rs"]
mod world;
mod write_log;

use std::net::Ipv4Addr;

use banger::host::bridge::Bridge;
use banger::host::link::Links;
use banger::host::{Host, RealHost, facts};
use banger::model::ids::VmId;
use banger::model::net::Subnet;
use banger::model::units::Bytes;
use banger::plan::step::{FaultKind, Outside, Presence, Step, TapLimit};
use banger::{model, plan};

use lab::{Lab, ip, run_program};

const VM: VmId = VmId::from_bits(0x2a);

fn subnet() -> Subnet {
    "172.30.0.0/24".parse().unwrap()
}

fn tap(vm: VmId) -> Step {
    Step::Tap {
        vm,
        subnet: subnet(),
    }
}

fn rules(vm: VmId, address: Ipv4Addr, outside: Outside) -> Step {
    Step::NetRules {
        vm,
        address,
        subnet: subnet(),
        outside,
        publish: Vec::new(),
    }
}

fn net_limit(vm: VmId, bandwidth: Bytes) -> Step {
    let limit = TapLimit {
        subnet: subnet(),
        bandwidth,
    };
    Step::NetLimit { vm, limit }
}

fn first_address() -> Ipv4Addr {
    subnet().guest(0).unwrap()
}

/// The script that every kind of object has to pass.
fn make_and_remove_twice(host: &RealHost, step: &Step) {
    let word = step.kind().word();
    assert_eq!(host.probe(step), Ok(Presence::Absent), "{word}");
    assert_eq!(host.absent(step), Ok(()), "{word}");
    for _ in 0..2 {
        assert_eq!(host.ensure(step), Ok(()), "{word}");
        assert_eq!(host.probe(step), Ok(Presence::Present), "{word}");
    }
    for _ in 0..2 {
        assert_eq!(host.absent(step), Ok(()), "{word}");
        assert_eq!(host.probe(step), Ok(Presence::Absent), "{word}");
    }
}

#[test]
fn every_object_is_made_and_removed_twice() {
    lab::run("every_object_is_made_and_removed_twice", |lab: &mut Lab| {
        let size = Bytes::mib(64);
        make_and_remove_twice(&lab.host, &Step::VmDirectory { vm: VM });
        lab.host.ensure(&Step::VmDirectory { vm: VM }).unwrap();
        for step in [
            Step::UpperDisk { vm: VM, size },
            Step::WorkDisk { vm: VM, size },
            Step::RunDirectory { vm: VM },
            tap(VM),
            rules(VM, first_address(), Outside::Closed),
            rules(VM, first_address(), Outside::Nat),
            net_limit(VM, Bytes::mib(1)),
        ] {
            make_and_remove_twice(&lab.host, &step);
        }
    });
}

#[test]
fn a_half_made_tap_is_seen_and_completed() {
    lab::run("a_half_made_tap_is_seen_and_completed", |lab: &mut Lab| {
        let step = tap(VM);
        lab.host.ensure(&step).unwrap();
        for damage in [
            "link set bgr-0000002a down",
            "link set bgr-0000002a nomaster",
            "link set bgr-0000002a type bridge_slave isolated off",
            "addr flush dev banger0",
            "link set banger0 down",
            "link delete banger0",
        ] {
            ip(damage);
            assert_eq!(lab.host.probe(&step), Ok(Presence::Different), "{damage}");
            assert_eq!(lab.host.ensure(&step), Ok(()), "{damage}");
            assert_eq!(lab.host.probe(&step), Ok(Presence::Present), "{damage}");
        }
    });
}

#[test]
fn a_changed_lease_replaces_the_former_elements() {
    lab::run(
        "a_changed_lease_replaces_the_former_elements",
        |lab: &mut Lab| {
            let former = rules(VM, first_address(), Outside::Nat);
            let later = rules(VM, subnet().guest(7).unwrap(), Outside::Closed);
            lab.host.ensure(&tap(VM)).unwrap();
            lab.host.ensure(&former).unwrap();
            assert_eq!(lab.host.probe(&later), Ok(Presence::Different));
            lab.host.ensure(&later).unwrap();
            assert_eq!(lab.host.probe(&later), Ok(Presence::Present));
            let left = run_program("nft", "list ruleset");
            assert!(!left.contains(&first_address().to_string()), "{left}");
            lab.host.absent(&former).unwrap();
            assert_eq!(lab.host.probe(&later), Ok(Presence::Absent));
        },
    );
}

#[test]
fn rules_of_another_version_are_replaced_and_elements_kept() {
    lab::run("rules_of_another_version_are_replaced", |lab: &mut Lab| {
        let step = rules(VM, first_address(), Outside::Closed);
        lab.host.ensure(&step).unwrap();
        let before = run_program("nft", "-s list ruleset");
        let sets = run_program("nft", "list sets table inet banger_banger0");
        let marker = sets
            .split_whitespace()
            .find(|word| word.starts_with("rules_"));
        run_program(
            "nft",
            &format!("delete set inet banger_banger0 {}", marker.unwrap()),
        );
        run_program(
            "nft",
            "add set inet banger_banger0 rules_00000000 { type ipv4_addr; }",
        );
        run_program("nft", "add rule inet banger_banger0 input drop");
        assert_eq!(lab.host.probe(&step), Ok(Presence::Different));
        lab.host.ensure(&step).unwrap();
        assert_eq!(run_program("nft", "-s list ruleset"), before);
    });
}

#[test]
fn a_foreign_bridge_of_our_name_is_refused() {
    lab::run(
        "a_foreign_bridge_of_our_name_is_refused",
        |lab: &mut Lab| {
            ip("link add banger0 type bridge");
            let fault = lab.host.ensure(&tap(VM)).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Denied);
            assert!(
                fault.what.contains("banger0") && fault.what.contains("not ours"),
                "{fault}"
            );
            assert_eq!(lab.host.probe(&tap(VM)), Ok(Presence::Absent));
        },
    );
}

#[test]
fn a_network_that_is_in_use_is_refused_by_the_name_of_its_interface() {
    lab::run("a_network_that_is_in_use_is_refused", |lab: &mut Lab| {
        ip("link add lan0 type bridge");
        ip("addr add 172.30.0.77/16 dev lan0");
        ip("link set lan0 up");
        let fault = lab.host.ensure(&tap(VM)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied);
        assert!(fault.what.contains("172.30.0.0/16"), "{fault}");
        assert!(fault.what.contains("lan0"), "{fault}");
        assert_eq!(Links::open().unwrap().find("banger0").unwrap(), None);
    });
}

#[test]
fn forwarding_is_opened_by_interface_noted_and_closed_again() {
    lab::run("forwarding_is_opened_by_interface", |lab: &mut Lab| {
        let _server = lab.connect_to_internet();
        let read =
            |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
        lab.host.ensure(&tap(VM)).unwrap();
        lab.host
            .ensure(&rules(VM, first_address(), Outside::Closed))
            .unwrap();
        assert_eq!(read("conf/up0/forwarding"), "0\n");
        assert_eq!(read("conf/banger0/forwarding"), "0\n");
        lab.host
            .ensure(&rules(VM, first_address(), Outside::Nat))
            .unwrap();
        assert_eq!(read("conf/up0/forwarding"), "1\n");
        assert_eq!(read("conf/banger0/forwarding"), "1\n");
        assert_eq!(read("ip_forward"), "0\n");
        lab.host.remove_network().unwrap();
        assert_eq!(read("conf/up0/forwarding"), "0\n");
    });
}

#[test]
fn many_vms_start_at_once_on_a_machine_without_bridge_or_rules() {
    lab::run("many_vms_start_at_once", |lab: &mut Lab| {
        let host = &lab.host;
        std::thread::scope(|scope| {
            for index in 0..8 {
                scope.spawn(move || {
                    let vm = VmId::from_bits(index);
                    let address = subnet().guest(index).unwrap();
                    host.ensure(&tap(vm)).unwrap();
                    host.ensure(&rules(vm, address, Outside::Nat)).unwrap();
                    assert_eq!(host.probe(&tap(vm)), Ok(Presence::Present));
                });
            }
        });
        for index in 0..8 {
            let address = subnet().guest(index).unwrap();
            let step = rules(VmId::from_bits(index), address, Outside::Nat);
            assert_eq!(host.probe(&step), Ok(Presence::Present));
        }
    });
}

#[test]
fn a_full_disk_is_noticed_before_anything_is_written() {
    lab::run("a_full_disk_is_noticed", |lab: &mut Lab| {
        let directory = Step::VmDirectory { vm: VM };
        lab.host.ensure(&directory).unwrap();
        let small = Mounted::tmpfs(&lab.host.layout().vm_directory(VM), "size=32m");
        let step = Step::WorkDisk {
            vm: VM,
            size: Bytes::gib(1),
        };
        let fault = lab.host.ensure(&step).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Full);
        assert!(fault.what.contains("MiB are needed"), "{fault}");
        assert_eq!(std::fs::read_dir(&small.0).unwrap().count(), 0);
    });
}

/// A file system that is there until this is dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(path: &std::path::Path, options: &str) -> Mounted {
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", path, "tmpfs", flags, options.as_c_str()).unwrap();
        Mounted(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn facts_tell_that_taps_may_be_made_and_what_stands_against_the_bridge() {
    lab::run("facts_tell_that_taps_may_be_made", |lab: &mut Lab| {
        ip("link add lan0 type bridge");
        ip("addr add 172.30.0.77/16 dev lan0");
        ip("link set lan0 up");
        let all = facts::findings(&facts::Look {
            layout: lab.host.layout(),
            bridge: Bridge {
                name: "banger0",
                subnet: subnet(),
            },
            programs: &banger::host::program::Programs::default(),
        });
        let found = |name: &str| all.iter().find(|one| one.name == name).unwrap();
        assert!(found("taps").ok, "{all:?}");
        assert!(found("mke2fs").ok, "{all:?}");
        assert!(
            !found("bridge").ok && found("bridge").detail.contains("lan0"),
            "{all:?}"
        );
    });
}
