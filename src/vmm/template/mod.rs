//! Machines that begin where another one of the same shape had come to.
//!
//! A translated kernel takes a second to come to `/init`, and comes to the same every time.
//! So the first machine of a shape (kernel, our own program, processors, memory, command
//! line, QEMU) boots without any device, loads its drivers and stops; what it has come to is
//! written down (QEMU's migration, with the memory left to us). That is the template. Every
//! machine of this shape, the first one too, is given a copy of its memory and goes on from
//! there with devices of its own.
//!
//! ```text
//!  QEMU, no devices ------> /init stops -----> <cache>/machines/KEY.machine
//!                                                  |            |
//!                          filled by a thread <----+            +---> -incoming
//!                          while QEMU starts
//! ```
//!
//! A template holds nothing of an image, of a VM or of a user: no disk and no network was
//! there. What two guests must not share, their random numbers, comes with each one's
//! configuration. With KVM a kernel boots in a tenth of the time, and a processor's state
//! means nothing on another processor: there are no templates then.
//!
//! Nothing depends on one. Where it cannot be made, does not fit or does not lead to a guest
//! that is ready, the kernel boots, this time or the next.

mod aml;
mod file;
mod stock;
mod talk;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::host::aside::path_while_open;
use crate::host::fault::fault;
use crate::model::ids::VmId;
use crate::model::units::Bytes;
use crate::model::vm::VmmKind;
use crate::plan::boot_args::HostClock;
use crate::plan::step::{Fault, FaultKind, Machine};

use super::machine::Parts;
use super::steps::Vmms;
use super::{Deadline, initrd, of, qemu};
use file::{Memory, Template, in_memory};
pub(super) use stock::Templates;

/// Changes with what a template is, so that an old one is not taken for a new.
const LAYOUT: &str = "3";
/// How long a machine may boot until it stops, on a loaded host.
const BOOT_LIMIT: Duration = Duration::from_secs(45);
/// How long QEMU may take to take a machine over, or a device.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// Guests with more memory boot their kernel: a kernel keeps a description of its memory, a
/// sixty-fourth of it, and to copy that of more takes as long.
const MOST_MEMORY: Bytes = Bytes(16 << 30);

/// A template that a machine can begin from, and its key.
struct Found {
    key: String,
    template: Arc<Template>,
}

/// Whether a machine has begun from a template. Its kernel is to boot otherwise.
#[derive(Debug)]
pub(super) enum Begun {
    /// It has.
    Yes,
    /// There is none for it.
    No,
    /// It was to, and it came to nothing: if the kernel boots now, that counts against this
    /// shape.
    InVain {
        /// The shape.
        key: String,
    },
}

/// What went wrong with a machine that was to begin from a template; its kernel boots.
enum Trouble {
    /// This host lacks something that it takes, or the machine something without a template
    /// too, which will be told then.
    Host(Fault),
    /// This template is of no use.
    Template(Fault, Arc<Template>),
}

fn memory_size(parts: &Parts) -> u64 {
    parts.memory.whole_mib() << 20
}

impl Vmms {
    /// Starts a VMM from a template, where there is one. Why not is in the log.
    ///
    /// # Errors
    /// What was begun of it could not be undone.
    pub(super) fn start_from_template(
        &self,
        machine: &Machine,
        parts: &Parts,
    ) -> Result<Begun, Fault> {
        let Some(templates) = self.stock_for(machine) else {
            return Ok(Begun::No);
        };
        let Some(Found { key, template }) = self.template(templates, machine, parts)? else {
            return Ok(Begun::No);
        };
        let vm = parts.vm;
        match self.begin_from(templates, &key, &template, parts.clone()) {
            Ok(()) => return Ok(Begun::Yes),
            Err(Trouble::Host(fault)) => log::warn!("vm {vm} begins without a template: {fault}"),
            Err(Trouble::Template(fault, used)) => {
                log::warn!("vm {vm} begins without its template, which is removed: {fault}");
                used.discard();
            }
        }
        self.clear_vmm(vm, machine)?;
        self.await_backend(vm)?;
        Ok(Begun::InVain { key })
    }

    /// Something came to nothing with a shape, and its kernel boots.
    pub(super) fn count_failure(&self, key: &str) {
        if let Some(templates) = &self.templates {
            templates.count_failure(key, 1);
        }
    }

    /// The stock of templates, for a machine that can begin from one.
    fn stock_for(&self, machine: &Machine) -> Option<&Templates> {
        let fits = machine.kind == VmmKind::QemuTcg && machine.memory <= MOST_MEMORY;
        self.templates.as_ref().filter(|_| fits)
    }

    /// The template for a machine, made if it is missing. `None` where there is none to be
    /// had, or another start is making it.
    fn template(
        &self,
        templates: &Templates,
        machine: &Machine,
        parts: &Parts,
    ) -> Result<Option<Found>, Fault> {
        let Some(clock) = self.clock(machine.kind) else {
            return Ok(None);
        };
        let key = match self.template_key(machine, parts) {
            Ok(Some(key)) if !templates.is_left(&key) => key,
            Ok(_) => return Ok(None),
            Err(fault) => {
                log::warn!("vm {} begins without a template: {fault}", parts.vm);
                return Ok(None);
            }
        };
        let find = || templates.find(&key, memory_size(parts), clock);
        if let Some(template) = find() {
            return Ok(Some(Found { key, template }));
        }
        let Some(_making) = templates.make(&key) else {
            return Ok(None);
        };
        // Whoever made it a moment ago has made ours.
        if let Some(template) = find() {
            return Ok(Some(Found { key, template }));
        }
        // What was begun ahead is of one that is not there any more.
        self.forget_foreseen(parts.vm);
        let made = self.make_template(templates, &key, machine, parts, clock);
        // The machine that it was made of has done its work.
        self.clear_vmm(parts.vm, machine)?;
        let not_there = || Fault::new(FaultKind::Other, "find the template just made");
        match made.and_then(|()| find().ok_or_else(not_there)) {
            Ok(template) => Ok(Some(Found { key, template })),
            Err(fault) => {
                let vm = parts.vm;
                log::warn!("machines like vm {vm} begin without a template: {fault}");
                // What took its whole time once is not worth another.
                let late = fault.kind == FaultKind::Timeout;
                templates.count_failure(&key, if late { stock::TRIES } else { 1 });
                Ok(None)
            }
        }
    }

    /// What everything that a template is made of comes to; `None` where the kernel does not
    /// leave its drivers to us.
    fn template_key(&self, machine: &Machine, parts: &Parts) -> Result<Option<String>, Fault> {
        let kernel = self.layout.kernel(&machine.kernel);
        if !initrd::can_be_template(&kernel)? {
            log::debug!(
                "kernel {} has no modules for a template; `banger kernel pull --force` makes it anew",
                machine.kernel
            );
            return Ok(None);
        }
        let qemu = of(machine.kind).program(self.programs())?;
        let attempt = format!("look at {}", qemu.display());
        let program = fs::metadata(&qemu).map_err(|error| fault(attempt, error))?;
        let own = self.own_program().digest();
        let text = format!(
            "{LAYOUT} {} {} {} {} {} {} {} {}",
            machine.kernel,
            own.map_err(|error| fault("read our own program", error))?,
            qemu.display(),
            program.size(),
            program.mtime_nsec() + program.mtime() * 1_000_000_000,
            parts.vcpu,
            parts.memory.whole_mib(),
            parts.template_words(None),
        );
        let mut key = initrd::hexadecimal(&Sha256::digest(text));
        key.truncate(32);
        Ok(Some(key))
    }

    fn make_template(
        &self,
        templates: &Templates,
        key: &str,
        machine: &Machine,
        parts: &Parts,
        clock: HostClock,
    ) -> Result<(), Fault> {
        let failed = |error: io::Error| fault("make a template", error);
        let began = Instant::now();
        let memory = Memory::new(memory_size(parts)).map_err(failed)?;
        let disk = in_memory("banger-initrd", 0).map_err(failed)?;
        let kernel = self.layout.kernel(&machine.kernel);
        let table = (aml::PATH, aml::table());
        initrd::write_for_template(&disk, self.own_program(), &kernel, &table)?;
        let parts = parts.for_template(path_while_open(&disk), memory.path(), Some(clock));
        let writing = templates.shelf.begin(key).map_err(failed)?;
        self.start_vmm(&parts)?;
        let limit = Deadline::after(BOOT_LIMIT);
        talk::write_down(&parts.control, writing.file().as_fd(), limit)?;
        writing.finish(&memory, clock.tsc_khz).map_err(failed)?;
        templates.written(key);
        if let Err(error) = templates.shelf.tidy() {
            log::warn!("remove old templates: {error}");
        }
        let ms = began.elapsed().as_millis();
        log::info!("made the template {key} in {ms} ms");
        Ok(())
    }

    /// A VM is about to be started as this machine: [`Vmms::foresee`] follows, and counts
    /// until its VMM has been started, or is not to be.
    pub fn expect_start(&self, vm: VmId, machine: &Machine) {
        if let Some(templates) = self.stock_for(machine) {
            templates.expect(vm);
        }
    }

    /// Begins to fill the memory of a VM that is about to be started as this machine, where
    /// there is a template. What the start makes before its VMM, and the VMM's own coming up,
    /// take about as long.
    pub fn foresee(&self, vm: VmId, machine: &Machine) {
        let Some(templates) = self.stock_for(machine) else {
            return;
        };
        let begun = || {
            let clock = self.clock(machine.kind)?;
            let parts = self.parts(vm, machine).ok()?;
            let key = self.template_key(machine, &parts).ok()??;
            if templates.is_left(&key) || !templates.has_room_ahead() {
                return None;
            }
            let size = memory_size(&parts);
            let template = templates.find(&key, size, clock)?;
            templates.fill(&template, size).ok()
        };
        // Without it the start does all that itself, and says what is wrong.
        if let Some(filling) = begun() {
            templates.put_ahead(vm, filling);
        }
    }

    /// A VM's VMM has been started, or is not to be.
    pub fn forget_foreseen(&self, vm: VmId) {
        if let Some(templates) = &self.templates {
            drop(templates.take_ahead(vm));
        }
    }

    /// A VM's guest is ready: what it began from is of use.
    pub fn guest_is_ready(&self, vm: VmId) {
        if let Some(templates) = &self.templates {
            templates.prove(vm);
        }
    }

    /// Starts a VMM that has taken a template's machine over, with devices of this one.
    fn begin_from(
        &self,
        templates: &Templates,
        key: &str,
        found: &Arc<Template>,
        parts: Parts,
    ) -> Result<(), Trouble> {
        let vm = parts.vm;
        let ahead = templates.take_ahead(vm);
        // Of this shape, if perhaps of an older template: state and memory are of one then.
        let ahead = ahead.filter(|ahead| ahead.template.path() == found.path());
        let filling = ahead.map_or_else(|| templates.fill(found, memory_size(&parts)), Ok);
        let host = |error: io::Error| Trouble::Host(fault("fill a guest's memory", error));
        let filling = filling.map_err(host)?;
        let template = filling.template.clone();
        let useless = |fault| Trouble::Template(fault, template.clone());
        let parts = parts.from_template(filling.memory.path(), template.state());
        self.start_vmm(&parts).map_err(Trouble::Host)?;
        let limit = || Deadline::after(CALL_LIMIT);
        let taken = talk::take_over(&parts.control, limit()).map_err(|fault| match fault.kind {
            FaultKind::Timeout => Trouble::Host(fault),
            // A QEMU that finds another machine in it ends.
            _ => useless(fault),
        })?;
        let waits = Instant::now();
        let took = templates.finish(filling).map_err(|error| {
            let attempt = format!("begin from the template {}", template.path().display());
            match error.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    useless(fault(attempt, error))
                }
                _ => Trouble::Host(fault(attempt, error)),
            }
        })?;
        log::debug!(
            vm:%, us = took.as_micros() as u64, waited_us = waits.elapsed().as_micros() as u64;
            "memory filled"
        );
        taken.plug_vsock(limit()).map_err(Trouble::Host)?;
        templates.try_out(vm, key, &template);
        Ok(())
    }

    /// Whether this VM's QEMU is one of which a template is made.
    pub(super) fn makes_template(&self, vm: VmId) -> Result<bool, Fault> {
        let makers = self.processes(vm, &[qemu::template_marker(vm)])?;
        Ok(!makers.is_empty())
    }
}
