//! What is done to the simulated world and to the real kernel, line by line: data only.
//!
//! Every kind of step has its lines here; a new kind without any fails a test. What must
//! come out is written nowhere: the two sides must agree.

mod adjusted;
mod firecracker;
pub mod snapshots;

use std::fmt;

use banger::model::ids::VmId;
use banger::model::limits::Limits;
use banger::model::net::NetMode;
use banger::model::units::Bytes;
use banger::model::vm::{Confinement, RootMode, VmmKind};
use banger::plan::retry::Verb;
use banger::plan::step::{GroupLimits, Machine, Outside, Step};

use crate::world::Turn;

/// One line of a script.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// A verb of a step.
    Does(Verb, Step),
    /// Something that is none of our steps.
    Happens(Turn),
}

/// Lines, and what a host needs for them.
#[derive(Debug, Clone)]
pub struct Script {
    pub name: &'static str,
    pub needs: Vec<Need>,
    pub lines: Vec<Line>,
}

/// What not every host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// QEMU and its vsock back end.
    Qemu,
    /// Firecracker, and /dev/kvm.
    Firecracker,
    /// Besides, its jailer, and what a jail takes.
    Jailer,
    /// A cgroup v2 hierarchy.
    Groups,
    /// Files that can share blocks.
    SharedBlocks,
    /// Loop devices.
    Loops,
    /// Device-mapper's snapshots.
    Snapshots,
}

impl Script {
    fn of(name: &'static str, lines: Vec<Line>) -> Script {
        Script {
            name,
            needs: Vec::new(),
            lines,
        }
    }

    fn needs(mut self, needs: &[Need]) -> Script {
        self.needs = needs.to_vec();
        self
    }

    /// The steps that it names, each once: those that both sides are asked about after
    /// every line.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let named = self.lines.iter().filter_map(|line| match line {
            Line::Does(_, step) => Some(step),
            Line::Happens(Turn::Spoil(step) | Turn::Occupy(step)) => Some(step),
            Line::Happens(_) => None,
        });
        for step in named {
            if !steps.contains(step) {
                steps.push(step.clone());
            }
        }
        steps
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Does(verb, step) => {
                let verb = format!("{verb:?}").to_lowercase();
                write!(f, "{verb} {}", step.kind().word())
            }
            Line::Happens(Turn::Spoil(step)) => write!(f, "spoil {}", step.kind().word()),
            Line::Happens(Turn::Occupy(step)) => write!(f, "occupy {}", step.kind().word()),
            Line::Happens(Turn::Hold(step)) => write!(f, "hold {}", step.kind().word()),
            Line::Happens(turn) => write!(f, "{turn:?}"),
        }
    }
}

/// The steps of one VM, and the lines made of them.
struct Cast {
    vm: VmId,
    machine: Machine,
}

impl Cast {
    fn new(vm: VmId, kind: VmmKind, net: NetMode) -> Cast {
        Cast {
            vm,
            machine: machine(kind, net),
        }
    }

    fn folder(&self) -> Step {
        Step::VmDirectory { vm: self.vm }
    }

    fn upper(&self, mib: u64) -> Step {
        let size = Bytes::mib(mib);
        Step::UpperDisk { vm: self.vm, size }
    }

    fn work(&self, mib: u64) -> Step {
        let size = Bytes::mib(mib);
        Step::WorkDisk { vm: self.vm, size }
    }

    fn root(&self, mib: u64) -> Step {
        Step::RootDisk {
            vm: self.vm,
            image: self.machine.image.clone(),
            size: Bytes::mib(mib),
        }
    }

    fn store(&self, mib: u64) -> Step {
        let size = Bytes::mib(mib);
        Step::CowFile { vm: self.vm, size }
    }

    fn base_loop(&self) -> Step {
        Step::BaseLoop {
            vm: self.vm,
            image: self.machine.image.clone(),
        }
    }

    fn cow_loop(&self) -> Step {
        Step::CowLoop {
            vm: self.vm,
            size: Bytes::mib(64),
        }
    }

    fn snapshot(&self, mib: u64) -> Step {
        let size = Bytes::mib(mib);
        Step::DmSnapshot { vm: self.vm, size }
    }

    fn run(&self) -> Step {
        Step::RunDirectory { vm: self.vm }
    }

    fn tap(&self) -> Step {
        Step::Tap {
            vm: self.vm,
            subnet: crate::subnet(),
        }
    }

    fn rules(&self, guest: u32, outside: Outside) -> Step {
        Step::NetRules {
            vm: self.vm,
            address: crate::subnet().guest(guest).unwrap(),
            subnet: crate::subnet(),
            outside,
            publish: Vec::new(),
        }
    }

    fn limit(&self, mib: u64) -> Step {
        crate::net_limit(self.vm, Bytes::mib(mib))
    }

    fn group(&self) -> Step {
        Step::Cgroup {
            vm: self.vm,
            limits: GroupLimits::default(),
        }
    }

    fn backend(&self) -> Step {
        Step::VsockBackend { vm: self.vm }
    }

    fn vmm(&self) -> Step {
        Step::Vmm {
            vm: self.vm,
            machine: self.machine.clone(),
        }
    }

    fn configured(&self) -> Step {
        Step::Configured {
            vm: self.vm,
            machine: self.machine.clone(),
        }
    }

    fn booted(&self) -> Step {
        Step::Booted {
            vm: self.vm,
            kind: self.machine.kind,
        }
    }

    /// Both plans, in their order.
    fn plan(&self) -> Vec<Step> {
        let mut steps = vec![self.folder(), self.upper(64), self.work(64), self.run()];
        if self.machine.net.has_tap() {
            steps.extend([self.tap(), self.rules(0, Outside::Closed)]);
        }
        steps.push(self.group());
        if self.machine.kind != VmmKind::Firecracker {
            steps.push(self.backend());
        }
        steps.extend([self.vmm(), self.configured(), self.booted()]);
        steps
    }

    /// The same up to the step before the one given.
    fn plan_before(&self, end: &Step) -> Vec<Line> {
        let steps = self.plan().into_iter().take_while(|step| step != end);
        steps.map(ensure).collect()
    }
}

/// The machine that every VM of a script is.
pub fn machine(kind: VmmKind, net: NetMode) -> Machine {
    Machine {
        kind,
        vcpu: 1,
        memory: Bytes::mib(128),
        image: "00000000000000aa".parse().unwrap(),
        root: RootMode::Overlay,
        kernel: "00000000000000bb".parse().unwrap(),
        net,
        publish: Vec::new(),
        limits: Limits::default(),
        confinement: Confinement::Direct,
    }
}

fn ensure(step: Step) -> Line {
    Line::Does(Verb::Ensure, step)
}

fn absent(step: Step) -> Line {
    Line::Does(Verb::Absent, step)
}

fn happens(turn: Turn) -> Line {
    Line::Happens(turn)
}

fn all(steps: Vec<Step>, line: fn(Step) -> Line) -> Vec<Line> {
    steps.into_iter().map(line).collect()
}

/// Absent, made twice, gone twice.
fn twice(step: &Step) -> Vec<Line> {
    let verbs = [absent, ensure, ensure, absent, absent];
    verbs.map(|verb| verb(step.clone())).to_vec()
}

/// What is found of an object that somebody changed, and what the verbs make of it.
fn spoilt(step: &Step) -> Vec<Line> {
    let spoil = || happens(Turn::Spoil(step.clone()));
    vec![
        ensure(step.clone()),
        spoil(),
        ensure(step.clone()),
        spoil(),
        absent(step.clone()),
    ]
}

/// The same of a foreign thing that has the object's name.
fn occupied(step: &Step) -> Vec<Line> {
    let occupy = happens(Turn::Occupy(step.clone()));
    vec![occupy, ensure(step.clone()), absent(step.clone())]
}

/// Every script; `vm` is used by nobody else on this machine.
pub fn scripts(vm: VmId) -> Vec<Script> {
    let mut scripts = folders_and_disks(vm);
    scripts.extend(snapshots::scripts(vm));
    scripts.extend(network(vm));
    scripts.extend(processes(vm));
    scripts.extend(process_needs(vm));
    let qemu = Cast::new(vm, VmmKind::QemuTcg, NetMode::Nat);
    scripts.push(whole_life("a life under QEMU", &qemu).needs(&[Need::Qemu]));
    scripts.extend(firecracker::scripts(vm));
    scripts.extend(adjusted::scripts(vm));
    scripts
}

/// The scripts of disks, for other file systems.
pub fn folders_and_disks(vm: VmId) -> Vec<Script> {
    let cast = Cast::new(vm, VmmKind::QemuTcg, NetMode::None);
    let (folder, upper, work) = (cast.folder(), cast.upper(64), cast.work(64));
    let hold = |step: &Step| happens(Turn::Hold(step.clone()));
    vec![
        Script::of(
            "folders, made and removed twice, spoilt and occupied",
            [folder.clone(), cast.run()]
                .iter()
                .flat_map(|step| [twice(step), spoilt(step), occupied(step)].concat())
                .collect(),
        ),
        Script::of(
            "disks, without and with their folder",
            [
                vec![ensure(upper.clone()), ensure(work.clone())],
                vec![absent(upper.clone()), ensure(folder.clone())],
                [&upper, &work].map(twice).concat(),
                vec![ensure(upper.clone()), ensure(cast.upper(128))],
                vec![ensure(work.clone()), happens(Turn::Spoil(work.clone()))],
                vec![ensure(work.clone()), absent(work.clone())],
                vec![ensure(work.clone()), absent(folder.clone())],
                vec![ensure(work.clone()), absent(folder.clone())],
            ]
            .concat(),
        ),
        Script::of(
            "disks and folders that others have open",
            [
                all(vec![folder.clone(), upper.clone(), cast.run()], ensure),
                vec![hold(&upper), hold(&cast.run()), ensure(upper.clone())],
                vec![absent(upper.clone()), ensure(upper.clone()), hold(&upper)],
                vec![absent(cast.run()), ensure(cast.run()), absent(cast.run())],
                vec![absent(folder.clone()), absent(upper.clone())],
            ]
            .concat(),
        ),
        Script::of(
            "a root that shares the image's blocks",
            [
                vec![ensure(cast.root(64)), ensure(cast.folder())],
                twice(&cast.root(64)),
                vec![ensure(cast.root(64)), ensure(cast.root(128))],
                vec![happens(Turn::Spoil(cast.root(64))), ensure(cast.root(64))],
                vec![absent(cast.root(64)), ensure(cast.root(64))],
                vec![absent(cast.folder())],
            ]
            .concat(),
        )
        .needs(&[Need::SharedBlocks]),
        Script::of(
            "a snapshot's store, which grows and is never cut",
            [
                vec![ensure(cast.store(64)), ensure(cast.folder())],
                twice(&cast.store(64)),
                all(
                    vec![cast.store(64), cast.store(128), cast.store(64)],
                    ensure,
                ),
                vec![happens(Turn::Spoil(cast.store(64))), ensure(cast.store(64))],
                vec![absent(cast.store(64))],
                vec![ensure(cast.store(64)), absent(cast.folder())],
            ]
            .concat(),
        ),
        Script::of(
            "a full file system, and one with room again",
            [
                all(vec![folder.clone(), upper.clone()], ensure),
                vec![happens(Turn::FillUp), ensure(work.clone())],
                vec![ensure(upper.clone()), absent(upper.clone())],
                vec![ensure(upper.clone()), happens(Turn::MakeRoom)],
                all(vec![upper, work, folder.clone()], ensure),
                vec![happens(Turn::FillUp), absent(folder)],
            ]
            .concat(),
        ),
    ]
}

fn network(vm: VmId) -> Vec<Script> {
    let cast = Cast::new(vm, VmmKind::QemuTcg, NetMode::Isolated);
    let tap = cast.tap();
    let (closed, nat) = (cast.rules(0, Outside::Closed), cast.rules(0, Outside::Nat));
    let elsewhere = cast.rules(7, Outside::Nat);
    let (slow, fast) = (cast.limit(1), cast.limit(8));
    let hold = happens(Turn::Hold(tap.clone()));
    vec![
        Script::of(
            "a tap, alone",
            [twice(&tap), spoilt(&tap), occupied(&tap)].concat(),
        ),
        Script::of(
            "a tap that is open, and one that loses its bridge",
            vec![
                ensure(tap.clone()),
                hold,
                ensure(tap.clone()),
                absent(tap.clone()),
                ensure(tap.clone()),
                happens(Turn::BridgeGoes),
                ensure(tap.clone()),
                happens(Turn::BridgeGoes),
                absent(tap.clone()),
            ],
        ),
        Script::of(
            "rules without a tap, changed, flushed, without a bridge",
            [
                twice(&closed),
                vec![
                    ensure(nat.clone()),
                    ensure(tap.clone()),
                    absent(tap.clone()),
                ],
                twice(&nat),
                all(vec![closed.clone(), nat.clone(), elsewhere.clone()], ensure),
                vec![absent(closed.clone()), ensure(closed.clone())],
                vec![happens(Turn::FlushFirewall), ensure(closed.clone())],
                vec![happens(Turn::FlushFirewall), absent(closed.clone())],
                vec![ensure(nat.clone()), happens(Turn::BridgeGoes)],
                vec![
                    ensure(nat.clone()),
                    ensure(tap.clone()),
                    ensure(nat.clone()),
                ],
            ]
            .concat(),
        ),
        Script::of(
            "a tap's limit, without the tap, changed, flushed",
            [
                twice(&slow),
                all(vec![slow.clone(), fast.clone(), tap.clone()], ensure),
                vec![absent(tap.clone()), ensure(slow.clone())],
                vec![happens(Turn::FlushFirewall), ensure(fast.clone())],
                vec![happens(Turn::FlushFirewall), absent(fast.clone())],
                vec![ensure(fast.clone()), happens(Turn::Reboot)],
                vec![ensure(slow.clone()), absent(fast)],
            ]
            .concat(),
        ),
        Script::of(
            "a network that a reboot takes away",
            vec![
                ensure(tap.clone()),
                ensure(nat.clone()),
                happens(Turn::Reboot),
                ensure(nat.clone()),
                absent(tap.clone()),
                ensure(tap.clone()),
                absent(tap),
                absent(nat),
            ],
        ),
    ]
}

fn processes(vm: VmId) -> Vec<Script> {
    let cast = Cast::new(vm, VmmKind::QemuTcg, NetMode::Isolated);
    let (backend, vmm) = (cast.backend(), cast.vmm());
    let (configured, booted) = (cast.configured(), cast.booted());
    let group = cast.group();
    let before_backend = || cast.plan_before(&backend);
    let before_booted = || cast.plan_before(&booted);
    let down = || all(cast.plan().into_iter().rev().collect(), absent);
    vec![
        Script::of("a control group, alone", twice(&group)).needs(&[Need::Groups]),
        Script::of(
            "a back end that dies, loses its sockets, and its group",
            [
                before_backend(),
                twice(&backend),
                vec![ensure(backend.clone()), happens(Turn::BackendDies(vm))],
                vec![ensure(backend.clone()), absent(cast.run())],
                vec![ensure(backend.clone()), ensure(cast.run())],
                vec![ensure(backend.clone()), absent(group.clone())],
                vec![absent(backend.clone()), ensure(backend.clone())],
                down(),
            ]
            .concat(),
        )
        .needs(&[Need::Qemu, Need::Groups]),
        Script::of(
            "a VMM that dies and is made again",
            [
                before_booted(),
                vec![ensure(booted.clone()), happens(Turn::VmmDies(vm))],
                vec![
                    ensure(booted.clone()),
                    ensure(vmm.clone()),
                    ensure(backend.clone()),
                ],
                vec![ensure(vmm.clone())],
                vec![ensure(booted.clone()), happens(Turn::Pause(vm))],
                vec![ensure(booted.clone()), happens(Turn::BackendDies(vm))],
                vec![ensure(vmm.clone()), absent(vmm.clone()), ensure(configured)],
                down(),
            ]
            .concat(),
        )
        .needs(&[Need::Qemu]),
        Script::of(
            "what a living VMM uses, pulled away in the wrong order",
            [
                before_booted(),
                vec![ensure(booted.clone())],
                all(cast.plan(), absent),
            ]
            .concat(),
        )
        .needs(&[Need::Qemu]),
        Script::of(
            "a group that goes with what lives in it",
            [
                before_booted(),
                vec![absent(group.clone()), ensure(vmm)],
                down(),
            ]
            .concat(),
        )
        .needs(&[Need::Qemu, Need::Groups]),
    ]
}

/// Each process without each of the things that it needs.
fn process_needs(vm: VmId) -> Vec<Script> {
    let cast = Cast::new(vm, VmmKind::QemuTcg, NetMode::None);
    let without = |made: Step, needs: Vec<Step>| {
        let up_to = cast.plan_before(&made);
        let lines = needs.into_iter().flat_map(|need| {
            let mut lines = up_to.clone();
            lines.extend([absent(need), ensure(made.clone()), absent(made.clone())]);
            lines
        });
        let down = all(cast.plan().into_iter().rev().collect(), absent);
        lines.chain(down).collect::<Vec<Line>>()
    };
    let needs = vec![cast.run(), cast.group(), cast.folder()];
    let disks = vec![cast.upper(64), cast.work(64), cast.backend()];
    vec![
        Script::of(
            "a back end without what it needs",
            without(cast.backend(), needs.clone()),
        )
        .needs(&[Need::Qemu, Need::Groups]),
        Script::of(
            "a VMM without what it needs",
            without(cast.vmm(), [needs, disks].concat()),
        )
        .needs(&[Need::Qemu, Need::Groups]),
    ]
}

/// Both plans up, again, a reboot, up and down.
fn whole_life(name: &'static str, cast: &Cast) -> Script {
    let plan = || cast.plan();
    let down = || all(plan().into_iter().rev().collect(), absent);
    let lines = [
        all(plan(), ensure),
        all(plan(), ensure),
        vec![happens(Turn::Reboot)],
        down(),
        all(plan(), ensure),
        down(),
        down(),
    ];
    Script::of(name, lines.concat())
}
