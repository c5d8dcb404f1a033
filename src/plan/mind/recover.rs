//! What is found at daemon start, and how it is brought to rest.
//!
//! | row | VMM | what follows |
//! |---|---|---|
//! | Creating, Deleting | any | delete |
//! | Starting, Stopping | any | stop |
//! | Running | alive | adopt: put its network rules back, watch it again, give it the sizes that it lacks |
//! | Running | gone | stop |
//! | Resetting | any | reset again |
//! | Stuck | any | try once more what got stuck |
//! | Stopped | none | nothing |
//!
//! A VM that goes with a client is deleted at rest, unless its client lives: a client holds
//! what an earlier daemon gave it with its answer, and is watched by that from now on.
//! A row that cannot be read is shown as stuck and touched only by a deletion.

use std::collections::BTreeSet;

use crate::model::ids::VmId;
use crate::model::vm::Phase;
use crate::plan::event::{Action, RunToken};
use crate::plan::make;
use crate::plan::planted::{Bug, planted};
use crate::plan::record::{Loaded, Removal, RowChange, Stuck, Unreadable, VmRecord};
use crate::plan::step::{Step, StepKind};

use super::work::Then;
use super::{Life, Mind, Owner, Vm};

/// What a running VM has that can be put back under it: a flushed firewall, rules of an
/// older text, a snapshot's store that has become too short.
fn mendable(record: &VmRecord) -> Vec<Step> {
    let steps = record.run_plan.iter();
    steps
        .filter(|step| {
            matches!(
                step.kind(),
                StepKind::NetRules | StepKind::NetLimit | StepKind::CowLoop
            )
        })
        .cloned()
        .collect()
}

/// What runs of a VM that was running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Whole,
    NoVmm,
    /// Its VMM runs, and nobody can reach its guest.
    NoBackend,
}

impl Mind {
    pub(super) fn remember(&mut self, loaded: Loaded) {
        for record in loaded.vms {
            if let Some(lease) = record.lease {
                self.leases.restore(record.id, lease);
            }
            self.vms.insert(record.id, Vm::at_rest(record));
        }
        for unreadable in loaded.unreadable {
            if let Some(lease) = unreadable.lease {
                self.leases.restore(unreadable.id, lease);
            }
            let record = self.stand_in(unreadable);
            self.vms.insert(record.id, Vm::at_rest(record));
        }
        for image in loaded.images {
            self.images.insert(image.name.clone(), image);
        }
        for kernel in loaded.kernels {
            self.kernels.insert(kernel.name.clone(), kernel);
        }
    }

    /// What is shown for a row that cannot be read, with the plan that finds whatever
    /// the VM may have.
    fn stand_in(&self, unreadable: Unreadable) -> VmRecord {
        let id = unreadable.id;
        let generic = || {
            format!("unreadable-{id}")
                .parse()
                .expect("lower-case and hexadecimal")
        };
        let spec = make::unknown(unreadable.name.unwrap_or_else(generic));
        let (disk_plan, run_plan) = make::everything(id, &spec, self.facts.subnet);
        VmRecord {
            id,
            spec,
            lease: unreadable.lease,
            phase: Phase::Stuck,
            stuck: Some(Stuck::Unreadable),
            reason: Some(unreadable.reason),
            net_reason: None,
            git: None,
            removal: Removal::Keep,
            grows: false,
            disk_plan,
            run_plan,
            vmm: None,
            boot: None,
            created_at: 0,
            started_at: None,
        }
    }

    pub(super) fn opened(&mut self) {
        if !planted(Bug::HelpersNotKilled) {
            self.out.push(Action::KillHelpers);
        }
        let running = self
            .vms
            .values()
            .filter(|vm| vm.record.phase == Phase::Running);
        let asked = running.map(|vm| (vm.record.id, mendable(&vm.record)));
        let running = asked.collect();
        let with_client = self.vms.values().map(|vm| &vm.record);
        let with_client = with_client.filter(|record| record.removal == Removal::WithClient);
        let owned = with_client.map(|record| record.id).collect();
        self.out.push(Action::FindVmms { running, owned });
    }

    pub(super) fn recovered(
        &mut self,
        alive: &BTreeSet<VmId>,
        linked: &BTreeSet<VmId>,
        held: &BTreeSet<VmId>,
    ) {
        if self.life != Life::Opening {
            return;
        }
        self.life = Life::Serving;
        let ids: Vec<VmId> = self.vms.keys().copied().collect();
        for id in ids {
            let found = match (alive.contains(&id), linked.contains(&id)) {
                (false, _) => Found::NoVmm,
                (true, false) if self.needs_backend(id) => Found::NoBackend,
                (true, _) => Found::Whole,
            };
            if held.contains(&id) && !planted(Bug::HoldOverlooked) {
                self.keep_for_its_client(id);
            }
            self.recover(id, found);
        }
        // A store without any name is new, or lost: then nothing on disk is known to be
        // left over, and an image takes a minute to make again.
        if !(self.images.is_empty() && self.kernels.is_empty()) {
            self.want_sweep();
        }
    }

    fn needs_backend(&self, id: VmId) -> bool {
        let mut steps = self.vms[&id].record.run_plan.iter();
        steps.any(|step| step.kind() == StepKind::VsockBackend) && !planted(Bug::BackendUnwatched)
    }

    fn keep_for_its_client(&mut self, id: VmId) {
        self.log(Some(id), None, "its client still holds it".to_owned());
        self.vms.get_mut(&id).expect("listed just now").owner = Some(Owner::Hold);
        if !planted(Bug::HoldUnwatched) {
            self.out.push(Action::WatchHold { vm: id });
        }
    }

    fn recover(&mut self, id: VmId, found: Found) {
        let vm = &self.vms[&id];
        let record = &vm.record;
        let goes = record.removal == Removal::WithClient && vm.owner.is_none();
        let reason = record.reason.clone();
        match (record.phase, record.stuck) {
            (Phase::Starting, _) if planted(Bug::RecoveryForgetsRow) => {}
            (Phase::Stuck, _) if planted(Bug::StuckRowDropped) => {
                self.out.push(Action::Save(vec![RowChange::DropVm(id)]));
            }
            (Phase::Creating | Phase::Deleting, _) => self.begin_delete(id, Vec::new()),
            (Phase::Stuck, Some(Stuck::Unreadable) | None) => {}
            (Phase::Stuck, Some(Stuck::Deleting)) => self.begin_delete(id, Vec::new()),
            (Phase::Stuck, Some(Stuck::Resetting)) | (Phase::Resetting, _) => {
                self.begin_reset(id, Vec::new());
            }
            (Phase::Running | Phase::Stopped, _) if goes => self.begin_delete(id, Vec::new()),
            (Phase::Running, _) => match found {
                Found::Whole => self.adopt(id),
                Found::NoVmm => self.stop_after_crash(id, "the VMM ended while no daemon ran"),
                Found::NoBackend => {
                    self.stop_after_crash(id, "its vsock back end ended while no daemon ran");
                }
            },
            (Phase::Starting, _) => {
                self.stop_after_crash(id, "the daemon ended while it was being started");
            }
            (Phase::Stopping, _) | (Phase::Stuck, Some(Stuck::Stopping)) => {
                self.begin_stop(id, reason, Vec::new(), Then::Rest);
            }
            (Phase::Stopped, _) => {}
        }
    }

    fn stop_after_crash(&mut self, id: VmId, reason: &str) {
        self.begin_stop(id, Some(reason.to_owned()), Vec::new(), Then::Rest);
    }

    fn adopt(&mut self, id: VmId) {
        self.log(Some(id), None, "adopted: its VMM runs".to_owned());
        let run = RunToken(self.number());
        self.vms.get_mut(&id).expect("listed just now").run = Some(run);
        self.watch(id);
        if self.needs_backend(id) {
            self.watch_backend(id);
        }
        if self.vms[&id].record.grows && !planted(Bug::AdjustmentForgotten) {
            self.begin_adjust(id, Vec::new());
        }
    }
}
