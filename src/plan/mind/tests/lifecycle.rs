//! What becomes of a VM.

use super::*;
use crate::plan::mind::say;
use crate::plan::operation::Goal;
use crate::plan::request::Changes;

#[test]
fn create_and_start_leads_to_a_running_vm_with_a_lease() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let Reply::Vm(vm) = desk.last_reply() else {
        panic!("{:?}", desk.last_reply());
    };
    assert_eq!(vm.phase, Phase::Running);
    assert!(vm.lease.is_some() && vm.started_at == Some(1000));
    assert_eq!(desk.steps.last(), Some(&(Verb::Ensure, StepKind::Ready)));
}

#[test]
fn what_goes_on_to_a_start_is_saved_once_before_it() {
    let phases = |desk: &Desk| -> Vec<Phase> {
        let rows = desk.rows.iter().map(|change| match change {
            RowChange::PutVm(row) => row.phase,
            other => panic!("{other:?}"),
        });
        rows.collect()
    };
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    use Phase as P;
    assert_eq!(phases(&desk), [P::Creating, P::Starting, P::Running]);
    desk.rows.clear();
    let target = target("dev");
    desk.ask(1, Request::Restart { target });
    assert_eq!(phases(&desk), [P::Stopping, P::Starting, P::Running]);
}

#[test]
fn clock_that_is_set_back_changes_nothing_but_the_times() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.now = 0;
    let target = || target("dev");
    desk.ask(1, Request::Stop { target: target() });
    desk.ask(1, Request::Start { target: target() });
    let vm = desk.vms().remove(0);
    assert_eq!((vm.phase, vm.created_at), (Phase::Running, 1000));
    assert_eq!(vm.started_at, Some(0));
    desk.ask(1, create("later", Removal::Keep));
    assert_eq!(desk.vms().len(), 2);
}

#[test]
fn stop_removes_the_run_in_reverse_and_start_makes_it_again() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.steps.clear();
    desk.ask(
        1,
        Request::Stop {
            target: target("dev"),
        },
    );
    let kinds: Vec<StepKind> = desk.steps.iter().map(|(_, kind)| *kind).collect();
    use StepKind as K;
    assert_eq!(
        kinds,
        [
            K::Vmm,
            K::VsockBackend,
            K::Cgroup,
            K::NetRules,
            K::Tap,
            K::RunDirectory
        ]
    );
    assert_eq!(desk.vms()[0].phase, Phase::Stopped);
    desk.ask(
        1,
        Request::Start {
            target: target("dev"),
        },
    );
    assert_eq!(desk.vms()[0].phase, Phase::Running);
}

#[test]
fn fault_while_creating_leaves_no_vm() {
    let mut desk = Desk::new(stocked());
    desk.fails = Some((Verb::Ensure, StepKind::WorkDisk, FaultKind::Full));
    desk.ask(1, create("dev", Removal::Keep));
    assert!(desk.failure().to_string().starts_with("create vm dev"));
    assert!(desk.failure().hint.as_ref().unwrap().contains("prune"));
    assert!(desk.vms().is_empty());
}

#[test]
fn start_that_never_runs_takes_its_creation_with_it() {
    let mut desk = Desk::new(stocked());
    desk.fails = Some((Verb::Ensure, StepKind::Vmm, FaultKind::Missing));
    desk.ask(1, create("dev", Removal::Keep));
    assert!(desk.failure().to_string().starts_with("start vm dev"));
    assert!(desk.vms().is_empty());
}

#[test]
fn remedy_that_a_step_knows_is_the_hint() {
    let remedy = "Run `banger image pull x --force` to make it again.";
    let fault = Fault::new(FaultKind::Missing, "check x").remedy(Some(remedy.to_owned()));
    let name = "dev".parse().unwrap();
    let failure = say::failure(Goal::Start, &name, &fault, Some(StepKind::Vmm));
    assert_eq!(failure.hint.as_deref(), Some(remedy));
}

#[test]
fn guest_that_never_answers_is_kept_and_said_so() {
    let mut desk = Desk::new(stocked());
    desk.fails = Some((Verb::Ensure, StepKind::Ready, FaultKind::Timeout));
    desk.ask(1, create("dev", Removal::WithClient));
    assert!(
        desk.failure()
            .hint
            .as_ref()
            .unwrap()
            .contains("vm logs dev --console")
    );
    desk.hear(Event::ClientGone {
        client: ClientId(1),
    });
    let vms = desk.vms();
    assert_eq!(vms[0].phase, Phase::Stopped);
    assert_eq!(vms[0].removal, Removal::Keep);
    assert_eq!(vms[0].reason.as_deref(), Some("planted"));
}

#[test]
fn vm_of_a_client_goes_with_its_connection() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::WithClient));
    assert_eq!(desk.vms().len(), 1);
    desk.hear(Event::ClientGone {
        client: ClientId(2),
    });
    assert_eq!(desk.vms().len(), 1);
    desk.hear(Event::ClientGone {
        client: ClientId(1),
    });
    assert!(desk.vms().is_empty());
}

/// What a daemon leaves of a VM that runs and goes with its client.
fn left_by_a_daemon() -> (VmRecord, Loaded) {
    let mut before = Desk::new(stocked());
    before.ask(1, create("dev", Removal::WithClient));
    let vm = before.vms().remove(0);
    let vms = vec![vm.clone()];
    (vm, Loaded { vms, ..stocked() })
}

#[test]
fn vm_whose_client_outlives_the_daemon_goes_with_the_client_all_the_same() {
    let (vm, loaded) = left_by_a_daemon();
    let mut desk = Desk::with_held(loaded, BTreeSet::from([vm.id]));
    assert_eq!(desk.vms()[0].phase, Phase::Running);
    assert!(desk.others.contains(&Action::WatchHold { vm: vm.id }));
    // Stopped by somebody, it is still its client's.
    let target = target("dev");
    desk.ask(2, Request::Stop { target });
    assert_eq!(desk.vms()[0].phase, Phase::Stopped);
    desk.hear(Event::HoldReleased { vm: vm.id });
    assert!(desk.vms().is_empty());
}

#[test]
fn vm_whose_client_ended_with_the_daemon_is_deleted_by_the_next() {
    let (vm, loaded) = left_by_a_daemon();
    let mut desk = Desk::with_alive(loaded, BTreeSet::from([vm.id]));
    assert!(desk.vms().is_empty());
}

#[test]
fn client_that_leaves_while_the_guest_boots_turns_the_start() {
    let mut desk = Desk::new(stocked());
    desk.holds = Some(StepKind::Ready);
    desk.ask(1, create("dev", Removal::Keep));
    desk.hear(Event::ClientGone {
        client: ClientId(1),
    });
    let cancelled = desk.others.iter().find_map(|action| match action {
        Action::CancelStep { vm, token } => Some((*vm, *token)),
        _ => None,
    });
    let (vm, token) = cancelled.expect("the waiting for the guest is cancelled");
    let result = Err(Fault::new(FaultKind::Cancelled, "flag raised"));
    desk.hear(Event::StepDone { vm, token, result });
    assert!(desk.vms().is_empty());
}

#[test]
fn stop_behind_a_start_turns_it_and_both_are_answered() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.ask(
        1,
        Request::Stop {
            target: target("dev"),
        },
    );
    desk.holds = Some(StepKind::Booted);
    desk.ask(
        1,
        Request::Start {
            target: target("dev"),
        },
    );
    desk.replies.clear();
    desk.ask(
        2,
        Request::Stop {
            target: target("dev"),
        },
    );
    let cancelled = desk.others.iter().find_map(|action| match action {
        Action::CancelStep { vm, token } => Some((*vm, *token)),
        _ => None,
    });
    let (vm, token) = cancelled.unwrap();
    desk.hear(Event::StepDone {
        vm,
        token,
        result: Ok(()),
    });
    assert!(
        matches!(&desk.replies[0], (ClientId(1), Reply::Failed(f)) if f.kind == FailureKind::Cancelled)
    );
    assert!(matches!(&desk.replies[1], (ClientId(2), Reply::Vm(vm)) if vm.phase == Phase::Stopped));
}

#[test]
fn running_vm_is_deleted_only_with_force() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let delete = |force| Request::Delete {
        target: target("dev"),
        force,
    };
    desk.ask(1, delete(Force::Refuse));
    assert_eq!(desk.failure().kind, FailureKind::Busy);
    desk.ask(1, delete(Force::Kill));
    assert!(matches!(desk.last_reply(), Reply::Deleted { .. }));
    assert!(desk.vms().is_empty());
}

#[test]
fn running_vms_get_their_network_rules_back_before_they_are_adopted() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let vm = desk.vms().remove(0);
    let loaded = Loaded {
        vms: vec![vm.clone()],
        ..stocked()
    };
    let desk = Desk::with_alive(loaded, BTreeSet::from([vm.id]));
    let asked = desk.others.iter().find_map(|action| match action {
        Action::FindVmms { running: asked, .. } => asked.first(),
        _ => None,
    });
    let (asked, mend) = asked.expect("it was running");
    let kinds: Vec<StepKind> = mend.iter().map(Step::kind).collect();
    assert_eq!((*asked, kinds), (vm.id, vec![StepKind::NetRules]));
}

#[test]
fn crash_with_a_running_vm_adopts_it_and_its_later_exit_is_noticed() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let vm = desk.vms().remove(0);
    let loaded = Loaded {
        vms: vec![vm.clone()],
        ..stocked()
    };
    let mut desk = Desk::with_alive(loaded, BTreeSet::from([vm.id]));
    assert!(desk.steps.is_empty());
    let run = desk.others.iter().find_map(|action| match action {
        Action::Watch { run, .. } => Some(*run),
        _ => None,
    });
    desk.hear(Event::VmmExited {
        vm: vm.id,
        run: run.expect("it is watched"),
        reason: "killed by signal 9".to_owned(),
    });
    let vm = desk.vms().remove(0);
    assert_eq!(vm.phase, Phase::Stopped);
    assert_eq!(vm.reason.as_deref(), Some("killed by signal 9"));
}

/// Tells the desk that the back end of the last watched run was killed.
fn kill_backend(desk: &mut Desk, vm: VmId) {
    let watched = desk.others.iter().rev().find_map(|action| match action {
        Action::WatchBackend { run, .. } => Some(*run),
        _ => None,
    });
    desk.hear(Event::BackendExited {
        vm,
        run: watched.expect("it is watched"),
        how: Some("killed by signal 9".to_owned()),
    });
}

const BACKEND_KILLED: &str = "its vsock back end was lost: killed by signal 9";

#[test]
fn vm_whose_back_end_dies_is_stopped_with_the_reason() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let vm = desk.vms().remove(0).id;
    kill_backend(&mut desk, vm);
    let record = desk.vms().remove(0);
    assert_eq!(record.phase, Phase::Stopped);
    assert_eq!(record.reason.as_deref(), Some(BACKEND_KILLED));
    assert_eq!(
        desk.steps.last(),
        Some(&(Verb::Absent, StepKind::RunDirectory))
    );
}

#[test]
fn start_whose_back_end_dies_fails_with_the_reason() {
    let mut desk = Desk::new(stocked());
    desk.holds = Some(StepKind::Ready);
    desk.ask(1, create("dev", Removal::Keep));
    let (vm, token) = desk.held[0];
    kill_backend(&mut desk, vm);
    let cancelled = Action::CancelStep { vm, token };
    assert!(desk.others.contains(&cancelled), "{:?}", desk.others);
    let result = Err(Fault::new(FaultKind::Cancelled, "flag raised"));
    desk.hear(Event::StepDone { vm, token, result });
    assert!(desk.failure().to_string().contains(BACKEND_KILLED));
}

#[test]
fn back_end_that_dies_while_the_guest_powers_off_does_not_end_its_time() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let vm = desk.vms().remove(0).id;
    desk.deaf = true;
    let dev = target("dev");
    desk.ask(1, Request::Stop { target: dev });
    desk.steps.clear();
    kill_backend(&mut desk, vm);
    assert_eq!(desk.steps, []);
    assert_eq!(desk.vms()[0].phase, Phase::Stopping);
}

#[test]
fn crash_with_a_back_end_that_died_meanwhile_stops_the_vm() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let vm = desk.vms().remove(0);
    let (id, loaded) = (
        vm.id,
        Loaded {
            vms: vec![vm],
            ..stocked()
        },
    );
    let mut desk = Desk::recovered(loaded, BTreeSet::from([id]), BTreeSet::new());
    let vm = desk.vms().remove(0);
    assert_eq!(vm.phase, Phase::Stopped);
    let reason = "its vsock back end ended while no daemon ran";
    assert_eq!(vm.reason.as_deref(), Some(reason));
}

#[test]
fn restart_leads_back_to_running() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.ask(
        1,
        Request::Restart {
            target: target("dev"),
        },
    );
    assert!(matches!(desk.last_reply(), Reply::Vm(vm) if vm.phase == Phase::Running));
}

#[test]
fn reset_makes_only_the_upper_disk_anew() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.ask(
        1,
        Request::Stop {
            target: target("dev"),
        },
    );
    desk.steps.clear();
    desk.ask(
        1,
        Request::Reset {
            target: target("dev"),
        },
    );
    let upper = StepKind::UpperDisk;
    assert_eq!(desk.steps, [(Verb::Absent, upper), (Verb::Ensure, upper)]);
    assert_eq!(desk.vms()[0].phase, Phase::Stopped);
}

#[test]
fn new_sizes_are_durable_at_once_and_the_next_start_begins_with_the_disks() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let set = |work_disk| Request::Set {
        target: target("dev"),
        changes: Changes {
            vcpu: Some(2),
            work_disk: Some(work_disk),
            ..Changes::default()
        },
    };
    desk.ask(1, set(Bytes::gib(2)));
    assert_eq!(desk.failure().kind, FailureKind::Busy);
    let dev = || target("dev");
    desk.ask(1, Request::Stop { target: dev() });
    desk.steps.clear();
    desk.ask(1, set(Bytes::gib(2)));
    let Some(RowChange::PutVm(row)) = desk.rows.last() else {
        panic!("no row: {:?}", desk.rows);
    };
    assert!(row.grows && row.spec.vcpu == 2 && row.spec.work_disk == Bytes::gib(2));
    assert_eq!(desk.steps, []);
    desk.ask(1, set(Bytes::gib(1)));
    assert_eq!(desk.failure().kind, FailureKind::Usage);
    desk.ask(1, Request::Start { target: dev() });
    assert!(desk.steps.contains(&(Verb::Ensure, StepKind::WorkDisk)));
    let vm = &desk.vms()[0];
    assert!(!vm.grows && vm.phase == Phase::Running);
    desk.ask(1, Request::Stop { target: dev() });
    desk.steps.clear();
    desk.ask(1, Request::Start { target: dev() });
    assert!(!desk.steps.contains(&(Verb::Ensure, StepKind::WorkDisk)));
}

#[test]
fn a_store_without_names_sweeps_nothing_and_one_with_names_does() {
    assert!(Desk::new(Loaded::default()).jobs.is_empty());
    assert_eq!(Desk::new(stocked()).jobs.len(), 1);
}

#[test]
fn shutdown_ends_at_once_when_idle_and_refuses_new_work() {
    let mut desk = Desk::new(stocked());
    desk.end_sweep();
    desk.hear(Event::Shutdown);
    assert!(desk.others.contains(&Action::Exit));
    desk.ask(1, create("dev", Removal::Keep));
    assert_eq!(desk.failure().kind, FailureKind::Busy);
}

#[test]
fn shutdown_waits_for_a_booting_guest_which_then_runs() {
    let mut desk = Desk::new(stocked());
    desk.end_sweep();
    desk.holds = Some(StepKind::Ready);
    desk.ask(1, create("dev", Removal::Keep));
    desk.hear(Event::Shutdown);
    assert!(!desk.others.contains(&Action::Exit));
    let (vm, token) = desk.held[0];
    let result = Ok(());
    desk.hear(Event::StepDone { vm, token, result });
    assert!(matches!(desk.rows.last(), Some(RowChange::PutVm(row)) if row.phase == Phase::Running));
    assert!(matches!(desk.last_reply(), Reply::Vm(_)));
    assert!(desk.others.contains(&Action::Exit));
}

#[test]
fn at_most_eight_steps_are_under_way() {
    let mut desk = Desk::new(stocked());
    desk.holds = Some(StepKind::VmDirectory);
    for number in 0..12 {
        desk.ask(number, create(&format!("vm{number}"), Removal::Keep));
    }
    assert_eq!(desk.steps.len(), 8);
    let (vm, token) = desk.held[0];
    let result = Ok(());
    desk.hear(Event::StepDone { vm, token, result });
    let first = desk
        .steps
        .iter()
        .filter(|(_, kind)| *kind == StepKind::VmDirectory);
    assert_eq!(first.count(), 9);
}

#[test]
fn unreadable_vm_is_shown_stuck_and_can_only_be_deleted() {
    let unreadable = crate::plan::record::Unreadable {
        id: crate::model::ids::VmId::from_bits(5),
        name: Some("old".parse().unwrap()),
        lease: None,
        reason: "unknown step".to_owned(),
    };
    let mut desk = Desk::new(Loaded {
        unreadable: vec![unreadable],
        ..stocked()
    });
    assert!(desk.steps.is_empty() && desk.rows.is_empty() && desk.jobs.is_empty());
    assert_eq!(desk.vms()[0].phase, Phase::Stuck);
    desk.ask(
        1,
        Request::Start {
            target: target("old"),
        },
    );
    assert!(
        desk.failure()
            .hint
            .as_ref()
            .unwrap()
            .contains("vm delete old")
    );
    desk.ask(
        1,
        Request::Delete {
            target: target("old"),
            force: Force::Refuse,
        },
    );
    assert!(matches!(desk.last_reply(), Reply::Deleted { .. }));
    assert_eq!(
        desk.steps.len(),
        15,
        "every object it could have is removed"
    );
    assert!(desk.vms().is_empty());
}

#[test]
fn kill_ends_the_waiting_for_a_guest_that_powers_off() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.deaf = true;
    desk.ask(
        1,
        Request::Stop {
            target: target("dev"),
        },
    );
    assert_eq!(desk.vms()[0].phase, Phase::Stopping);
    desk.replies.clear();
    desk.ask(
        2,
        Request::Kill {
            target: target("dev"),
        },
    );
    assert_eq!(desk.replies.len(), 2);
    assert_eq!(desk.vms()[0].phase, Phase::Stopped);
}

/// Symptom: a kernel that was deleted right after the daemon's start stayed on the disk.
#[test]
fn deletion_during_a_sweep_is_swept_after_it() {
    let mut desk = Desk::new(stocked());
    let name = "debian-minimal".to_owned();
    desk.ask(1, Request::ImageDelete { name });
    desk.end_sweep();
    let Some(Action::StartJob { work, .. }) = desk.jobs.last() else {
        panic!("no second sweep: {:?}", desk.jobs);
    };
    assert!(matches!(work, JobWork::Sweep { images, .. } if images.is_empty()));
}

#[test]
fn start_whose_vmm_ends_tells_once_why() {
    let mut desk = Desk::new(stocked());
    desk.holds = Some(StepKind::Ready);
    desk.ask(1, create("dev", Removal::Keep));
    let (vm, token) = desk.held.remove(0);
    let run = desk.others.iter().find_map(|action| match action {
        Action::Watch { run, .. } => Some(*run),
        _ => None,
    });
    let reason = "its VMM ended while the guest ran: killed by signal 9";
    desk.hear(Event::VmmExited {
        vm,
        run: run.expect("it is watched"),
        reason: reason.to_owned(),
    });
    let result = Err(Fault::new(FaultKind::Cancelled, "flag raised"));
    desk.hear(Event::StepDone { vm, token, result });
    assert_eq!(desk.failure().causes, [reason]);
}
