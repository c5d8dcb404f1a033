//! The host: which objects exist, and what the kernel makes of `ensure`, `absent` and
//! `probe`.
//!
//! The rules are the kernel's and those of our steps, not the mind's: what needs what,
//! what is lost with what, what a reboot takes away. `tests/host_conformance` runs the
//! same scripts on this world and on the real kernel and compares line by line; where
//! they differ, the world is wrong. That test includes this file as it is, so nothing
//! here may name another file of the simulation.
//!
//! Pulling an object away from under a living VMM is possible, and noted as harm.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

use crate::model::ids::{ContentId, VmId};
use crate::model::net::Subnet;
use crate::model::units::Bytes;
use crate::model::vm::{RootMode, VmmKind};
use crate::plan::retry::Verb;
use crate::plan::step::{Fault, FaultKind, Machine, Outside, Presence, Step, StepKind};

/// What exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct World {
    pub(super) objects: BTreeMap<(VmId, StepKind), Shape>,
    /// Sockets of VMMs and back ends in the run directories; they outlive a process
    /// that is killed.
    sockets: BTreeSet<(VmId, StepKind)>,
    /// What the VMMs' guests do.
    guests: BTreeMap<VmId, Guest>,
    /// What goes when its last user lets go of it: the order is given.
    leaving: BTreeSet<(VmId, StepKind)>,
    /// Whether our bridge is there: it comes with the first tap and stays.
    has_bridge: bool,
    /// Contents of images and kernels.
    pub(super) contents: BTreeSet<ContentId>,
    /// Whether the state directory's file system takes nothing more.
    pub(super) is_full: bool,
    /// The first thing that was pulled away from under a living VMM.
    pub(super) harm: Option<String>,
}

/// What an object is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    /// Of this kind there is only one way to be.
    Plain,
    Sized(Bytes),
    /// A port of the bridge that carries this network.
    PortOf(Subnet),
    Allows(Ipv4Addr, Outside),
    Limits(Bytes),
    RunBy(VmmKind),
    /// Ours, and half made or spoilt.
    Half,
    /// Something else under our name.
    Foreign,
}

/// What a guest does, as its VMM tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Guest {
    Described,
    Runs,
    Paused,
}

/// What happens to the host that is none of our steps.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    dead_code,
    reason = "most of it happens in the scripts of the conformance"
)]
pub(super) enum Turn {
    /// The host reboots.
    Reboot,
    VmmDies(VmId),
    BackendDies(VmId),
    /// Somebody changes the object so that it is not as described.
    Spoil(Step),
    /// Something foreign takes the place of the missing object.
    Occupy(Step),
    /// A process that is none of ours holds the object open.
    Hold(Step),
    /// Somebody flushes the firewall.
    FlushFirewall,
    /// The bridge goes, with nobody's leave.
    BridgeGoes,
    /// Somebody pauses the guest.
    Pause(VmId),
    /// The state directory's file system fills up.
    FillUp,
    /// There is room again.
    MakeRoom,
}

/// What is gone after a reboot of the host.
const RUNTIME: [StepKind; 10] = [
    StepKind::RunDirectory,
    StepKind::BaseLoop,
    StepKind::CowLoop,
    StepKind::DmSnapshot,
    StepKind::Tap,
    StepKind::NetRules,
    StepKind::Cgroup,
    StepKind::VsockBackend,
    StepKind::Vmm,
    StepKind::NetLimit,
];

/// What a living VMM holds.
const UNDER_VMM: [StepKind; 10] = [
    StepKind::VmDirectory,
    StepKind::UpperDisk,
    StepKind::RootDisk,
    StepKind::CowFile,
    StepKind::WorkDisk,
    StepKind::RunDirectory,
    StepKind::Tap,
    StepKind::NetRules,
    StepKind::NetLimit,
    StepKind::VsockBackend,
];

const PROCESSES: [StepKind; 2] = [StepKind::Vmm, StepKind::VsockBackend];
const DISKS: [StepKind; 3] = [StepKind::UpperDisk, StepKind::RootDisk, StepKind::WorkDisk];

impl World {
    /// What distinguishes it from others.
    pub(super) fn hash_into(&self, hasher: &mut impl Hasher) {
        (&self.objects, &self.sockets, &self.guests).hash(hasher);
        self.leaving.hash(hasher);
        (&self.contents, self.is_full, self.has_bridge).hash(hasher);
    }

    pub(super) fn has(&self, vm: VmId, kind: StepKind) -> bool {
        self.objects.contains_key(&(vm, kind))
    }

    pub(super) fn is_alive(&self, vm: VmId) -> bool {
        self.has(vm, StepKind::Vmm)
    }

    /// Whether the step's object is there and not as described.
    pub(super) fn is_another(&self, step: &Step) -> bool {
        matches!(self.probe(step), Ok(Presence::Different))
    }

    /// Whether its guest can be called.
    pub(super) fn is_reachable(&self, vm: VmId) -> bool {
        match self.objects.get(&(vm, StepKind::Vmm)) {
            Some(Shape::RunBy(VmmKind::Firecracker)) => true,
            Some(_) => self.has(vm, StepKind::VsockBackend),
            None => false,
        }
    }

    /// Whose packets the rules let through.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (VmId, Ipv4Addr)> {
        let objects = self.objects.iter();
        objects.filter_map(|((vm, _), shape)| match shape {
            Shape::Allows(address, _) => Some((*vm, *address)),
            _ => None,
        })
    }

    pub(super) fn act(&mut self, verb: Verb, step: &Step) -> Result<(), Fault> {
        match verb {
            Verb::Ensure => self.ensure(step),
            Verb::Absent => self.absent(step),
        }
    }

    pub(super) fn ensure(&mut self, step: &Step) -> Result<(), Fault> {
        let (vm, kind) = (step.vm(), step.kind());
        if kind != StepKind::Ready && self.probe(step)? == Presence::Present {
            return Ok(());
        }
        if PROCESSES.contains(&kind) {
            // One that runs without answering is ended, socket and all.
            self.end(vm, kind);
            self.sockets.remove(&(vm, kind));
        }
        if self.is_in_use(vm, kind) {
            // It is not as described, so it would have to be made anew.
            self.leaving.insert((vm, kind));
            return Err(fault(step, FaultKind::Busy));
        }
        self.has_needs(step)?;
        let there = self.objects.get(&(vm, kind)).copied();
        let is_disk = DISKS.contains(&kind);
        let is_store = kind == StepKind::CowFile;
        match there {
            // Any file is grown to be a store: what is in it is the kernel's business.
            Some(Shape::Foreign) if is_store => {}
            Some(Shape::Foreign) if !is_disk => return Err(fault(step, FaultKind::Denied)),
            Some(Shape::Sized(old))
                if is_disk && Shape::Sized(old.max(size_of(step))) == shape(step) => {}
            // A disk that is there is the user's, whatever else it is.
            Some(_) if is_disk => return Err(fault(step, FaultKind::Other)),
            None if (is_disk || is_store) && self.is_full => {
                return Err(fault(step, FaultKind::Full));
            }
            _ => {}
        }
        match step {
            Step::Configured { .. } => drop(self.guests.insert(vm, Guest::Described)),
            Step::Booted { .. } => drop(self.guests.insert(vm, Guest::Runs)),
            Step::Ready { .. } | Step::Adjusted { .. } => {}
            _ => self.make(step),
        }
        Ok(())
    }

    fn make(&mut self, step: &Step) {
        let key = (step.vm(), step.kind());
        self.objects.insert(key, shape(step));
        if key.1 == StepKind::CowFile {
            // A device over it does not follow by itself.
            self.spoil(key.0, StepKind::CowLoop);
        }
        self.has_bridge |= key.1 == StepKind::Tap;
        if PROCESSES.contains(&key.1) {
            self.sockets.insert(key);
        }
        if key.1 == StepKind::Vmm {
            self.guests.remove(&key.0);
        }
    }

    pub(super) fn absent(&mut self, step: &Step) -> Result<(), Fault> {
        let (vm, kind) = (step.vm(), step.kind());
        if kind == StepKind::Tap && self.objects.get(&(vm, kind)) == Some(&Shape::Foreign) {
            return Err(fault(step, FaultKind::Denied));
        }
        if self.is_in_use(vm, kind) {
            self.leaving.insert((vm, kind));
            return Err(fault(step, FaultKind::Busy));
        }
        match kind {
            // The whole folder goes, whatever is in it and whoever has it open.
            StepKind::VmDirectory => {
                self.remove(vm, StepKind::CowFile);
                DISKS.into_iter().for_each(|disk| self.remove(vm, disk));
            }
            StepKind::RunDirectory => self.sockets.retain(|(of, _)| *of != vm),
            // cgroup.kill: whoever is in it goes with it. Sockets stay.
            StepKind::Cgroup => PROCESSES
                .into_iter()
                .for_each(|process| self.end(vm, process)),
            StepKind::Vmm | StepKind::VsockBackend => {
                self.end(vm, kind);
                self.sockets.remove(&(vm, kind));
            }
            _ => {}
        }
        self.remove(vm, kind);
        Ok(())
    }

    fn remove(&mut self, vm: VmId, kind: StepKind) {
        let existed = self.objects.remove(&(vm, kind)).is_some();
        match kind {
            // The device is still over the file that had the name.
            StepKind::CowFile => self.spoil(vm, StepKind::CowLoop),
            // The link to the device lay there.
            StepKind::VmDirectory => self.spoil(vm, StepKind::DmSnapshot),
            StepKind::DmSnapshot => self.let_go(vm, &[StepKind::BaseLoop, StepKind::CowLoop]),
            _ => {}
        }
        if existed && self.is_alive(vm) && UNDER_VMM.contains(&kind) {
            let harm = format!("{} was removed under the living VMM of {vm}", kind.word());
            self.harm.get_or_insert(harm);
        }
    }

    /// A process ends.
    pub(super) fn end(&mut self, vm: VmId, kind: StepKind) {
        self.objects.remove(&(vm, kind));
        if kind == StepKind::Vmm {
            self.guests.remove(&vm);
            self.let_go(vm, &[StepKind::DmSnapshot]);
        }
    }

    /// Whether the kernel holds it back: a VMM has the snapshot open, the snapshot has
    /// the loop devices below it.
    fn is_in_use(&self, vm: VmId, kind: StepKind) -> bool {
        let user = match kind {
            StepKind::DmSnapshot => StepKind::Vmm,
            StepKind::BaseLoop | StepKind::CowLoop => StepKind::DmSnapshot,
            _ => return false,
        };
        self.has(vm, kind) && self.has(vm, user)
    }

    /// The last user of these has let go: those that were told to go do.
    fn let_go(&mut self, vm: VmId, kinds: &[StepKind]) {
        for kind in kinds {
            if self.leaving.remove(&(vm, *kind)) {
                self.remove(vm, *kind);
            }
        }
    }

    fn spoil(&mut self, vm: VmId, kind: StepKind) {
        if let Some(shape) = self.objects.get_mut(&(vm, kind)) {
            *shape = Shape::Half;
        }
    }

    /// Looks, and changes nothing.
    pub(super) fn probe(&self, step: &Step) -> Result<Presence, Fault> {
        let (vm, kind) = (step.vm(), step.kind());
        let found = self.objects.get(&(vm, kind)).copied();
        Ok(match (step, found) {
            (Step::Ready { .. } | Step::Adjusted { .. }, _) => Presence::Absent,
            (Step::Configured { .. } | Step::Booted { .. }, _) if !self.is_alive(vm) => {
                Presence::Absent
            }
            (Step::Configured { machine, .. }, _) => {
                self.call(step)?;
                match machine.kind == VmmKind::Firecracker && !self.guests.contains_key(&vm) {
                    true => Presence::Different,
                    false => Presence::Present,
                }
            }
            (Step::Booted { .. }, _) => {
                self.call(step)?;
                match self.guests.get(&vm) {
                    Some(Guest::Runs) => Presence::Present,
                    Some(Guest::Paused) => Presence::Different,
                    Some(Guest::Described) | None => Presence::Absent,
                }
            }
            (_, None) => Presence::Absent,
            (_, Some(_)) if self.leaving.contains(&(vm, kind)) => Presence::Different,
            // Longer than needed is fine.
            (Step::CowFile { size, .. }, Some(Shape::Sized(found))) if found > *size => {
                Presence::Present
            }
            (Step::DmSnapshot { .. }, Some(_)) if !self.has_loops(vm) => Presence::Different,
            (Step::Tap { .. }, Some(Shape::Foreign)) => return Err(fault(step, FaultKind::Denied)),
            (Step::Vmm { .. } | Step::VsockBackend { .. }, Some(_)) => {
                match self.sockets.contains(&(vm, kind)) {
                    true => Presence::Present,
                    false => Presence::Different,
                }
            }
            (_, Some(found)) if found == shape(step) => Presence::Present,
            (_, Some(_)) => Presence::Different,
        })
    }

    fn has_loops(&self, vm: VmId) -> bool {
        let loops = [StepKind::BaseLoop, StepKind::CowLoop];
        loops.iter().all(|kind| self.has(vm, *kind))
    }

    /// Asks a VMM something by its socket.
    fn call(&self, step: &Step) -> Result<(), Fault> {
        match self.sockets.contains(&(step.vm(), StepKind::Vmm)) {
            true if self.is_alive(step.vm()) => Ok(()),
            // Connection refused: nobody listens any more.
            true => Err(fault(step, FaultKind::Other)),
            false => Err(fault(step, FaultKind::Missing)),
        }
    }

    /// What stands in the way of making it, first to last.
    fn has_needs(&self, step: &Step) -> Result<(), Fault> {
        use StepKind as K;
        let vm = step.vm();
        let lacks = |kinds: &[StepKind], fails_as| match kinds.iter().find(|k| !self.has(vm, **k)) {
            Some(kind) => {
                let what = format!("make {}: no {}", step.kind().word(), kind.word());
                Err(Fault::new(fails_as, what))
            }
            None => Ok(()),
        };
        match step {
            Step::VmDirectory { .. }
            | Step::RunDirectory { .. }
            | Step::Cgroup { .. }
            // Elements of sets, as those of the rules.
            | Step::NetLimit { .. }
            | Step::Tap { .. } => Ok(()),
            // Elements of sets, keyed by a name: nobody asks whether the tap exists. But
            // it is the bridge whose packets are to be forwarded.
            Step::NetRules { outside, .. } => match outside == &Outside::Nat && !self.has_bridge {
                true => Err(fault(step, FaultKind::Missing)),
                false => Ok(()),
            },
            Step::UpperDisk { .. }
            | Step::RootDisk { .. }
            | Step::CowFile { .. }
            | Step::WorkDisk { .. } => lacks(&[K::VmDirectory], FaultKind::Missing),
            Step::BaseLoop { .. } => Ok(()),
            Step::CowLoop { .. } => lacks(&[K::CowFile], FaultKind::Missing),
            Step::DmSnapshot { .. } => lacks(
                &[K::VmDirectory, K::BaseLoop, K::CowLoop],
                FaultKind::Missing,
            ),
            // The folder of its sockets and of the pipe for its log; a process is born in its
            // group. What the launcher is to open is looked for before it is started.
            Step::VsockBackend { .. } => {
                lacks(&[K::RunDirectory, K::Cgroup], FaultKind::Missing)
            }
            Step::Vmm { machine, .. } => {
                let needed = [K::RunDirectory, K::VmDirectory, K::Cgroup];
                lacks(&needed, FaultKind::Missing)?;
                lacks(&[root(machine), K::WorkDisk], FaultKind::Missing)?;
                match machine.kind {
                    VmmKind::Firecracker => Ok(()),
                    VmmKind::QemuKvm | VmmKind::QemuTcg => {
                        lacks(&[K::VsockBackend], FaultKind::Exited)
                    }
                }
            }
            // Files that it was given open, or that are bound in its jail, it has.
            Step::Configured { .. } | Step::Booted { .. } => self.call(step),
            // Nothing is missing: it is the balloon that could be.
            Step::Adjusted { .. } => self.call(step).map_err(|_| fault(step, FaultKind::Other)),
            Step::Ready { .. } if self.is_reachable(vm) => Ok(()),
            Step::Ready { .. } => Err(fault(step, FaultKind::Timeout)),
        }
    }

    /// Lets something happen that is none of our steps.
    pub(super) fn turn(&mut self, turn: &Turn) {
        match turn {
            Turn::Reboot => self.reboot(),
            Turn::VmmDies(vm) => self.end(*vm, StepKind::Vmm),
            Turn::BackendDies(vm) => self.end(*vm, StepKind::VsockBackend),
            Turn::Spoil(step) => {
                self.objects.insert((step.vm(), step.kind()), Shape::Half);
            }
            Turn::Occupy(step) => {
                self.objects
                    .insert((step.vm(), step.kind()), Shape::Foreign);
            }
            // Whatever we make can be removed while others have it open.
            Turn::Hold(_) => {}
            Turn::FlushFirewall => self
                .objects
                .retain(|(_, kind), _| !matches!(kind, StepKind::NetRules | StepKind::NetLimit)),
            Turn::BridgeGoes => {
                self.has_bridge = false;
                for shape in self.objects.values_mut() {
                    if matches!(shape, Shape::PortOf(_) | Shape::Allows(_, Outside::Nat)) {
                        *shape = Shape::Half;
                    }
                }
            }
            Turn::Pause(vm) => drop(self.guests.insert(*vm, Guest::Paused)),
            Turn::FillUp => self.is_full = true,
            Turn::MakeRoom => self.is_full = false,
        }
    }

    fn reboot(&mut self) {
        self.objects.retain(|(_, kind), _| !RUNTIME.contains(kind));
        self.sockets.clear();
        self.guests.clear();
        self.leaving.clear();
        self.has_bridge = false;
    }
}

/// How long its disk must be; nothing for what is no disk.
fn size_of(step: &Step) -> Bytes {
    match shape(step) {
        Shape::Sized(size) => size,
        _ => Bytes(0),
    }
}

/// What the step's object is like when it is as described.
fn shape(step: &Step) -> Shape {
    match step {
        Step::UpperDisk { size, .. }
        | Step::RootDisk { size, .. }
        | Step::CowFile { size, .. }
        | Step::WorkDisk { size, .. }
        | Step::DmSnapshot { size, .. } => Shape::Sized(*size),
        Step::Tap { subnet, .. } => Shape::PortOf(*subnet),
        Step::NetRules {
            address, outside, ..
        } => Shape::Allows(*address, *outside),
        Step::NetLimit { limit, .. } => Shape::Limits(limit.bandwidth),
        Step::Vmm { machine, .. } => Shape::RunBy(machine.kind),
        Step::VmDirectory { .. }
        | Step::RunDirectory { .. }
        | Step::BaseLoop { .. }
        | Step::CowLoop { .. }
        | Step::Cgroup { .. }
        | Step::VsockBackend { .. }
        | Step::Configured { .. }
        | Step::Booted { .. }
        | Step::Ready { .. }
        | Step::Adjusted { .. } => Shape::Plain,
    }
}

/// What a machine has its root on.
fn root(machine: &Machine) -> StepKind {
    match machine.root {
        RootMode::Overlay => StepKind::UpperDisk,
        RootMode::Reflink => StepKind::RootDisk,
        RootMode::DmSnapshot => StepKind::DmSnapshot,
    }
}

fn fault(step: &Step, kind: FaultKind) -> Fault {
    Fault::new(kind, format!("{}: {kind:?}", step.kind().word()))
}
