//! Carries out the mind's actions: the daemon's hands.
//!
//! `Save` is done inline and durably; everything that may take time runs off the loop
//! and comes back as an [`Event`]. No decision is made here.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smol::channel::Sender;
use smol::future::{self, FutureExt};
use smol::{Async, LocalExecutor, Timer};

use super::adjust;
use super::base::{self, Base};
use super::clients::Input;
use super::connection::{Outbox, Outgoing};
use super::guest::{self, Silence};
use super::guests::{self, Guests};
use super::halts::Halts;
use super::hands::Hands;
use super::holds;
use super::jobs::Jobs;
use super::repair::{self, Judgement, Mode};
use crate::fail_point;
use crate::failure::{Failure, FailureKind};
use crate::host::Host;
use crate::host::appear::Name;
use crate::host::layout::Layout;
use crate::host::process::Process;
use crate::model::ids::VmId;
use crate::plan::event::{Event, JobId, RunToken, StepToken};
use crate::plan::facts::HostFacts;
use crate::plan::record::VmRecord;
use crate::plan::request::ClientId;
use crate::plan::retry::Verb;
use crate::plan::step::{Fault, FaultKind, LiveSizes, Step, StepKind};
use crate::proto::agent::AGENT_PORT;
use crate::proto::reply::{Line, Reply, VmView};
use crate::proto::request as wire;

/// A client that waits for something.
pub struct Client {
    /// Where its lines go.
    pub outbox: Outbox,
    /// The request as it came.
    pub asked: wire::Request,
    /// Its own word for the request, in log lines.
    pub op: String,
}

/// See the head of this file.
pub struct Shell {
    /// Runs every task of the daemon, on the loop's thread.
    pub executor: Rc<LocalExecutor<'static>>,
    /// Back to the loop.
    pub inbox: Sender<Input>,
    /// Where things lie.
    pub layout: Rc<Layout>,
    /// Carries out steps.
    pub host: Arc<Hands>,
    /// Guests that boot or run.
    pub guests: Rc<Guests>,
    /// Guests that are halted, or were.
    pub halts: Halts,
    /// Pulls and sweeps.
    pub jobs: Jobs,
    /// Clients by identity.
    pub clients: HashMap<ClientId, Client>,
    /// The channels by which waits of running steps are cancelled.
    pub waits: HashMap<StepToken, Sender<()>>,
    /// Process ids of VMMs with the run that they carry, for people.
    pub pids: HashMap<VmId, (RunToken, u32)>,
}

impl Shell {
    /// Does a step off the loop. A VMM is started only if `base` is whole.
    pub fn run_step(
        &mut self,
        vm: VmId,
        token: StepToken,
        verb: Verb,
        step: Step,
        deadline_ms: u64,
        base: Option<Base>,
    ) {
        let inbox = self.inbox.clone();
        if let (Verb::Ensure, Step::Ready { vm }) = (verb, &step) {
            let (cancel, cancelled) = smol::channel::bounded(1);
            self.waits.insert(token, cancel);
            let (guests, host) = (self.guests.clone(), self.host.clone());
            let (halts, vm) = (self.halts.clone(), *vm);
            let waiting = guests.ready(vm, Duration::from_millis(deadline_ms), cancelled);
            let task = self.executor.spawn(async move {
                let result = waiting.await;
                let mut result = result.map_err(|fault| Silence::explain(halts.of(vm), fault));
                if fail_point::ARMED && result.is_ok() {
                    let step = step.clone();
                    result = smol::unblock(move || host.ensure(&step)).await;
                }
                let done = Event::StepDone {
                    vm: step.vm(),
                    token,
                    result,
                };
                let _ = inbox.send(Input::Event(done)).await;
            });
            return task.detach();
        }
        if let (Verb::Ensure, Step::Adjusted { sizes, .. }) = (verb, &step) {
            return self.adjust(token, *sizes, step);
        }
        let host = self.host.clone();
        let kind = step.kind();
        let base = base.filter(|_| kind == StepKind::Vmm);
        let task = self.executor.spawn(async move {
            let work = smol::unblock(move || carry_out(&host, verb, &step, base));
            // Each step bounds its own waits. One that is late all the same (a disk that
            // hangs) is waited for: given up, it could still take effect after `absent`
            // has looked. That the VM is held up by it must be seen.
            let late = async {
                Timer::after(Duration::from_millis(deadline_ms)).await;
                log::error!(vm:%; "{verb:?} {}: not done after {deadline_ms} ms", kind.word());
                future::pending().await
            };
            let result = work.or(late).await;
            let _ = inbox
                .send(Input::Event(Event::StepDone { vm, token, result }))
                .await;
        });
        task.detach();
    }

    /// The guest is waited for until somebody wants the VM for something else.
    fn adjust(&mut self, token: StepToken, sizes: LiveSizes, step: Step) {
        let (cancel, cancelled) = smol::channel::bounded(1);
        self.waits.insert(token, cancel);
        let (host, inbox, vm) = (self.host.clone(), self.inbox.clone(), step.vm());
        let socket = self.layout.vsock(vm);
        let halts = self.halts.clone();
        let task = self.executor.spawn(async move {
            let adjusted = adjust::adjust(host, &halts, &socket, step, sizes);
            let cancel = async {
                if cancelled.recv().await.is_err() {
                    future::pending::<()>().await;
                }
                Err(Fault::new(
                    FaultKind::Cancelled,
                    "adjust the guest: cancelled",
                ))
            };
            let result = adjusted.or(cancel).await;
            let done = Event::StepDone { vm, token, result };
            let _ = inbox.send(Input::Event(done)).await;
        });
        task.detach();
    }

    /// Tells a client of a running VM what its balloon holds, which the VMM knows.
    pub fn show(&mut self, client: ClientId, mut view: VmView, record: &VmRecord) {
        let (host, inbox, vm) = (self.host.clone(), self.clients.remove(&client), record.id);
        let (Some(known), Some(vmm)) = (inbox, &record.vmm) else {
            return;
        };
        let (kind, memory) = (vmm.kind, record.spec.memory);
        let task = self.executor.spawn(async move {
            let left =
                smol::unblock(move || host.real().vmms().memory_left(vm, kind, memory)).await;
            match left {
                Ok(left) => view.balloon.memory_actual = Some(left.0),
                Err(fault) => log::warn!(vm:%; "look at the balloon: {fault}"),
            }
            let line = Line::Done(Reply::Vm(Box::new(view)));
            let _ = known.outbox.try_send(Outgoing {
                line,
                descriptor: None,
            });
        });
        task.detach();
    }

    /// Ends the wait of a running step; a step that is not a wait ends by itself.
    pub fn cancel_step(&mut self, token: StepToken) {
        if let Some(cancel) = self.waits.remove(&token) {
            let _ = cancel.try_send(());
        }
    }

    /// Says so when the time has come.
    pub fn arm_timer(&self, timer: crate::plan::event::TimerId, after_ms: u64) {
        let inbox = self.inbox.clone();
        let task = self.executor.spawn(async move {
            Timer::after(Duration::from_millis(after_ms)).await;
            let _ = inbox.send(Input::Event(Event::TimerFired { timer })).await;
        });
        task.detach();
    }

    /// Asks the agent to power off.
    pub fn power_off(&self, vm: VmId, run: RunToken, now_ns: u64) {
        let inbox = self.inbox.clone();
        let socket = self.layout.vsock(vm);
        let halts = self.halts.clone();
        let task = self.executor.spawn(async move {
            let result = match halts.settled(vm).await {
                Some(silence) => Err(silence.fault("ask the guest to power off")),
                None => guest::power_off(&socket, now_ns)
                    .await
                    .map_err(|failure| Fault::new(FaultKind::Other, failure.to_string())),
            };
            let sent = Event::PowerOffSent { vm, run, result };
            let _ = inbox.send(Input::Event(sent)).await;
        });
        task.detach();
    }

    /// Starts a job off the loop.
    pub fn start_job(&mut self, job: JobId, work: crate::plan::event::JobWork) {
        self.jobs.start(job, work, &self.executor, &self.inbox);
    }

    /// Gives a client a line; one that does not read is dropped.
    pub fn say(&mut self, client: ClientId, line: Line) {
        let descriptor = None;
        self.send(client, Outgoing { line, descriptor });
    }

    fn send(&mut self, client: ClientId, outgoing: Outgoing) {
        let Some(known) = self.clients.get(&client) else {
            return;
        };
        if known.outbox.try_send(outgoing).is_err() {
            log::warn!(client = client.0; "drop a client that does not read");
            self.clients.remove(&client);
        }
    }

    /// Gives a client its last line. Its connection then closes, unless it holds a VM
    /// that goes with it.
    pub fn answer(&mut self, client: ClientId, line: Line) {
        let held = self.clients.get(&client).and_then(|known| {
            let goes_along = matches!(
                known.asked,
                wire::Request::VmRun {
                    delete_on_disconnect: true,
                    ..
                }
            );
            match &line {
                Line::Done(Reply::Vm(view)) if goes_along => view.id.parse::<VmId>().ok(),
                _ => None,
            }
        });
        let descriptor = held.and_then(|vm| holds::give(vm, &self.layout.client_hold(vm)));
        self.send(client, Outgoing { line, descriptor });
        if held.is_none() {
            self.clients.remove(&client);
        }
    }

    /// Connects to a VM's agent and passes the connection to the client.
    pub fn dial(&mut self, client: ClientId, vm: VmId, name: String) {
        let Some(known) = self.clients.remove(&client) else {
            return;
        };
        let failed = |failure: Failure| Outgoing {
            line: Line::Failed(failure.into()),
            descriptor: None,
        };
        let (socket, halts) = (self.layout.vsock(vm), self.halts.clone());
        let task = self.executor.spawn(async move {
            if let Some(silence) = halts.settled(vm).await {
                let _ = known.outbox.try_send(failed(silence.failure(&name)));
                return;
            }
            let outgoing = match guest::dial(&socket, AGENT_PORT).await {
                Ok(stream) => Outgoing {
                    line: Line::Done(Reply::Dialed {
                        id: vm.to_string(),
                        name,
                    }),
                    descriptor: Some(stream.into()),
                },
                Err(failure) => match halts.why_unanswered(vm).await {
                    Some(silence) => failed(silence.failure(&name)),
                    None => failed(guest::out_of_reach(&name, &failure)),
                },
            };
            // The client may have gone meanwhile.
            let _ = known.outbox.try_send(outgoing);
        });
        task.detach();
    }

    /// Looks at this machine off the loop and tells the client.
    pub fn tell_facts(&mut self, client: ClientId, plan: HostFacts) {
        let Some(known) = self.clients.remove(&client) else {
            return;
        };
        let host = self.host.clone();
        let task = self.executor.spawn(async move {
            let facts =
                smol::unblock(move || super::wire_up::facts_for_people(host.real(), &plan)).await;
            let line = Line::Done(Reply::Facts(facts));
            let _ = known.outbox.try_send(Outgoing {
                line,
                descriptor: None,
            });
        });
        task.detach();
    }

    /// Gives a client a copy of the store. Inline, for the file is whole between two saves.
    pub fn copy_store(&mut self, client: ClientId) {
        let Some(known) = self.clients.remove(&client) else {
            return;
        };
        let path = self.layout.store();
        let outgoing = match in_memory(&path) {
            Ok(copy) => Outgoing {
                line: Line::Done(Reply::StoreCopy {
                    path: path.display().to_string(),
                }),
                descriptor: Some(copy.into()),
            },
            Err(error) => Outgoing {
                line: Line::Failed(
                    Failure::new(FailureKind::Storage, format!("copy {}", path.display()))
                        .because(error)
                        .into(),
                ),
                descriptor: None,
            },
        };
        let _ = known.outbox.try_send(outgoing);
    }

    /// Looks for what of ours is on this machine, off the loop.
    pub fn survey(&self, client: ClientId, mode: Mode) {
        let (host, inbox) = (self.host.clone(), self.inbox.clone());
        let task = self.executor.spawn(async move {
            let survey = smol::unblock(move || repair::survey(&host)).await;
            let surveyed = Input::Surveyed {
                client,
                survey,
                mode,
            };
            let _ = inbox.send(surveyed).await;
        });
        task.detach();
    }

    /// Removes what no VM has, off the loop, and tells the client.
    pub fn repair(&mut self, client: ClientId, judgement: Judgement, mode: Mode) {
        let Some(known) = self.clients.remove(&client) else {
            return;
        };
        let host = self.host.clone();
        let task = self.executor.spawn(async move {
            let repaired = smol::unblock(move || repair::carry_out(judgement, &host, mode)).await;
            for one in &repaired.repairs {
                log::info!("{}: {}: {}", one.outcome.word(), one.what, one.why);
            }
            let line = Line::Done(Reply::Repaired(repaired));
            let _ = known.outbox.try_send(Outgoing {
                line,
                descriptor: None,
            });
        });
        task.detach();
    }

    /// Opens a VM's log and passes it to the client.
    pub fn open_log(&mut self, client: ClientId, vm: VmId, log: wire::LogKind, live: bool) {
        let Some(known) = self.clients.remove(&client) else {
            return;
        };
        let path = match log {
            wire::LogKind::Vmm => self.layout.vmm_log(vm),
            wire::LogKind::Console => self.layout.console_log(vm),
        };
        let outgoing = match std::fs::File::open(&path) {
            Ok(file) => Outgoing {
                line: Line::Done(Reply::Log {
                    path: path.display().to_string(),
                    live,
                }),
                descriptor: Some(file.into()),
            },
            Err(error) => Outgoing {
                line: Line::Failed(
                    Failure::not_found(format!("open {}", path.display()))
                        .because(error)
                        .hint("A log exists once the VM has been started: `banger vm start`.")
                        .into(),
                ),
                descriptor: None,
            },
        };
        let _ = known.outbox.try_send(outgoing);
    }

    /// Ends what helper programs of an earlier daemon still run, and removes what they
    /// left: their effects must not land after recovery has looked, so it waits for this.
    /// Builders of images are the only ones that can outlive us; mke2fs writes to a file
    /// without a name, which vanishes with it.
    pub fn kill_helpers(&self) {
        self.jobs.end_leftovers(&self.executor);
    }

    /// Finds out which VMs have a live VMM and a live vsock back end, and puts back under
    /// those what is named; and which of `owned` have a client that lives.
    pub fn find_vmms(&self, vms: Vec<(VmId, Vec<Step>)>, owned: Vec<VmId>) {
        let (host, inbox) = (self.host.clone(), self.inbox.clone());
        let ended = self.jobs.leftovers_ended();
        let task = self.executor.spawn(async move {
            ended.await;
            let found = smol::unblock(move || {
                let vmms = host.real().vmms();
                let (mut alive, mut linked) = (BTreeSet::new(), BTreeSet::new());
                for (vm, mend) in vms {
                    if !may_live(vm, vmms.watch(vm)) {
                        continue;
                    }
                    alive.insert(vm);
                    if may_live(vm, vmms.watch_backend(vm)) {
                        linked.insert(vm);
                    }
                    put_back(&host, &mend);
                }
                let layout = host.real().layout();
                let held = owned.into_iter();
                let held = held.filter(|vm| holds::is_held(&layout.client_hold(*vm)));
                Event::Recovered {
                    alive,
                    linked,
                    held: held.collect(),
                }
            });
            let _ = inbox.send(Input::Event(found.await)).await;
        });
        task.detach();
    }

    /// Says when the client that holds a VM ends.
    pub fn watch_hold(&self, vm: VmId) {
        let (inbox, path) = (self.inbox.clone(), self.layout.client_hold(vm));
        let watching = async move {
            if let Err(error) = holds::released(&path).await {
                // The client may live: its VM is not taken from it.
                log::error!(vm:%; "watch {}: {error}: the VM stays until `banger vm delete`", path.display());
                return;
            }
            let released = Event::HoldReleased { vm };
            let _ = inbox.send(Input::Event(released)).await;
        };
        self.executor.spawn(watching).detach();
    }

    /// Says when a VM's VMM ends, and remembers its process id for people.
    pub fn watch(&mut self, vm: VmId, run: RunToken) {
        let process = self.host.real().vmms().watch(vm);
        match &process {
            Ok(Some(process)) => self.pids.insert(vm, (run, process.pid())),
            Ok(None) | Err(_) => self.pids.remove(&vm),
        };
        self.halts.attend(vm, run, &self.layout, &self.executor);
        let host = self.host.clone();
        let vmms = host.clone();
        let how = move |pid| vmms.real().vmms().how_it_ended(pid);
        let mut found = Some(process);
        let look = move || {
            let first = found.take();
            first.unwrap_or_else(|| host.real().vmms().watch(vm))
        };
        self.guests.watch(vm, run, look, how);
    }

    /// Says when a VM's vsock back end ends, and how where it was our child; or that its
    /// socket is gone, without which nobody reaches the guest either.
    pub fn watch_backend(&self, vm: VmId, run: RunToken) {
        let process = match self.host.real().vmms().watch_backend(vm) {
            Ok(process) => process,
            // It may live: who needs the guest finds out.
            Err(fault) => return log::error!(vm:%; "find the vsock back end: {fault}"),
        };
        let (host, inbox) = (self.host.clone(), self.inbox.clone());
        let (vmms, socket) = (host.clone(), self.layout.vsock(vm));
        let watching = async move {
            let how = match process {
                Some(process) => {
                    let pid = process.pid();
                    let ended = async {
                        end_of(process).await;
                        host.real().vmms().how_it_ended(pid)
                    };
                    let cut_off = async {
                        end_of_name(socket).await;
                        Some("its socket was removed".to_owned())
                    };
                    let how = ended.or(cut_off).await;
                    // It goes with its VMM, and the end of that is told by its own watch.
                    if let Ok(None) = smol::unblock(move || vmms.real().vmms().watch(vm)).await {
                        return;
                    }
                    how
                }
                None => None,
            };
            let exited = Event::BackendExited { vm, run, how };
            let _ = inbox.send(Input::Event(exited)).await;
        };
        self.executor.spawn(watching).detach();
    }

    /// The process id of a VM's VMM, while it is watched.
    pub fn pid(&self, vm: VmId) -> Option<u32> {
        self.pids.get(&vm).map(|(_, pid)| *pid)
    }

    /// Forgets what is known of a run that has ended; the next one may have begun.
    pub fn forget_run(&mut self, vm: VmId, run: RunToken) {
        self.halts.forget(vm, run);
        if self.pids.get(&vm).is_some_and(|(of, _)| *of == run) {
            self.pids.remove(&vm);
        }
    }
}

/// Whether a process was found, or could not be looked for: an orphan it would be then.
fn may_live(vm: VmId, found: Result<Option<Process>, Fault>) -> bool {
    found.map_or_else(
        |fault| {
            log::error!(vm:%; "look for its processes: {fault}");
            true
        },
        |process| process.is_some(),
    )
}

/// Waits for a process's end. One that cannot be watched counts as alive: who needs the
/// guest finds out.
async fn end_of(process: Process) {
    if let Err(error) = guests::ended(process).await {
        log::error!("watch a vsock back end: {error}");
        future::pending().await
    }
}

/// Waits until a socket is gone. One that cannot be watched counts as there.
async fn end_of_name(socket: PathBuf) {
    let watched = async {
        let name = Async::new(Name::watch(socket)?)?;
        while !name.get_ref().is_gone()? {
            name.readable().await?;
        }
        Ok::<(), io::Error>(())
    };
    if let Err(error) = watched.await {
        log::error!("watch a vsock socket: {error}");
        future::pending().await
    }
}

/// Runs on the blocking pool.
fn carry_out(host: &Hands, verb: Verb, step: &Step, base: Option<Base>) -> Result<(), Fault> {
    let begun = Instant::now();
    let result = match verb {
        Verb::Ensure => base
            .map_or(Ok(()), |base| base::check(host.real().layout(), &base))
            .and_then(|()| host.ensure(step)),
        Verb::Absent => host.absent(step),
    };
    let us = begun.elapsed().as_micros();
    log::debug!(vm:% = step.vm(), us; "{verb:?} {}", step.kind().word());
    result
}

/// A VM whose step cannot be put back runs on as it is: why is in the log.
fn put_back(host: &Hands, steps: &[Step]) {
    for step in steps {
        if let Err(fault) = host.ensure(step) {
            log::error!(vm:% = step.vm(); "put back {}: {fault}", step.kind().word());
        }
    }
}

/// A file's content in a file of memory, to be read from its beginning.
fn in_memory(path: &Path) -> io::Result<File> {
    let memory = rustix::fs::memfd_create("store", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut copy = File::from(memory);
    io::copy(&mut File::open(path)?, &mut copy)?;
    copy.rewind()?;
    Ok(copy)
}
