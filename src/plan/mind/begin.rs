//! Operations begun: what a start needs of this machine, and which plan each one works on.

use crate::failure::Failure;
use crate::model::ids::VmId;
use crate::plan::event::RunToken;
use crate::plan::facts::MIN_FREE_TO_START;
use crate::plan::make;
use crate::plan::operation::Operation;
use crate::plan::request::Reply;

use super::Mind;
use super::say::Waiter;
use super::work::{OnLeave, Then};

impl Mind {
    pub(super) fn begin_create(&mut self, id: VmId, waiters: Vec<Waiter>, then: Then) {
        let operation = Operation::create(&self.vms[&id].record.disk_plan);
        self.operate(id, operation, waiters, then, OnLeave::Cancel);
    }

    pub(super) fn begin_start(&mut self, id: VmId, waiters: Vec<Waiter>, on_leave: OnLeave) {
        self.begin_start_then(id, waiters, Then::Rest, on_leave);
    }

    pub(super) fn begin_start_then(
        &mut self,
        id: VmId,
        waiters: Vec<Waiter>,
        then: Then,
        on_leave: OnLeave,
    ) {
        let spec = &self.vms[&id].record.spec;
        let fits = self.facts.check_memory(spec.memory).map_err(|failure| {
            let name = &spec.name;
            Failure::new(failure.kind, format!("start vm {name}: {}", failure.what))
                .hint(format!("Its memory was set at its creation: `banger vm delete {name}`, then make it with less."))
        });
        let what = format!("start vm {}", spec.name);
        let choice = fits
            .and_then(|()| self.check_space(&what, MIN_FREE_TO_START))
            .and_then(|()| self.refuse_taken(&what, &spec.publish, Some(id)))
            .and_then(|()| self.facts.choose_vmm_for(spec.net, spec.vmm));
        let choice = choice.and_then(|choice| self.renew_lease(id).map(|()| choice));
        let choice = match choice {
            Ok(choice) => choice,
            Err(failure) => return self.start_refused(id, waiters, then, failure),
        };
        let run = RunToken(self.number());
        let vm = self.vms.get_mut(&id).expect("looked up just now");
        vm.run = Some(run);
        let (spec, lease) = (&vm.record.spec, vm.record.lease);
        vm.record.run_plan = make::run_plan(id, spec, lease, choice.kind, choice.confinement);
        vm.record.vmm = Some(choice);
        vm.record.boot = None;
        vm.record.reason = None;
        vm.is_durable = false;
        let operation = match vm.record.grows {
            true => Operation::start_grown(&vm.record.disk_plan, &vm.record.run_plan),
            false => Operation::start(&vm.record.run_plan),
        };
        self.operate(id, operation, waiters, then, on_leave);
    }

    /// Exchanges an address of another subnet than the configured one: nothing of the VM
    /// runs, and the bridge that had its subnet may still be there under another name, where
    /// the two would be in each other's way.
    fn renew_lease(&mut self, id: VmId) -> Result<(), Failure> {
        let record = &mut self.vms.get_mut(&id).expect("the caller has it").record;
        let subnet = self.facts.subnet;
        if let Some(held) = record.lease.filter(|held| held.subnet != subnet) {
            record.lease = Some(self.leases.renew(id, held, subnet)?);
        }
        Ok(())
    }

    fn start_refused(&mut self, id: VmId, waiters: Vec<Waiter>, then: Then, failure: Failure) {
        match then {
            Then::DeleteUnlessRan => {
                let waiters = waiters.into_iter().map(|w| w.with_news(&failure)).collect();
                self.begin_delete(id, waiters);
            }
            Then::Rest | Then::Start => self.reply_all(waiters, &Reply::Failed(failure)),
        }
    }

    pub(super) fn begin_stop(
        &mut self,
        id: VmId,
        reason: Option<String>,
        waiters: Vec<Waiter>,
        then: Then,
    ) {
        let vm = self.vms.get_mut(&id).expect("the caller has it");
        vm.is_durable &= vm.record.reason == reason;
        vm.record.reason = reason;
        let operation = Operation::stop(&vm.record.run_plan);
        self.operate(id, operation, waiters, then, OnLeave::GoOn);
    }

    pub(super) fn begin_delete(&mut self, id: VmId, waiters: Vec<Waiter>) {
        let record = &self.vms[&id].record;
        let operation = Operation::delete(&record.disk_plan, &record.run_plan);
        self.operate(id, operation, waiters, Then::Rest, OnLeave::GoOn);
    }

    pub(super) fn begin_reset(&mut self, id: VmId, waiters: Vec<Waiter>) {
        let operation = Operation::reset(&self.vms[&id].record.disk_plan);
        self.operate(id, operation, waiters, Then::Rest, OnLeave::GoOn);
    }
}
