//! What may happen next. The first move is what happens when nothing goes wrong; each
//! of the others costs one interruption, but for a late effect, which is the consequence
//! of one that was paid for.

use crate::model::ids::VmId;
use crate::plan::event::Action;
use crate::plan::retry::Verb;
use crate::plan::step::{FaultKind, Step, StepKind};

use super::run::{Flight, Run};

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Move {
    /// The shell performs its next action.
    Perform,
    /// The same, and the guest does not do as it is told.
    PowerOffFails(PowerOffFault),
    /// The same, and the agent never calls.
    AgentStaysSilent,
    /// The save that is next fails, and with it the daemon ends (exit 74).
    SaveFails(SaveFault),
    /// The next news reach the mind.
    Hear,
    /// This step under way ends so.
    Complete(usize, Fate),
    /// This step under way hangs, until its deadline.
    Hang(usize, Landing),
    /// A process that was killed is gone at last.
    LetsGo(VmId, StepKind),
    /// The state directory's file system fills up.
    FillsUp,
    /// There is room again.
    HasRoom,
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

impl Move {
    /// Its name, without what it happens to.
    pub(super) fn word(&self) -> String {
        let text = format!("{self:?}");
        text.split('(').next().unwrap_or_default().to_owned()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Works,
    FailsBefore(FaultKind),
    FailsAfter(FaultKind),
    /// What was to go is on its way, and still there.
    Lingers,
}

/// Whether a step that hangs has its effect when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Landing {
    Never,
    Late,
}

/// What becomes of a save that fails: a transaction is all there or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaveFault {
    /// The old rows are on disk.
    Lost,
    /// The new rows are, though the disk said otherwise.
    Torn,
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
    pub(super) saves: bool,
    pub(super) hangs: bool,
    pub(super) lingering: bool,
    pub(super) full_disks: bool,
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
        saves: true,
        hangs: true,
        lingering: true,
        full_disks: true,
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
        saves: false,
        hangs: false,
        lingering: false,
        full_disks: false,
    };
}

impl Run {
    /// Every move, the undisturbed one first; empty at rest.
    pub(super) fn moves(&self, faults: Faults) -> Vec<Move> {
        if self.mind.is_none() {
            return self.moves_without_daemon(faults);
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

    fn moves_without_daemon(&self, faults: Faults) -> Vec<Move> {
        // A daemon on a full disk ends again at its first save: sooner or later somebody
        // makes room.
        let mut moves = match self.world.is_full {
            true if faults.full_disks => vec![Move::HasRoom, Move::Restart],
            true => vec![Move::HasRoom],
            false => vec![Move::Restart],
        };
        if !self.helpers.is_empty() {
            moves.push(Move::HelperActs);
        }
        if faults.leaving {
            let clients = 0..self.clients.all.len();
            let holding = clients.filter(|index| self.clients.holds_any(*index));
            moves.extend(holding.map(Move::Leave));
        }
        moves
    }

    fn moves_of_shell(&self, action: &Action, faults: Faults) -> Vec<Move> {
        let mut moves = match (action, self.world.is_full) {
            (Action::Save(_), true) => vec![Move::SaveFails(SaveFault::Lost)],
            _ => vec![Move::Perform],
        };
        if matches!(action, Action::Save(_)) && faults.saves {
            moves.push(Move::SaveFails(SaveFault::Torn));
            moves.push(Move::SaveFails(SaveFault::Lost));
        }
        let seen_outside = matches!(action, Action::Save(_) | Action::Reply { .. });
        if seen_outside && faults.crashes {
            moves.push(Move::Crash(Death::BeforeEffects));
        }
        if matches!(action, Action::PowerOff { .. }) && faults.deaf_guests {
            moves.push(Move::PowerOffFails(PowerOffFault::Unreachable));
            moves.push(Move::PowerOffFails(PowerOffFault::Ignored));
        }
        if is_wait_for_agent(action) && faults.deaf_guests {
            moves.push(Move::AgentStaysSilent);
        }
        moves
    }

    /// What can reach the mind, the most natural first.
    fn deliveries(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        if !self.news.is_empty() {
            moves.push(Move::Hear);
        }
        let flights = self.flights.iter().enumerate();
        let prompt = flights.filter(|(_, flight)| flight.hangs.is_none());
        moves.extend(prompt.map(|(index, _)| Move::Complete(index, Fate::Works)));
        let jobs = self.jobs.iter().enumerate();
        moves.extend(jobs.map(|(index, job)| match job.cancelled {
            true => Move::EndJob(index, JobFate::Fails),
            false => Move::EndJob(index, JobFate::Works),
        }));
        let lingering = self.lingering.iter();
        moves.extend(lingering.map(|(vm, kind)| Move::LetsGo(*vm, *kind)));
        if self.is_serving {
            let clients = self.clients.all.iter().enumerate();
            let ready =
                clients.filter(|(_, client)| client.open.is_none() && !client.script.is_empty());
            moves.extend(ready.map(|(index, _)| Move::Ask(index)));
        }
        moves.extend(self.next_in_time());
        if self.world.is_full {
            moves.push(Move::HasRoom);
        }
        moves
    }

    /// What is due first: a timer, or the deadline of a step that hangs.
    fn next_in_time(&self) -> Option<Move> {
        let timers = self.timers.iter().enumerate();
        let timer = timers
            .min_by_key(|(_, timer)| **timer)
            .map(|(index, (due, _))| (*due, Move::Fire(index)));
        let flights = self.flights.iter().enumerate();
        let hanging = flights
            .filter_map(|(index, flight)| Some((flight.hangs?, index)))
            .min_by_key(|((due, _), _)| *due)
            .map(|((due, landing), index)| (due, Move::Complete(index, landing.fate())));
        let both = timer.into_iter().chain(hanging);
        both.min_by_key(|(due, _)| *due).map(|(_, next)| next)
    }

    fn disturb(&self, moves: &mut Vec<Move>, faults: Faults) {
        let flights = self.flights.iter().enumerate();
        for (index, flight) in flights.filter(|(_, flight)| flight.hangs.is_none()) {
            self.disturb_step(index, flight, moves, faults);
        }
        if faults.jobs {
            let jobs = self.jobs.iter().enumerate();
            moves.extend(jobs.map(|(index, job)| match job.cancelled {
                true => Move::EndJob(index, JobFate::Works),
                false => Move::EndJob(index, JobFate::Fails),
            }));
        }
        if faults.full_disks && !self.world.is_full {
            moves.push(Move::FillsUp);
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

impl Run {
    fn disturb_step(&self, index: usize, flight: &Flight, moves: &mut Vec<Move>, faults: Faults) {
        let kind = flight.step.kind();
        let leaves = flight.step.leaves_object();
        if faults.steps {
            let fault = likely_fault(flight.verb, kind);
            moves.push(Move::Complete(index, Fate::FailsBefore(fault)));
            if leaves {
                moves.push(Move::Complete(index, Fate::FailsAfter(fault)));
            }
        }
        if faults.hangs {
            moves.push(Move::Hang(index, Landing::Never));
            if leaves {
                moves.push(Move::Hang(index, Landing::Late));
            }
        }
        let killed = [StepKind::Vmm, StepKind::VsockBackend].contains(&kind);
        let is_there = self.world.has(flight.step.vm(), kind);
        if faults.lingering && flight.verb == Verb::Absent && killed && is_there {
            moves.push(Move::Complete(index, Fate::Lingers));
        }
    }
}

impl Landing {
    fn fate(self) -> Fate {
        match self {
            Landing::Never => Fate::FailsBefore(FaultKind::Timeout),
            Landing::Late => Fate::FailsAfter(FaultKind::Timeout),
        }
    }
}

fn is_wait_for_agent(action: &Action) -> bool {
    matches!(
        action,
        Action::RunStep {
            verb: Verb::Ensure,
            step: Step::Ready { .. },
            ..
        }
    )
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
