//! The mind, heard and answered event by event: a desk at which everything is done at
//! once, but for what a test holds back or lets fail.

mod adjust;
mod behind;
mod lifecycle;
mod requests;

use std::collections::BTreeSet;

use crate::failure::FailureKind;
use crate::model::ids::VmId;
use crate::model::image::{Image, Kernel};
use crate::model::limits::Limits;
use crate::model::net::NetRequest;
use crate::model::units::Bytes;
use crate::model::vm::{InitMode, Phase, RootModeRequest, VmmRequest};
use crate::plan::event::{Action, Event, JobResult, JobWork, StepToken};
use crate::plan::facts::{Fitness, HostFacts, Installed, Moment};
use crate::plan::record::{Loaded, Removal, RowChange, VmRecord};
use crate::plan::request::{AfterCreate, CreateRequest, Force, PullKey, Reply, Request};
use crate::plan::request::{ClientId, OpId};
use crate::plan::retry::Verb;
use crate::plan::step::{Fault, FaultKind, Step, StepKind};

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
    held: Vec<(VmId, StepToken)>,
    /// Whether guests do not power off when told.
    deaf: bool,
    free: Bytes,
    next_op: u64,
    /// What the clock says, seconds since the epoch.
    now: u64,
    /// The upper half of the random bits: what a new VM's identity is made of.
    id_bits: u64,
}

fn facts() -> HostFacts {
    HostFacts {
        kvm: Fitness::Unfit("/dev/kvm does not exist".to_owned()),
        installed: Installed {
            firecracker: Fitness::Unfit("no firecracker in PATH".to_owned()),
            jailer: Fitness::Unfit("no jailer".to_owned()),
            qemu: Fitness::Fit,
        },
        taps: Fitness::Fit,
        reflink: Fitness::Unfit("its file system cannot".to_owned()),
        device_mapper: Fitness::Unfit("not permitted".to_owned()),
        tap_limits: Fitness::Unfit("no nft_limit".to_owned()),
        cpu_weight: Fitness::Unfit("no cpu controller".to_owned()),
        limits: Fitness::Unfit("cpu not held: no controller".to_owned()),
        first_port: 1024,
        subnet: "172.30.0.0/24".parse().unwrap(),
        memory: Bytes::gib(64),
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
        root_mode: RootModeRequest::Auto,
        net: NetRequest::Auto,
        publish: Vec::new(),
        init: InitMode::Auto,
        vmm: VmmRequest::Auto,
        env: Vec::new(),
        workdir: None,
        limits: Limits::default(),
        git: None,
        removal,
        then: AfterCreate::Start,
    }))
}

impl Desk {
    fn new(loaded: Loaded) -> Desk {
        Desk::with_alive(loaded, BTreeSet::new())
    }

    fn with_alive(loaded: Loaded, alive: BTreeSet<VmId>) -> Desk {
        let linked = alive.clone();
        Desk::recovered(loaded, alive, linked)
    }

    fn recovered(loaded: Loaded, alive: BTreeSet<VmId>, linked: BTreeSet<VmId>) -> Desk {
        Desk::found(loaded, alive, linked, BTreeSet::new())
    }

    fn with_held(loaded: Loaded, alive: BTreeSet<VmId>) -> Desk {
        let (linked, held) = (alive.clone(), alive.clone());
        Desk::found(loaded, alive, linked, held)
    }

    fn found(
        loaded: Loaded,
        alive: BTreeSet<VmId>,
        linked: BTreeSet<VmId>,
        held: BTreeSet<VmId>,
    ) -> Desk {
        let mut desk = Desk::unopened(loaded);
        desk.hear(Event::Opened);
        desk.hear(Event::Recovered {
            alive,
            linked,
            held,
        });
        desk
    }

    /// A desk that has not heard anything yet.
    fn unopened(loaded: Loaded) -> Desk {
        Desk {
            mind: Mind::new(facts(), loaded),
            events: Vec::new(),
            replies: Vec::new(),
            rows: Vec::new(),
            steps: Vec::new(),
            fails: None,
            holds: None,
            jobs: Vec::new(),
            others: Vec::new(),
            held: Vec::new(),
            deaf: false,
            free: Bytes::gib(10),
            next_op: 0,
            now: 1000,
            id_bits: 0x1234_5678_0000_0000,
        }
    }

    fn hear(&mut self, event: Event) {
        self.events.push(event);
        while !self.events.is_empty() {
            let event = self.events.remove(0);
            let moment = Moment {
                unix_s: self.now,
                random: self.id_bits + self.next_op,
                state_free: self.free,
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
                    self.held.push((vm, token));
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
                if self.deaf {
                    return;
                }
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

    /// Ends the pauses between attempts, until there is none.
    fn pass_pauses(&mut self) {
        let is_timer = |action: &Action| matches!(action, Action::ArmTimer { .. });
        while let Some(at) = self.others.iter().position(is_timer) {
            if let Action::ArmTimer { timer, .. } = self.others.remove(at) {
                self.hear(Event::TimerFired { timer });
            }
        }
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
