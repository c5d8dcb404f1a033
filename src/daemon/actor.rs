//! The loop: one input at a time to the mind, its actions performed in order.
//!
//! ```text
//!  connections, step tasks, timers, pidfds, signals
//!         |  send().await  (they wait, the loop does not)
//!         v
//!   inbox: bounded(256) of Input ----> Mind::handle -> Vec<Action> ----> Shell, in order
//! ```
//!
//! The loop awaits only its inbox. A failed save ends the process: memory must not run
//! ahead of disk, and recovery at the next start does the rest.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use smol::channel::Receiver;

use super::base::Base;
use super::clients::Input;
use super::dns::zone::Names;
use super::moment;
use super::repair::{self, Mode};
use super::shell::{Client, Shell};
use super::views;
use crate::fail_point;
use crate::failure::{Failure, FailureKind};
use crate::image::catalog::Catalog;
use crate::model::ids::VmId;
use crate::model::image::{Image, Kernel};
use crate::model::vm::Phase;
use crate::plan::event::{Action, Event};
use crate::plan::facts::HostFacts;
use crate::plan::mind::Mind;
use crate::plan::record::{RowChange, VmRecord};
use crate::plan::request::{ClientId, OpId, Reply as MindReply};
use crate::plan::retry::Verb;
use crate::plan::step::{Step, StepKind};
use crate::proto::reply::{ImageView, KernelView, Line, Reply, RootStore, Status};
use crate::proto::request as wire;
use crate::store::Store;

/// Inputs that may wait.
pub const INBOX: usize = 256;

/// What the loop goes on with after an input.
enum Flow {
    On,
    End,
}

/// See the head of this file.
pub struct Actor {
    mind: Mind,
    store: Store,
    shell: Shell,
    /// What was known when the daemon started, for `status`.
    about: About,
    /// Who asks each request under way, with its own word for it.
    ops: HashMap<OpId, (ClientId, String)>,
    next_op: u64,
    /// VMs whose root is running out of space, and that this was said.
    low_stores: RefCell<BTreeSet<VmId>>,
    /// Clients that came before recovery had looked; `None` once it has.
    early: Option<Vec<(ClientId, Client)>>,
}

/// What the daemon says of itself.
pub struct About {
    /// `banger --version`.
    pub version: String,
    /// Its log file; empty when there is none.
    pub log: String,
    /// When it started.
    pub started: std::time::Instant,
    /// The facts of this machine that the mind was given.
    pub facts: HostFacts,
    /// What could be pulled.
    pub catalog: Catalog,
    /// What the guests' resolver knows.
    pub names: Names,
}

impl Actor {
    /// A loop that has not begun.
    pub fn new(mind: Mind, store: Store, shell: Shell, about: About) -> Actor {
        Actor {
            mind,
            store,
            shell,
            about,
            ops: HashMap::new(),
            next_op: 1,
            low_stores: RefCell::new(BTreeSet::new()),
            early: Some(Vec::new()),
        }
    }

    /// Runs until the mind ends it.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn run(mut self, inbox: Receiver<Input>) -> Result<(), Failure> {
        let mut flow = self.hear(Event::Opened)?;
        while matches!(flow, Flow::On) {
            let Ok(input) = inbox.recv().await else { break };
            flow = match input {
                Input::Event(event) => self.hear(event)?,
                Input::Surveyed {
                    client,
                    survey,
                    mode,
                } => {
                    let host = &self.shell.host;
                    let judgement = repair::judge(survey, &self.mind, host, mode);
                    self.shell.repair(client, judgement, mode);
                    Flow::On
                }
                Input::Call {
                    client,
                    outbox,
                    call,
                } => {
                    let known = Client {
                        outbox,
                        asked: call.request,
                        op: call.op,
                    };
                    self.called_in_turn(client, known)?
                }
            };
        }
        Ok(())
    }

    /// A client that comes before recovery has looked waits: it is the usual case, since
    /// the command line starts the daemon that it asks.
    fn called_in_turn(&mut self, client: ClientId, known: Client) -> Result<Flow, Failure> {
        match &mut self.early {
            None => self.called(client, known),
            Some(early) => {
                early.push((client, known));
                Ok(Flow::On)
            }
        }
    }

    fn let_early_clients_in(&mut self) -> Result<Flow, Failure> {
        for (client, known) in self.early.take().unwrap_or_default() {
            if let Flow::End = self.called(client, known)? {
                return Ok(Flow::End);
            }
        }
        Ok(Flow::On)
    }

    fn called(&mut self, client: ClientId, known: Client) -> Result<Flow, Failure> {
        let op = OpId(self.next_op);
        self.next_op += 1;
        let request = super::translate::request(&known.asked);
        if request.is_none() {
            // What the mind is asked it logs itself.
            log::info!(op = known.op.as_str(); "asked to {}", known.asked.word());
        }
        if needs_a_vmm(&known.asked) {
            self.look_for_programs()?;
        }
        self.ops.insert(op, (client, known.op.clone()));
        let asked = known.asked.clone();
        self.shell.clients.insert(client, known);
        match request {
            Some(request) => self.hear(Event::Request {
                client,
                op,
                request,
            }),
            None => {
                self.ops.remove(&op);
                match asked {
                    wire::Request::StoreCopy {} => self.shell.copy_store(client),
                    wire::Request::Repair { dry_run: true } => {
                        self.shell.survey(client, Mode::Tell);
                    }
                    wire::Request::Repair { dry_run: false } => {
                        self.shell.survey(client, Mode::Do);
                    }
                    _ => self.shell.tell_facts(client, self.about.facts.clone()),
                }
                Ok(Flow::On)
            }
        }
    }

    /// Whoever was told to install something tries again, and is not to be told the same.
    fn look_for_programs(&mut self) -> Result<(), Failure> {
        if self.about.facts.installed.is_complete() {
            return Ok(());
        }
        let found = super::wire_up::installed(&self.shell.host.real().settings().programs);
        if found != self.about.facts.installed {
            self.about.facts.installed = found.clone();
            self.hear(Event::Installed(found))?;
        }
        Ok(())
    }

    fn hear(&mut self, event: Event) -> Result<Flow, Failure> {
        if let Event::ClientGone { client } = &event {
            self.forget_client(*client);
        }
        let recovered = matches!(event, Event::Recovered { .. });
        if let Event::VmmExited { vm, run, .. } = &event {
            self.shell.forget_run(*vm, *run);
            self.low_stores.borrow_mut().remove(vm);
        }
        if let Event::GuestReady { vm, .. } = &event {
            self.shell.host.real().vmms().guest_is_ready(*vm);
        }
        if let Event::StepDone { vm, token, result } = &event {
            self.shell.waits.remove(token);
            if let Err(fault) = result {
                log::warn!(vm:%; "step failed: {fault}");
            }
        }
        let moment = moment::now(&self.shell.layout);
        let actions = self.mind.handle(event, moment);
        if actions
            .iter()
            .any(|action| matches!(action, Action::Save(_)))
        {
            self.publish_names();
        }
        for action in actions {
            if let Flow::End = self.perform(action)? {
                return Ok(Flow::End);
            }
        }
        if recovered {
            self.let_early_clients_in()
        } else {
            Ok(Flow::On)
        }
    }

    /// The mind gives a client that has gone no answer, so nothing else would end its
    /// request here.
    fn forget_client(&mut self, gone: ClientId) {
        self.shell.clients.remove(&gone);
        self.ops.retain(|_, (client, _)| *client != gone);
        if let Some(early) = &mut self.early {
            early.retain(|(waiting, _)| *waiting != gone);
        }
    }

    fn perform(&mut self, action: Action) -> Result<Flow, Failure> {
        match action {
            Action::Save(rows) => self.save(&rows)?,
            Action::KillHelpers => self.shell.kill_helpers(),
            Action::FindVmms { running, owned } => self.shell.find_vmms(running, owned),
            Action::WatchHold { vm } => self.shell.watch_hold(vm),
            Action::RunStep {
                vm,
                token,
                verb,
                step,
                deadline_ms,
            } => {
                self.foresee(vm, verb, &step);
                let spec = self.mind.vm(vm).map(|record| &record.spec);
                let base = spec.map(|spec| Base {
                    image: spec.image.clone(),
                    kernel: spec.kernel.clone(),
                });
                self.shell
                    .run_step(vm, token, verb, step, deadline_ms, base);
            }
            Action::CancelStep { token, .. } => self.shell.cancel_step(token),
            Action::AcceptGuest { vm } => self.accept_guest(vm),
            Action::ForgetGuest { vm } => self.shell.guests.forget(vm),
            Action::Watch { vm, run } => self.shell.watch(vm, run),
            Action::WatchBackend { vm, run } => self.shell.watch_backend(vm, run),
            Action::PowerOff { vm, run } => self.shell.power_off(vm, run, moment::now_ns()),
            Action::ArmTimer { timer, after_ms } => self.shell.arm_timer(timer, after_ms),
            Action::StartJob { job, work } => self.shell.start_job(job, work),
            Action::CancelJob { job } => self.shell.jobs.cancel(job),
            Action::Reply { client, op, reply } => self.reply(client, op, reply),
            Action::Progress {
                client, progress, ..
            } => {
                self.shell
                    .say(client, Line::Progress(views::progress(&progress)));
            }
            Action::Log { vm, op, text } => self.log(vm, op, &text),
            Action::Exit => return Ok(Flow::End),
        }
        Ok(Flow::On)
    }

    /// Where a run begins, what its VMM will need is begun, off the loop; nobody waits.
    fn foresee(&self, vm: VmId, verb: Verb, step: &Step) {
        if (verb, step.kind()) != (Verb::Ensure, StepKind::RunDirectory) {
            return;
        }
        let steps = self.mind.vm(vm).map(|record| &*record.run_plan);
        let machine = steps.into_iter().flatten().find_map(|step| match step {
            Step::Vmm { machine, .. } => Some(machine.clone()),
            _ => None,
        });
        if let Some(machine) = machine {
            let host = self.shell.host.clone();
            host.real().vmms().expect_start(vm, &machine);
            smol::unblock(move || host.real().vmms().foresee(vm, &machine)).detach();
        }
    }

    fn save(&mut self, rows: &[RowChange]) -> Result<(), Failure> {
        let at = |place| {
            fail_point::hit(place)
                .map_err(|error| Failure::failed("write the store").because(error))
        };
        let saved = at("save.before")
            .and_then(|()| self.store.save(rows))
            .and_then(|()| at("save.after"));
        saved.map_err(|failure| {
            let kind = FailureKind::Storage;
            Failure { kind, ..failure }
        })
    }

    fn log(&self, vm: Option<VmId>, op: Option<OpId>, text: &str) {
        let op = op
            .and_then(|op| self.ops.get(&op))
            .map_or("", |(_, word)| word.as_str());
        match (vm, op) {
            (Some(vm), "") => log::info!(vm:%; "{text}"),
            (Some(vm), op) => log::info!(vm:%, op; "{text}"),
            (None, "") => log::info!("{text}"),
            (None, op) => log::info!(op; "{text}"),
        }
    }

    /// Names of VMs with an address, for the guests' resolver.
    fn publish_names(&self) {
        let named = |vm: &VmRecord| Some((vm.spec.name.clone(), vm.lease?.address));
        self.about.names.replace(self.mind.vms().filter_map(named));
    }

    fn accept_guest(&mut self, vm: VmId) {
        let Some(record) = self.mind.vm(vm).cloned() else {
            return;
        };
        let configure = Rc::new(move || {
            let moment = super::guest_config::Moment {
                now_ns: moment::now_ns(),
                seed: moment::random_bytes(),
                token: moment::random_bytes(),
            };
            super::guest_config::guest_config(
                record.id,
                &record.spec,
                record.lease,
                record.git.as_ref(),
                &moment,
            )
        });
        self.shell.guests.accept(vm, configure);
    }

    fn reply(&mut self, client: ClientId, op: OpId, reply: MindReply) {
        let (_, word) = self.ops.remove(&op).unwrap_or((client, String::new()));
        if let MindReply::Failed(failure) = &reply {
            log::warn!(op = word.as_str(); "failed: {failure}");
        } else {
            log::info!(op = word.as_str(); "done");
        }
        let asked = self.shell.clients.get(&client).map(|known| &known.asked);
        match (reply, asked) {
            (MindReply::Vm(record), Some(wire::Request::VmOpenLog { log, .. })) => {
                let live = !record.run_plan.is_empty();
                self.shell.open_log(client, record.id, *log, live);
            }
            (MindReply::Vm(record), Some(wire::Request::VmShow { .. }))
                if record.phase == Phase::Running =>
            {
                let view = self.vm_view(&record);
                self.shell.show(client, view, &record);
            }
            (MindReply::Dial { vm, name }, _) => self.shell.dial(client, vm, name.to_string()),
            (MindReply::Failed(failure), _) => {
                self.shell.answer(client, Line::Failed(failure.into()))
            }
            (reply, _) => {
                let reply = self.on_the_wire(reply);
                self.shell.answer(client, Line::Done(reply));
            }
        }
    }

    fn on_the_wire(&self, reply: MindReply) -> Reply {
        match reply {
            MindReply::Vm(record) => Reply::Vm(Box::new(self.vm_view(&record))),
            MindReply::Vms(records) => Reply::Vms {
                vms: records.iter().map(|record| self.vm_view(record)).collect(),
            },
            MindReply::Image(image) => Reply::Image(self.image_view(&image)),
            MindReply::Kernel(kernel) => Reply::Kernel(self.kernel_view(&kernel)),
            MindReply::Images(images) => Reply::Images {
                images: self.image_views(&images),
            },
            MindReply::Kernels(kernels) => Reply::Kernels {
                kernels: self.kernel_views(&kernels),
            },
            MindReply::Status(status) => Reply::Status(Status {
                version: self.about.version.clone(),
                pid: std::process::id(),
                socket: self.shell.layout.daemon_socket().display().to_string(),
                log: self.about.log.clone(),
                uptime_s: self.about.started.elapsed().as_secs(),
                running: count(status.running),
                vms: count(status.vms),
            }),
            MindReply::Done
            | MindReply::Deleted { .. }
            | MindReply::Dial { .. }
            | MindReply::Failed(_) => Reply::Ok {},
        }
    }

    fn image_views(&self, images: &[Image]) -> Vec<ImageView> {
        let present = images.iter().map(|image| self.image_view(image));
        let mut all: Vec<_> = present.collect();
        for entry in &self.about.catalog.images {
            if !images.iter().any(|image| image.name == entry.name) {
                all.push(views::catalog_image(entry.name.as_str(), &entry.about));
            }
        }
        all
    }

    fn kernel_views(&self, kernels: &[Kernel]) -> Vec<KernelView> {
        let present = kernels.iter().map(|kernel| self.kernel_view(kernel));
        let mut all: Vec<_> = present.collect();
        for entry in &self.about.catalog.kernels {
            if !kernels.iter().any(|kernel| kernel.name == entry.name) {
                all.push(views::catalog_kernel(entry.name.as_str(), &entry.about));
            }
        }
        all
    }

    fn image_view(&self, image: &Image) -> ImageView {
        views::image(image, self.mind.vms(), &self.shell.layout)
    }

    fn kernel_view(&self, kernel: &Kernel) -> KernelView {
        views::kernel(kernel, self.mind.vms(), &self.shell.layout)
    }

    fn vm_view(&self, record: &VmRecord) -> crate::proto::reply::VmView {
        let pid = self.shell.pid(record.id);
        let mut view = views::vm(record, &self.shell.layout, &self.about.facts, pid);
        if let Some(silence) = self.shell.halts.of(record.id) {
            let name = record.spec.name.as_str();
            view.warnings.push(silence.warning(name));
        }
        self.warn_of_store(record.id, view.root_store.as_ref());
        view
    }

    /// Once in the log, however often somebody looks.
    fn warn_of_store(&self, vm: VmId, store: Option<&RootStore>) {
        let warning = store.and_then(|store| store.warning.as_ref());
        let mut known = self.low_stores.borrow_mut();
        match warning {
            Some(warning) if known.insert(vm) => log::warn!(vm:%; "{warning}"),
            Some(_) => {}
            None => drop(known.remove(&vm)),
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Whether programs are needed for what is asked, or told of.
fn needs_a_vmm(asked: &wire::Request) -> bool {
    use wire::Request;
    matches!(
        asked,
        Request::VmRun { .. }
            | Request::VmStart { .. }
            | Request::VmRestart { .. }
            | Request::HostFacts {}
    )
}
