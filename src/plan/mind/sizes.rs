//! Other sizes for a VM at rest.
//!
//! Only its row is written here. The machine is made of the row at each start, and the
//! row says that the disks' files have to follow: the next start begins with them, so a
//! crash at any point leaves a VM that is whole, with its old files or its new ones. The
//! guest lets its file systems grow when it mounts them.

use crate::failure::Failure;
use crate::model::units::Bytes;
use crate::model::vm::VmSpec;
use crate::plan::admit::{Verdict, Wish, admit};
use crate::plan::check::check_sizes;
use crate::plan::make;
use crate::plan::request::{Changes, Reply};

use super::Mind;
use super::say::Waiter;

impl Mind {
    pub(super) fn set(&mut self, waiter: Waiter, target: &str, changes: Changes) {
        let id = match self.resolve(target) {
            Ok(id) => id,
            Err(failure) => return self.fail(waiter, failure),
        };
        let vm = &self.vms[&id];
        if let Verdict::Deny(denial) = admit(vm.situation(), Wish::Set) {
            return self.deny(id, Some(waiter), denial);
        }
        let (phase, old) = (vm.record.phase, &vm.record.spec);
        let spec = match self.changed(old, changes) {
            Ok(spec) => spec,
            Err(failure) => return self.fail(waiter, failure),
        };
        let grows = (spec.work_disk, spec.root_disk) != (old.work_disk, old.root_disk);
        let vm = self.vms.get_mut(&id).expect("resolved just now");
        vm.record.disk_plan = make::disk_plan(id, &spec);
        vm.record.grows |= grows;
        vm.is_durable &= vm.record.spec == spec;
        vm.record.spec = spec;
        self.save_phase(id, phase);
        let reply = Reply::Vm(Box::new(self.show(id)));
        self.reply(waiter, reply);
    }

    fn changed(&self, old: &VmSpec, changes: Changes) -> Result<VmSpec, Failure> {
        let spec = VmSpec {
            vcpu: changes.vcpu.unwrap_or(old.vcpu),
            memory: changes.memory.unwrap_or(old.memory),
            work_disk: changes.work_disk.unwrap_or(old.work_disk),
            root_disk: changes.root_disk.unwrap_or(old.root_disk),
            ..old.clone()
        };
        check_sizes(spec.vcpu, spec.memory, spec.work_disk, spec.root_disk)?;
        let hint = "Give less with `--memory`.";
        let fits = self.facts.check_memory(spec.memory);
        fits.map_err(|failure| failure.hint(hint))?;
        refuse_shrinking("work disk", old.work_disk, spec.work_disk)?;
        refuse_shrinking("root disk", old.root_disk, spec.root_disk)?;
        Ok(spec)
    }
}

fn refuse_shrinking(what: &str, old: Bytes, new: Bytes) -> Result<(), Failure> {
    if new >= old {
        return Ok(());
    }
    Err(
        Failure::usage(format!("make a {what} of {old} one of {new}"))
            .because("disks only grow: what lies at the end of one would be lost")
            .hint("Make a new VM with less and copy what you need into it."),
    )
}
