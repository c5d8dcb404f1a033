//! What is asked of one VM: admitted by the table in `admit.rs`, then begun, joined,
//! queued or refused. Also the news that come from the VM itself.

use crate::failure::{Failure, FailureKind};
use crate::model::ids::VmId;
use crate::model::vm::Phase;
use crate::plan::admit::{Denial, Situation, Verdict, Wish, admit};
use crate::plan::event::{Action, RunToken, TimerId};
use crate::plan::operation::Goal;
use crate::plan::record::{Removal, Stuck};
use crate::plan::request::{ClientId, Reply};
use crate::plan::retry;
use crate::plan::step::{Fault, FaultKind};

use super::say::Waiter;
use super::work::{OnLeave, Then, Work};
use super::{Mind, Owner, TimerUse, Vm};

/// The one wish that waits until what is under way has come to rest.
#[derive(Debug, Clone)]
pub(super) struct Queued {
    wish: Wish,
    waiters: Vec<Waiter>,
}

impl Mind {
    pub(super) fn ask(&mut self, waiter: Waiter, target: &str, wish: Wish) {
        match self.resolve(target) {
            Ok(vm) => self.wish(vm, Some(waiter), wish),
            Err(failure) => self.fail(waiter, failure),
        }
    }

    /// Admits a wish of a client, or of ours when nobody waits for it.
    pub(super) fn wish(&mut self, id: VmId, waiter: Option<Waiter>, wish: Wish) {
        let Some(vm) = self.vms.get(&id) else {
            return;
        };
        match admit(vm.situation(), wish) {
            Verdict::Accept => self.begin(id, waiter, wish),
            Verdict::Ignore => self.already_so(id, waiter, wish),
            // Whoever joins a start that failed wants its end, not its failure.
            Verdict::Join if vm.has_turned() => self.queue(id, waiter, wish),
            Verdict::Join => self.join(id, waiter),
            Verdict::Hasten => {
                self.join(id, waiter);
                self.end_waiting_for_guest(id);
            }
            Verdict::Queue => self.queue(id, waiter, wish),
            Verdict::Deny(denial) => self.deny(id, waiter, denial),
        }
    }

    fn begin(&mut self, id: VmId, waiter: Option<Waiter>, wish: Wish) {
        let waiters: Vec<Waiter> = waiter.into_iter().collect();
        let running = self.vms[&id].record.phase == Phase::Running;
        match wish {
            Wish::Start => self.begin_start(id, waiters, OnLeave::Cancel),
            Wish::Stop if running => self.power_off(id, waiters, Then::Rest),
            Wish::Stop | Wish::Kill => self.begin_stop(id, None, waiters, Then::Rest),
            Wish::Restart if running => self.power_off(id, waiters, Then::Start),
            Wish::Restart => self.begin_start(id, waiters, OnLeave::GoOn),
            Wish::Delete | Wish::ForceDelete => self.begin_delete(id, waiters),
            Wish::Reset => self.begin_reset(id, waiters),
            Wish::Set | Wish::Adjust | Wish::Dial => {
                self.already_so(id, waiters.into_iter().next(), wish)
            }
        }
    }

    fn already_so(&mut self, id: VmId, waiter: Option<Waiter>, wish: Wish) {
        let Some(waiter) = waiter else {
            return;
        };
        let record = self.show(id);
        let reply = match wish {
            Wish::Dial => Reply::Dial {
                vm: id,
                name: record.spec.name,
            },
            Wish::Start
            | Wish::Stop
            | Wish::Kill
            | Wish::Restart
            | Wish::Delete
            | Wish::ForceDelete
            | Wish::Reset
            | Wish::Set
            | Wish::Adjust => Reply::Vm(Box::new(record)),
        };
        self.reply(waiter, reply);
    }

    fn join(&mut self, id: VmId, waiter: Option<Waiter>) {
        let work = self.vms.get_mut(&id).and_then(|vm| vm.work.as_mut());
        if let Some(work) = work {
            work.waiters().extend(waiter);
        }
    }

    fn queue(&mut self, id: VmId, waiter: Option<Waiter>, wish: Wish) {
        let vm = self.vms.get_mut(&id).expect("admitted just now");
        let deletes = |wish| matches!(wish, Wish::Delete | Wish::ForceDelete);
        match &mut vm.queued {
            Some(queued) if deletes(queued.wish) && !deletes(wish) => {
                let denial = Denial {
                    reason: "is about to be deleted",
                    hint: "See `banger vm list`.",
                };
                return self.deny(id, waiter, denial);
            }
            Some(queued) => {
                queued.wish = wish;
                queued.waiters.extend(waiter);
            }
            None => {
                vm.queued = Some(Queued {
                    wish,
                    waiters: waiter.into_iter().collect(),
                });
            }
        }
        self.turn(id, Fault::new(FaultKind::Cancelled, "it was to end"));
    }

    pub(super) fn wait_for_rest(&mut self, id: VmId, waiter: Waiter) {
        let vm = self.vms.get_mut(&id).expect("resolved just now");
        if vm.work.is_some() || vm.record.phase == Phase::Running {
            return vm.watchers.push(waiter);
        }
        let reply = Reply::Vm(Box::new(self.show(id)));
        self.reply(waiter, reply);
    }

    /// Tells those who wait for it that it has come to rest, which is durable.
    pub(super) fn tell_watchers(&mut self, id: VmId) {
        let watchers = self
            .vms
            .get_mut(&id)
            .map(|vm| std::mem::take(&mut vm.watchers));
        let watchers = watchers.filter(|watchers| !watchers.is_empty());
        if let Some(watchers) = watchers {
            let reply = Reply::Vm(Box::new(self.show(id)));
            self.reply_all(watchers, &reply);
        }
    }

    pub(super) fn deny(&mut self, id: VmId, waiter: Option<Waiter>, denial: Denial) {
        let Some(waiter) = waiter else {
            return;
        };
        let name = &self.vms[&id].record.spec.name;
        let failure = Failure::new(FailureKind::Busy, format!("vm {name} {}", denial.reason))
            .hint(denial.hint.replace("{}", name.as_str()));
        self.fail(waiter, failure);
    }

    /// Carries out the wish that waited; the VM has come to rest, or is gone.
    pub(super) fn run_queued(
        &mut self,
        id: VmId,
        queued: Queued,
        last_name: &crate::model::ids::VmName,
    ) {
        if self.vms.contains_key(&id) {
            if queued.waiters.is_empty() {
                self.wish(id, None, queued.wish);
            }
            for waiter in queued.waiters {
                self.wish(id, Some(waiter), queued.wish);
            }
            return;
        }
        let reply = Reply::Deleted {
            name: last_name.clone(),
        };
        self.reply_all(queued.waiters, &reply);
    }

    /// Saves that it is to stop, then lets the guest write back and power off.
    fn power_off(&mut self, id: VmId, waiters: Vec<Waiter>, then: Then) {
        let timer = self.arm(TimerUse::PowerOff(id), retry::POWER_OFF_MS);
        let vm = self.vms.get_mut(&id).expect("admitted just now");
        vm.is_durable &= vm.record.reason.is_none();
        vm.record.reason = None;
        vm.work = Some(Work::PoweringOff {
            timer,
            waiters,
            then,
        });
        let run = vm.run;
        self.save_phase(id, Phase::Stopping);
        match run {
            Some(run) => self.out.push(Action::PowerOff { vm: id, run }),
            None => self.end_waiting_for_guest(id),
        }
    }

    pub(super) fn power_off_sent(&mut self, id: VmId, run: RunToken, result: Result<(), Fault>) {
        if let Err(fault) = result
            && self.is_run(id, run)
        {
            self.kill_waiting_guest(id, &fault.what);
        }
    }

    pub(super) fn power_off_timed_out(&mut self, id: VmId, fired: TimerId) {
        let vm = self.vms.get(&id);
        if matches!(vm.and_then(|vm| vm.work.as_ref()), Some(Work::PoweringOff { timer, .. }) if *timer == fired)
        {
            let limit_s = retry::POWER_OFF_MS / 1000;
            let why = format!("the guest did not power off within {limit_s} s");
            self.kill_waiting_guest(id, &why);
        }
    }

    /// What was not written back is lost, so the VM tells of it.
    fn kill_waiting_guest(&mut self, id: VmId, why: &str) {
        self.log(Some(id), None, format!("no graceful stop: {why}"));
        self.end_power_off(id, Some(format!("killed: {why}")));
    }

    /// Goes from the waiting for the guest to the removal of its run.
    pub(super) fn end_waiting_for_guest(&mut self, id: VmId) {
        self.end_power_off(id, None);
    }

    fn end_power_off(&mut self, id: VmId, reason: Option<String>) {
        let Some(vm) = self.vms.get_mut(&id) else {
            return;
        };
        match vm.work.take() {
            Some(Work::PoweringOff {
                timer,
                waiters,
                then,
            }) => {
                self.timers.remove(&timer);
                self.begin_stop(id, reason, waiters, then);
            }
            other => vm.work = other,
        }
    }

    pub(super) fn vmm_exited(&mut self, id: VmId, run: RunToken, reason: &str) {
        if !self.is_run(id, run) {
            return;
        }
        self.log(Some(id), None, format!("VMM ended: {reason}"));
        let vm = &self.vms[&id];
        match &vm.work {
            Some(Work::PoweringOff { .. }) => self.end_waiting_for_guest(id),
            Some(Work::Operating(_)) => {
                self.note_end(id, reason);
                self.turn(id, Fault::new(FaultKind::Exited, reason));
            }
            None if vm.record.phase == Phase::Running => {
                self.begin_stop(id, Some(reason.to_owned()), Vec::new(), Then::Rest);
            }
            None => {}
        }
    }

    /// Without its vsock back end a guest cannot be reached, and its VMM cannot be given
    /// another one: the run is over.
    pub(super) fn backend_exited(&mut self, id: VmId, run: RunToken, how: Option<String>) {
        if !self.is_run(id, run) {
            return;
        }
        let reason = match how {
            Some(how) => format!("its vsock back end was lost: {how}"),
            None => "its vsock back end was lost".to_owned(),
        };
        let vm = &self.vms[&id];
        match &vm.work {
            // It was told, and powers off without being reached any more.
            Some(Work::PoweringOff { .. }) => {}
            Some(Work::Operating(work)) if work.operation.is_going_up() => {
                self.log(Some(id), None, reason.clone());
                self.note_end(id, &reason);
                self.turn(id, Fault::new(FaultKind::Exited, reason));
            }
            None if vm.record.phase == Phase::Running => {
                self.log(Some(id), None, reason.clone());
                self.begin_stop(id, Some(reason), Vec::new(), Then::Rest);
            }
            // We ended it ourselves, on the way down.
            Some(Work::Operating(_)) | None => {}
        }
    }

    fn is_run(&self, id: VmId, run: RunToken) -> bool {
        self.vms.get(&id).is_some_and(|vm| vm.run == Some(run))
    }

    /// A client is gone: what only it waited for on a way up is turned, and the VMs
    /// that go with it are deleted.
    pub(super) fn client_gone(&mut self, client: ClientId) {
        self.forget_creates_of(client);
        self.forget_pulls_of(client);
        let ids: Vec<VmId> = self.vms.keys().copied().collect();
        for id in ids {
            self.forget_waiters(id, client);
            self.delete_if_owned(id, Owner::Connection(client));
        }
    }

    /// A client that an earlier daemon had answered is gone.
    pub(super) fn hold_released(&mut self, id: VmId) {
        self.delete_if_owned(id, Owner::Hold);
    }

    fn delete_if_owned(&mut self, id: VmId, owner: Owner) {
        let owned = self.vms.get_mut(&id);
        if let Some(vm) = owned.filter(|vm| vm.owner == Some(owner)) {
            vm.owner = None;
            self.log(Some(id), None, "its client is gone: deleting".to_owned());
            self.wish(id, None, Wish::ForceDelete);
        }
    }

    fn forget_waiters(&mut self, id: VmId, client: ClientId) {
        let vm = self.vms.get_mut(&id).expect("listed just now");
        vm.watchers.retain(|waiter| !waiter.is_client(client));
        if let Some(queued) = &mut vm.queued {
            queued.waiters.retain(|waiter| !waiter.is_client(client));
        }
        let Some(work) = &mut vm.work else {
            return;
        };
        let waiters = work.waiters();
        let before = waiters.len();
        waiters.retain(|waiter| !waiter.is_client(client));
        let last_left = before > 0 && waiters.is_empty();
        if last_left && work.on_leave() == OnLeave::Cancel {
            self.turn(id, Fault::new(FaultKind::Cancelled, "its client is gone"));
        }
    }
}

impl Vm {
    /// The row of the admission table that it is in.
    pub(super) fn situation(&self) -> Situation {
        match &self.work {
            Some(Work::PoweringOff { .. }) => Situation::PoweringOff,
            Some(Work::Operating(work)) => {
                let up = work.operation.is_going_up() && work.operation.fault().is_none();
                match work.operation.goal() {
                    Goal::Create if up => Situation::Creating,
                    Goal::Start if up => Situation::Starting,
                    Goal::Start | Goal::Stop => Situation::Stopping,
                    Goal::Create | Goal::Delete => Situation::Deleting,
                    Goal::Reset => Situation::Resetting,
                    Goal::Adjust if work.run_ended.is_some() => Situation::Stopping,
                    Goal::Adjust => Situation::Adjusting,
                }
            }
            None => self.situation_at_rest(),
        }
    }

    /// Whether a way up is under way no more, but its way down.
    fn has_turned(&self) -> bool {
        let goal = match &self.work {
            Some(Work::Operating(work)) => Some(work.operation.goal()),
            Some(Work::PoweringOff { .. }) | None => None,
        };
        let up = matches!(self.situation(), Situation::Creating | Situation::Starting);
        matches!(goal, Some(Goal::Create | Goal::Start)) && !up
    }

    /// Whether nothing will be left of it: it is being deleted, or that comes next.
    pub(super) fn is_going(&self) -> bool {
        let unless_ran = match &self.work {
            Some(Work::Operating(work)) => work.then == Then::DeleteUnlessRan,
            Some(Work::PoweringOff { .. }) | None => false,
        };
        let queued = self.queued.as_ref().map(|queued| queued.wish);
        let asked = matches!(queued, Some(Wish::Delete | Wish::ForceDelete));
        match self.situation() {
            Situation::Deleting => true,
            Situation::Stopping => asked || unless_ran || self.is_orphaned(),
            Situation::Creating
            | Situation::Stopped
            | Situation::Starting
            | Situation::Running
            | Situation::Adjusting
            | Situation::PoweringOff
            | Situation::Resetting
            | Situation::StuckStopping
            | Situation::StuckResetting
            | Situation::StuckDeleting => asked,
        }
    }

    /// Whether its client has gone, with which it goes.
    pub(super) fn is_orphaned(&self) -> bool {
        self.owner.is_none() && self.record.removal == Removal::WithClient
    }

    fn situation_at_rest(&self) -> Situation {
        match (self.record.phase, self.record.stuck) {
            (Phase::Stopped, _) => Situation::Stopped,
            (Phase::Running, _) => Situation::Running,
            (Phase::Stuck, Some(Stuck::Stopping)) => Situation::StuckStopping,
            (Phase::Stuck, Some(Stuck::Resetting)) => Situation::StuckResetting,
            (Phase::Stuck, Some(Stuck::Deleting | Stuck::Unreadable) | None) => {
                Situation::StuckDeleting
            }
            (Phase::Creating | Phase::Deleting, _) => Situation::Deleting,
            (Phase::Starting | Phase::Stopping, _) => Situation::Stopping,
            (Phase::Resetting, _) => Situation::Resetting,
        }
    }
}
