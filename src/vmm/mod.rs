//! Virtual machine monitors: one seam, two real implementations.
//!
//! | | Firecracker | QEMU `microvm` |
//! |---|---|---|
//! | when | KVM runs ordinary guests | KVM missing or unfit, or asked for |
//! | told about the machine | over its API, after it started | by its arguments |
//! | control | HTTP on a Unix socket ([`firecracker::api`]) | QMP on a Unix socket ([`qmp`]) |
//! | vsock | its own Unix-socket convention | the same, by [`vsock_backend`] |
//! | console | its standard output | the same ([`crate::host::console`]) |
//!
//! A guest sees the same machine under both: virtio-mmio devices, its disks in the
//! order of [`machine::Parts::disks`], a serial console, CID 3 on vsock, an entropy device.
//!
//! No policy here: who decides which VMM runs a guest is `plan`, with the facts that
//! [`fitness`] found. [`steps`] is what the host calls.
//!
//! Reading order: [`machine`], [`qemu`], [`qmp`], [`firecracker`], [`vsock_backend`],
//! [`steps`], `way`, [`logs`], [`template`]; apart from them [`initrd`], [`fitness`],
//! [`clock`].

pub mod clock;
pub mod firecracker;
pub mod fitness;
mod guest_memory;
pub mod halt;
pub mod initrd;
mod logs;
pub mod machine;
pub mod newc;
pub mod qemu;
pub mod qmp;
pub mod steps;
pub mod template;
pub mod vsock_backend;
mod way;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::host::identity::Identity;
use crate::host::launch::Inherited;
use crate::host::process::Marker;
use crate::host::program::Programs;
use crate::model::ids::VmId;
use crate::model::units::Bytes;
use crate::model::vm::VmmKind;
use crate::plan::step::{Fault, FaultKind, LiveSizes};

use machine::Parts;

/// How a VMM is started, told what to do, and asked how it is.
pub trait Vmm: Sync {
    /// Finds the program.
    ///
    /// # Errors
    /// It is not installed; the fault names what to do.
    fn program(&self, programs: &Programs) -> Result<PathBuf, Fault>;

    /// Its arguments for this machine.
    fn arguments(&self, parts: &Parts) -> Vec<OsString>;

    /// What it is given open, in the order of the numbers that its arguments name.
    fn files(&self, parts: &Parts) -> Vec<Inherited>;

    /// Files that it opens anew to read, which takes their permission.
    fn read_anew<'a>(&self, parts: &'a Parts) -> Vec<&'a Path>;

    /// Files that it opens anew to read and write.
    fn written_anew<'a>(&self, parts: &'a Parts) -> Vec<&'a Path>;

    /// Who it can run as, where its VM has this user: not everything that it opens by
    /// itself is everybody's.
    fn identity(&self, parts: &Parts, user: Identity) -> Identity;

    /// The words of its command line that only this VM's process has.
    fn marker(&self, vm: VmId) -> Marker;

    /// Where its control socket comes from.
    fn control(&self) -> ControlSocket;

    /// Describes the machine to it, as far as its arguments did not.
    fn configure(&self, parts: &Parts, limit: Deadline) -> Result<(), Fault>;

    /// Whether it knows the whole machine.
    fn is_configured(&self, parts: &Parts, limit: Deadline) -> Result<bool, Fault>;

    /// Lets the guest's processors run; nothing if they do.
    fn boot(&self, control: &Path, limit: Deadline) -> Result<(), Fault>;

    /// What the guest's processors do.
    fn state(&self, control: &Path, limit: Deadline) -> Result<GuestState, Fault>;

    /// Gives a running machine these sizes; nothing where it has them.
    ///
    /// # Errors
    /// It has no balloon and there is a target (kind `Missing`), or it refuses.
    fn adjust(&self, parts: &Parts, sizes: LiveSizes, limit: Deadline) -> Result<(), Fault>;

    /// What its balloon leaves to a running guest with so much memory.
    ///
    /// # Errors
    /// It has no balloon, or does not tell.
    fn memory_left(&self, control: &Path, memory: Bytes, limit: Deadline) -> Result<Bytes, Fault>;
}

/// Who makes the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlSocket {
    /// We bind it and hand the listener over: it can be called at once.
    Given,
    /// The VMM binds it some time after it started.
    Made,
}

/// What a guest's processors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestState {
    /// They have not run yet.
    NotStarted,
    /// The VMM has not been given yet what they begin with.
    Unfinished,
    /// They run.
    Running,
    /// They were stopped.
    Paused,
    /// The guest has ended; the VMM is about to.
    Ended,
}

/// The implementation for a kind.
pub fn of(kind: VmmKind) -> &'static dyn Vmm {
    match kind {
        VmmKind::Firecracker => &firecracker::Firecracker,
        VmmKind::QemuKvm | VmmKind::QemuTcg => &qemu::Qemu,
    }
}

/// The fault of a VMM that is not there to be asked: what is missing is no device of its
/// machine.
fn out_of_reach(fault: Fault) -> Fault {
    match fault.kind {
        FaultKind::Missing => Fault {
            kind: FaultKind::Other,
            ..fault
        },
        _ => fault,
    }
}

/// A point in time that a conversation with a VMM must not pass.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// This long from now.
    pub fn after(limit: Duration) -> Deadline {
        Deadline(Instant::now() + limit)
    }

    /// What is left of it.
    ///
    /// # Errors
    /// Nothing is left: a timeout of `attempt`.
    pub fn left(self, attempt: &str) -> Result<Duration, Fault> {
        let left = self.0.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(Fault::new(
                FaultKind::Timeout,
                format!("{attempt}: no answer in time"),
            )),
            false => Ok(left),
        }
    }
}
