//! Other sizes for a VM: for one at rest, and for one that runs what can be given to it.
//!
//! At rest only its row is written. The machine is made of the row at each start, and the
//! row says that the disks' files have to follow: the next start begins with them, so a
//! crash at any point leaves a VM that is whole, with its old files or its new ones. The
//! guest lets its file systems grow when it mounts them.
//!
//! While it runs, its row is written first, saying that what runs lacks it; then an
//! adjustment gives it to the work disk's file, the VMM and the guest, each part as often as
//! is needed. After a crash the next daemon does that, or the next start.

use crate::failure::Failure;
use crate::model::ids::VmId;
use crate::model::units::Bytes;
use crate::model::vm::{Phase, VmSpec};
use crate::plan::admit::{Verdict, Wish, admit};
use crate::plan::check::{check_sizes, check_target};
use crate::plan::make;
use crate::plan::operation::{Goal, Operation};
use crate::plan::request::{Changes, Reply};
use crate::plan::step::{Fault, FaultKind, StepKind};

use super::Mind;
use super::say::Waiter;
use super::work::{OnLeave, Then};

impl Mind {
    pub(super) fn set(&mut self, waiter: Waiter, target: &str, changes: Changes) {
        let id = match self.resolve(target) {
            Ok(id) => id,
            Err(failure) => return self.fail(waiter, failure),
        };
        let vm = &self.vms[&id];
        let wish = match vm.record.phase {
            Phase::Stopped if changes.needs_run() => Wish::Adjust,
            Phase::Stopped => Wish::Set,
            _ if changes.needs_rest() => Wish::Set,
            _ => Wish::Adjust,
        };
        if let Verdict::Deny(denial) = admit(vm.situation(), wish) {
            return self.deny(id, Some(waiter), denial);
        }
        match self.changed(&vm.record.spec, changes) {
            Ok(spec) if wish == Wish::Adjust => self.adjust(id, waiter, spec),
            Ok(spec) => self.set_at_rest(id, waiter, spec),
            Err(failure) => self.fail(waiter, failure),
        }
    }

    fn set_at_rest(&mut self, id: VmId, waiter: Waiter, spec: VmSpec) {
        let vm = self.vms.get_mut(&id).expect("resolved just now");
        let (phase, old) = (vm.record.phase, &vm.record.spec);
        vm.record.grows |= (spec.work_disk, spec.root_disk) != (old.work_disk, old.root_disk);
        vm.is_durable &= *old == spec;
        vm.record.disk_plan = make::disk_plan(id, &spec);
        vm.record.spec = spec;
        self.save_phase(id, phase);
        let reply = Reply::Vm(Box::new(self.show(id)));
        self.reply(waiter, reply);
    }

    /// Also where nothing changes: whoever says it again wants what failed to be finished.
    fn adjust(&mut self, id: VmId, waiter: Waiter, spec: VmSpec) {
        let vm = self.vms.get_mut(&id).expect("resolved just now");
        vm.record.disk_plan = make::disk_plan(id, &spec);
        vm.record.spec = spec;
        vm.record.grows = true;
        self.save_row(id);
        self.begin_adjust(id, vec![waiter]);
    }

    /// Gives what runs the sizes of its row, which is durable.
    pub(super) fn begin_adjust(&mut self, id: VmId, waiters: Vec<Waiter>) {
        let record = &self.vms[&id].record;
        let steps = make::adjustment(id, &record.spec, &record.run_plan);
        let operation = Operation::adjust(steps);
        self.operate(id, operation, waiters, Then::Rest, OnLeave::GoOn);
    }

    /// Says that a run is over on which an adjustment is under way: its removal begins when
    /// that has come to rest.
    pub(super) fn note_end(&mut self, id: VmId, reason: &str) {
        let adjusting = self.operating(id);
        let Some(work) = adjusting.filter(|work| work.operation.goal() == Goal::Adjust) else {
            return;
        };
        work.run_ended = Some(reason.to_owned());
        let vm = self.vms.get_mut(&id).expect("it has work");
        vm.record.reason = Some(reason.to_owned());
        self.save_phase(id, Phase::Stopping);
    }

    /// A guest without a balloon never had a target, and cannot be given one. What is
    /// missing at another step is a file.
    pub(super) fn forget_impossible_target(
        &mut self,
        id: VmId,
        fault: &Fault,
        at: Option<StepKind>,
    ) {
        let vm = self.vms.get_mut(&id).expect("its operation just ended");
        let has_none = fault.kind == FaultKind::Missing && at == Some(StepKind::Adjusted);
        if has_none && vm.record.spec.memory_target.take().is_some() {
            self.save_row(id);
        }
    }

    fn changed(&self, old: &VmSpec, changes: Changes) -> Result<VmSpec, Failure> {
        let memory = changes.memory.unwrap_or(old.memory);
        let target = changes.memory_target.or(old.memory_target);
        let spec = VmSpec {
            vcpu: changes.vcpu.unwrap_or(old.vcpu),
            memory,
            // A machine made with that little needs none.
            memory_target: target.filter(|target| *target < memory || !changes.needs_rest()),
            work_disk: changes.work_disk.unwrap_or(old.work_disk),
            root_disk: changes.root_disk.unwrap_or(old.root_disk),
            ..old.clone()
        };
        check_sizes(spec.vcpu, spec.memory, spec.work_disk, spec.root_disk)?;
        if let Some(target) = changes.memory_target {
            check_target(target, memory)?;
        }
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
