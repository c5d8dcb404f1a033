//! This machine: one file per kind of object that we make on it.
//!
//! A [`Host`] carries out [`Step`]s. Every verb is idempotent and probes first and
//! last: a system call's success is not evidence (see `docs/crash-recovery.md`). A
//! step holds no path; [`layout`] derives it. No policy here, no retry, no logging:
//! the plan decides on the [`Fault`].
//!
//! Reading order: [`layout`], [`directory`], [`disk`] ([`sparse`], [`aside`]),
//! then what they share: [`program`], [`fault`].

pub mod aside;
pub mod directory;
pub mod disk;
pub mod fault;
pub mod layout;
pub mod program;
pub mod sparse;

use std::path::Path;

use crate::model::units::Bytes;
use crate::plan::step::{Fault, FaultKind, Presence, Step};

use disk::{Disk, Purpose};
use layout::Layout;

/// Whoever can carry out a step: this process, the root helper, or a simulated world.
pub trait Host: Send + Sync {
    /// Makes the step's object exist as described.
    ///
    /// # Errors
    /// The object does not exist as described; part of it may.
    fn ensure(&self, step: &Step) -> Result<(), Fault>;

    /// Makes the step's object not exist.
    ///
    /// # Errors
    /// Part of the object may still exist.
    fn absent(&self, step: &Step) -> Result<(), Fault>;

    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// The object could not be looked at.
    fn probe(&self, step: &Step) -> Result<Presence, Fault>;
}

/// What the configuration says about this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The name of our bridge, at most 15 bytes.
    pub bridge: String,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            bridge: "bgr0".to_owned(),
        }
    }
}

/// The machine that this process runs on.
#[derive(Debug)]
pub struct RealHost {
    layout: Layout,
    settings: Settings,
}

impl RealHost {
    /// The host whose objects lie where `layout` says.
    pub fn new(layout: Layout, settings: Settings) -> RealHost {
        RealHost { layout, settings }
    }

    /// Where things lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the configuration says.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

impl Host for RealHost {
    fn ensure(&self, step: &Step) -> Result<(), Fault> {
        let at = &self.layout;
        match step {
            Step::VmDirectory { vm } => directory::ensure(&at.vm_directory(*vm)),
            Step::RunDirectory { vm } => directory::ensure(&at.run_directory(*vm)),
            Step::UpperDisk { vm, size } => {
                self.ensure_disk(&at.upper_disk(*vm), Purpose::Upper, *size)
            }
            Step::WorkDisk { vm, size } => {
                self.ensure_disk(&at.work_disk(*vm), Purpose::Work, *size)
            }
            other => Err(not_here(other)),
        }
    }

    fn absent(&self, step: &Step) -> Result<(), Fault> {
        let at = &self.layout;
        match step {
            Step::VmDirectory { vm } => directory::absent(&at.vm_directory(*vm)),
            Step::RunDirectory { vm } => directory::absent(&at.run_directory(*vm)),
            Step::UpperDisk { vm, .. } => disk::absent(&at.upper_disk(*vm)),
            Step::WorkDisk { vm, .. } => disk::absent(&at.work_disk(*vm)),
            other => Err(not_here(other)),
        }
    }

    fn probe(&self, step: &Step) -> Result<Presence, Fault> {
        let at = &self.layout;
        match step {
            Step::VmDirectory { vm } => directory::probe(&at.vm_directory(*vm)),
            Step::RunDirectory { vm } => directory::probe(&at.run_directory(*vm)),
            Step::UpperDisk { vm, size } => disk::probe(&at.upper_disk(*vm), *size),
            Step::WorkDisk { vm, size } => disk::probe(&at.work_disk(*vm), *size),
            other => Err(not_here(other)),
        }
    }
}

impl RealHost {
    fn ensure_disk(&self, path: &Path, purpose: Purpose, size: Bytes) -> Result<(), Fault> {
        disk::ensure(&Disk {
            path,
            purpose,
            size,
            templates: &self.layout.templates(),
        })
    }
}

fn not_here(step: &Step) -> Fault {
    Fault::new(
        FaultKind::Missing,
        format!(
            "carry out {} of vm {}: this build cannot",
            step.kind().word(),
            step.vm()
        ),
    )
}
