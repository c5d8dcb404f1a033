//! The daemon's shell: performs the mind's actions in order, upon the modelled world.

use std::collections::BTreeSet;

use crate::model::ids::VmId;
use crate::model::vm::Phase;
use crate::plan::event::{Action, Event, RunToken};
use crate::plan::record::{BootReport, Removal, RowChange};
use crate::plan::request::{ClientId, OpId, Progress, Reply};
use crate::plan::retry::Verb;
use crate::plan::step::{Fault, FaultKind, Step, StepKind};

use super::moves::{Death, Landing, PowerOffFault, SaveFault};
use super::run::{Flight, Run, ShellBug};
use super::world::Turn;

impl Run {
    pub(super) fn perform_next(&mut self, fault: Option<PowerOffFault>) {
        let action = self.actions.pop_front().expect("there is an action");
        match action {
            Action::Save(changes) => self.save(changes),
            Action::KillHelpers => {
                self.helpers.clear();
                self.litter.clear();
            }
            Action::FindVmms { running, owned } => self.find(running, owned),
            Action::WatchHold { vm } => {
                self.hold_watches.insert(vm);
                self.notice_releases();
            }
            Action::RunStep {
                vm,
                token,
                verb,
                step,
                deadline_ms,
            } => {
                if step.vm() != vm {
                    self.lie(format!("a step of {vm} touches {}", step.vm()));
                }
                self.guest_may_call(vm, verb, step.kind());
                self.flights.push(Flight {
                    token,
                    verb,
                    step,
                    cancelled: false,
                    deadline_ms,
                    hangs: None,
                });
            }
            Action::CancelStep { token, .. } => {
                let flights = self.flights.iter_mut();
                for flight in flights.filter(|flight| flight.token == token) {
                    flight.cancelled = true;
                    // The wait for a guest ends at once, any other step when it does.
                    flight.hangs = flight.hangs.filter(|_| flight.step.leaves_object());
                }
            }
            Action::Watch { vm, run } => {
                self.watches.insert(vm, run);
                self.notice_exits();
            }
            Action::WatchBackend { vm, run } => {
                self.backend_watches.insert(vm, run);
                self.notice_exits();
            }
            Action::PowerOff { vm, run } => self.power_off(vm, run, fault),
            Action::ArmTimer { timer, after_ms } => {
                self.timers.push((self.now_ms + after_ms, timer));
            }
            Action::StartJob { job, work } => self.start_job(job, work),
            Action::CancelJob { job } => {
                let jobs = self.jobs.iter_mut();
                for known in jobs.filter(|known| known.id == job) {
                    known.cancelled = true;
                }
            }
            Action::Reply { client, op, reply } => self.reply(client, op, &reply),
            Action::Progress {
                client, progress, ..
            } => {
                if let Progress::Named { vm, .. } = progress {
                    self.clients.owners.insert(vm, client);
                }
            }
            Action::AcceptGuest { vm } => {
                if !self.world.has(vm, StepKind::RunDirectory) {
                    self.lie_unless_dead(vm);
                }
            }
            // The process ends: what its threads were at has its effect or has not.
            Action::Exit => self.crash(Death::AfterEffects),
            Action::ForgetGuest { .. } | Action::Log { .. } => {}
        }
    }

    fn find(&mut self, running: Vec<(VmId, Vec<Step>)>, owned: Vec<VmId>) {
        let (mut alive, mut linked) = (BTreeSet::new(), BTreeSet::new());
        for (vm, mend) in running {
            if !self.world.is_alive(vm) {
                continue;
            }
            alive.insert(vm);
            if self.world.has(vm, StepKind::VsockBackend) {
                linked.insert(vm);
            }
            for step in mend {
                // What cannot be put back is logged and changes nothing.
                let _unheard = self.world.ensure(&step);
            }
        }
        let held = owned.into_iter();
        let held = held.filter(|vm| self.clients.holds.contains_key(vm));
        self.news.push_back(Event::Recovered {
            alive,
            linked,
            held: held.collect(),
        });
    }

    fn guest_may_call(&mut self, vm: VmId, verb: Verb, kind: StepKind) {
        if (verb, kind) == (Verb::Ensure, StepKind::Ready) && self.world.is_reachable(vm) {
            let boot = BootReport {
                init: "agent".to_owned(),
                phases: Vec::new(),
                warnings: Vec::new(),
            };
            self.news.push_back(Event::GuestReady { vm, boot });
        }
    }

    /// The agent's call is awaited until the deadline.
    pub(super) fn wait_in_vain(&mut self) {
        let heard = self.news.len();
        self.perform_next(None);
        self.news.truncate(heard);
        let last = self.flights.last_mut().expect("the wait has begun");
        last.hangs = Some((self.now_ms + last.deadline_ms, Landing::Never));
    }

    /// The save that is next fails. The daemon ends; what its threads were at has its
    /// effect.
    pub(super) fn fail_save(&mut self, fault: SaveFault) {
        let action = self.actions.pop_front();
        let Some(Action::Save(changes)) = action else {
            unreachable!("only a save is offered this");
        };
        match (fault, self.bug) {
            (_, ShellBug::FailedSaveIgnored) => return,
            (SaveFault::Lost, _) => {}
            (SaveFault::Torn, ShellBug::TornSaveIsNothing) => {
                let gone = changes.iter().filter_map(|change| match change {
                    RowChange::PutVm(vm) => Some(RowChange::DropVm(vm.id)),
                    _ => None,
                });
                self.write(&gone.collect::<Vec<_>>());
            }
            (SaveFault::Torn, _) => self.write(&changes),
        }
        self.crash(Death::AfterEffects);
    }

    fn save(&mut self, changes: Vec<RowChange>) {
        let is_intent = |change: &RowChange| {
            matches!(change, RowChange::PutVm(vm)
                if matches!(vm.phase, Phase::Creating | Phase::Starting))
        };
        if self.bug == ShellBug::IntentSavedLate && changes.iter().any(is_intent) {
            return self.late_saves.extend(changes);
        }
        self.write(&changes);
    }

    fn power_off(&mut self, vm: VmId, run: RunToken, fault: Option<PowerOffFault>) {
        let alive = self.world.is_reachable(vm) && fault != Some(PowerOffFault::Unreachable);
        let result = match alive {
            true => Ok(()),
            false => Err(Fault::new(FaultKind::Other, "the agent does not answer")),
        };
        self.news.push_back(Event::PowerOffSent { vm, run, result });
        if alive && fault.is_none() {
            self.world.turn(&Turn::VmmDies(vm));
            self.notice_exits();
        }
    }

    /// The one reply to an open request, which must be true of what is durable.
    fn reply(&mut self, connection: ClientId, op: OpId, reply: &Reply) {
        if !self.asked.remove(&op) {
            self.lie(format!("request {op:?} is answered twice"));
        }
        self.check_reply(reply);
        if let Reply::Vm(told) = reply
            && told.removal == Removal::WithClient
        {
            self.clients.hold(told.id, connection);
        }
        let clients = self.clients.all.iter_mut();
        for client in clients.filter(|client| client.connection == connection) {
            client.open = client.open.filter(|open| *open != op);
        }
    }

    pub(super) fn lie(&mut self, what: String) {
        self.lie.get_or_insert(what);
    }

    /// A listener needs its directory, unless a reboot took both with the VMM.
    fn lie_unless_dead(&mut self, vm: VmId) {
        if self.world.is_alive(vm) {
            self.lie(format!("listening for {vm} without its run directory"));
        }
    }
}
