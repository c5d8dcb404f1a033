//! The real Firecracker, told about a whole machine over its API. `BANGER_FIRECRACKER`
//! names the program; else it is looked for where banger looks.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use banger::host::Host;
use banger::host::identity::Separation;
use banger::model::units::Bytes;
use banger::model::vm::VmmKind;
use banger::plan::step::{FaultKind, LiveSizes, Presence, Step};
use banger::vmm::{Deadline, GuestState, of};

use serde_json::{Value, json};

use crate::confined;
use crate::kernel;
use crate::lab::{self, Lab, assert_sees};
use crate::support::{DEADLINE, skip};

/// A lab for Firecracker, or a line that says why there is none.
pub fn firecracker(test: &str, vm: u32) -> Option<Lab> {
    if lab::program("firecracker").is_none() {
        skip(test, "firecracker is not installed");
        return None;
    }
    if std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        skip(test, "/dev/kvm cannot be opened");
        return None;
    }
    Some(Lab::new(VmmKind::Firecracker, vm))
}

#[test]
fn firecracker_is_configured_twice_runs_a_guest_and_leaves_nothing() {
    let test = "firecracker_is_configured_twice_runs_a_guest_and_leaves_nothing";
    let Some(lab) = firecracker(test, 0x41) else {
        return;
    };
    let control = lab.host.layout().control_socket(lab.vm);
    let state = || {
        of(VmmKind::Firecracker)
            .state(&control, Deadline::after(DEADLINE))
            .unwrap()
    };
    lab.ensure_until("vmm");
    assert_sees(&lab, "configured", Presence::Different);
    for _ in 0..2 {
        lab.host.ensure(&lab.step("configured")).unwrap();
        assert_sees(&lab, "configured", Presence::Present);
    }
    assert_eq!(state(), GuestState::NotStarted);
    let vsock = lab.host.layout().vsock(lab.vm);
    assert!(vsock.metadata().unwrap().file_type().is_socket());
    for _ in 0..2 {
        lab.host.ensure(&lab.step("booted")).unwrap();
        assert_sees(&lab, "booted", Presence::Present);
    }
    assert_eq!(state(), GuestState::Running);
    assert_eq!(lab.console_with("runs\n"), kernel::GREETING);
    assert_is_a_user_without_rights(&lab);
    lab.remove_and_find_nothing();
    assert!(!vsock.exists());
}

/// Where this host gives VMs users of their own.
fn assert_is_a_user_without_rights(lab: &Lab) {
    let Some(user) = Separation::discover().identity(lab.vm) else {
        return;
    };
    let user = user.able_to_open(&[Path::new("/dev/kvm"), Path::new("/dev/net/tun")]);
    let pid = confined::pid_of(lab, of(VmmKind::Firecracker).marker(lab.vm));
    confined::assert_has_no_rights(pid, &user);
}

#[test]
fn firecracker_on_a_tap_runs_and_gives_it_back() {
    let test = "firecracker_on_a_tap_runs_and_gives_it_back";
    let Some(lab) = firecracker(test, 0x43) else {
        return;
    };
    let lab = lab.on_a_tap();
    let ran = lab::in_a_network_of_its_own("fc", || crate::runs_on_a_tap(&lab));
    if !ran {
        skip(test, "no network namespace can be made");
    }
}

/// What Firecracker says that it was told (`GET /vm/config`).
fn told(lab: &Lab) -> Value {
    let mut api = UnixStream::connect(lab.host.layout().control_socket(lab.vm)).unwrap();
    let ask = "GET /vm/config HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
    api.write_all(ask.as_bytes()).unwrap();
    api.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut reader = BufReader::new(api);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim().to_lowercase();
        if let Some(number) = line.strip_prefix("content-length:") {
            length = number.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    serde_json::from_slice(&body).unwrap()
}

#[test]
fn firecracker_has_the_limiters_and_the_balloon_that_it_was_told_and_runs_with_them() {
    let test = "firecracker_has_the_limiters_and_the_balloon_that_it_was_told_and_runs_with_them";
    let Some(lab) = firecracker(test, 0x44) else {
        return;
    };
    let lab = lab.on_a_tap();
    let ran = lab::in_a_network_of_its_own("fc-told", || {
        lab.ensure_until("booted");
        assert_eq!(lab.console_with("runs\n"), kernel::GREETING);
        let told = told(&lab);
        let per_second =
            |size: u64| json!({"size": size, "one_time_burst": null, "refill_time": 1000});
        let drives = told["drives"].as_array().unwrap();
        assert_eq!(drives.len(), 4, "{told}");
        for drive in drives {
            let limiter = &drive["rate_limiter"];
            assert_eq!(limiter["bandwidth"], per_second(64 << 20), "{told}");
            assert_eq!(limiter["ops"], per_second(1000), "{told}");
        }
        let device = &told["network-interfaces"][0];
        for way in ["rx_rate_limiter", "tx_rate_limiter"] {
            assert_eq!(device[way]["bandwidth"], per_second(4 << 20), "{told}");
        }
        let balloon = &told["balloon"];
        assert_eq!(balloon["amount_mib"], 0, "{told}");
        for switch in ["deflate_on_oom", "free_page_reporting"] {
            assert_eq!(balloon[switch], true, "{told}");
        }
        lab.remove_and_find_nothing();
    });
    if !ran {
        skip(test, "no network namespace can be made");
    }
}

/// A guest that has no driver of it has a balloon that hears nothing; its disk follows.
#[test]
fn firecracker_takes_a_longer_disk_while_it_runs_and_refuses_a_deaf_balloon() {
    let test = "firecracker_takes_a_longer_disk_while_it_runs_and_refuses_a_deaf_balloon";
    let Some(lab) = firecracker(test, 0x45) else {
        return;
    };
    lab.ensure_until("booted");
    let adjusted = |memory_target| Step::Adjusted {
        vm: lab.vm,
        machine: lab.machine.clone(),
        sizes: LiveSizes {
            work_disk: Bytes::mib(3),
            memory_target,
        },
    };
    let disk = lab.host.layout().work_disk(lab.vm);
    let file = std::fs::File::options().write(true).open(disk).unwrap();
    file.set_len(3 << 20).unwrap();
    for _ in 0..2 {
        lab.host.ensure(&adjusted(None)).unwrap();
    }
    let target = adjusted(Some(Bytes::mib(100)));
    let fault = lab.host.ensure(&target).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Other, "{fault}");
    assert!(fault.what.contains("PATCH /balloon"), "{fault}");
    let memory = lab.machine.memory;
    let vmms = lab.host.vmms();
    assert_eq!(
        vmms.memory_left(lab.vm, VmmKind::Firecracker, memory),
        Ok(memory)
    );
    lab.remove_and_find_nothing();
}

#[test]
fn what_firecracker_refuses_is_told_in_its_own_words() {
    let test = "what_firecracker_refuses_is_told_in_its_own_words";
    let Some(lab) = firecracker(test, 0x42) else {
        return;
    };
    lab.ensure_until("vmm");
    std::fs::write(lab.host.layout().vsock(lab.vm), "in the way").unwrap();
    let fault = lab.host.ensure(&lab.step("configured")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Other);
    assert!(fault.what.contains("PUT /vsock"), "{fault}");
    // Its words are those of the C library that it was linked with.
    assert!(fault.what.contains("os error 98"), "{fault}");
    lab.remove_and_find_nothing();
}
