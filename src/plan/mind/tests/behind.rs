//! Creations that wait for the deletion of the VM that has their name.

use super::*;

/// A desk with a VM `dev` whose deletion waits for the step that is told.
fn with_one_that_goes() -> (Desk, Event) {
    let mut desk = Desk::new(stocked());
    desk.holds = Some(StepKind::Ready);
    desk.ask(1, create("dev", Removal::WithClient));
    desk.hear(Event::ClientGone {
        client: ClientId(1),
    });
    desk.holds = None;
    let (vm, token) = desk.held.remove(0);
    let result = Err(Fault::new(FaultKind::Cancelled, "flag raised"));
    (desk, Event::StepDone { vm, token, result })
}

#[test]
fn creation_waits_for_the_deletion_of_the_one_of_its_name() {
    let (mut desk, goes) = with_one_that_goes();
    desk.ask(2, create("dev", Removal::Keep));
    desk.ask(3, create("dev", Removal::Keep));
    assert!(desk.replies.is_empty(), "{:?}", desk.replies);
    assert_eq!(desk.vms().len(), 1);
    desk.hear(goes);
    let reply = |client: u64| {
        let mut replies = desk.replies.iter();
        &replies.find(|(to, _)| *to == ClientId(client)).unwrap().1
    };
    assert!(matches!(reply(2), Reply::Vm(vm) if vm.phase == Phase::Running));
    assert!(matches!(reply(3), Reply::Failed(failure) if failure.what.contains("is taken")));
    assert_eq!(desk.vms().len(), 1);
}

#[test]
fn creation_that_waits_for_a_deletion_goes_with_its_client() {
    let (mut desk, goes) = with_one_that_goes();
    desk.ask(2, create("dev", Removal::Keep));
    desk.hear(Event::ClientGone {
        client: ClientId(2),
    });
    desk.hear(goes);
    assert!(desk.vms().is_empty() && desk.replies.is_empty());
}

#[test]
fn creation_behind_a_deletion_that_gets_stuck_is_refused() {
    let (mut desk, goes) = with_one_that_goes();
    desk.fails = Some((Verb::Absent, StepKind::Cgroup, FaultKind::Busy));
    desk.ask(2, create("dev", Removal::Keep));
    desk.hear(goes);
    desk.pass_pauses();
    assert!(desk.failure().what.contains("the name is taken"));
    assert_eq!(desk.vms()[0].phase, Phase::Stuck);
}

#[test]
fn creation_behind_a_deletion_is_refused_when_the_daemon_ends() {
    let (mut desk, _goes) = with_one_that_goes();
    desk.ask(2, create("dev", Removal::Keep));
    desk.hear(Event::Shutdown);
    assert!(desk.failure().what.contains("the daemon is ending"));
}

#[test]
fn creation_waits_for_what_went_with_the_client_of_an_earlier_daemon() {
    let mut before = Desk::new(stocked());
    before.ask(1, create("dev", Removal::WithClient));
    let vms = before.vms();
    let mut desk = Desk::unopened(Loaded { vms, ..stocked() });
    desk.fails = Some((Verb::Absent, StepKind::Cgroup, FaultKind::Busy));
    desk.hear(Event::Opened);
    let (alive, linked, held) = Default::default();
    desk.hear(Event::Recovered {
        alive,
        linked,
        held,
    });
    desk.ask(2, create("dev", Removal::Keep));
    assert!(desk.replies.is_empty(), "{:?}", desk.replies);
    desk.fails = None;
    desk.pass_pauses();
    assert!(matches!(desk.last_reply(), Reply::Vm(vm) if vm.phase == Phase::Running));
    assert_eq!(desk.vms().len(), 1);
}
