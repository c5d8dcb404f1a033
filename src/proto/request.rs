//! What the command line asks of the daemon: one request per connection, one JSON
//! object on one line.
//!
//! ```text
//!  client  {"v":1,"op":"4f1c…","request":{"do":"vm_run", …}}\n
//!  daemon  {"progress":{…}}\n …              any number
//!  daemon  {"done":{…}}\n  or  {"failed":{…}}\n    exactly one, with a descriptor for a dial
//! ```
//!
//! Closing the connection before the last line cancels the request. After a
//! `vm_run` with `delete_on_disconnect` the client keeps the connection open: when it
//! closes, by whatever end of the client, the VM is deleted.

use serde::{Deserialize, Serialize};

use super::limits::Limits;
use super::text;
use crate::model::ids::{ImageName, KernelName, VmName};
use crate::model::net::{NetRequest, PortForward};
use crate::model::units::Bytes;
use crate::model::vm::{InitMode, RootModeRequest, VmmRequest};

/// Version of this protocol; another one is refused with a hint.
pub const PROTOCOL_VERSION: u32 = 1;
/// Longest request line, bytes.
pub const MAX_REQUEST: usize = 1024 * 1024;

/// The first and only line of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// [`PROTOCOL_VERSION`] of the client.
    pub v: u32,
    /// An identifier that the client made up, found in every log line of the operation.
    pub op: String,
    /// What to do.
    pub request: Request,
}

/// What can be asked of the daemon. A `vm` is a name, an id, or an unambiguous
/// beginning of an id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Who are you? Answered with `Reply::Status`.
    Status {},
    /// Finish running steps, save, exit. VMs stay up.
    Shutdown {},
    /// Pull what is missing, create a VM, start it unless told otherwise.
    VmRun {
        /// What to make.
        vm: Box<NewVm>,
        /// Start it after creation and answer when it is ready.
        start: bool,
        /// Delete it when this connection closes.
        delete_on_disconnect: bool,
    },
    /// Start a VM at rest; answered when it is ready.
    VmStart {
        /// Which.
        vm: String,
    },
    /// Power a VM off; what it has written is kept.
    VmStop {
        /// Which.
        vm: String,
    },
    /// Stop, then start.
    VmRestart {
        /// Which.
        vm: String,
    },
    /// End a VM without asking its guest.
    VmKill {
        /// Which.
        vm: String,
    },
    /// Delete a VM and its disks.
    VmDelete {
        /// Which.
        vm: String,
        /// Also when it runs.
        force: bool,
    },
    /// A fresh root from its image; /root is kept. The VM must be at rest.
    VmReset {
        /// Which.
        vm: String,
    },
    /// Other sizes for a VM at rest.
    VmSet {
        /// Which.
        vm: String,
        /// What is to change.
        changes: Changes,
    },
    /// Every VM.
    VmList {},
    /// One VM.
    VmShow {
        /// Which.
        vm: String,
    },
    /// Answered when the VM is at rest: at once, or when its run has ended.
    VmWait {
        /// Which.
        vm: String,
    },
    /// A connection to a running VM's agent, as a descriptor with the last line.
    VmDial {
        /// Which.
        vm: String,
    },
    /// A log of a VM, as a descriptor open for reading with the last line.
    VmOpenLog {
        /// Which.
        vm: String,
        /// Which log.
        log: LogKind,
    },
    /// Images in the store and in the catalogue.
    ImageList {},
    /// One image of the store.
    ImageShow {
        /// Which.
        #[serde(with = "text")]
        name: ImageName,
    },
    /// Build or fetch an image of the catalogue.
    ImagePull {
        /// Which.
        #[serde(with = "text")]
        name: ImageName,
        /// Also when the store has it already.
        force: bool,
    },
    /// Delete an image that no VM uses.
    ImageDelete {
        /// Which.
        #[serde(with = "text")]
        name: ImageName,
    },
    /// Kernels in the store and in the catalogue.
    KernelList {},
    /// One kernel of the store.
    KernelShow {
        /// Which.
        #[serde(with = "text")]
        name: KernelName,
    },
    /// Fetch a kernel of the catalogue.
    KernelPull {
        /// Which.
        #[serde(with = "text")]
        name: KernelName,
        /// Also when the store has it already.
        force: bool,
    },
    /// Delete a kernel that no VM uses.
    KernelDelete {
        /// Which.
        #[serde(with = "text")]
        name: KernelName,
    },
    /// What this machine offers and which VMM would be used, for `doctor`.
    HostFacts {},
    /// Remove what of ours no VM has, put back what running VMs lack, for `doctor --fix`.
    Repair {
        /// Change nothing and say what would be changed.
        dry_run: bool,
    },
    /// Remove contents of images and kernels that nothing names.
    Sweep {},
    /// A copy of the store's file as it is now, as a descriptor with the last line.
    StoreCopy {},
}

impl Request {
    /// The word for logs: the request without its values, which may be secrets.
    pub fn word(&self) -> &'static str {
        match self {
            Request::Status {} => "status",
            Request::Shutdown {} => "shutdown",
            Request::VmRun { .. } => "vm_run",
            Request::VmStart { .. } => "vm_start",
            Request::VmStop { .. } => "vm_stop",
            Request::VmRestart { .. } => "vm_restart",
            Request::VmKill { .. } => "vm_kill",
            Request::VmDelete { .. } => "vm_delete",
            Request::VmReset { .. } => "vm_reset",
            Request::VmSet { .. } => "vm_set",
            Request::VmList {} => "vm_list",
            Request::VmShow { .. } => "vm_show",
            Request::VmWait { .. } => "vm_wait",
            Request::VmDial { .. } => "vm_dial",
            Request::VmOpenLog { .. } => "vm_open_log",
            Request::ImageList {} => "image_list",
            Request::ImageShow { .. } => "image_show",
            Request::ImagePull { .. } => "image_pull",
            Request::ImageDelete { .. } => "image_delete",
            Request::KernelList {} => "kernel_list",
            Request::KernelShow { .. } => "kernel_show",
            Request::KernelPull { .. } => "kernel_pull",
            Request::KernelDelete { .. } => "kernel_delete",
            Request::HostFacts {} => "host_facts",
            Request::Repair { .. } => "repair",
            Request::Sweep {} => "sweep",
            Request::StoreCopy {} => "store_copy",
        }
    }
}

/// Sizes that a VM is to have; what is left out stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Changes {
    /// Virtual processors.
    pub vcpu: Option<u8>,
    /// Guest memory, bytes.
    pub memory: Option<u64>,
    /// Size of the work disk, bytes; never less than it is.
    pub work_disk: Option<u64>,
    /// Size of the root, bytes; never less than it is.
    pub root_disk: Option<u64>,
    /// What the balloon of a running VM leaves to the guest, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_target: Option<u64>,
}

/// Which log of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogKind {
    /// What the VMM and its helpers wrote.
    Vmm,
    /// What the guest wrote to its serial console.
    Console,
}

/// A VM to make. The command line resolves defaults; every size is explicit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVm {
    /// `None`: the daemon makes one up.
    #[serde(with = "text::option")]
    pub name: Option<VmName>,
    /// Image of the store or the catalogue.
    #[serde(with = "text")]
    pub image: ImageName,
    /// Kernel of the store or the catalogue.
    #[serde(with = "text")]
    pub kernel: KernelName,
    /// Virtual processors.
    pub vcpu: u8,
    /// Guest memory.
    #[serde(with = "text")]
    pub memory: Bytes,
    /// Size of the work disk (/root).
    #[serde(with = "text")]
    pub work_disk: Bytes,
    /// Size of the root: of the whole disk, or under `overlay` of what its changes can
    /// take.
    #[serde(with = "text")]
    pub root_disk: Bytes,
    /// How the root is made writable.
    #[serde(with = "text", default = "auto")]
    pub root_mode: RootModeRequest,
    /// The network asked for.
    #[serde(with = "text")]
    pub net: NetRequest,
    /// Published ports.
    #[serde(with = "text::list")]
    pub publish: Vec<PortForward>,
    /// The guest's first process.
    #[serde(with = "text")]
    pub init: InitMode,
    /// The VMM asked for.
    #[serde(with = "text")]
    pub vmm: VmmRequest,
    /// Environment of every command.
    pub env: Vec<(String, String)>,
    /// Where commands start.
    pub workdir: Option<String>,
    /// What it may take of its host.
    #[serde(default)]
    pub limits: Limits,
    /// Name and address of the caller's git identity, written to /root/.gitconfig.
    pub git_identity: Option<GitIdentity>,
}

/// The root mode of clients that know of none.
fn auto() -> RootModeRequest {
    RootModeRequest::Auto
}

/// Who commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitIdentity {
    /// user.name
    pub name: String,
    /// user.email
    pub email: String,
}
