//! What is durable of a VM, and the changes that are saved in one transaction.
//!
//! The record holds the *whole* plan of the VM's objects, so that whoever finds it
//! after a crash, perhaps a newer version of this program, undoes what was made
//! and not what it would make today.

use crate::model::ids::{ImageName, KernelName, VmId};
use crate::model::image::{Image, Kernel};
use crate::model::net::Lease;
use crate::model::vm::{Confinement, Phase, VmSpec, VmmKind};

use super::step::Step;

/// One VM, as it is saved and shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRecord {
    /// Its identity; the names of its host objects derive from it.
    pub id: VmId,
    /// What it was asked to be.
    pub spec: VmSpec,
    /// The address that it holds as long as this record exists, or until a start in
    /// another subnet.
    pub lease: Option<Lease>,
    /// Where it is in its life.
    pub phase: Phase,
    /// What was being undone when it got stuck; only in [`Phase::Stuck`].
    pub stuck: Option<Stuck>,
    /// Why it is at rest, when that was not the user's wish.
    pub reason: Option<String>,
    /// Why it has this network, where that was chosen for the user.
    pub net_reason: Option<String>,
    /// Who commits in it: written to its git configuration at each boot.
    pub git: Option<GitIdentity>,
    /// What happens to it when its client's connection ends.
    pub removal: Removal,
    /// Whether it has been given sizes that its disks' files, or what runs of it, may not have
    /// yet: an adjustment gives them to what runs, the next start to the files.
    pub grows: bool,
    /// Its disks, in the order they are made.
    pub disk_plan: Vec<Step>,
    /// The objects of its current run, in order; empty when it has none.
    pub run_plan: Vec<Step>,
    /// The VMM of the current or last run.
    pub vmm: Option<VmmChoice>,
    /// What its guest said when it was ready, in the current or last run.
    pub boot: Option<BootReport>,
    /// Seconds since the epoch.
    pub created_at: u64,
    /// When the current run became usable, seconds since the epoch.
    pub started_at: Option<u64>,
}

/// Name and address of whoever commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitIdentity {
    /// `user.name`
    pub name: String,
    /// `user.email`
    pub email: String,
}

/// The way down that did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// The run's objects could not all be removed.
    Stopping,
    /// The VM could not be removed entirely.
    Deleting,
    /// The root could not be rebuilt.
    Resetting,
    /// The row was written by another version, or is damaged; only deleting helps.
    Unreadable,
}

impl Stuck {
    /// The command that tries again.
    pub fn retry(self) -> &'static str {
        match self {
            Stuck::Stopping => "stop",
            Stuck::Resetting => "reset",
            Stuck::Deleting | Stuck::Unreadable => "delete",
        }
    }
}

/// What happens to a VM when the connection that asked for it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Nothing: it stays until it is deleted.
    Keep,
    /// It is deleted (`--rm`); at daemon start the connection is gone by nature.
    WithClient,
}

/// The VMM of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmChoice {
    /// Which one.
    pub kind: VmmKind,
    /// Why that one, for people.
    pub reason: String,
    /// What it is shut in.
    pub confinement: Confinement,
    /// Why in no more than that, for people.
    pub confinement_reason: Option<String>,
}

/// What the guest reported with `ready`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootReport {
    /// Its first process: `systemd` or `agent`.
    pub init: String,
    /// Name and end of each boot phase, milliseconds since its kernel started.
    pub phases: Vec<(String, u64)>,
    /// What was skipped in the guest, and why.
    pub warnings: Vec<String>,
}

/// One change of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowChange {
    /// Insert or replace a VM.
    PutVm(Box<VmRecord>),
    /// Remove a VM.
    DropVm(VmId),
    /// Insert or replace an image.
    PutImage(Image),
    /// Remove an image.
    DropImage(ImageName),
    /// Insert or replace a kernel.
    PutKernel(Kernel),
    /// Remove a kernel.
    DropKernel(KernelName),
}

/// Everything that the store held when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The VMs whose rows were understood.
    pub vms: Vec<VmRecord>,
    /// The VMs whose rows were not.
    pub unreadable: Vec<Unreadable>,
    /// The images.
    pub images: Vec<Image>,
    /// The kernels.
    pub kernels: Vec<Kernel>,
}

/// A VM whose row cannot be read: shown as stuck, never dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// From the row's key, which is not part of what is damaged.
    pub id: VmId,
    /// The name, if that much could be read.
    pub name: Option<crate::model::ids::VmName>,
    /// The address, if that much could be read: it must not be leased again.
    pub lease: Option<Lease>,
    /// Why it cannot be read.
    pub reason: String,
}
