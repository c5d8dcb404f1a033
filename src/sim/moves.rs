//! What may happen next. The first move is what happens when nothing goes wrong; each
//! of the others costs one interruption, but for a helper's late effect, which is the
//! consequence of a crash that was paid for.

use crate::model::ids::VmId;
use crate::plan::event::Action;
use crate::plan::retry::Verb;
use crate::plan::step::{FaultKind, StepKind};

use super::run::Run;

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Move {
    /// The shell performs its next action.
    Perform,
    /// The same, and the guest does not do as it is told.
    PowerOffFails(PowerOffFault),
    /// The next news reach the mind.
    Hear,
    /// This step under way ends so.
    Complete(usize, Fate),
    /// This job ends so.
    EndJob(usize, JobFate),
    /// This client asks what it wants next.
    Ask(usize),
    /// This timer fires.
    Fire(usize),
    /// The daemon starts.
    Restart,
    /// The daemon dies.
    Crash(Death),
    /// A helper program of a dead daemon ends.
    HelperActs,
    /// A VMM ends by itself.
    VmmDies(VmId),
    /// A vsock back end ends by itself.
    BackendDies(VmId),
    /// A client's connection ends.
    Leave(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Works,
    FailsBefore(FaultKind),
    FailsAfter(FaultKind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobFate {
    Works,
    Fails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PowerOffFault {
    Unreachable,
    Ignored,
}

/// What becomes of the steps under way when the daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// They had no effect.
    BeforeEffects,
    /// They had their effect.
    AfterEffects,
    /// Helper programs go on.
    HelpersLive,
    /// The host reboots.
    Reboot,
}

/// Which interruptions a run offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Faults {
    pub(super) steps: bool,
    pub(super) crashes: bool,
    pub(super) late_helpers: bool,
    pub(super) reboots: bool,
    pub(super) vmm_deaths: bool,
    pub(super) leaving: bool,
    pub(super) orders: bool,
    pub(super) deaf_guests: bool,
    pub(super) jobs: bool,
}

impl Faults {
    pub(super) const ALL: Faults = Faults {
        steps: true,
        crashes: true,
        late_helpers: true,
        reboots: true,
        vmm_deaths: true,
        leaving: true,
        orders: true,
        deaf_guests: true,
        jobs: true,
    };
    pub(super) const NONE: Faults = Faults {
        steps: false,
        crashes: false,
        late_helpers: false,
        reboots: false,
        vmm_deaths: false,
        leaving: false,
        orders: false,
        deaf_guests: false,
        jobs: false,
    };
}

impl Run {
    /// Every move, the undisturbed one first; empty at rest.
    pub(super) fn moves(&self, faults: Faults) -> Vec<Move> {
        if self.mind.is_none() {
            return self.moves_without_daemon();
        }
        if let Some(action) = self.actions.front() {
            return self.moves_of_shell(action, faults);
        }
        let mut moves = self.deliveries();
        if !faults.orders {
            moves.truncate(1);
        }
        if !self.helpers.is_empty() {
            moves.push(Move::HelperActs);
        }
        if moves.is_empty() {
            return moves;
        }
        self.disturb(&mut moves, faults);
        moves
    }

    fn moves_without_daemon(&self) -> Vec<Move> {
        let mut moves = vec![Move::Restart];
        if !self.helpers.is_empty() {
            moves.push(Move::HelperActs);
        }
        moves
    }

    fn moves_of_shell(&self, action: &Action, faults: Faults) -> Vec<Move> {
        let mut moves = vec![Move::Perform];
        let seen_outside = matches!(action, Action::Save(_) | Action::Reply { .. });
        if seen_outside && faults.crashes {
            moves.push(Move::Crash(Death::BeforeEffects));
        }
        if matches!(action, Action::PowerOff { .. }) && faults.deaf_guests {
            moves.push(Move::PowerOffFails(PowerOffFault::Unreachable));
            moves.push(Move::PowerOffFails(PowerOffFault::Ignored));
        }
        moves
    }

    /// What can reach the mind, the most natural first.
    fn deliveries(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        if !self.news.is_empty() {
            moves.push(Move::Hear);
        }
        let flights = 0..self.flights.len();
        moves.extend(flights.map(|index| Move::Complete(index, Fate::Works)));
        let jobs = 0..self.jobs.len();
        moves.extend(jobs.map(|index| Move::EndJob(index, JobFate::Works)));
        if self.is_serving {
            let clients = self.clients.all.iter().enumerate();
            let ready =
                clients.filter(|(_, client)| client.open.is_none() && !client.script.is_empty());
            moves.extend(ready.map(|(index, _)| Move::Ask(index)));
        }
        if let Some(timer) = self.next_timer() {
            moves.push(Move::Fire(timer));
        }
        moves
    }

    fn disturb(&self, moves: &mut Vec<Move>, faults: Faults) {
        if faults.steps {
            for (index, flight) in self.flights.iter().enumerate() {
                let kind = likely_fault(flight.verb, flight.step.kind());
                moves.push(Move::Complete(index, Fate::FailsBefore(kind)));
                if flight.step.leaves_object() {
                    moves.push(Move::Complete(index, Fate::FailsAfter(kind)));
                }
            }
        }
        if faults.jobs {
            let jobs = 0..self.jobs.len();
            moves.extend(jobs.map(|index| Move::EndJob(index, JobFate::Fails)));
        }
        if faults.crashes {
            moves.push(Move::Crash(Death::BeforeEffects));
            if !self.flights.is_empty() {
                moves.push(Move::Crash(Death::AfterEffects));
            }
        }
        if faults.late_helpers && !self.flights.is_empty() {
            moves.push(Move::Crash(Death::HelpersLive));
        }
        if faults.reboots {
            moves.push(Move::Crash(Death::Reboot));
        }
        if faults.vmm_deaths {
            let objects = self.world.objects.keys();
            let deaths = objects.filter_map(|(vm, kind)| match kind {
                StepKind::Vmm => Some(Move::VmmDies(*vm)),
                StepKind::VsockBackend => Some(Move::BackendDies(*vm)),
                _ => None,
            });
            moves.extend(deaths);
        }
        if faults.leaving {
            moves.extend((0..self.clients.all.len()).map(Move::Leave));
        }
    }
}

fn likely_fault(verb: Verb, kind: StepKind) -> FaultKind {
    match (verb, kind) {
        (Verb::Absent, _) => FaultKind::Busy,
        (Verb::Ensure, StepKind::Ready) => FaultKind::Timeout,
        (Verb::Ensure, StepKind::WorkDisk) => FaultKind::Full,
        (Verb::Ensure, kind) if kind.holds_root() => FaultKind::Full,
        (Verb::Ensure, _) => FaultKind::Other,
    }
}
