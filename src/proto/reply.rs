//! What the daemon answers: progress lines, then exactly one last line.

use super::repair::Repaired;
use serde::{Deserialize, Serialize};

use super::limits::Limits;
use crate::failure::{Failure, FailureKind};

/// The variable that names to a new daemon the pipe on which its starter waits.
pub const READY_VARIABLE: &str = "BANGER_READY_FD";
/// The line on that pipe that says that the socket listens; any other is a
/// [`WireFailure`].
pub const READY_LINE: &str = "ready";

/// One line of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// How far a long request is.
    Progress(Progress),
    /// It is done.
    Done(Reply),
    /// It failed.
    Failed(WireFailure),
}

/// A stage of a long request. Stages follow one another; a stage is over when
/// another begins or the last line comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// For people: `build image debian-minimal`, `boot`.
    pub stage: String,
    /// What it is doing now, for people; empty for nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// How much is done, in units of `total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// How much there is, bytes or entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

/// A [`Failure`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireFailure {
    /// `FailureKind::word`.
    pub kind: String,
    /// See [`Failure::what`].
    pub what: String,
    /// See [`Failure::hint`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// See [`Failure::causes`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

impl From<Failure> for WireFailure {
    fn from(failure: Failure) -> WireFailure {
        WireFailure {
            kind: failure.kind.word().to_owned(),
            what: failure.what,
            hint: failure.hint,
            causes: failure.causes,
        }
    }
}

impl From<WireFailure> for Failure {
    fn from(wire: WireFailure) -> Failure {
        Failure {
            kind: FailureKind::from_word(&wire.kind),
            what: wire.what,
            hint: wire.hint,
            causes: wire.causes,
        }
    }
}

/// The last line of a request that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Reply {
    /// Nothing to say.
    Ok {},
    /// About the daemon.
    Status(Status),
    /// One VM.
    Vm(Box<VmView>),
    /// Every VM, oldest first.
    Vms {
        /// The VMs.
        vms: Vec<VmView>,
    },
    /// The descriptor that came with this line is connected to the VM's agent, the
    /// handshake of the vsock back end done.
    Dialed {
        /// The VM's id.
        id: String,
        /// The VM's name.
        name: String,
    },
    /// The descriptor that came with this line is open for reading.
    Log {
        /// Its path, for people.
        path: String,
        /// Whether the VM can still write to it.
        live: bool,
    },
    /// Images of the store, then those of the catalogue that are not in it.
    Images {
        /// The images.
        images: Vec<ImageView>,
    },
    /// One image.
    Image(ImageView),
    /// Kernels of the store, then those of the catalogue that are not in it.
    Kernels {
        /// The kernels.
        kernels: Vec<KernelView>,
    },
    /// One kernel.
    Kernel(KernelView),
    /// What this machine offers.
    Facts(HostFacts),
    /// What is not as it must be, and what became of it.
    Repaired(Repaired),
    /// The descriptor that came with this line holds a copy of the store.
    StoreCopy {
        /// The path of the store, for people.
        path: String,
    },
}

/// About the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `banger --version` of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its socket.
    pub socket: String,
    /// Its log file; empty when it logs to the journal or a terminal.
    pub log: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// How many VMs run.
    pub running: u32,
    /// How many VMs there are.
    pub vms: u32,
}

/// A VM as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    /// Eight hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `model::vm::Phase` as text.
    pub phase: String,
    /// Why it is in that phase, where there is something to say: how it ended, what is stuck.
    pub reason: Option<String>,
    /// The command that tries again what is stuck (`stop`, `reset` or `delete`); absent in
    /// any other phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<String>,
    /// Image name.
    pub image: String,
    /// Image content id.
    pub image_content: String,
    /// Kernel name.
    pub kernel: String,
    /// Virtual processors.
    pub vcpu: u8,
    /// Guest memory, bytes.
    pub memory: u64,
    /// What of it the balloon leaves to the guest.
    #[serde(flatten)]
    pub balloon: Balloon,
    /// Virtual size of the work disk, bytes.
    pub work_disk: u64,
    /// Size of the root, bytes; under `overlay` of what its changes can take.
    pub root_disk: u64,
    /// `model::vm::RootMode` as text.
    #[serde(default)]
    pub root_mode: String,
    /// The exception store of a root that is a snapshot, while the VM runs.
    #[serde(default)]
    pub root_store: Option<RootStore>,
    /// Bytes that its disks take on the host.
    pub allocated: u64,
    /// `model::net::NetMode` as text.
    pub net: String,
    /// Why this network, where it was chosen for the user.
    pub net_reason: Option<String>,
    /// The guest's address, where it has one.
    pub address: Option<String>,
    /// Published ports, `HOST:GUEST`.
    pub publish: Vec<String>,
    /// `model::vm::InitMode` as asked, or what the guest reported once ready.
    pub init: String,
    /// VMM of the current or last start, `model::vm::VmmKind` as text; `None` before the first.
    pub vmm: Option<String>,
    /// Why this VMM.
    pub vmm_reason: Option<String>,
    /// What the VMM is shut in besides having no rights: `jailer` or `direct` (Firecracker),
    /// `sandbox` (QEMU's own); `None` before the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confinement: Option<String>,
    /// Why in no more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confinement_reason: Option<String>,
    /// Process id of the VMM while it runs.
    pub pid: Option<u32>,
    /// Where commands start.
    pub workdir: Option<String>,
    /// What it may take of its host.
    #[serde(default)]
    pub limits: Limits,
    /// Why one of them has no effect here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits_note: Option<String>,
    /// What its processes are not held to on this machine, and why: `cpu and memory not
    /// held: …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits_missing: Option<String>,
    /// Seconds since the epoch.
    pub created_at: u64,
    /// Seconds since the epoch of the last start that reached ready.
    pub started_at: Option<u64>,
    /// Name and end of each boot phase, milliseconds since the guest's kernel started.
    pub boot_phases: Vec<(String, u64)>,
    /// What the guest skipped at its last boot, and why.
    pub warnings: Vec<String>,
    /// Whether it is deleted when its client goes.
    pub delete_on_disconnect: bool,
}

/// How much of its memory a VM is to keep, keeps, and has of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// What the balloon is to leave of it to the guest, bytes, where that was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_target: Option<u64>,
    /// What the balloon of a running VM leaves to the guest now, bytes; only of one VM, and
    /// where its VMM tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_actual: Option<u64>,
    /// What the VMM of a running VM has in the host's memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_resident: Option<u64>,
}

/// What holds the changes to a root that is a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootStore {
    /// Bytes taken by changes and their index.
    pub used: u64,
    /// Bytes that it can take.
    pub total: u64,
    /// `active`, `overflow` (no more writes until it is grown), `invalid` (lost), or
    /// `unknown` where the kernel does not tell.
    pub state: String,
    /// What is wrong or soon will be, with what to type.
    pub warning: Option<String>,
}

/// An image as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// Its name.
    pub name: String,
    /// Whether the store has it; else it is of the catalogue only.
    pub present: bool,
    /// Content id; empty where not present.
    pub content: String,
    /// Virtual size, bytes; 0 where not present.
    pub size: u64,
    /// Bytes on the host's disk; 0 where not present.
    pub allocated: u64,
    /// Where it came or would come from.
    pub source: String,
    /// Seconds since the epoch; 0 where not present.
    pub created_at: u64,
    /// What is wrong with its files; absent when they are whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
    /// Names of the VMs that use it.
    pub used_by: Vec<String>,
}

/// A kernel as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelView {
    /// Its name.
    pub name: String,
    /// Whether the store has it; else it is of the catalogue only.
    pub present: bool,
    /// Content id; empty where not present.
    pub content: String,
    /// What `uname -r` prints; empty where not present.
    pub release: String,
    /// Bytes on the host's disk; 0 where not present.
    pub allocated: u64,
    /// Where it came or would come from.
    pub source: String,
    /// Seconds since the epoch; 0 where not present.
    pub created_at: u64,
    /// What is wrong with its files; absent when they are whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
    /// Names of the VMs that use it.
    pub used_by: Vec<String>,
}

/// What this machine offers, one fact per field; `cli::doctor` judges them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The facts, name and value, in a fixed order.
    pub facts: Vec<Fact>,
    /// VMM that `auto` would choose, `model::vm::VmmKind` as text; `None` when none can run.
    pub vmm: Option<String>,
    /// Why.
    pub vmm_reason: String,
}

/// One fact about this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// A stable word: `qemu`, `kvm`, `tun`, `nft`.
    pub name: String,
    /// Whether it is there and usable.
    pub ok: bool,
    /// Version, path, or why it is not usable.
    pub detail: String,
}
