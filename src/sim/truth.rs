//! What must hold: after every effect, and at rest.

use std::collections::BTreeMap;

use crate::model::ids::{ContentId, VmId};
use crate::model::vm::Phase;
use crate::plan::record::{Removal, VmRecord};
use crate::plan::request::Reply;
use crate::plan::step::{Step, StepKind};

use super::run::Run;

/// What a run must have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing passing.
    Any,
    /// Nothing stuck either: no fault stands in the way.
    Clean,
}

impl Run {
    /// The truths that hold at every moment.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(lie) = self.lie.as_ref().or(self.world.harm.as_ref()) {
            return Err(lie.clone());
        }
        self.every_object_has_a_row()?;
        self.every_address_has_one_holder()?;
        self.every_content_is_there()?;
        if self.is_serving && self.actions.is_empty() && self.news.is_empty() {
            self.every_running_vm_is_whole()?;
        }
        Ok(())
    }

    /// The truths that hold when nothing is left to happen.
    pub(super) fn check_at_rest(&self, rest: Rest) -> Result<(), String> {
        self.check()?;
        for vm in self.disk.vms.values() {
            match vm.phase {
                Phase::Running if rest == Rest::Clean && vm.grows => {
                    return Err(format!("vm {} never gets the sizes of its row", vm.id));
                }
                Phase::Running => {}
                Phase::Stopped => self.is_stopped(vm)?,
                Phase::Stuck if rest == Rest::Any => {}
                phase => return Err(format!("vm {} rests in phase {phase}", vm.id)),
            }
            self.has_its_client(vm)?;
        }
        if let Some(key) = self.litter.first() {
            return Err(format!("a half-built {key} is left over"));
        }
        let waiting = self.clients.all.iter().find(|client| client.open.is_some());
        match waiting {
            Some(client) => Err(format!("{:?} is never answered", client.connection)),
            None => Ok(()),
        }
    }

    /// Notes what an effect broke, before anything mends it.
    pub(super) fn check_world(&mut self) {
        if let Err(broken) = self.every_object_has_a_row() {
            self.lie(broken);
        }
    }

    fn every_object_has_a_row(&self) -> Result<(), String> {
        for (vm, kind) in self.world.objects.keys() {
            let row = self.disk.vms.get(vm);
            let named = |row: &VmRecord| {
                let steps = row.disk_plan.iter().chain(&row.run_plan);
                steps.map(Step::kind).any(|planned| planned == *kind)
            };
            if !row.is_some_and(named) {
                return Err(format!("orphan: {} of {vm} is in no row", kind.word()));
            }
        }
        Ok(())
    }

    fn every_address_has_one_holder(&self) -> Result<(), String> {
        let mut holders = BTreeMap::new();
        let leased = self
            .disk
            .vms
            .values()
            .filter_map(|vm| Some((vm.lease?.address, vm.id)));
        let ruled = self.world.addresses().map(|(vm, address)| (address, vm));
        for (address, vm) in leased.chain(ruled) {
            let first = *holders.entry(address).or_insert(vm);
            if first != vm {
                return Err(format!("{address} is held by {first} and {vm}"));
            }
        }
        Ok(())
    }

    fn every_content_is_there(&self) -> Result<(), String> {
        let specs = self.disk.vms.values().map(|vm| &vm.spec);
        let mut needed = specs.flat_map(|spec| [&spec.image.content, &spec.kernel.content]);
        let is_gone = |content: &&ContentId| !self.world.contents.contains(*content);
        if let Some(content) = needed.find(is_gone) {
            return Err(format!("content {content} is gone and a VM needs it"));
        }
        let images = self.disk.images.values().map(|image| &image.content);
        let kernels = self.disk.kernels.values().map(|kernel| &kernel.content);
        match images.chain(kernels).find(is_gone) {
            Some(content) => Err(format!("content {content} is gone and a name means it")),
            None => Ok(()),
        }
    }

    fn every_running_vm_is_whole(&self) -> Result<(), String> {
        let running = self
            .disk
            .vms
            .values()
            .filter(|vm| vm.phase == Phase::Running);
        for vm in running {
            let mut steps = vm.disk_plan.iter().chain(&vm.run_plan);
            let lacks =
                steps.find(|step| step.leaves_object() && !self.world.has(vm.id, step.kind()));
            if let Some(step) = lacks {
                let kind = step.kind().word();
                return Err(format!("vm {} is running without its {kind}", vm.id));
            }
            let mut disks = vm.disk_plan.iter().filter(|_| !vm.grows);
            if let Some(step) = disks.find(|step| self.world.is_another(step)) {
                let kind = step.kind().word();
                return Err(format!(
                    "vm {} says it has grown, its {kind} has not",
                    vm.id
                ));
            }
        }
        Ok(())
    }

    fn is_stopped(&self, vm: &VmRecord) -> Result<(), String> {
        let disks: Vec<StepKind> = vm.disk_plan.iter().map(Step::kind).collect();
        if let Some(kind) = disks.iter().find(|kind| !self.world.has(vm.id, **kind)) {
            return Err(format!(
                "vm {} is stopped and has no {}",
                vm.id,
                kind.word()
            ));
        }
        let mut own = self.world.objects.keys().filter(|(id, _)| *id == vm.id);
        match own.find(|(_, kind)| !disks.contains(kind)) {
            Some((_, kind)) => Err(format!("vm {} is stopped and has a {}", vm.id, kind.word())),
            None => Ok(()),
        }
    }

    fn has_its_client(&self, vm: &VmRecord) -> Result<(), String> {
        let owned = self.clients.has_owner(vm.id);
        if vm.removal == Removal::WithClient && vm.phase != Phase::Stuck && !owned {
            return Err(format!("vm {} outlives its client", vm.id));
        }
        Ok(())
    }

    /// A VM whose client lives is deleted when somebody asks for it, and never otherwise.
    pub(super) fn check_drop(&mut self, vm: VmId) {
        let Some(row) = self.disk.vms.get(&vm) else {
            return;
        };
        let (name, id) = (row.spec.name.as_str(), vm.to_string());
        let is_it = |target: &String| target == name || id.starts_with(target.as_str());
        let unasked = !self.deletions.iter().any(is_it);
        if self.clients.holds.remove(&vm).is_some() && unasked {
            self.lie(format!("vm {vm} is deleted under its living client"));
        }
    }

    /// What a client is told is durable.
    pub(super) fn check_reply(&mut self, reply: &Reply) {
        match reply {
            Reply::Vm(told) => {
                let durable = self.disk.vms.get(&told.id).map(|vm| vm.phase);
                if durable != Some(told.phase) {
                    let what =
                        format!("told {} is {}, durable is {durable:?}", told.id, told.phase);
                    self.lie(what);
                }
            }
            Reply::Deleted { name } if self.disk.vms.values().any(|vm| vm.spec.name == *name) => {
                self.lie(format!("told {name} is deleted, its row is there"));
            }
            _ => {}
        }
    }
}
