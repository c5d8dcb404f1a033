//! The mind of the daemon: hears one event, says what is to be done. Pure.
//!
//! It owns every VM, lease, operation, pull and waiting request. It never fetches
//! anything: time, random bits and free space come with each event ([`Moment`]).
//!
//! ```text
//!  Opened -> KillHelpers, FindVmms -> Recovered -> (requests) -> Shutdown -> Exit
//! ```
//!
//! Reading order: this file, [`wishes`] (what is asked of a VM), [`begin`] and
//! [`work`] (operations), [`create`], [`sizes`], [`ports`], [`pulls`], [`recover`], [`resolve`], [`queries`].

mod begin;
mod create;
mod ports;
mod pulls;
mod queries;
mod recover;
mod resolve;
mod saves;
mod say;
mod sizes;
mod wishes;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::failure::{Failure, FailureKind};
use crate::model::ids::{ImageName, KernelName, VmId};
use crate::model::image::{Image, Kernel};

use super::event::{Action, Event, RunToken, TimerId};
use super::facts::{HostFacts, Moment};
use super::lease::Leases;
use super::record::{BootReport, Loaded, VmRecord};
use super::request::{ClientId, OpId, Request};
use super::retry;

use create::{BehindDeletion, PendingCreate};
use pulls::Pulls;
use say::Waiter;
use wishes::Queued;
use work::Work;

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Mind {
    facts: HostFacts,
    moment: Moment,
    life: Life,
    vms: BTreeMap<VmId, Vm>,
    leases: Leases,
    images: BTreeMap<ImageName, Image>,
    kernels: BTreeMap<KernelName, Kernel>,
    pulls: Pulls,
    creates: Vec<PendingCreate>,
    behind_deletions: Vec<BehindDeletion>,
    timers: BTreeMap<TimerId, TimerUse>,
    /// VMs whose next step waits until fewer are under way.
    waiting_for_slot: VecDeque<VmId>,
    steps_under_way: usize,
    last_number: u64,
    /// What was said already of the networks that this machine lacks.
    notes_said: BTreeSet<String>,
    out: Vec<Action>,
}

/// A VM with what is under way on it.
#[derive(Debug, Clone)]
struct Vm {
    record: VmRecord,
    /// Whether the store holds the record as it is.
    is_durable: bool,
    work: Option<Work>,
    queued: Option<Queued>,
    /// Who is told when it comes to rest, whoever brings that about.
    watchers: Vec<Waiter>,
    /// The client that it goes with.
    owner: Option<Owner>,
    /// Its current run; news of another is stale.
    run: Option<RunToken>,
    /// Whether we listen for its guest.
    listening: bool,
}

/// By what the client of a VM is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Its connection to this daemon.
    Connection(ClientId),
    /// The descriptor that an earlier daemon gave it.
    Hold,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Nothing is recovered yet.
    Opening,
    Serving,
    /// No new work; ends when no step is under way.
    Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimerUse {
    /// The guest had its time to power off.
    PowerOff(VmId),
    /// `absent` is tried again.
    Pause(VmId),
    /// Running steps had their time.
    Ending,
}

impl Mind {
    /// A mind that knows what the store held. The first event must be `Opened`.
    pub fn new(facts: HostFacts, loaded: Loaded) -> Mind {
        let mut mind = Mind {
            facts,
            moment: Moment {
                unix_s: 0,
                random: 0,
                state_free: crate::model::units::Bytes(0),
            },
            life: Life::Opening,
            vms: BTreeMap::new(),
            leases: Leases::default(),
            images: BTreeMap::new(),
            kernels: BTreeMap::new(),
            pulls: Pulls::default(),
            creates: Vec::new(),
            behind_deletions: Vec::new(),
            timers: BTreeMap::new(),
            waiting_for_slot: VecDeque::new(),
            steps_under_way: 0,
            last_number: 0,
            notes_said: BTreeSet::new(),
            out: Vec::new(),
        };
        mind.remember(loaded);
        mind
    }

    /// Hears one event and says what is to be done, in this order.
    pub fn handle(&mut self, event: Event, moment: Moment) -> Vec<Action> {
        self.moment = moment;
        match event {
            Event::Opened => self.opened(),
            Event::Recovered {
                alive,
                linked,
                held,
            } => self.recovered(&alive, &linked, &held),
            Event::Installed(found) => self.facts.installed = found,
            Event::Request {
                client,
                op,
                request,
            } => self.request(Waiter::client(client, op), request),
            Event::ClientGone { client } => self.client_gone(client),
            Event::HoldReleased { vm } => self.hold_released(vm),
            Event::StepDone { vm, token, result } => self.step_done(vm, token, result),
            Event::GuestReady { vm, boot } => self.guest_ready(vm, boot),
            Event::PowerOffSent { vm, run, result } => self.power_off_sent(vm, run, result),
            Event::VmmExited { vm, run, reason } => self.vmm_exited(vm, run, &reason),
            Event::BackendExited { vm, run, how } => self.backend_exited(vm, run, how),
            Event::TimerFired { timer } => self.timer_fired(timer),
            Event::JobProgress { job, progress } => self.job_progress(job, &progress),
            Event::JobDone { job, result } => self.job_done(job, result),
            Event::Shutdown => self.shut_down(),
        }
        self.exit_when_idle();
        saves::joined(std::mem::take(&mut self.out))
    }

    fn request(&mut self, waiter: Waiter, request: Request) {
        self.log(
            None,
            Some(waiter.op()),
            format!("asked to {}", request.word()),
        );
        match self.life {
            Life::Serving => self.serve(waiter, request),
            Life::Opening => self.refuse(waiter, "the daemon is still recovering"),
            Life::Ending => self.refuse(waiter, "the daemon is ending"),
        }
    }

    fn refuse(&mut self, waiter: Waiter, what: &str) {
        let failure = Failure::new(FailureKind::Busy, what).hint("Try again in a moment.");
        self.fail(waiter, failure);
    }

    fn guest_ready(&mut self, vm: VmId, boot: BootReport) {
        if let Some(vm) = self.vms.get_mut(&vm) {
            vm.record.boot = Some(boot);
            vm.is_durable = false;
        }
    }

    fn timer_fired(&mut self, timer: TimerId) {
        match self.timers.remove(&timer) {
            Some(TimerUse::PowerOff(vm)) => self.power_off_timed_out(vm, timer),
            Some(TimerUse::Pause(vm)) => self.pause_over(vm, timer),
            Some(TimerUse::Ending) => self.out.push(Action::Exit),
            None => {}
        }
    }

    fn shut_down(&mut self) {
        if self.life == Life::Ending {
            return;
        }
        self.life = Life::Ending;
        self.log(None, None, "ending; VMs stay up".to_owned());
        self.cancel_all_pulls();
        self.refuse_creates_behind();
        self.arm(TimerUse::Ending, retry::SHUTDOWN_MS);
    }

    fn exit_when_idle(&mut self) {
        let exits = self.out.last() == Some(&Action::Exit);
        let idle = self.steps_under_way == 0
            && !self.is_waiting_for_a_guest()
            && !self.pulls.is_any_under_way();
        if self.life == Life::Ending && idle && !exits {
            self.out.push(Action::Exit);
        }
    }

    fn arm(&mut self, what: TimerUse, after_ms: u64) -> TimerId {
        let timer = TimerId(self.number());
        self.timers.insert(timer, what);
        self.out.push(Action::ArmTimer { timer, after_ms });
        timer
    }

    /// Whether nothing is under way: what it knows is what the store holds.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        let at_rest = |vm: &Vm| vm.work.is_none() && vm.queued.is_none() && vm.is_durable;
        self.life == Life::Serving
            && self.vms.values().all(at_rest)
            && self.creates.is_empty()
            && self.behind_deletions.is_empty()
            && self.pulls.count() == 0
            && !self.pulls.is_any_under_way()
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn log(&mut self, vm: Option<VmId>, op: Option<OpId>, text: String) {
        self.out.push(Action::Log { vm, op, text });
    }
}

#[cfg(test)]
mod tests;
