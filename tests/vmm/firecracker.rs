//! The real Firecracker, told about a whole machine over its API. `BANGER_FIRECRACKER`
//! names the program; else it is looked for where banger looks.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use banger::host::Host;
use banger::host::identity::Separation;
use banger::model::vm::VmmKind;
use banger::plan::step::{FaultKind, Presence};
use banger::vmm::{Deadline, GuestState, of};

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
    assert!(fault.what.contains("Address already in use"), "{fault}");
    lab.remove_and_find_nothing();
}
