//! Sizes of a VM that runs.

use crate::plan::request::Changes;

use super::*;

fn adjust(changes: Changes) -> Request {
    Request::Set {
        target: target("dev"),
        changes,
    }
}

fn target_of(mebibytes: u64) -> Request {
    adjust(Changes {
        memory_target: Some(Bytes::mib(mebibytes)),
        ..Changes::default()
    })
}

fn longer(gibibytes: u64) -> Request {
    adjust(Changes {
        work_disk: Some(Bytes::gib(gibibytes)),
        ..Changes::default()
    })
}

fn last_row(desk: &Desk) -> &VmRecord {
    match desk.rows.last() {
        Some(RowChange::PutVm(row)) => row,
        other => panic!("no row: {other:?}"),
    }
}

#[test]
fn running_vm_gets_a_target_and_a_longer_disk_after_its_row_says_so() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let started = desk.vms()[0].started_at;
    desk.steps.clear();
    desk.holds = Some(StepKind::Adjusted);
    desk.now += 100;
    desk.ask(1, target_of(200));
    assert!(last_row(&desk).grows && last_row(&desk).phase == Phase::Running);
    let (disk, adjusted) = (StepKind::WorkDisk, StepKind::Adjusted);
    assert_eq!(desk.steps, [(Verb::Ensure, disk), (Verb::Ensure, adjusted)]);
    desk.ask(2, longer(2));
    assert_eq!(desk.failure().kind, FailureKind::Busy);
    desk.holds = None;
    let (vm, token) = desk.held.pop().unwrap();
    let result = Ok(());
    desk.hear(Event::StepDone { vm, token, result });
    assert_eq!(last_row(&desk).spec.memory_target, Some(Bytes::mib(200)));
    assert!(!last_row(&desk).grows && last_row(&desk).started_at == started);
    desk.ask(1, longer(2));
    assert_eq!(last_row(&desk).spec.work_disk, Bytes::gib(2));
    desk.ask(1, longer(1));
    assert_eq!(desk.failure().kind, FailureKind::Usage);
    desk.ask(1, target_of(512));
    assert_eq!(last_row(&desk).spec.memory_target, None);
}

#[test]
fn target_is_given_again_after_each_start_and_goes_with_less_memory() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.ask(1, target_of(200));
    let dev = || target("dev");
    desk.ask(1, Request::Restart { target: dev() });
    assert_eq!(desk.steps.last(), Some(&(Verb::Ensure, StepKind::Adjusted)));
    assert!(!desk.vms()[0].grows);
    desk.ask(1, Request::Stop { target: dev() });
    desk.ask(1, target_of(300));
    let failure = desk.failure();
    assert_eq!(failure.kind, FailureKind::Busy);
    assert!(
        failure
            .hint
            .as_ref()
            .unwrap()
            .contains("`banger vm start dev`")
    );
    let smaller = Changes {
        memory: Some(Bytes::mib(128)),
        ..Changes::default()
    };
    desk.ask(1, adjust(smaller));
    assert_eq!(last_row(&desk).spec.memory_target, None);
    desk.steps.clear();
    desk.ask(1, Request::Start { target: dev() });
    assert_eq!(desk.steps.last(), Some(&(Verb::Ensure, StepKind::Ready)));
}

#[test]
fn target_beyond_the_memory_or_below_what_a_guest_needs_is_refused() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let rows = desk.rows.len();
    for mebibytes in [0, 64, 513] {
        desk.ask(1, target_of(mebibytes));
        assert_eq!(desk.failure().kind, FailureKind::Usage, "{mebibytes}");
    }
    assert_eq!(desk.rows.len(), rows);
}

#[test]
fn adjustment_that_fails_leaves_the_vm_running_and_is_finished_by_the_next_daemon() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.fails = Some((Verb::Ensure, StepKind::Adjusted, FaultKind::Timeout));
    desk.ask(1, longer(2));
    let hint = desk.failure().hint.clone().unwrap();
    assert!(hint.contains("banger vm set dev"), "{hint}");
    let row = desk.vms().remove(0);
    assert!(row.grows && row.phase == Phase::Running);
    let alive = [row.id].into();
    let loaded = Loaded {
        vms: vec![row],
        ..stocked()
    };
    let mut next = Desk::with_alive(loaded, alive);
    assert_eq!(next.steps.last(), Some(&(Verb::Ensure, StepKind::Adjusted)));
    assert!(!next.vms()[0].grows);
}

#[test]
fn machine_without_a_balloon_keeps_no_target() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.fails = Some((Verb::Ensure, StepKind::Adjusted, FaultKind::Missing));
    desk.ask(1, target_of(200));
    assert_eq!(desk.failure().kind, FailureKind::Failed);
    assert_eq!(last_row(&desk).spec.memory_target, None);
    assert_eq!(desk.vms()[0].phase, Phase::Running);
}

#[test]
fn disk_that_is_missing_takes_no_target_away() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.fails = Some((Verb::Ensure, StepKind::WorkDisk, FaultKind::Missing));
    desk.ask(1, target_of(200));
    assert_eq!(desk.failure().kind, FailureKind::Failed);
    assert_eq!(last_row(&desk).spec.memory_target, Some(Bytes::mib(200)));
}

#[test]
fn vmm_that_ends_and_stop_that_comes_meanwhile_end_an_adjustment_first() {
    for by_stop in [false, true] {
        let mut desk = Desk::new(stocked());
        desk.ask(1, create("dev", Removal::Keep));
        desk.holds = Some(StepKind::Adjusted);
        desk.ask(1, longer(2));
        let (vm, token) = desk.held.pop().unwrap();
        if by_stop {
            let dev = target("dev");
            desk.ask(2, Request::Stop { target: dev });
        } else {
            let run = desk.mind.vms[&vm].run.unwrap();
            let reason = "killed".to_owned();
            desk.hear(Event::VmmExited { vm, run, reason });
        }
        assert!(desk.others.contains(&Action::CancelStep { vm, token }));
        let ends = desk.vms()[0].phase == Phase::Stopping;
        assert_ne!(ends, by_stop);
        let result = Err(Fault::new(FaultKind::Cancelled, "cancelled"));
        desk.hear(Event::StepDone { vm, token, result });
        let row = desk.vms().remove(0);
        assert!(row.phase == Phase::Stopped && row.grows);
        assert_eq!(row.reason.is_none(), by_stop, "{:?}", row.reason);
    }
}
