//! One simulated history: the mind, its shell, the world, the store and the clients.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use crate::model::ids::{ImageName, KernelName, VmId};
use crate::model::image::{Image, Kernel};
use crate::model::units::Bytes;
use crate::model::vm::Phase;
use crate::plan::event::{Action, Event, JobId, JobWork, RunToken, StepToken, TimerId};
use crate::plan::facts::{Fitness, HostFacts, Installed, Moment};
use crate::plan::mind::Mind;
use crate::plan::record::{RowChange, VmRecord};
use crate::plan::request::{OpId, PullKey, Request};
use crate::plan::retry::Verb;
use crate::plan::step::{Fault, FaultKind, Step, StepKind};
use crate::store::rows;

use super::client::Clients;
use super::history::History;
use super::jobs;
use super::moves::{Death, Fate, Landing, Move};
use super::world::{Turn, World};

/// What is on disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) vms: BTreeMap<VmId, VmRecord>,
    pub(super) images: BTreeMap<ImageName, Image>,
    pub(super) kernels: BTreeMap<KernelName, Kernel>,
}

/// A step under way.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    pub(super) token: StepToken,
    pub(super) verb: Verb,
    pub(super) step: Step,
    pub(super) cancelled: bool,
    /// What the mind allows it, milliseconds.
    pub(super) deadline_ms: u64,
    /// Until when it hangs, and what then.
    pub(super) hangs: Option<(u64, Landing)>,
}

/// A job under way.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) work: JobWork,
    pub(super) cancelled: bool,
}

/// A program of a dead daemon that is still at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Helper {
    /// Of this step.
    Step(Verb, Step),
    /// A builder of this image.
    Builder(PullKey),
}

/// A wrong turn of the shell or the host, planted on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShellBug {
    None,
    /// The intent is saved when the first effect is done, not before it.
    IntentSavedLate,
    /// Replies are sent before the saves that stand before them.
    ReplyBeforeSave,
    /// A busy object counts as gone.
    BusyIgnored,
    /// That a system call took the order counts as its effect.
    OrderTakenForEffect,
    /// A step that is late is reported as failed, and goes on.
    LateStepGivenUp,
    /// A save that failed is logged, and the daemon goes on.
    FailedSaveIgnored,
    /// Rows of a save that was cut off are taken to be nothing.
    TornSaveIsNothing,
}

/// See the head of this file.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) bug: ShellBug,
    pub(super) facts: HostFacts,
    pub(super) world: World,
    pub(super) disk: Disk,
    pub(super) mind: Option<Mind>,
    /// Whether recovery has been decided on, so that clients are heard.
    pub(super) is_serving: bool,
    /// What the mind wants done and the shell has not begun.
    pub(super) actions: VecDeque<Action>,
    /// Saves that a planted bug holds back.
    pub(super) late_saves: Vec<RowChange>,
    pub(super) flights: Vec<Flight>,
    /// Helper programs of a dead daemon that are still at it.
    pub(super) helpers: Vec<Helper>,
    /// Processes that were killed and are not gone yet.
    pub(super) lingering: BTreeSet<(VmId, StepKind)>,
    /// Half-built images.
    pub(super) litter: BTreeSet<PullKey>,
    pub(super) jobs: Vec<Job>,
    pub(super) timers: Vec<(u64, TimerId)>,
    pub(super) watches: BTreeMap<VmId, RunToken>,
    pub(super) backend_watches: BTreeMap<VmId, RunToken>,
    /// VMs of whose clients' end the mind wants to hear.
    pub(super) hold_watches: BTreeSet<VmId>,
    /// What somebody asked to delete: names, or beginnings of an id.
    pub(super) deletions: BTreeSet<String>,
    pub(super) news: VecDeque<Event>,
    pub(super) clients: Clients,
    pub(super) asked: BTreeSet<OpId>,
    pub(super) now_ms: u64,
    pub(super) last_op: u64,
    pub(super) history: History,
    /// A kind of object that does not go away for the time being.
    pub(super) stubborn: Option<StepKind>,
    /// Every phase that was ever durable.
    pub(super) phases: HashSet<Phase>,
    /// The first truth that a reply broke.
    pub(super) lie: Option<String>,
}

/// A host that can run QEMU guests with taps; `cloud` and three images can be pulled.
pub(super) fn facts() -> HostFacts {
    HostFacts {
        kvm: Fitness::Fit,
        installed: Installed {
            firecracker: Fitness::Fit,
            jailer: Fitness::Fit,
            qemu: Fitness::Fit,
        },
        taps: Fitness::Fit,
        reflink: Fitness::Unfit("no shared blocks".to_owned()),
        device_mapper: Fitness::Unfit("no device-mapper".to_owned()),
        tap_limits: Fitness::Fit,
        cpu_weight: Fitness::Fit,
        limits: Fitness::Fit,
        first_port: 1024,
        subnet: "10.0.0.0/28".parse().unwrap(),
        memory: Bytes::gib(64),
        catalog_images: ["small", "twin", "large"]
            .map(|name| name.parse().unwrap())
            .into(),
        catalog_kernels: vec!["cloud".parse().unwrap()],
        ready_deadline_ms: None,
    }
}

impl Run {
    /// A host with nothing but these clients.
    pub(super) fn new(scripts: Vec<Vec<Request>>) -> Run {
        Run {
            bug: ShellBug::None,
            facts: facts(),
            world: World::default(),
            disk: Disk::default(),
            mind: None,
            is_serving: false,
            actions: VecDeque::new(),
            late_saves: Vec::new(),
            flights: Vec::new(),
            helpers: Vec::new(),
            lingering: BTreeSet::new(),
            litter: BTreeSet::new(),
            jobs: Vec::new(),
            timers: Vec::new(),
            watches: BTreeMap::new(),
            backend_watches: BTreeMap::new(),
            hold_watches: BTreeSet::new(),
            deletions: BTreeSet::new(),
            news: VecDeque::new(),
            clients: Clients::with(scripts),
            asked: BTreeSet::new(),
            now_ms: 0,
            last_op: 0,
            history: History::default(),
            stubborn: None,
            phases: HashSet::new(),
            lie: None,
        }
    }

    /// The same with image and kernel in the store.
    pub(super) fn stocked(scripts: Vec<Vec<Request>>) -> Run {
        let mut run = Run::new(scripts);
        let (small, cloud): (ImageName, KernelName) =
            ("small".parse().unwrap(), "cloud".parse().unwrap());
        run.disk
            .images
            .insert(small.clone(), jobs::image(small, JobId(0)));
        run.disk.kernels.insert(cloud.clone(), jobs::kernel(cloud));
        let contents = run.disk.images.values().map(|image| &image.content);
        let contents = contents.chain(run.disk.kernels.values().map(|kernel| &kernel.content));
        run.world.contents = contents.cloned().collect();
        run
    }

    /// Whether nothing is under way that anybody knows of.
    pub(super) fn is_still(&self) -> bool {
        let empty = self.actions.is_empty() && self.news.is_empty() && self.flights.is_empty();
        empty && self.jobs.is_empty() && self.mind.as_ref().is_some_and(Mind::is_idle)
    }

    /// Lets one thing happen.
    pub(super) fn apply(&mut self, chosen: &Move) {
        self.history.push(chosen.clone());
        match chosen {
            Move::Perform => self.perform_next(None),
            Move::PowerOffFails(fault) => self.perform_next(Some(*fault)),
            Move::AgentStaysSilent => self.wait_in_vain(),
            Move::SaveFails(fault) => self.fail_save(*fault),
            Move::Hear => {
                if let Some(event) = self.news.pop_front() {
                    self.hear(event);
                }
            }
            Move::Complete(index, fate) => self.complete(*index, *fate),
            Move::Hang(index, landing) => {
                let flight = &mut self.flights[*index];
                flight.hangs = Some((self.now_ms + flight.deadline_ms, *landing));
            }
            Move::LetsGo(vm, kind) => {
                self.lingering.remove(&(*vm, *kind));
                self.world.end(*vm, *kind);
                self.notice_exits();
            }
            Move::FillsUp => self.world.turn(&Turn::FillUp),
            Move::HasRoom => self.world.turn(&Turn::MakeRoom),
            Move::EndJob(index, fate) => self.end_job(*index, *fate),
            Move::Ask(index) => self.ask(*index),
            Move::Fire(index) => {
                let (due, timer) = self.timers.remove(*index);
                self.now_ms = self.now_ms.max(due);
                self.hear(Event::TimerFired { timer });
            }
            Move::Restart => self.restart(),
            Move::Crash(death) => self.crash(*death),
            Move::HelperActs => self.helper_acts(),
            Move::VmmDies(vm) => {
                self.world.turn(&Turn::VmmDies(*vm));
                self.notice_exits();
            }
            Move::BackendDies(vm) => {
                self.world.turn(&Turn::BackendDies(*vm));
                self.notice_exits();
            }
            Move::Leave(index) => self.leave(*index),
        }
    }

    /// A client ends, and another takes its place.
    fn leave(&mut self, index: usize) {
        let client = self.clients.reconnect(index);
        self.clients.holds.retain(|_, holder| *holder != index);
        if self.mind.is_some() {
            self.news.push_back(Event::ClientGone { client });
            self.notice_releases();
        }
    }

    /// Watched holds that are released become news.
    pub(super) fn notice_releases(&mut self) {
        let watched = std::mem::take(&mut self.hold_watches);
        for vm in watched {
            if self.clients.holds.contains_key(&vm) {
                self.hold_watches.insert(vm);
            } else {
                self.news.push_back(Event::HoldReleased { vm });
            }
        }
    }

    pub(super) fn hear(&mut self, event: Event) {
        self.is_serving |= matches!(event, Event::Recovered { .. });
        let moment = Moment {
            unix_s: self.now_ms / 1000,
            random: (self.last_op + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            state_free: Bytes::gib(1),
        };
        let mind = self.mind.as_mut().expect("only a live daemon hears");
        let mut actions = mind.handle(event, moment);
        if self.bug == ShellBug::ReplyBeforeSave {
            actions.sort_by_key(|action| !matches!(action, Action::Reply { .. }));
        }
        self.actions.extend(actions);
    }

    fn complete(&mut self, index: usize, fate: Fate) {
        let flight = self.flights.remove(index);
        let vm = flight.step.vm();
        if let Some((due, _)) = flight.hangs {
            self.now_ms = self.now_ms.max(due);
        }
        let fails = |kind| Err(Fault::new(kind, format!("{:?} fails", flight.step.kind())));
        let mut result = match fate {
            _ if flight.cancelled && !flight.step.leaves_object() => fails(FaultKind::Cancelled),
            _ if self.clings(&flight) => self.is_still_there(),
            Fate::Lingers => {
                self.lingering.insert((vm, flight.step.kind()));
                self.is_still_there()
            }
            Fate::FailsAfter(kind)
                if flight.hangs.is_some() && self.bug == ShellBug::LateStepGivenUp =>
            {
                let late = Helper::Step(flight.verb, flight.step.clone());
                self.helpers.push(late);
                fails(kind)
            }
            Fate::Works => self.world.act(flight.verb, &flight.step),
            Fate::FailsBefore(kind) => fails(kind),
            Fate::FailsAfter(kind) => {
                let _hidden = self.world.act(flight.verb, &flight.step);
                fails(kind)
            }
        };
        if self.bug == ShellBug::BusyIgnored && flight.verb == Verb::Absent {
            result = Ok(());
        }
        let token = flight.token;
        self.news.push_back(Event::StepDone { vm, token, result });
        self.notice_exits();
        let late = std::mem::take(&mut self.late_saves);
        self.check_world();
        self.write(&late);
    }

    fn clings(&self, flight: &Flight) -> bool {
        let (vm, kind) = (flight.step.vm(), flight.step.kind());
        let mut lingering = self.lingering.iter();
        // A group stays as long as anybody is in it.
        let lingers =
            lingering.any(|(of, k)| *of == vm && (*k == kind || kind == StepKind::Cgroup));
        flight.verb == Verb::Absent && (self.stubborn == Some(kind) || lingers)
    }

    /// What `absent` says of an object that took the order to go and has not gone.
    fn is_still_there(&self) -> Result<(), Fault> {
        match self.bug {
            ShellBug::OrderTakenForEffect => Ok(()),
            _ => Err(Fault::new(FaultKind::Busy, "it is still there")),
        }
    }

    /// What a program of a dead daemon does may fail, and nobody hears of it.
    fn helper_acts(&mut self) {
        match self.helpers.pop() {
            Some(Helper::Step(verb, step)) => {
                let _unheard = self.world.act(verb, &step);
                self.notice_exits();
            }
            Some(Helper::Builder(key)) => drop(self.litter.insert(key)),
            None => {}
        }
    }

    fn ask(&mut self, index: usize) {
        self.last_op += 1;
        let op = OpId(self.last_op);
        let client = &mut self.clients.all[index];
        let request = client.script.pop_front().expect("it has something to ask");
        client.open = Some(op);
        self.asked.insert(op);
        if let Request::Delete { target, .. } = &request {
            self.deletions.insert(target.clone());
        }
        let client = client.connection;
        self.hear(Event::Request {
            client,
            op,
            request,
        });
    }

    fn restart(&mut self) {
        let changes = self
            .disk
            .vms
            .values()
            .map(|vm| RowChange::PutVm(Box::new(vm.clone())));
        let vms = changes.map(|change| {
            let (_, key, value) = rows::write(&change).unwrap();
            (key, value.unwrap())
        });
        let mut loaded = rows::read(vms.collect(), Vec::new(), Vec::new()).unwrap();
        loaded.images = self.disk.images.values().cloned().collect();
        loaded.kernels = self.disk.kernels.values().cloned().collect();
        self.mind = Some(Mind::new(self.facts.clone(), loaded));
        self.hear(Event::Opened);
    }

    pub(super) fn crash(&mut self, death: Death) {
        for flight in std::mem::take(&mut self.flights) {
            match death {
                Death::BeforeEffects => {}
                Death::AfterEffects | Death::Reboot => {
                    let _unheard = self.world.act(flight.verb, &flight.step);
                }
                Death::HelpersLive => self.helpers.push(Helper::Step(flight.verb, flight.step)),
            }
        }
        for job in std::mem::take(&mut self.jobs) {
            if let (Death::HelpersLive, JobWork::Pull(key)) = (death, job.work) {
                self.helpers.push(Helper::Builder(key));
            }
        }
        if death == Death::Reboot {
            self.world.turn(&Turn::Reboot);
            self.helpers.clear();
            self.lingering.clear();
            self.clients.holds.clear();
        }
        self.mind = None;
        self.is_serving = false;
        self.actions.clear();
        self.late_saves.clear();
        self.timers.clear();
        self.watches.clear();
        self.backend_watches.clear();
        self.hold_watches.clear();
        self.news.clear();
        self.clients.reconnect_all();
    }

    /// Watched VMMs and back ends that are gone become news.
    pub(super) fn notice_exits(&mut self) {
        let gone: Vec<VmId> = self
            .watches
            .keys()
            .copied()
            .filter(|vm| !self.world.is_alive(*vm))
            .collect();
        for vm in gone {
            let run = self.watches.remove(&vm).expect("listed just now");
            let reason = "exited with status 0".to_owned();
            self.news.push_back(Event::VmmExited { vm, run, reason });
        }
        let backends = self.backend_watches.clone().into_iter();
        let gone = backends.filter(|(vm, _)| !self.world.has(*vm, StepKind::VsockBackend));
        for (vm, run) in gone.collect::<Vec<_>>() {
            self.backend_watches.remove(&vm);
            let how = Some("killed by signal 9".to_owned());
            self.news.push_back(Event::BackendExited { vm, run, how });
        }
    }

    pub(super) fn write(&mut self, changes: &[RowChange]) {
        for change in changes.iter().cloned() {
            match change {
                RowChange::PutVm(vm) => {
                    self.phases.insert(vm.phase);
                    self.disk.vms.insert(vm.id, *vm);
                }
                RowChange::DropVm(id) => {
                    self.check_drop(id);
                    self.disk.vms.remove(&id);
                }
                RowChange::PutImage(image) => {
                    self.disk.images.insert(image.name.clone(), image);
                }
                RowChange::DropImage(name) => {
                    self.disk.images.remove(&name);
                }
                RowChange::PutKernel(kernel) => {
                    self.disk.kernels.insert(kernel.name.clone(), kernel);
                }
                RowChange::DropKernel(name) => {
                    self.disk.kernels.remove(&name);
                }
            }
        }
    }
}
