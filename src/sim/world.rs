//! The host: which objects exist, and what the kernel makes of `ensure` and `absent`.
//!
//! The rules are the kernel's and those of our steps, not the mind's: what needs what,
//! what is busy while it is used, what a reboot takes away. Pulling an object away
//! from under a living VMM is possible, and noted as harm.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

use crate::model::ids::{ContentId, VmId};
use crate::plan::retry::Verb;
use crate::plan::step::{Fault, FaultKind, Step, StepKind};

/// What exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct World {
    pub(super) objects: BTreeSet<(VmId, StepKind)>,
    /// Whose packets the rules let through.
    pub(super) addresses: BTreeMap<VmId, Ipv4Addr>,
    /// Helper programs of a dead daemon that are still at it.
    pub(super) helpers: Vec<(Verb, Step)>,
    /// Contents of images and kernels.
    pub(super) contents: BTreeSet<ContentId>,
    /// The first thing that was pulled away from under a living VMM.
    pub(super) harm: Option<String>,
}

/// What is gone after a reboot of the host.
const RUNTIME: [StepKind; 6] = [
    StepKind::RunDirectory,
    StepKind::Tap,
    StepKind::NetRules,
    StepKind::Cgroup,
    StepKind::VsockBackend,
    StepKind::Vmm,
];

/// What a living VMM holds.
const UNDER_VMM: [StepKind; 7] = [
    StepKind::VmDirectory,
    StepKind::UpperDisk,
    StepKind::WorkDisk,
    StepKind::RunDirectory,
    StepKind::Tap,
    StepKind::NetRules,
    StepKind::VsockBackend,
];

impl World {
    /// What distinguishes it from others.
    pub(super) fn hash_into(&self, hasher: &mut impl Hasher) {
        self.objects.hash(hasher);
        self.contents.hash(hasher);
        for (verb, step) in &self.helpers {
            (*verb == Verb::Ensure, step.vm(), step.kind()).hash(hasher);
        }
    }

    pub(super) fn has(&self, vm: VmId, kind: StepKind) -> bool {
        self.objects.contains(&(vm, kind))
    }

    pub(super) fn is_alive(&self, vm: VmId) -> bool {
        self.has(vm, StepKind::Vmm)
    }

    pub(super) fn act(&mut self, verb: Verb, step: &Step) -> Result<(), Fault> {
        match verb {
            Verb::Ensure => self.ensure(step),
            Verb::Absent => self.absent(step),
        }
    }

    pub(super) fn ensure(&mut self, step: &Step) -> Result<(), Fault> {
        let vm = step.vm();
        let missing = needs(step).iter().find(|kind| !self.has(vm, **kind));
        if let Some(kind) = missing {
            let what = format!("make {}: no {}", step.kind().word(), kind.word());
            return Err(Fault::new(FaultKind::Missing, what));
        }
        if let Step::NetRules { address, .. } = step {
            self.addresses.insert(vm, *address);
        }
        if step.leaves_object() {
            self.objects.insert((vm, step.kind()));
        }
        Ok(())
    }

    fn absent(&mut self, step: &Step) -> Result<(), Fault> {
        let (vm, kind) = (step.vm(), step.kind());
        let disks = [StepKind::UpperDisk, StepKind::WorkDisk];
        if kind == StepKind::VmDirectory && disks.iter().any(|disk| self.has(vm, *disk)) {
            let what = "remove vm-directory: not empty";
            return Err(Fault::new(FaultKind::Busy, what));
        }
        // cgroup.kill: whoever is in it goes with it.
        if kind == StepKind::Cgroup {
            self.objects.remove(&(vm, StepKind::Vmm));
            self.objects.remove(&(vm, StepKind::VsockBackend));
        }
        let existed = self.objects.remove(&(vm, kind));
        if existed && self.is_alive(vm) && UNDER_VMM.contains(&kind) {
            let harm = format!("{} was removed under the living VMM of {vm}", kind.word());
            self.harm.get_or_insert(harm);
        }
        if kind == StepKind::NetRules {
            self.addresses.remove(&vm);
        }
        Ok(())
    }

    pub(super) fn kill_vmm(&mut self, vm: VmId) {
        self.objects.remove(&(vm, StepKind::Vmm));
    }

    pub(super) fn reboot(&mut self) {
        self.objects.retain(|(_, kind)| !RUNTIME.contains(kind));
        self.addresses.clear();
        self.helpers.clear();
    }

    /// A helper of a dead daemon ends; what it does may fail, and nobody hears of it.
    pub(super) fn helper_acts(&mut self) {
        if let Some((verb, step)) = self.helpers.pop() {
            let _unheard = self.act(verb, &step);
        }
    }
}

fn needs(step: &Step) -> &'static [StepKind] {
    use StepKind as K;
    match step {
        Step::VmDirectory { .. } | Step::RunDirectory { .. } | Step::Cgroup { .. } => &[],
        Step::Tap { .. } => &[],
        Step::NetRules { .. } => &[K::Tap],
        Step::UpperDisk { .. } | Step::WorkDisk { .. } => &[K::VmDirectory],
        Step::VsockBackend { .. } => &[K::RunDirectory, K::Cgroup],
        Step::Vmm { machine, .. } if machine.net.has_tap() => &[
            K::RunDirectory,
            K::Cgroup,
            K::UpperDisk,
            K::WorkDisk,
            K::Tap,
        ],
        Step::Vmm { .. } => &[K::RunDirectory, K::Cgroup, K::UpperDisk, K::WorkDisk],
        Step::Configured { .. } | Step::Booted { .. } | Step::Ready { .. } => &[K::Vmm],
    }
}
