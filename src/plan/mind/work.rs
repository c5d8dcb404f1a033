//! Operations under way: driven step by step, brought to their end. [`super::begin`] begins
//! them.

use crate::model::ids::VmId;
use crate::model::vm::Phase;
use crate::plan::event::{Action, StepToken, TimerId};
use crate::plan::operation::{Effect, Goal, Mark, Operation, Outcome};
use crate::plan::planted::{Bug, planted};
use crate::plan::record::{Removal, RowChange};
use crate::plan::request::{Progress, Reply};
use crate::plan::retry::{self, Verb};
use crate::plan::step::{Fault, FaultKind, Step, StepKind};

use super::say::{self, Waiter};
use super::{Life, Mind, TimerUse, Vm};

/// What is under way on a VM: one thing at a time.
#[derive(Debug, Clone)]
pub(super) enum Work {
    /// Its guest was asked to power off.
    PoweringOff {
        timer: TimerId,
        waiters: Vec<Waiter>,
        then: Then,
    },
    Operating(Operating),
}

#[derive(Debug, Clone)]
pub(super) struct Operating {
    pub(super) operation: Operation,
    flight: Option<Flight>,
    pause: Option<TimerId>,
    /// Whether the pause before the next attempt is over.
    rested: bool,
    waiters: Vec<Waiter>,
    pub(super) then: Then,
    on_leave: OnLeave,
    /// Why the run that is being adjusted is over: what follows is its removal.
    pub(super) run_ended: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    token: StepToken,
    slot: Slot,
}

/// Whether a step takes one of the few places for steps at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Taken,
    /// Waiting for a guest's call is no work.
    Free,
}

/// What follows when an operation has reached its goal, or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Rest,
    Start,
    /// A start that is one with the creation: if its guest never ran, delete.
    DeleteUnlessRan,
}

/// What becomes of a way up when nobody waits for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnLeave {
    Cancel,
    GoOn,
}

impl Work {
    pub(super) fn waiters(&mut self) -> &mut Vec<Waiter> {
        match self {
            Work::PoweringOff { waiters, .. } => waiters,
            Work::Operating(work) => &mut work.waiters,
        }
    }

    pub(super) fn on_leave(&self) -> OnLeave {
        match self {
            Work::PoweringOff { .. } => OnLeave::GoOn,
            Work::Operating(work) => work.on_leave,
        }
    }
}

impl Mind {
    pub(super) fn operate(
        &mut self,
        id: VmId,
        operation: Operation,
        waiters: Vec<Waiter>,
        then: Then,
        on_leave: OnLeave,
    ) {
        let vm = self.vms.get_mut(&id).expect("the caller has it");
        debug_assert!(vm.work.is_none(), "one operation per VM");
        vm.work = Some(Work::Operating(Operating {
            operation,
            flight: None,
            pause: None,
            rested: true,
            waiters,
            then,
            on_leave,
            run_ended: None,
        }));
        self.pump(id);
    }

    /// Drives the operation of a VM until it waits for something outside.
    pub(super) fn pump(&mut self, id: VmId) {
        while let Some(work) = self.operating(id) {
            if work.flight.is_some() || work.pause.is_some() {
                return;
            }
            match work.operation.next() {
                None => return self.finish(id),
                Some(Effect::Save(mark)) => self.save_mark(id, mark),
                Some(Effect::Absent(step)) if !step.leaves_object() => {}
                Some(Effect::Ensure(step)) => return self.run_step(id, Verb::Ensure, step),
                Some(Effect::Absent(step)) => return self.run_step(id, Verb::Absent, step),
            }
            if let Some(work) = self.operating(id) {
                work.operation.report(Ok(()));
            }
        }
    }

    pub(super) fn operating(&mut self, id: VmId) -> Option<&mut Operating> {
        match self.vms.get_mut(&id)?.work.as_mut()? {
            Work::Operating(work) => Some(work),
            Work::PoweringOff { .. } => None,
        }
    }

    fn run_step(&mut self, id: VmId, verb: Verb, step: Step) {
        if self.life == Life::Ending {
            return;
        }
        let pause_ms = match self.operating(id) {
            Some(work) if !work.rested => work.operation.pause_ms(),
            _ => 0,
        };
        if pause_ms > 0 {
            let timer = self.arm(TimerUse::Pause(id), pause_ms);
            if let Some(work) = self.operating(id) {
                work.pause = Some(timer);
            }
            return;
        }
        let slot = match (verb, step.kind()) {
            (Verb::Ensure, StepKind::Ready) => Slot::Free,
            _ => Slot::Taken,
        };
        if slot == Slot::Taken && self.steps_under_way >= retry::STEPS_AT_ONCE {
            if !self.waiting_for_slot.contains(&id) {
                self.waiting_for_slot.push_back(id);
            }
            return;
        }
        self.launch(id, verb, step, slot);
    }

    fn launch(&mut self, id: VmId, verb: Verb, step: Step, slot: Slot) {
        let token = StepToken(self.number());
        if slot == Slot::Taken {
            self.steps_under_way += 1;
        }
        let work = self.operating(id).expect("its step is next");
        work.flight = Some(Flight { token, slot });
        let waiters = work.waiters.clone();
        self.progress(
            &waiters,
            &Progress::Step {
                verb,
                kind: step.kind(),
            },
        );
        if verb == Verb::Ensure && step.kind() == StepKind::Vmm {
            self.listen(id);
        }
        let deadline_ms = self.deadline_ms(id, verb, &step);
        self.out.push(Action::RunStep {
            vm: id,
            token,
            verb,
            step,
            deadline_ms,
        });
    }

    fn deadline_ms(&self, id: VmId, verb: Verb, step: &Step) -> u64 {
        let vmm = self.vms[&id].record.vmm.as_ref().map(|choice| choice.kind);
        let usual = retry::deadline_ms(verb, step, vmm);
        match (verb, step.kind(), self.facts.ready_deadline_ms) {
            (Verb::Ensure, StepKind::Ready, Some(configured)) => configured,
            _ => usual,
        }
    }

    /// Whether a guest boots. It takes no slot, and is under way all the same: without a
    /// row that says that it runs, the next daemon would take it down.
    pub(super) fn is_waiting_for_a_guest(&self) -> bool {
        let waits = |work: &Work| match work {
            Work::PoweringOff { .. } => false,
            Work::Operating(work) => work.flight.is_some_and(|flight| flight.slot == Slot::Free),
        };
        self.vms
            .values()
            .filter_map(|vm| vm.work.as_ref())
            .any(waits)
    }

    pub(super) fn step_done(&mut self, id: VmId, token: StepToken, result: Result<(), Fault>) {
        let Some(work) = self.operating(id) else {
            return;
        };
        let Some(flight) = work.flight.filter(|flight| flight.token == token) else {
            return;
        };
        work.flight = None;
        work.rested = false;
        let made = match (work.operation.next(), &result) {
            (Some(Effect::Ensure(step)), Ok(())) => Some(step.kind()),
            _ => None,
        };
        work.operation.report(result);
        if flight.slot == Slot::Taken {
            self.steps_under_way -= 1;
        }
        match made {
            Some(StepKind::Vmm) => self.watch(id),
            Some(StepKind::VsockBackend) => self.watch_backend(id),
            // All that it had to say is said.
            Some(StepKind::Ready) => self.stop_listening(id),
            _ => {}
        }
        self.pump(id);
        self.fill_slots();
    }

    fn fill_slots(&mut self) {
        while self.steps_under_way < retry::STEPS_AT_ONCE {
            match self.waiting_for_slot.pop_front() {
                Some(id) => self.pump(id),
                None => return,
            }
        }
    }

    pub(super) fn pause_over(&mut self, id: VmId, fired: TimerId) {
        match self.operating(id) {
            Some(work) if work.pause == Some(fired) => {
                work.pause = None;
                work.rested = true;
            }
            _ => return,
        }
        self.pump(id);
    }

    /// Ends a way up; a restart that only stops so far will not start. A guest that is
    /// powering off is not waited for any longer.
    pub(super) fn turn(&mut self, id: VmId, why: Fault) {
        if matches!(self.vms[&id].work, Some(Work::PoweringOff { .. })) {
            return self.end_waiting_for_guest(id);
        }
        let Some(work) = self.operating(id) else {
            return;
        };
        if !work.operation.is_going_up() || work.operation.fault().is_some() {
            return;
        }
        work.operation.cancel(why.clone());
        match work.flight {
            Some(flight) => {
                let token = flight.token;
                self.out.push(Action::CancelStep { vm: id, token });
            }
            None => {
                work.operation.report(Err(why));
                self.waiting_for_slot.retain(|waiting| *waiting != id);
                self.pump(id);
            }
        }
    }

    fn save_mark(&mut self, id: VmId, mark: Mark) {
        match mark {
            Mark::Phase(phase) => self.save_phase(id, phase),
            Mark::Adjusted => {
                let vm = self.vms.get_mut(&id).expect("it has work");
                vm.record.grows = false;
                // All of the memory, which it now has, is no target.
                let memory = vm.record.spec.memory;
                let target = &mut vm.record.spec.memory_target;
                *target = target.filter(|target| *target < memory);
                self.save_row(id);
            }
            Mark::Gone => self.out.push(Action::Save(vec![RowChange::DropVm(id)])),
        }
    }

    /// Makes a phase durable, unless it is already.
    pub(super) fn save_phase(&mut self, id: VmId, phase: Phase) {
        if matches!(phase, Phase::Stopping | Phase::Deleting) {
            self.stop_listening(id);
        }
        if phase == Phase::Deleting && planted(Bug::LeaseReleasedEarly) {
            self.leases.release(id);
        }
        let now = self.moment.unix_s;
        let vm = self.vms.get_mut(&id).expect("it has work");
        let before = vm.record.clone();
        vm.enter(phase, now);
        if vm.record != before || !vm.is_durable {
            self.save_row(id);
        }
        if matches!(phase, Phase::Stopped | Phase::Stuck) {
            self.tell_watchers(id);
        }
    }

    /// Makes a VM's row durable as it is now.
    pub(super) fn save_row(&mut self, id: VmId) {
        let vm = self.vms.get_mut(&id).expect("the caller has it");
        vm.is_durable = true;
        let row = RowChange::PutVm(Box::new(vm.record.clone()));
        self.out.push(Action::Save(vec![row]));
    }

    fn finish(&mut self, id: VmId) {
        let vm = self.vms.get_mut(&id).expect("it has work");
        let Some(Work::Operating(work)) = vm.work.take() else {
            return;
        };
        let queued = vm.queued.take();
        let name = vm.record.spec.name.clone();
        let outcome = work.operation.outcome().expect("it is at rest");
        self.log_outcome(id, &work, &outcome);
        let run_ended = work.run_ended.clone();
        match outcome {
            Outcome::Done => self.finish_done(id, work, queued.is_some()),
            Outcome::Failed { fault, at } => self.finish_failed(id, work, &fault, at),
            Outcome::Stuck(fault) => self.finish_stuck(id, work, &fault),
        }
        if run_ended.is_some() {
            self.begin_stop(id, run_ended, Vec::new(), Then::Rest);
        }
        if let Some(queued) = queued {
            self.run_queued(id, queued, &name);
        }
        self.delete_if_nobody_owns(id);
        self.creates_after(&name);
    }

    fn log_outcome(&mut self, id: VmId, work: &Operating, outcome: &Outcome) {
        let goal = format!("{:?}", work.operation.goal()).to_lowercase();
        let text = match outcome {
            Outcome::Done => format!("{goal}: done"),
            Outcome::Failed { fault, .. } => format!("{goal}: failed, cleared up: {fault}"),
            Outcome::Stuck(fault) => format!("{goal}: stuck: {fault}"),
        };
        let op = work.waiters.first().map(Waiter::op);
        self.log(Some(id), op, text);
    }

    fn finish_done(&mut self, id: VmId, work: Operating, interrupted: bool) {
        match (work.operation.goal(), work.then) {
            (Goal::Delete, _) => self.forget_vm(id, work.waiters),
            (Goal::Create, Then::Start) => {
                self.begin_start_then(id, work.waiters, Then::DeleteUnlessRan, OnLeave::Cancel);
            }
            (Goal::Stop, Then::Start) if interrupted => {
                let name = &self.vms[&id].record.spec.name;
                let fault = Fault::new(FaultKind::Cancelled, "it was to end");
                let failure = say::failure(Goal::Start, name, &fault, None);
                self.reply_all(work.waiters, &Reply::Failed(failure));
            }
            (Goal::Stop, Then::Start) => self.begin_start(id, work.waiters, OnLeave::GoOn),
            (Goal::Create | Goal::Start | Goal::Stop | Goal::Reset | Goal::Adjust, _) => {
                let reply = Reply::Vm(Box::new(self.show(id)));
                self.reply_all(work.waiters, &reply);
                // A guest that is ready is told its target: its start does not wait for it.
                if work.operation.goal() == Goal::Start && self.vms[&id].record.grows {
                    self.begin_adjust(id, Vec::new());
                }
            }
        }
    }

    fn finish_failed(&mut self, id: VmId, work: Operating, fault: &Fault, at: Option<StepKind>) {
        let goal = work.operation.goal();
        let failure = say::failure(goal, &self.vms[&id].record.spec.name, fault, at);
        let waiters = work.waiters.into_iter();
        let waiters: Vec<Waiter> = waiters.map(|w| w.with_news(&failure)).collect();
        let kept = is_worth_keeping(fault, at);
        match goal {
            Goal::Create => self.forget_vm(id, waiters),
            Goal::Start if work.then == Then::DeleteUnlessRan && !kept => {
                self.begin_delete(id, waiters);
            }
            Goal::Start | Goal::Stop | Goal::Delete | Goal::Reset => {
                self.reply_all(waiters, &Reply::Failed(failure));
            }
            Goal::Adjust => {
                self.forget_impossible_target(id, fault, at);
                self.reply_all(waiters, &Reply::Failed(failure));
            }
        }
    }

    fn finish_stuck(&mut self, id: VmId, work: Operating, fault: &Fault) {
        let failure = say::stuck_failure(
            &self.vms[&id].record.spec.name,
            work.operation.stuck(),
            fault,
        );
        self.reply_all(work.waiters, &Reply::Failed(failure));
    }

    /// The row is gone: so is the VM, and its address is free.
    fn forget_vm(&mut self, id: VmId, waiters: Vec<Waiter>) {
        let vm = self.vms.remove(&id).expect("its operation just ended");
        self.leases.release(id);
        let name = vm.record.spec.name;
        let told: Vec<Waiter> = waiters.into_iter().chain(vm.watchers).collect();
        self.reply_all(told, &Reply::Deleted { name });
    }

    fn delete_if_nobody_owns(&mut self, id: VmId) {
        let orphaned = self.vms.get(&id).is_some_and(|vm| {
            vm.work.is_none() && vm.is_orphaned() && vm.record.phase == Phase::Stopped
        });
        if orphaned && self.life != Life::Ending {
            self.begin_delete(id, Vec::new());
        }
    }

    pub(super) fn watch(&mut self, id: VmId) {
        if let Some(run) = self.vms[&id].run {
            self.out.push(Action::Watch { vm: id, run });
        }
    }

    pub(super) fn watch_backend(&mut self, id: VmId) {
        if planted(Bug::BackendUnwatched) {
            return;
        }
        if let Some(run) = self.vms[&id].run {
            self.out.push(Action::WatchBackend { vm: id, run });
        }
    }

    pub(super) fn listen(&mut self, id: VmId) {
        self.vms.get_mut(&id).expect("the caller has it").listening = true;
        self.out.push(Action::AcceptGuest { vm: id });
    }

    fn stop_listening(&mut self, id: VmId) {
        let vm = self.vms.get_mut(&id).expect("the caller has it");
        if std::mem::take(&mut vm.listening) {
            self.out.push(Action::ForgetGuest { vm: id });
        }
    }
}

/// Whether a failed start leaves something to look at: the guest ran, and ended or
/// stayed silent by itself.
fn is_worth_keeping(fault: &Fault, at: Option<StepKind>) -> bool {
    at == Some(StepKind::Ready) && fault.kind != FaultKind::Cancelled
}

impl Vm {
    /// What a phase means for the record.
    fn enter(&mut self, phase: Phase, now_unix_s: u64) {
        self.record.phase = phase;
        self.record.stuck = None;
        let operation = match &self.work {
            Some(Work::Operating(work)) => Some(&work.operation),
            Some(Work::PoweringOff { .. }) | None => None,
        };
        let fault = operation.and_then(Operation::fault);
        match phase {
            Phase::Running => {
                self.record.started_at = Some(now_unix_s);
                // The disks were made before the run; a target comes after it.
                self.record.grows = self.record.spec.memory_target.is_some();
            }
            Phase::Stopped => {
                self.record.run_plan.clear();
                self.record.started_at = None;
                self.run = None;
            }
            Phase::Stuck => {
                self.record.stuck = operation.map(Operation::stuck);
                self.record.reason = fault.map(|fault| fault.what.clone());
            }
            Phase::Stopping => {
                if let Some(fault) = fault {
                    self.record.reason = Some(fault.what.clone());
                    let at = operation.and_then(Operation::turned_at);
                    if is_worth_keeping(fault, at) {
                        self.record.removal = Removal::Keep;
                        self.owner = None;
                    }
                }
            }
            Phase::Creating | Phase::Starting | Phase::Resetting | Phase::Deleting => {}
        }
    }
}
