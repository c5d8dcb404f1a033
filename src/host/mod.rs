//! This machine: one file per kind of object that we make on it.
//!
//! A [`Host`] carries out [`Step`]s. Every verb is idempotent and probes first and
//! last: a system call's success is not evidence (see `docs/crash-recovery.md`). A
//! step holds no path; [`layout`] derives it. No policy here, no retry, no logging:
//! the plan decides on the [`Fault`].
//!
//! Reading order: [`layout`], [`directory`] ([`durable`]), [`disk`] ([`sparse`], [`aside`]), [`reflink`],
//! [`cow`], [`loopdev`], [`dm`] ([`uevent`]),
//! [`tap`], [`tap_limit`], [`bridge`] ([`link`], [`sysctl`]), [`tables`], [`rules`], [`nft`],
//! [`published`], [`forwarding`] ([`claims`]),
//! [`cgroup`], [`identity`], [`launch`], [`launcher`], [`jail`],
//! [`console`], [`socket`], [`process`],
//! [`appear`], then what they share: [`program`] ([`pipes`]), [`fault`], and what doctor
//! and the plan are told: [`facts`], [`firewall`]. The steps that are VMMs are carried out
//! in [`crate::vmm::steps`].

pub mod appear;
pub mod aside;
pub mod bridge;
pub mod cgroup;
pub mod claims;
pub mod console;
pub mod cow;
pub mod directory;
pub mod disk;
pub mod dm;
pub mod durable;
pub mod facts;
pub mod fault;
pub mod firewall;
pub mod forwarding;
pub mod identity;
pub mod jail;
pub mod launch;
pub mod launcher;
pub mod layout;
pub mod link;
pub mod loopdev;
pub mod nft;
pub mod pipes;
pub mod process;
pub mod program;
pub mod published;
pub mod reflink;
pub mod resolver;
pub mod rules;
pub mod socket;
pub mod sparse;
pub mod sysctl;
pub mod tables;
pub mod tap;
pub mod tap_limit;
pub mod uevent;

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::model::ids::{ContentId, VmId};
use crate::model::net::Subnet;
use crate::model::units::Bytes;
use crate::plan::step::{Fault, FaultKind, Presence, Step, TapLimit};
use crate::vmm::initrd::OwnProgram;
use crate::vmm::steps::Vmms;

use bridge::Bridge;
use directory::Access;
use disk::{Disk, Purpose};
use dm::Snapshot;
use forwarding::Forwarding;
use layout::Layout;
use link::Links;
use loopdev::{LoopDevice, Role};
use nft::NetRules;
use program::Programs;
use reflink::RootDisk;
use tables::Tables;
use tap_limit::NetLimit;

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
    /// The user who may open a VM's tap without privilege: whoever runs the VMM.
    pub tap_owner: Option<u32>,
    /// Where the programs of VMMs are looked for.
    pub programs: Programs,
    /// Whether machines may begin from a template.
    pub templates: bool,
    /// Where all installations of this machine note what they switched on.
    pub claims: PathBuf,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            bridge: "banger0".to_owned(),
            tap_owner: None,
            programs: Programs::default(),
            templates: true,
            claims: claims::FOLDER.into(),
        }
    }
}

/// The machine that this process runs on.
#[derive(Debug)]
pub struct RealHost {
    layout: Layout,
    settings: Settings,
    vmms: Vmms,
    /// Opened by the first step that needs it, in that step's network namespace.
    tables: Mutex<Option<Tables>>,
}

impl RealHost {
    /// The host whose objects lie where `layout` says. The running program becomes
    /// launcher of VMMs and `/init` of guests.
    pub fn new(layout: Layout, settings: Settings) -> RealHost {
        RealHost::with_program(layout, settings, OwnProgram::running())
    }

    /// The same with another program of ours in those roles, for tests.
    pub fn with_program(layout: Layout, settings: Settings, program: OwnProgram) -> RealHost {
        RealHost {
            vmms: Vmms::new(layout.clone(), &settings, program),
            layout,
            settings,
            tables: Mutex::new(None),
        }
    }

    /// The processes of VMs.
    pub fn vmms(&self) -> &Vmms {
        &self.vmms
    }

    /// Where things lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Removes what VMs share and no step removes: forwarding that we switched on, the
    /// tables, the bridge. For the removal of banger from this machine.
    ///
    /// # Errors
    /// Something of it may still exist.
    pub fn remove_network(&self) -> Result<(), Fault> {
        let failed = |error: io::Error| fault::fault("remove the network", error);
        self.with_tables(|tables| {
            let (bridge, claims) = (&self.settings.bridge, &self.settings.claims);
            Forwarding::of(tables, bridge, claims)?.absent()?;
            tables.absent().map_err(failed)
        })?;
        bridge::absent(&Links::open().map_err(failed)?, &self.settings.bridge)
    }

    /// VMs that have firewall elements and no tap, with the address that they tell of.
    ///
    /// # Errors
    /// We may not look.
    pub fn rules_without_tap(&self) -> Result<Vec<(VmId, Ipv4Addr)>, Fault> {
        self.with_tables(nft::without_tap)
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
            Step::VmDirectory { vm } => directory::ensure(&at.vm_directory(*vm), Access::Private),
            Step::RunDirectory { vm } => self.ensure_run_directory(*vm),
            Step::UpperDisk { vm, size } => {
                self.ensure_disk(&at.upper_disk(*vm), Purpose::Upper, *size)
            }
            Step::WorkDisk { vm, size } => {
                self.ensure_disk(&at.work_disk(*vm), Purpose::Work, *size)
            }
            Step::RootDisk { vm, image, size } => self.ensure_root_disk(*vm, image, *size),
            Step::CowFile { vm, size } => cow::ensure(&at.cow_file(*vm), *size),
            Step::BaseLoop { vm, image } => self.with_base(*vm, image, loopdev::ensure),
            Step::CowLoop { vm, size } => self.ensure_cow_loop(*vm, *size),
            Step::DmSnapshot { vm, size } => self.with_snapshot(*vm, *size, dm::ensure),
            Step::Tap { vm, subnet } => {
                tap::ensure(*vm, &self.bridge(*subnet), self.tap_user(*vm), &at.mark())
            }
            Step::NetRules { .. } => self.on_rules(step, nft::ensure),
            Step::NetLimit { vm, limit } => self.with_limit(*vm, *limit, tap_limit::ensure),
            Step::Cgroup { vm, limits } => cgroup::ensure(self.vmms.groups(), *vm, *limits),
            Step::VsockBackend { vm } => self.vmms.ensure_vsock_backend(*vm),
            Step::Vmm { vm, machine } => self.vmms.ensure_vmm(*vm, machine),
            Step::Configured { vm, machine } => self.vmms.ensure_configured(*vm, machine),
            Step::Booted { vm, kind } => self.vmms.ensure_booted(*vm, *kind),
            // The daemon's: it hears the agent call.
            Step::Ready { .. } => Ok(()),
            // The VMM's part of it; the guest's is the daemon's, which calls the agent.
            Step::Adjusted { vm, machine, sizes } => self.vmms.adjust(*vm, machine, *sizes),
        }
    }

    fn absent(&self, step: &Step) -> Result<(), Fault> {
        let at = &self.layout;
        match step {
            Step::VmDirectory { vm } => directory::absent(&at.vm_directory(*vm)),
            Step::RunDirectory { vm } => {
                self.vmms.forget_foreseen(*vm);
                directory::absent(&at.run_directory(*vm))
            }
            Step::UpperDisk { vm, .. } => disk::absent(&at.upper_disk(*vm)),
            Step::WorkDisk { vm, .. } => disk::absent(&at.work_disk(*vm)),
            Step::RootDisk { vm, .. } => disk::absent(&at.root_disk(*vm)),
            Step::CowFile { vm, .. } => disk::absent(&at.cow_file(*vm)),
            Step::BaseLoop { vm, .. } => loopdev::absent(*vm, Role::Base),
            Step::CowLoop { vm, .. } => loopdev::absent(*vm, Role::Cow),
            Step::DmSnapshot { vm, .. } => dm::absent(*vm, &at.root_device(*vm)),
            Step::Tap { vm, .. } => tap::absent(*vm),
            Step::NetRules { .. } => self.on_rules(step, nft::absent),
            Step::NetLimit { vm, limit } => self.with_limit(*vm, *limit, tap_limit::absent),
            Step::Cgroup { vm, .. } => cgroup::absent(self.vmms.groups(), *vm),
            Step::VsockBackend { vm } => self.vmms.absent_vsock_backend(*vm),
            Step::Vmm { vm, machine } => self.vmms.absent_vmm(*vm, machine),
            // No objects: they end with the VMM.
            Step::Configured { .. }
            | Step::Booted { .. }
            | Step::Ready { .. }
            | Step::Adjusted { .. } => Ok(()),
        }
    }

    fn probe(&self, step: &Step) -> Result<Presence, Fault> {
        let at = &self.layout;
        match step {
            Step::VmDirectory { vm } => directory::probe(&at.vm_directory(*vm), Access::Private),
            Step::RunDirectory { vm } => {
                directory::probe(&at.run_directory(*vm), self.run_access(*vm))
            }
            Step::UpperDisk { vm, size } => disk::probe(&at.upper_disk(*vm), *size),
            Step::WorkDisk { vm, size } => disk::probe(&at.work_disk(*vm), *size),
            Step::RootDisk { vm, size, .. } => disk::probe(&at.root_disk(*vm), *size),
            Step::CowFile { vm, size } => cow::probe(&at.cow_file(*vm), *size),
            Step::BaseLoop { vm, image } => self.with_base(*vm, image, loopdev::probe),
            Step::CowLoop { vm, .. } => self.with_cow_loop(*vm, loopdev::probe),
            Step::DmSnapshot { vm, size } => self.with_snapshot(*vm, *size, dm::probe),
            Step::Tap { vm, subnet } => tap::probe(*vm, &self.bridge(*subnet)),
            Step::NetRules { .. } => self.on_rules(step, nft::probe),
            Step::NetLimit { vm, limit } => self.with_limit(*vm, *limit, tap_limit::probe),
            Step::Cgroup { vm, limits } => cgroup::probe(self.vmms.groups(), *vm, *limits),
            Step::VsockBackend { vm } => self.vmms.probe_vsock_backend(*vm),
            Step::Vmm { vm, machine } => self.vmms.probe_vmm(*vm, machine),
            Step::Configured { vm, machine } => self.vmms.probe_configured(*vm, machine),
            Step::Booted { vm, kind } => self.vmms.probe_booted(*vm, *kind),
            // Leaves no object; whether the agent has called, the daemon knows.
            Step::Ready { .. } | Step::Adjusted { .. } => Ok(Presence::Absent),
        }
    }
}

impl RealHost {
    /// Carries something out on our tables, one at a time, as the kernel does anyway.
    fn with_tables<T>(&self, act: impl FnOnce(&Tables) -> Result<T, Fault>) -> Result<T, Fault> {
        // A panic in another step leaves a socket, which has no state to spoil.
        let mut kept = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = match kept.take() {
            Some(tables) => tables,
            None => Tables::open(&self.settings.bridge)
                .map_err(|error| fault::fault("ask nftables", error))?,
        };
        act(kept.insert(tables))
    }

    fn bridge(&self, subnet: Subnet) -> Bridge<'_> {
        Bridge {
            name: &self.settings.bridge,
            subnet,
        }
    }

    /// Carries a verb out on a VM's elements.
    fn on_rules<T>(
        &self,
        step: &Step,
        verb: impl Fn(&Tables, &NetRules<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let Step::NetRules {
            vm,
            address,
            subnet,
            outside,
            publish,
        } = step
        else {
            let what = format!("change network rules by step {}", step.kind().word());
            return Err(Fault::new(FaultKind::Other, what));
        };
        let rules = NetRules {
            vm: *vm,
            address: *address,
            outside: *outside,
            publish,
            bridge: self.bridge(*subnet),
            claims: &self.settings.claims,
        };
        self.with_tables(|tables| verb(tables, &rules))
    }

    fn ensure_root_disk(&self, vm: VmId, image: &ContentId, size: Bytes) -> Result<(), Fault> {
        reflink::ensure(&RootDisk {
            path: &self.layout.root_disk(vm),
            base: &self.layout.image_rootfs(image),
            size,
        })
    }

    fn with_base<T>(
        &self,
        vm: VmId,
        image: &ContentId,
        act: impl FnOnce(&LoopDevice<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        act(&LoopDevice {
            vm,
            role: Role::Base,
            file: &self.layout.image_rootfs(image),
        })
    }

    fn with_cow_loop<T>(
        &self,
        vm: VmId,
        act: impl FnOnce(&LoopDevice<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        act(&LoopDevice {
            vm,
            role: Role::Cow,
            file: &self.layout.cow_file(vm),
        })
    }

    /// A store of before the root was made larger is grown first, in use or not.
    fn ensure_cow_loop(&self, vm: VmId, size: Bytes) -> Result<(), Fault> {
        let store = self.layout.cow_file(vm);
        if cow::probe(&store, size)? == Presence::Different {
            cow::ensure(&store, size)?;
        }
        self.with_cow_loop(vm, loopdev::ensure)
    }

    fn with_snapshot<T>(
        &self,
        vm: VmId,
        size: Bytes,
        act: impl FnOnce(&Snapshot<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        act(&Snapshot {
            vm,
            size,
            link: &self.layout.root_device(vm),
        })
    }

    /// Its parent is the working directory of VMs' processes: they go on to their own
    /// folder from there, and nowhere else.
    fn ensure_run_directory(&self, vm: VmId) -> Result<(), Fault> {
        let access = self.run_access(vm);
        directory::ensure(&self.layout.run_directory(vm), access)?;
        match access {
            Access::Private => Ok(()),
            Access::Shared(_) => directory::let_through(&self.layout.run_directories()),
        }
    }

    fn run_access(&self, vm: VmId) -> Access {
        match self.vmms.separation().identity(vm) {
            None => Access::Private,
            Some(identity) => Access::Shared(identity.gid),
        }
    }

    fn tap_user(&self, vm: VmId) -> Option<tap::User> {
        let identity = self.vmms.separation().identity(vm);
        let owner = self.settings.tap_owner.map(tap::User::Owner);
        owner.or_else(|| identity.map(|identity| tap::User::Group(identity.gid)))
    }

    fn with_limit<T>(
        &self,
        vm: VmId,
        limit: TapLimit,
        act: impl FnOnce(&Tables, &NetLimit<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let limit = NetLimit {
            vm,
            bandwidth: limit.bandwidth,
            bridge: self.bridge(limit.subnet),
        };
        self.with_tables(|tables| act(tables, &limit))
    }

    fn ensure_disk(&self, path: &Path, purpose: Purpose, size: Bytes) -> Result<(), Fault> {
        disk::ensure(&Disk {
            path,
            purpose,
            size,
            templates: &self.layout.templates(),
        })
    }
}
