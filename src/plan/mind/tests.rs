//! The mind, heard and answered event by event.

use std::collections::BTreeSet;

use crate::failure::FailureKind;
use crate::model::image::{Image, Kernel};
use crate::model::net::NetRequest;
use crate::model::units::Bytes;
use crate::model::vm::{InitMode, Phase, VmmRequest};
use crate::plan::event::{Action, Event, JobResult, JobWork};
use crate::plan::facts::{Fitness, HostFacts, Moment};
use crate::plan::record::{Loaded, Removal, RowChange, VmRecord};
use crate::plan::request::{AfterCreate, CreateRequest, Force, PullKey, Reply, Request};
use crate::plan::request::{ClientId, OpId};
use crate::plan::retry::Verb;
use crate::plan::step::{Fault, FaultKind, StepKind};

use super::Mind;

/// A mind with a host that does every step at once, but for those told to fail.
struct Desk {
    mind: Mind,
    events: Vec<Event>,
    replies: Vec<(ClientId, Reply)>,
    rows: Vec<RowChange>,
    steps: Vec<(Verb, StepKind)>,
    fails: Option<(Verb, StepKind, FaultKind)>,
    holds: Option<StepKind>,
    jobs: Vec<Action>,
    others: Vec<Action>,
    next_op: u64,
}

fn facts() -> HostFacts {
    HostFacts {
        kvm: Fitness::Unfit("/dev/kvm does not exist".to_owned()),
        firecracker: Fitness::Unfit("no firecracker in PATH".to_owned()),
        qemu: Fitness::Fit,
        taps: Fitness::Fit,
        subnet: "172.30.0.0/24".parse().unwrap(),
        catalog_images: vec!["debian-minimal".parse().unwrap()],
        catalog_kernels: vec!["debian-6.1-cloud".parse().unwrap()],
        ready_deadline_ms: None,
    }
}

fn image(name: &str) -> Image {
    Image {
        name: name.parse().unwrap(),
        content: "00000000000000aa".parse().unwrap(),
        size: Bytes::gib(1),
        allocated: Bytes::mib(300),
        source: "test".to_owned(),
        created_at: 1,
    }
}

fn kernel(name: &str) -> Kernel {
    Kernel {
        name: name.parse().unwrap(),
        content: "00000000000000bb".parse().unwrap(),
        release: "6.1".to_owned(),
        source: "test".to_owned(),
        allocated: Bytes::mib(100),
        created_at: 1,
    }
}

fn stocked() -> Loaded {
    Loaded {
        images: vec![image("debian-minimal")],
        kernels: vec![kernel("debian-6.1-cloud")],
        ..Loaded::default()
    }
}

fn create(name: &str, removal: Removal) -> Request {
    Request::Create(Box::new(CreateRequest {
        name: Some(name.parse().unwrap()),
        image: "debian-minimal".to_owned(),
        kernel: "debian-6.1-cloud".to_owned(),
        vcpu: 1,
        memory: Bytes::mib(512),
        work_disk: Bytes::gib(1),
        root_disk: Bytes::gib(1),
        net: NetRequest::Auto,
        publish: Vec::new(),
        init: InitMode::Auto,
        vmm: VmmRequest::Auto,
        env: Vec::new(),
        workdir: None,
        git: None,
        removal,
        then: AfterCreate::Start,
    }))
}

impl Desk {
    fn new(loaded: Loaded) -> Desk {
        Desk::with_alive(loaded, BTreeSet::new())
    }

    fn with_alive(loaded: Loaded, alive: BTreeSet<crate::model::ids::VmId>) -> Desk {
        let mut desk = Desk {
            mind: Mind::new(facts(), loaded),
            events: Vec::new(),
            replies: Vec::new(),
            rows: Vec::new(),
            steps: Vec::new(),
            fails: None,
            holds: None,
            jobs: Vec::new(),
            others: Vec::new(),
            next_op: 0,
        };
        desk.hear(Event::Opened);
        desk.hear(Event::Recovered { alive });
        desk
    }

    fn hear(&mut self, event: Event) {
        self.events.push(event);
        while !self.events.is_empty() {
            let event = self.events.remove(0);
            let moment = Moment {
                unix_s: 1000,
                random: 0x1234_5678_0000_0000 + self.next_op,
                state_free: Bytes::gib(10),
            };
            for action in self.mind.handle(event, moment) {
                self.perform(action);
            }
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Save(rows) => self.rows.extend(rows),
            Action::RunStep {
                vm,
                token,
                verb,
                step,
                ..
            } => {
                self.steps.push((verb, step.kind()));
                if self.holds == Some(step.kind()) && verb == Verb::Ensure {
                    return;
                }
                let result = match self.fails {
                    Some((v, k, fault)) if v == verb && k == step.kind() => {
                        Err(Fault::new(fault, "planted"))
                    }
                    _ => Ok(()),
                };
                self.events.push(Event::StepDone { vm, token, result });
            }
            Action::Reply { client, reply, .. } => self.replies.push((client, reply)),
            Action::ArmTimer { timer, .. } => {
                // Pauses between attempts end at once; a power-off answers first.
                self.others.push(Action::ArmTimer { timer, after_ms: 0 });
            }
            Action::PowerOff { vm, run } => {
                self.events.push(Event::PowerOffSent {
                    vm,
                    run,
                    result: Ok(()),
                });
                self.events.push(Event::VmmExited {
                    vm,
                    run,
                    reason: "exited with status 0".to_owned(),
                });
            }
            job @ (Action::StartJob { .. } | Action::CancelJob { .. }) => self.jobs.push(job),
            other => self.others.push(other),
        }
    }

    fn ask(&mut self, client: u64, request: Request) {
        self.next_op += 1;
        self.hear(Event::Request {
            client: ClientId(client),
            op: OpId(self.next_op),
            request,
        });
    }

    fn last_reply(&self) -> &Reply {
        &self.replies.last().expect("an answer").1
    }

    fn vms(&mut self) -> Vec<VmRecord> {
        self.ask(99, Request::List);
        match self.replies.pop() {
            Some((_, Reply::Vms(vms))) => vms,
            other => panic!("no list: {other:?}"),
        }
    }

    fn failure(&self) -> &crate::failure::Failure {
        match self.last_reply() {
            Reply::Failed(failure) => failure,
            other => panic!("no failure: {other:?}"),
        }
    }

    fn end_sweep(&mut self) {
        if let Some(Action::StartJob { job, .. }) = self.jobs.pop() {
            self.hear(Event::JobDone {
                job,
                result: Ok(JobResult::Removed),
            });
        }
    }
}

fn target(text: &str) -> String {
    text.to_owned()
}

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
fn two_creations_share_one_pull_which_ends_with_the_last_waiter() {
    let mut desk = Desk::new(Loaded {
        kernels: vec![kernel("debian-6.1-cloud")],
        ..Loaded::default()
    });
    desk.end_sweep();
    desk.ask(1, create("a", Removal::Keep));
    desk.ask(2, create("b", Removal::Keep));
    let key = PullKey::Image("debian-minimal".parse().unwrap());
    let started: Vec<_> = desk
        .jobs
        .iter()
        .filter(|job| matches!(job, Action::StartJob { work: JobWork::Pull(k), .. } if *k == key))
        .collect();
    assert_eq!(started.len(), 1);
    desk.hear(Event::ClientGone {
        client: ClientId(1),
    });
    assert!(
        !desk
            .jobs
            .iter()
            .any(|job| matches!(job, Action::CancelJob { .. }))
    );
    desk.hear(Event::ClientGone {
        client: ClientId(2),
    });
    assert!(
        desk.jobs
            .iter()
            .any(|job| matches!(job, Action::CancelJob { .. }))
    );
}

#[test]
fn pull_done_lets_the_waiting_creation_begin() {
    let mut desk = Desk::new(Loaded {
        kernels: vec![kernel("debian-6.1-cloud")],
        ..Loaded::default()
    });
    desk.end_sweep();
    desk.ask(1, create("a", Removal::Keep));
    let Some(Action::StartJob { job, .. }) = desk.jobs.pop() else {
        panic!("no job");
    };
    let result = Ok(JobResult::Image(image("debian-minimal")));
    desk.hear(Event::JobDone { job, result });
    assert_eq!(desk.vms()[0].phase, Phase::Running);
}

#[test]
fn unknown_image_is_refused_with_the_nearest_name_and_nothing_is_made() {
    let mut desk = Desk::new(stocked());
    let Request::Create(mut request) = create("dev", Removal::Keep) else {
        panic!("a creation");
    };
    request.image = "debian-minimul".to_owned();
    desk.ask(1, Request::Create(request));
    assert_eq!(desk.failure().kind, FailureKind::NotFound);
    assert!(
        desk.failure()
            .hint
            .as_ref()
            .unwrap()
            .contains("debian-minimal")
    );
    assert!(desk.rows.is_empty());
}

#[test]
fn image_in_use_is_not_deleted() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let name = target("debian-minimal");
    desk.ask(1, Request::ImageDelete { name });
    assert!(desk.failure().what.contains("vm dev"));
}

#[test]
fn reference_finds_by_name_id_and_prefix_and_suggests() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let id = desk.vms()[0].id.to_string();
    for text in ["dev", &id, &id[..2]] {
        desk.ask(
            1,
            Request::Dial {
                target: target(text),
            },
        );
        assert!(matches!(desk.last_reply(), Reply::Dial { .. }), "{text}");
    }
    desk.ask(
        1,
        Request::Dial {
            target: target("dve"),
        },
    );
    assert_eq!(desk.failure().kind, FailureKind::NotFound);
    assert!(desk.failure().hint.as_ref().unwrap().contains("dev"));
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
fn shutdown_ends_at_once_when_idle_and_refuses_new_work() {
    let mut desk = Desk::new(stocked());
    desk.end_sweep();
    desk.hear(Event::Shutdown);
    assert!(desk.others.contains(&Action::Exit));
    desk.ask(1, create("dev", Removal::Keep));
    assert_eq!(desk.failure().kind, FailureKind::Busy);
}
