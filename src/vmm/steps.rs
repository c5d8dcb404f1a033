//! The steps that are processes and what they are told: vsock back end, VMM,
//! configured, booted. Each verb is idempotent and looks first.
//!
//! A process counts as present when it runs *and* answers on its socket. One that
//! runs without answering is killed and started anew, socket and all. The socket is
//! waited for by inotify, together with the process's end, so a VMM that dies at once
//! is reported at once, with its last words.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crate::host::Settings;
use crate::host::appear::{Appearance, wait_for_socket};
use crate::host::cgroup::Groups;
use crate::host::console;
use crate::host::fault::fault;
use crate::host::identity::{self, Identity, Separation};
use crate::host::launch::{Errors, Launch, Launched};
use crate::host::layout::Layout;
use crate::host::process::{Children, Marker, Process, find, kill_all};
use crate::host::program::Programs;
use crate::host::socket;
use crate::model::ids::VmId;
use crate::model::units::Bytes;
use crate::model::vm::VmmKind;
use crate::plan::boot_args::HostClock;
use crate::plan::step::{Fault, FaultKind, LiveSizes, Machine, Presence};

use super::guest_memory;
use super::initrd::{self, OwnProgram};
use super::logs::KEEPER_LIMIT;
use super::machine::{Beginning, Parts};
use super::template::{Begun, Templates};
use super::{ControlSocket, Deadline, GuestState, Vmm, clock, vsock_backend};

/// How long a program may take to answer after it started, on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long an answering VMM may take for one request.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How long a killed process may take to end: a large guest's memory is given back first.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// How long a process that closed its control socket may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How long a VMM that exists already may take to say that it is fine.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// Carries the process steps out on this machine.
#[derive(Debug)]
pub struct Vmms {
    pub(super) layout: Layout,
    programs: Programs,
    own_program: OwnProgram,
    groups: Option<Groups>,
    separation: Separation,
    /// Where VMs' processes work.
    work: PathBuf,
    pub(super) children: Children,
    clock: OnceLock<Option<HostClock>>,
    /// Where there are any.
    pub(super) templates: Option<Templates>,
}

impl Vmms {
    /// For VMs whose files lie where `layout` says. `own_program` becomes launcher and
    /// `/init`.
    pub fn new(layout: Layout, settings: &Settings, own_program: OwnProgram) -> Vmms {
        let templates = || Templates::at(layout.machines());
        Vmms {
            templates: settings.templates.then(templates),
            work: layout.run_directories(),
            separation: Separation::discover(),
            layout,
            programs: settings.programs.clone(),
            own_program,
            groups: Groups::discover(),
            children: Children::default(),
            clock: OnceLock::new(),
        }
    }

    /// The control groups of VMs, where there are any.
    pub fn groups(&self) -> Option<&Groups> {
        self.groups.as_ref()
    }

    /// Whether VMs have users of their own.
    pub fn separation(&self) -> &Separation {
        &self.separation
    }

    /// Who a machine's VMM runs as; `None` is who we are.
    pub(super) fn user_of(&self, parts: &Parts) -> Option<Identity> {
        match parts.beginning {
            Beginning::ForTemplate { .. } => self.separation.maker(),
            Beginning::Kernel | Beginning::FromTemplate { .. } => {
                self.separation.identity(parts.vm)
            }
        }
    }

    /// The VMM's process, pinned, if it lives: readable when it ends.
    ///
    /// # Errors
    /// The machine's processes cannot be listed.
    pub fn watch(&self, vm: VmId) -> Result<Option<Process>, Fault> {
        Ok(self.vmm_processes(vm)?.into_iter().next())
    }

    /// Where programs are looked for.
    pub(super) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The vsock back end's process, likewise.
    ///
    /// # Errors
    /// The machine's processes cannot be listed.
    pub fn watch_backend(&self, vm: VmId) -> Result<Option<Process>, Fault> {
        Ok(self.vsock_processes(vm)?.into_iter().next())
    }

    /// Whether the vsock back end serves its guest. One that cannot be looked at, or that
    /// is none of a VM's (Firecracker), is not said not to.
    ///
    /// # Errors
    /// The machine's processes cannot be listed.
    pub fn backend_serves(&self, vm: VmId) -> Result<bool, Fault> {
        let process = self.watch_backend(vm)?;
        Ok(process.is_none_or(|process| vsock_backend::has_worker(process.pid()).unwrap_or(true)))
    }

    /// How a process of a VM ended, where this daemon started it.
    pub fn how_it_ended(&self, pid: u32) -> Option<String> {
        self.children.how_it_ended(pid)
    }

    /// Makes the vsock back end run and listen.
    pub fn ensure_vsock_backend(&self, vm: VmId) -> Result<(), Fault> {
        if self.probe_vsock_backend(vm)? == Presence::Present {
            return Ok(());
        }
        self.absent_vsock_backend(vm)?;
        let vhost = self.layout.vhost_socket(vm);
        let (seen_vsock, seen_vhost) = (self.seen_vsock(vm), self.layout.as_seen_at_work(&vhost));
        // Open until the back end listens: what it says before is quoted from there.
        let (words, errors) = self.log_pipe(vm)?;
        let launched = Launch {
            program: &vsock_backend::program(&self.programs)?,
            arguments: vsock_backend::arguments(&seen_vsock, &seen_vhost),
            ..self.launch(vm, errors, &self.layout.vmm_log(vm))
        }
        .start()?;
        self.await_socket(launched, &vhost, &seen_vhost, &|| {
            console::waiting_words(&words)
        })
    }

    /// Ends the vsock back end and removes its sockets.
    pub fn absent_vsock_backend(&self, vm: VmId) -> Result<(), Fault> {
        self.end(self.vsock_processes(vm)?, "vsock back end", vm)?;
        remove_socket(&self.layout.vsock(vm))?;
        remove_socket(&self.layout.vhost_socket(vm))
    }

    /// Whether the back end runs with its sockets in place.
    pub fn probe_vsock_backend(&self, vm: VmId) -> Result<Presence, Fault> {
        let sockets = [self.layout.vsock(vm), self.layout.vhost_socket(vm)];
        match self.vsock_processes(vm)?.len() {
            0 => Ok(Presence::Absent),
            1 if sockets.iter().any(|socket| socket.exists()) => Ok(Presence::Present),
            _ => Ok(Presence::Different),
        }
    }

    /// Makes the VMM run and answer; its guest does not run.
    pub fn ensure_vmm(&self, vm: VmId, machine: &Machine) -> Result<(), Fault> {
        let outcome = self.make_vmm_run(vm, machine);
        self.forget_foreseen(vm);
        outcome
    }

    fn make_vmm_run(&self, vm: VmId, machine: &Machine) -> Result<(), Fault> {
        if self.probe_vmm(vm, machine)? == Presence::Present {
            return Ok(());
        }
        self.clear_vmm(vm, machine)?;
        let parts = self.parts(vm, machine)?;
        match self.start_from_template(machine, &parts)? {
            Begun::Yes => Ok(()),
            Begun::No => self.start_vmm(&parts),
            Begun::InVain { key } => {
                self.start_vmm(&parts)?;
                // It was not the machine's own fault, then.
                self.count_failure(&key);
                Ok(())
            }
        }
    }

    /// Waits until the vsock back end listens, as it does again when a VMM that it served
    /// has ended.
    pub(super) fn await_backend(&self, vm: VmId) -> Result<(), Fault> {
        let vhost = self.layout.vhost_socket(vm);
        let attempt = || format!("wait for {}", vhost.display());
        let missing = || Fault::new(FaultKind::Exited, format!("{}: nobody makes it", attempt()));
        let maker = self.watch_backend(vm)?.ok_or_else(missing)?;
        let name = self.layout.as_seen_at_work(&vhost);
        match wait_for_socket(&vhost, &name, &maker, START_LIMIT) {
            Ok(Appearance::Listening) => Ok(()),
            Ok(Appearance::MakerEnded) => Err(missing()),
            Ok(Appearance::Late) => Err(Fault::new(FaultKind::Timeout, attempt())),
            Err(error) => Err(fault(attempt(), error)),
        }
    }

    /// Starts a VMM and waits until it answers.
    pub(super) fn start_vmm(&self, parts: &Parts) -> Result<(), Fault> {
        let vm = parts.vm;
        let vmm = super::of(parts.kind);
        let way = self.way(parts)?;
        let control = match vmm.control() {
            ControlSocket::Given => Some(bind(&parts.control)?),
            ControlSocket::Made => None,
        };
        let (told, errors) = self.log_pipe(vm)?;
        let (keeper, console) = self.start_keeper(parts, told)?;
        let launched = Launch {
            program: &way.program,
            arguments: way.arguments,
            identity: way.identity,
            files: way.files,
            // A jail covers it; who is jailed works in the root.
            directory: Some(&*self.work).filter(|_| way.jail.is_none()),
            jail: way.jail,
            output: Some(console),
            control: control.map(Into::into),
            ..self.launch(vm, errors, &parts.log)
        }
        .start()?;
        let outcome = self.await_answer(vmm, launched, parts, &keeper.process);
        self.children.adopt(keeper.process.child());
        outcome
    }

    /// What all launches have in common.
    pub(super) fn launch<'a>(&'a self, vm: VmId, errors: OwnedFd, log: &'a Path) -> Launch<'a> {
        Launch {
            own_program: self.own_program.path(),
            program: self.own_program.path(),
            arguments: Vec::new(),
            group: self.groups.as_ref().map(|groups| groups.path(vm)),
            identity: self.separation.identity(vm),
            directory: Some(&self.work),
            files: Vec::new(),
            jail: None,
            errors: Errors::Kept { into: errors, log },
            output: None,
            input: None,
            control: None,
        }
    }

    /// Ends the VMM and what keeps its console, and removes its control socket.
    ///
    /// The vsock back end is killed as soon as the VMM that it serves, not awaited: both
    /// have the guest's memory mapped, and giving that back is most of what their ends
    /// take ([`guest_memory`]). That it has ended is for its own step to see.
    pub fn absent_vmm(&self, vm: VmId, machine: &Machine) -> Result<(), Fault> {
        if let Some(templates) = &self.templates {
            templates.ended(vm);
        }
        self.forget_foreseen(vm);
        let dying = self.vmm_processes(vm)?;
        let _until_it_has_ended = guest_memory::hold(&dying);
        for process in dying.iter().chain(&self.vsock_processes(vm)?) {
            process
                .kill()
                .map_err(|error| fault(format!("kill the processes of vm {vm}"), error))?;
        }
        self.clear_vmm(vm, machine)
    }

    pub(super) fn clear_vmm(&self, vm: VmId, machine: &Machine) -> Result<(), Fault> {
        self.end(self.vmm_processes(vm)?, "VMM", vm)?;
        self.end_keeper(vm)?;
        if machine.kind == VmmKind::Firecracker {
            // Made by Firecracker itself, which refuses one that exists.
            remove_socket(&self.layout.vsock(vm))?;
        }
        remove_socket(&self.layout.halt_socket(vm))?;
        remove_socket(&self.layout.control_socket(vm))
    }

    /// Whether the VMM runs and answers.
    pub fn probe_vmm(&self, vm: VmId, machine: &Machine) -> Result<Presence, Fault> {
        if self.vmm_processes(vm)?.is_empty() {
            return Ok(Presence::Absent);
        }
        let control = self.layout.control_socket(vm);
        let answer = super::of(machine.kind).state(&control, Deadline::after(PROBE_LIMIT));
        Ok(match answer {
            Ok(GuestState::Ended | GuestState::Unfinished) | Err(_) => Presence::Different,
            Ok(_) if self.makes_template(vm)? => Presence::Different,
            Ok(_) => Presence::Present,
        })
    }

    /// Describes the machine to the VMM.
    pub fn ensure_configured(&self, vm: VmId, machine: &Machine) -> Result<(), Fault> {
        if self.probe_configured(vm, machine)? == Presence::Present {
            return Ok(());
        }
        let parts = self.parts(vm, machine)?;
        super::of(machine.kind).configure(&parts, Deadline::after(CALL_LIMIT))
    }

    /// Whether the VMM knows the whole machine.
    pub fn probe_configured(&self, vm: VmId, machine: &Machine) -> Result<Presence, Fault> {
        if self.vmm_processes(vm)?.is_empty() {
            return Ok(Presence::Absent);
        }
        let parts = self.parts(vm, machine)?;
        let told = super::of(machine.kind).is_configured(&parts, Deadline::after(CALL_LIMIT))?;
        Ok(if told {
            Presence::Present
        } else {
            Presence::Different
        })
    }

    /// Lets the guest run.
    pub fn ensure_booted(&self, vm: VmId, kind: VmmKind) -> Result<(), Fault> {
        if self.probe_booted(vm, kind)? == Presence::Present {
            return Ok(());
        }
        let control = self.layout.control_socket(vm);
        super::of(kind).boot(&control, Deadline::after(CALL_LIMIT))
    }

    /// Whether the guest runs.
    pub fn probe_booted(&self, vm: VmId, kind: VmmKind) -> Result<Presence, Fault> {
        if self.vmm_processes(vm)?.is_empty() {
            return Ok(Presence::Absent);
        }
        let control = self.layout.control_socket(vm);
        Ok(
            match super::of(kind).state(&control, Deadline::after(CALL_LIMIT))? {
                GuestState::Running => Presence::Present,
                GuestState::NotStarted | GuestState::Ended => Presence::Absent,
                GuestState::Paused | GuestState::Unfinished => Presence::Different,
            },
        )
    }

    /// Has a running machine be given these sizes.
    pub fn adjust(&self, vm: VmId, machine: &Machine, sizes: LiveSizes) -> Result<(), Fault> {
        let parts = self.parts(vm, machine)?;
        super::of(machine.kind).adjust(&parts, sizes, Deadline::after(CALL_LIMIT))
    }

    /// What the balloon of a running machine leaves to its guest.
    pub fn memory_left(&self, vm: VmId, kind: VmmKind, memory: Bytes) -> Result<Bytes, Fault> {
        let control = self.layout.control_socket(vm);
        super::of(kind).memory_left(&control, memory, Deadline::after(PROBE_LIMIT))
    }

    pub(super) fn parts(&self, vm: VmId, machine: &Machine) -> Result<Parts, Fault> {
        let initrd = self.initrd(machine)?;
        let clock = self.clock(machine.kind);
        Ok(Parts::new(&self.layout, vm, machine, initrd, clock))
    }

    fn initrd(&self, machine: &Machine) -> Result<PathBuf, Fault> {
        let kernel = self.layout.kernel(&machine.kernel);
        initrd::ensure(
            &self.layout.initrds(),
            &self.own_program,
            &machine.kernel,
            &kernel,
        )
    }

    /// Our own program, as guests run it.
    pub(super) fn own_program(&self) -> &OwnProgram {
        &self.own_program
    }

    pub(super) fn clock(&self, kind: VmmKind) -> Option<HostClock> {
        (kind == VmmKind::QemuTcg)
            .then(|| *self.clock.get_or_init(clock::measure))
            .flatten()
    }

    /// `said` tells what the process wrote last, once it has ended.
    fn await_socket(
        &self,
        launched: Launched,
        socket: &Path,
        name: &Path,
        said: &dyn Fn() -> String,
    ) -> Result<(), Fault> {
        let seen = wait_for_socket(socket, name, &launched.process, START_LIMIT)
            .map_err(|error| fault(format!("wait for {}", socket.display()), error));
        let outcome = match seen {
            Ok(Appearance::Listening) => Ok(()),
            Ok(Appearance::MakerEnded) => Err(ended(&launched, &said())),
            Ok(Appearance::Late) => Err(Fault::new(
                FaultKind::Timeout,
                format!(
                    "wait for {}: not there after {} s; {}",
                    socket.display(),
                    START_LIMIT.as_secs(),
                    said()
                ),
            )),
            Err(fault) => Err(fault),
        };
        self.children.adopt(launched.process.child());
        outcome
    }

    fn await_answer(
        &self,
        vmm: &dyn Vmm,
        launched: Launched,
        parts: &Parts,
        keeper: &Process,
    ) -> Result<(), Fault> {
        let log = launched.log();
        // The keeper ends after the VMM, when everything is in the log.
        let said = || {
            keeper.ends_within(KEEPER_LIMIT);
            log.last_words()
        };
        if vmm.control() == ControlSocket::Made {
            return self.await_socket(launched, &parts.control, &parts.said.control, &said);
        }
        let outcome = match vmm.state(&parts.control, Deadline::after(START_LIMIT)) {
            Ok(_) => Ok(()),
            // The connection breaks, or is refused, a moment before the process has ended
            // and written.
            Err(fault)
                if matches!(fault.kind, FaultKind::Exited | FaultKind::Other)
                    && launched.process.ends_within(END_LIMIT) =>
            {
                Err(ended(&launched, &said()))
            }
            Err(fault) => Err(fault),
        };
        self.children.adopt(launched.process.child());
        outcome
    }

    fn seen_vsock(&self, vm: VmId) -> PathBuf {
        self.layout.as_seen_at_work(&self.layout.vsock(vm))
    }

    fn vmm_processes(&self, vm: VmId) -> Result<Vec<Process>, Fault> {
        let kinds = [VmmKind::Firecracker, VmmKind::QemuTcg];
        let markers = kinds.map(|kind| super::of(kind).marker(vm));
        self.processes(vm, &markers)
    }

    fn vsock_processes(&self, vm: VmId) -> Result<Vec<Process>, Fault> {
        self.processes(vm, &[vsock_backend::marker(&self.seen_vsock(vm))])
    }

    pub(super) fn processes(&self, vm: VmId, markers: &[Marker]) -> Result<Vec<Process>, Fault> {
        self.children.reap();
        let group = self.groups.as_ref().map(|groups| groups.path(vm));
        find(markers, &identity::owners(vm), group.as_deref())
            .map_err(|error| fault(format!("look for the processes of vm {vm}"), error))
    }

    pub(super) fn end(&self, processes: Vec<Process>, what: &str, vm: VmId) -> Result<(), Fault> {
        let attempt = format!("end the {what} of vm {vm}");
        let left = kill_all(processes, KILL_LIMIT).map_err(|error| fault(&attempt, error))?;
        self.children.reap();
        match left.first() {
            None => Ok(()),
            Some(process) => Err(Fault::new(
                FaultKind::Busy,
                format!("{attempt}: process {} outlives SIGKILL", process.pid()),
            )),
        }
    }
}

fn ended(launched: &Launched, said: &str) -> Fault {
    let words = if said.is_empty() {
        "it said nothing"
    } else {
        said
    };
    Fault::new(
        FaultKind::Exited,
        format!(
            "start {}: it ended at once: {words}",
            launched.program.display()
        ),
    )
    .remedy(remedy(words))
}

/// What can be done about a VMM's last words, where they are known.
fn remedy(words: &str) -> Option<String> {
    // QEMU's own words (seen with 7.2): these when it does not take the file as a kernel,
    // those below when it cannot listen on a port of `hostfwd`.
    if words.contains("loading uncompressed kernel") || words.contains("could not load kernel") {
        return Some(
            "Its kernel may be damaged: `banger store check --contents` tells, and how to mend it."
                .to_owned(),
        );
    }
    let taken = words.contains("Could not set up host forwarding rule");
    taken.then(|| {
        "A published port of the host is in use: choose another with `--publish`, or see with `ss -ltnp` who has it.".to_owned()
    })
}

fn bind(path: &Path) -> Result<UnixListener, Fault> {
    UnixListener::bind(path).map_err(|error| fault(format!("listen on {}", path.display()), error))
}

fn remove_socket(path: &Path) -> Result<(), Fault> {
    socket::remove(path).map_err(|error| fault(format!("remove socket {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_port_is_told_by_qemus_last_words() {
        let words = "Could not set up host forwarding rule 'tcp:127.0.0.1:18080-:80'";
        assert!(remedy(words).unwrap().contains("--publish"));
        assert_eq!(remedy("it said nothing"), None);
    }

    #[test]
    fn kernel_that_a_vmm_does_not_take_is_one_whose_content_is_to_be_checked() {
        let words = "qemu-system-x86_64: Error loading uncompressed kernel without PVH ELF Note";
        assert!(remedy(words).unwrap().contains("store check --contents"));
    }
}
