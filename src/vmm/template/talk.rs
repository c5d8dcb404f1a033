//! What is said to the QEMU of which a template is made, and to those that begin from it.

use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::plan::step::Fault;
use crate::vmm::Deadline;
use crate::vmm::machine::{STATE_FILE, descriptor};
use crate::vmm::qemu::{PORT, TEMPLATE_STATE, VSOCK, VSOCK_DEVICE};
use crate::vmm::qmp::{Capability, Command, Qmp};

/// Has the machine that `Beginning::ForTemplate` describes boot until it stops, then
/// writes what is not memory to the beginning of a file.
///
/// # Errors
/// The guest ends, or does not stop in time; QEMU cannot write the machine down.
pub fn write_down(control: &Path, state: BorrowedFd<'_>, limit: Deadline) -> Result<(), Fault> {
    let mut qmp = Qmp::connect(control, limit)?;
    qmp.execute(Command::Cont)?;
    while qmp.status()? != TEMPLATE_STATE {
        qmp.await_event()?;
    }
    without_memory(&mut qmp)?;
    qmp.give_descriptor("state", state)?;
    qmp.execute(Command::Migrate { uri: "fd:state" })?;
    qmp.await_migration()
}

/// Has the machine that `Beginning::FromTemplate` describes take over what [`write_down`]
/// wrote. Its memory may still be on its way.
///
/// # Errors
/// QEMU finds another machine in it; it has ended then, or is about to.
pub fn take_over(control: &Path, limit: Deadline) -> Result<TakenOver, Fault> {
    let mut qmp = Qmp::connect(control, limit)?;
    without_memory(&mut qmp)?;
    let uri = format!("fd:{}", descriptor(STATE_FILE));
    qmp.execute(Command::MigrateIncoming { uri: &uri })?;
    qmp.await_migration()?;
    Ok(TakenOver(qmp))
}

/// Memory that is shared with others, as a guest's is with the vsock back end, stays where
/// it is. QEMU tells when it has moved the rest.
fn without_memory(qmp: &mut Qmp) -> Result<(), Fault> {
    qmp.execute(Command::MigrateSetCapabilities {
        capabilities: &[Capability::on("x-ignore-shared"), Capability::on("events")],
    })
}

/// A QEMU that has taken a machine over, but for its memory and the device that is missing.
#[derive(Debug)]
pub struct TakenOver(Qmp);

impl TakenOver {
    /// Makes the machine complete, once its memory is full: with this device it counts as one
    /// whose guest can run.
    ///
    /// # Errors
    /// QEMU refuses the device.
    pub fn plug_vsock(mut self, limit: Deadline) -> Result<(), Fault> {
        self.0.extend(limit);
        self.0.execute(Command::DeviceAdd {
            driver: "vhost-user-vsock-pci-non-transitional",
            id: VSOCK_DEVICE,
            bus: PORT,
            chardev: VSOCK,
            event_idx: "off",
        })
    }
}
