//! The steps that make a VM out of objects on this machine.
//!
//! A [`Step`] names one object by the VM's identity and says how it must be. It holds
//! no path, no PID and no descriptor: whoever carries it out derives them, so a step
//! can be saved in a row, sent to the root helper and found again after a crash.
//! Each has two verbs, `ensure` and `absent`, both idempotent, and a `probe`.
//!
//! | step | identity on the host |
//! |---|---|
//! | `VmDirectory` | `<state>/vms/<id>` |
//! | `UpperDisk`, `RootDisk`, `CowFile`, `WorkDisk` | `upper.ext4`, `root.ext4`, `root.cow`, `work.ext4` in it |
//! | `RunDirectory` | `<runtime>/vms/<id>`: sockets, VMM log |
//! | `BaseLoop`, `CowLoop` | the loop device tagged `banger:<id>:base`, `banger:<id>:cow` |
//! | `DmSnapshot` | device-mapper devices `bgr-<id>-base` and `bgr-<id>` |
//! | `Tap` | interface `bgr-<id>`, a port of our bridge |
//! | `NetRules` | elements keyed by the tap's name in our one nftables table |
//! | `NetLimit` | the tap's elements in the limiting sets of that table |
//! | `Cgroup` | `banger/<id>` where cgroup v2 is ours to use, else nothing |
//! | `VsockBackend` | the process with `--uds-path <id>/vsock` |
//! | `Vmm` | the process with `--id <id>` (launcher, jailer, Firecracker) or `-name banger-<id>`; a jail is mounts that only it has |
//! | `Configured`, `Booted`, `Ready` | none: calls to the VMM, then the agent's call |
//! | `Adjusted` | none: calls to the agent and the VMM of a running guest |

use std::net::Ipv4Addr;

use crate::model::ids::{ContentId, VmId};
use crate::model::limits::Limits;
use crate::model::net::{NetMode, PortForward, Subnet};
use crate::model::units::Bytes;
use crate::model::vm::{Confinement, RootMode, VmmKind};

/// One object of one VM, as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The VM's folder in the state directory.
    VmDirectory {
        /// Whose.
        vm: VmId,
    },
    /// The sparse ext4 file that takes the changes to the root.
    UpperDisk {
        /// Whose.
        vm: VmId,
        /// Virtual size.
        size: Bytes,
    },
    /// The image's file system in a file of the VM's own that shares its blocks
    /// (`FICLONE`) until they are written.
    RootDisk {
        /// Whose.
        vm: VmId,
        /// The base.
        image: ContentId,
        /// Virtual size, at least the base's; the guest lets its file system grow to it.
        size: Bytes,
    },
    /// The sparse file with the exception store of the VM's snapshot.
    CowFile {
        /// Whose.
        vm: VmId,
        /// Virtual size of the root; the file is long enough for all of it to change.
        size: Bytes,
    },
    /// The sparse ext4 file mounted at /root.
    WorkDisk {
        /// Whose.
        vm: VmId,
        /// Virtual size.
        size: Bytes,
    },
    /// The VM's folder in the runtime directory.
    RunDirectory {
        /// Whose.
        vm: VmId,
    },
    /// The base of the VM's snapshot as a read-only block device.
    BaseLoop {
        /// Whose.
        vm: VmId,
        /// The base.
        image: ContentId,
    },
    /// The exception store of the VM's snapshot as a block device, grown to what the root
    /// needs.
    CowLoop {
        /// Whose.
        vm: VmId,
        /// Virtual size of the root.
        size: Bytes,
    },
    /// The snapshot: reads come from the base until they were written.
    DmSnapshot {
        /// Whose.
        vm: VmId,
        /// Virtual size of the root, at least the base's.
        size: Bytes,
    },
    /// The tap, up, isolated, enslaved to our bridge.
    Tap {
        /// Whose.
        vm: VmId,
        /// The network of our bridge, which is made first if missing.
        subnet: Subnet,
    },
    /// The VM's elements in our nftables table, which is made first if missing.
    NetRules {
        /// Whose.
        vm: VmId,
        /// The only address the guest may use.
        address: Ipv4Addr,
        /// The network of our bridge.
        subnet: Subnet,
        /// Whether the outside is reachable.
        outside: Outside,
        /// Ports of the host that lead to the guest.
        publish: Vec<PortForward>,
    },
    /// How fast frames pass its tap, to the guest and from it.
    NetLimit {
        /// Whose.
        vm: VmId,
        /// How fast.
        limit: TapLimit,
    },
    /// The control group that the VM's processes live in.
    Cgroup {
        /// Whose.
        vm: VmId,
        /// What its members may take together.
        limits: GroupLimits,
    },
    /// `vhost-device-vsock`, QEMU only.
    VsockBackend {
        /// Whose.
        vm: VmId,
    },
    /// The VMM's process, started and reachable over its control socket; the guest
    /// does not run yet.
    Vmm {
        /// Whose.
        vm: VmId,
        /// The machine it makes.
        machine: Machine,
    },
    /// The machine is described to the VMM (Firecracker: its API; QEMU: QMP greeted).
    Configured {
        /// Whose.
        vm: VmId,
        /// The machine it makes.
        machine: Machine,
    },
    /// The guest's processors run.
    Booted {
        /// Whose.
        vm: VmId,
        /// Which VMM to tell.
        kind: VmmKind,
    },
    /// The agent has called.
    Ready {
        /// Whose.
        vm: VmId,
    },
    /// The running machine and its guest have sizes that were given to them later. In no
    /// plan: a start makes them so by itself, but for the target.
    Adjusted {
        /// Whose.
        vm: VmId,
        /// The machine as it was started.
        machine: Machine,
        /// What it is to have.
        sizes: LiveSizes,
    },
}

/// What of a running machine can be made so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LiveSizes {
    /// The work disk, whose file is so long already.
    pub work_disk: Bytes,
    /// What the balloon leaves to the guest; `None`: it is not touched.
    pub memory_target: Option<Bytes>,
}

/// How fast frames pass a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TapLimit {
    /// The network of our bridge.
    pub subnet: Subnet,
    /// Bytes per second, each way.
    pub bandwidth: Bytes,
}

/// What the members of a VM's control group may take together; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct GroupLimits {
    /// Memory, the guest's included.
    pub memory: Option<Bytes>,
    /// Swap space.
    pub swap: Option<Bytes>,
    /// Processes and threads.
    pub tasks: Option<u32>,
    /// Their share of the processors when those are all busy; others have 100.
    pub cpu_weight: Option<u16>,
    /// Processor time: as much as so many processors have.
    pub processors: Option<u16>,
}

/// Whether a guest's packets may leave the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outside {
    /// Only the host's resolver is reachable.
    Closed,
    /// Masqueraded to the outside.
    Nat,
}

/// The machine that a VMM makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Which VMM, and how it executes guest code.
    pub kind: VmmKind,
    /// Virtual processors.
    pub vcpu: u8,
    /// Guest memory.
    pub memory: Bytes,
    /// The base disk's content.
    pub image: ContentId,
    /// How the root is made writable: decides on the disks.
    pub root: RootMode,
    /// The kernel's content.
    pub kernel: ContentId,
    /// The network device.
    pub net: NetMode,
    /// Ports published by QEMU's user-mode network.
    pub publish: Vec<PortForward>,
    /// Those of its limits that the VMM keeps.
    pub limits: Limits,
    /// What the VMM is shut in.
    pub confinement: Confinement,
}

/// What kind of object a step makes, for logs, limits and planted faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepKind {
    /// See [`Step::VmDirectory`].
    VmDirectory,
    /// See [`Step::UpperDisk`].
    UpperDisk,
    /// See [`Step::RootDisk`].
    RootDisk,
    /// See [`Step::CowFile`].
    CowFile,
    /// See [`Step::WorkDisk`].
    WorkDisk,
    /// See [`Step::RunDirectory`].
    RunDirectory,
    /// See [`Step::BaseLoop`].
    BaseLoop,
    /// See [`Step::CowLoop`].
    CowLoop,
    /// See [`Step::DmSnapshot`].
    DmSnapshot,
    /// See [`Step::Tap`].
    Tap,
    /// See [`Step::NetRules`].
    NetRules,
    /// See [`Step::NetLimit`].
    NetLimit,
    /// See [`Step::Cgroup`].
    Cgroup,
    /// See [`Step::VsockBackend`].
    VsockBackend,
    /// See [`Step::Vmm`].
    Vmm,
    /// See [`Step::Configured`].
    Configured,
    /// See [`Step::Booted`].
    Booted,
    /// See [`Step::Ready`].
    Ready,
    /// See [`Step::Adjusted`].
    Adjusted,
}

impl StepKind {
    /// Every kind, in the order of declaration.
    pub const ALL: [StepKind; 19] = [
        StepKind::VmDirectory,
        StepKind::UpperDisk,
        StepKind::RootDisk,
        StepKind::CowFile,
        StepKind::WorkDisk,
        StepKind::RunDirectory,
        StepKind::BaseLoop,
        StepKind::CowLoop,
        StepKind::DmSnapshot,
        StepKind::Tap,
        StepKind::NetRules,
        StepKind::NetLimit,
        StepKind::Cgroup,
        StepKind::VsockBackend,
        StepKind::Vmm,
        StepKind::Configured,
        StepKind::Booted,
        StepKind::Ready,
        StepKind::Adjusted,
    ];

    /// Whether it holds what a guest changed in its root, so that `vm reset` makes it anew.
    pub fn holds_root(self) -> bool {
        matches!(
            self,
            StepKind::UpperDisk | StepKind::RootDisk | StepKind::CowFile
        )
    }

    /// The word for logs, progress and rows.
    pub fn word(self) -> &'static str {
        match self {
            StepKind::VmDirectory => "vm-directory",
            StepKind::UpperDisk => "upper-disk",
            StepKind::RootDisk => "root-disk",
            StepKind::CowFile => "cow-file",
            StepKind::WorkDisk => "work-disk",
            StepKind::RunDirectory => "run-directory",
            StepKind::BaseLoop => "base-loop",
            StepKind::CowLoop => "cow-loop",
            StepKind::DmSnapshot => "dm-snapshot",
            StepKind::Tap => "tap",
            StepKind::NetRules => "net-rules",
            StepKind::NetLimit => "net-limit",
            StepKind::Cgroup => "cgroup",
            StepKind::VsockBackend => "vsock-backend",
            StepKind::Vmm => "vmm",
            StepKind::Configured => "configured",
            StepKind::Booted => "booted",
            StepKind::Ready => "ready",
            StepKind::Adjusted => "adjusted",
        }
    }
}

impl Step {
    /// The VM that this object belongs to.
    pub fn vm(&self) -> VmId {
        match self {
            Step::VmDirectory { vm }
            | Step::UpperDisk { vm, .. }
            | Step::RootDisk { vm, .. }
            | Step::CowFile { vm, .. }
            | Step::WorkDisk { vm, .. }
            | Step::RunDirectory { vm }
            | Step::BaseLoop { vm, .. }
            | Step::CowLoop { vm, .. }
            | Step::DmSnapshot { vm, .. }
            | Step::Tap { vm, .. }
            | Step::NetRules { vm, .. }
            | Step::NetLimit { vm, .. }
            | Step::Cgroup { vm, .. }
            | Step::VsockBackend { vm }
            | Step::Vmm { vm, .. }
            | Step::Configured { vm, .. }
            | Step::Booted { vm, .. }
            | Step::Ready { vm }
            | Step::Adjusted { vm, .. } => *vm,
        }
    }

    /// Whether it makes an object on the host, so that `absent` has something to do.
    pub fn leaves_object(&self) -> bool {
        !matches!(
            self,
            Step::Configured { .. }
                | Step::Booted { .. }
                | Step::Ready { .. }
                | Step::Adjusted { .. }
        )
    }

    /// The kind of object.
    pub fn kind(&self) -> StepKind {
        match self {
            Step::VmDirectory { .. } => StepKind::VmDirectory,
            Step::UpperDisk { .. } => StepKind::UpperDisk,
            Step::RootDisk { .. } => StepKind::RootDisk,
            Step::CowFile { .. } => StepKind::CowFile,
            Step::WorkDisk { .. } => StepKind::WorkDisk,
            Step::RunDirectory { .. } => StepKind::RunDirectory,
            Step::BaseLoop { .. } => StepKind::BaseLoop,
            Step::CowLoop { .. } => StepKind::CowLoop,
            Step::DmSnapshot { .. } => StepKind::DmSnapshot,
            Step::Tap { .. } => StepKind::Tap,
            Step::NetRules { .. } => StepKind::NetRules,
            Step::NetLimit { .. } => StepKind::NetLimit,
            Step::Cgroup { .. } => StepKind::Cgroup,
            Step::VsockBackend { .. } => StepKind::VsockBackend,
            Step::Vmm { .. } => StepKind::Vmm,
            Step::Configured { .. } => StepKind::Configured,
            Step::Booted { .. } => StepKind::Booted,
            Step::Ready { .. } => StepKind::Ready,
            Step::Adjusted { .. } => StepKind::Adjusted,
        }
    }
}

/// What a probe saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The object does not exist.
    Absent,
    /// It exists as described.
    Present,
    /// It exists and differs from the description, or is half made.
    Different,
}

/// Why a step did not succeed, as far as the plan decides on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The object is in use; worth another try.
    Busy,
    /// No space, memory or other resource left.
    Full,
    /// Something the step needs does not exist (a program, an image).
    Missing,
    /// Not permitted.
    Denied,
    /// The deadline passed.
    Timeout,
    /// The VMM ended.
    Exited,
    /// The VMM runs and nobody reaches the guest's agent.
    CutOff,
    /// The step's flag was raised.
    Cancelled,
    /// Anything else.
    Other,
}

/// A step's failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Fault {
    /// Decides on a retry.
    pub kind: FaultKind,
    /// The attempt, the object and the cause: `add tap bgr-01234567: operation not permitted`.
    pub what: String,
    /// What the user can type against it, where the step knows better than its caller.
    pub remedy: Option<String>,
}

impl Fault {
    /// A fault of this kind.
    pub fn new(kind: FaultKind, what: impl Into<String>) -> Fault {
        Fault {
            kind,
            what: what.into(),
            remedy: None,
        }
    }

    /// The same fault with what can be done about it.
    pub fn remedy(mut self, remedy: Option<String>) -> Fault {
        self.remedy = remedy;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed() {
        assert_eq!(StepKind::ALL.len(), StepKind::Adjusted as usize + 1);
        let words = StepKind::ALL.map(StepKind::word);
        assert!(
            words
                .iter()
                .all(|word| words.iter().filter(|w| *w == word).count() == 1)
        );
    }
}
