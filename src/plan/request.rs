//! What clients ask of the mind, what they are told meanwhile and in the end.

use crate::failure::Failure;
use crate::model::ids::{ImageName, KernelName, VmId, VmName};
use crate::model::image::{Image, Kernel};
use crate::model::limits::Limits;
use crate::model::net::{NetRequest, PortForward};
use crate::model::units::Bytes;
use crate::model::vm::{InitMode, RootModeRequest, VmmRequest};

use super::record::{GitIdentity, Removal, VmRecord};
use super::retry::Verb;
use super::step::StepKind;

/// One connection of a client, for as long as the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// One request; unique as long as the daemon runs, in every log line about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Everything that a client may ask for. `target` is a name, an id or the beginning
/// of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Make a VM; image and kernel are pulled first if missing. Answer: `Vm`.
    Create(Box<CreateRequest>),
    /// Start it, up to a guest that answers. Answer: `Vm`.
    Start {
        /// Which.
        target: String,
    },
    /// Power its guest off, then remove its run. Answer: `Vm`.
    Stop {
        /// Which.
        target: String,
    },
    /// Stop it, then start it. Answer: `Vm`.
    Restart {
        /// Which.
        target: String,
    },
    /// Remove its run at once. Answer: `Vm`.
    Kill {
        /// Which.
        target: String,
    },
    /// Remove it with its disks. Answer: `Deleted`.
    Delete {
        /// Which.
        target: String,
        /// Whether also when it runs.
        force: Force,
    },
    /// Make its root anew; it must be stopped. Answer: `Vm`.
    Reset {
        /// Which.
        target: String,
    },
    /// Give it other sizes; most of them need it to be stopped. Answer: `Vm`.
    Set {
        /// Which.
        target: String,
        /// What is to change.
        changes: Changes,
    },
    /// Answer: `Vms`, oldest first.
    List,
    /// Answer: `Vm`.
    Show {
        /// Which.
        target: String,
    },
    /// Its coming to rest: told at once where nothing of it runs or is under way.
    /// Answer: `Vm`, or `Deleted`.
    Wait {
        /// Which.
        target: String,
    },
    /// Permission to reach the agent of a running VM. Answer: `Dial`.
    Dial {
        /// Which.
        target: String,
    },
    /// Answer: `Images`.
    ImageList,
    /// Answer: `Image`.
    ImageShow {
        /// Which.
        name: String,
    },
    /// Answer: `Image`.
    ImagePull {
        /// Which.
        name: String,
        /// Whether also when it is there.
        refresh: Refresh,
    },
    /// Answer: `Done`.
    ImageDelete {
        /// Which.
        name: String,
    },
    /// Answer: `Kernels`.
    KernelList,
    /// Answer: `Kernel`.
    KernelShow {
        /// Which.
        name: String,
    },
    /// Answer: `Kernel`.
    KernelPull {
        /// Which.
        name: String,
        /// Whether also when it is there.
        refresh: Refresh,
    },
    /// Answer: `Done`.
    KernelDelete {
        /// Which.
        name: String,
    },
    /// Remove contents that nothing names. Answer: `Done`, when that is done.
    Sweep,
    /// Answer: `Status`.
    Status,
    /// End the daemon; VMs stay up. Answer: `Done`.
    Shutdown,
}

impl Request {
    /// The word for logs.
    pub fn word(&self) -> &'static str {
        match self {
            Request::Create(_) => "create",
            Request::Start { .. } => "start",
            Request::Stop { .. } => "stop",
            Request::Restart { .. } => "restart",
            Request::Kill { .. } => "kill",
            Request::Delete { .. } => "delete",
            Request::Reset { .. } => "reset",
            Request::Set { .. } => "set",
            Request::List => "list",
            Request::Show { .. } => "show",
            Request::Wait { .. } => "wait",
            Request::Dial { .. } => "dial",
            Request::ImageList => "image list",
            Request::ImageShow { .. } => "image show",
            Request::ImagePull { .. } => "image pull",
            Request::ImageDelete { .. } => "image delete",
            Request::KernelList => "kernel list",
            Request::KernelShow { .. } => "kernel show",
            Request::KernelPull { .. } => "kernel pull",
            Request::KernelDelete { .. } => "kernel delete",
            Request::Sweep => "sweep",
            Request::Status => "status",
            Request::Shutdown => "shutdown",
        }
    }
}

/// Sizes that a VM is to have; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Virtual processors.
    pub vcpu: Option<u8>,
    /// Guest memory.
    pub memory: Option<Bytes>,
    /// Size of /root; never less than it is.
    pub work_disk: Option<Bytes>,
    /// What the root can take; never less than it is.
    pub root_disk: Option<Bytes>,
    /// What the balloon leaves of the memory; all of it is no target.
    pub memory_target: Option<Bytes>,
}

impl Changes {
    /// Whether a part of it waits for the next start.
    pub fn needs_rest(&self) -> bool {
        self.vcpu.is_some() || self.memory.is_some() || self.root_disk.is_some()
    }

    /// Whether a part of it is for a running guest only.
    pub fn needs_run(&self) -> bool {
        self.memory_target.is_some()
    }
}

/// Whether a running VM may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// No: it is refused.
    Refuse,
    /// Yes: its run is removed first.
    Kill,
}

/// Whether something that is there is pulled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// No: what is there is the answer.
    Keep,
    /// Yes: the name then means the new content.
    Again,
}

/// A VM to make. Every value is explicit: defaults are the command line's matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateRequest {
    /// `None`: one is made up.
    pub name: Option<VmName>,
    /// Pulled if missing.
    pub image: String,
    /// Pulled if missing.
    pub kernel: String,
    /// Virtual processors.
    pub vcpu: u8,
    /// Guest memory.
    pub memory: Bytes,
    /// Size of /root.
    pub work_disk: Bytes,
    /// Size of the root.
    pub root_disk: Bytes,
    /// How the root is made writable.
    pub root_mode: RootModeRequest,
    /// The network.
    pub net: NetRequest,
    /// Published ports.
    pub publish: Vec<PortForward>,
    /// The guest's first process.
    pub init: InitMode,
    /// The VMM.
    pub vmm: VmmRequest,
    /// Environment of every command.
    pub env: Vec<(String, String)>,
    /// Where commands start that name no directory.
    pub workdir: Option<String>,
    /// What it may take of its host.
    pub limits: Limits,
    /// Who commits in it.
    pub git: Option<GitIdentity>,
    /// Whether it goes with this client's connection.
    pub removal: Removal,
    /// What follows its creation.
    pub then: AfterCreate,
}

/// What follows the creation of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterCreate {
    /// Nothing: it rests.
    Rest,
    /// It is started. Creation and start are then one: when its guest never comes to
    /// run, the VM is removed again.
    Start,
}

/// The one final answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The VM as it now is.
    Vm(Box<VmRecord>),
    /// VMs.
    Vms(Vec<VmRecord>),
    /// This VM does not exist any more.
    Deleted {
        /// Its name.
        name: VmName,
    },
    /// The agent of this VM may be reached; the daemon passes the connection.
    Dial {
        /// Which.
        vm: VmId,
        /// Its name, for people.
        name: VmName,
    },
    /// An image.
    Image(Image),
    /// Images.
    Images(Vec<Image>),
    /// A kernel.
    Kernel(Kernel),
    /// Kernels.
    Kernels(Vec<Kernel>),
    /// The daemon's state.
    Status(Status),
    /// Done, with nothing to show.
    Done,
    /// Not done.
    Failed(Failure),
}

/// The daemon's state, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// VMs that run.
    pub running: usize,
    /// VMs in all.
    pub vms: usize,
    /// VMs that are stuck.
    pub stuck: usize,
    /// Operations under way.
    pub operations: usize,
    /// Pulls under way.
    pub pulls: usize,
}

/// Something that happens meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// This VM is what the request is about; it now has a name.
    Named {
        /// Its identity.
        vm: VmId,
        /// Its name.
        name: VmName,
    },
    /// A step begins.
    Step {
        /// Up or down.
        verb: Verb,
        /// Of which kind.
        kind: StepKind,
    },
    /// A pull goes on.
    Pull(PullProgress),
    /// Something to know that is no failure.
    Note(String),
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// What is pulled: `image debian-minimal`.
    pub what: String,
    /// What is being done: `unpack`.
    pub stage: String,
    /// Units done in this stage.
    pub done: u64,
    /// Units of this stage in all, if known.
    pub total: Option<u64>,
}

/// The image or kernel that a pull is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PullKey {
    /// An image.
    Image(ImageName),
    /// A kernel.
    Kernel(KernelName),
}

impl PullKey {
    /// What to type after `banger` to have it pulled.
    pub fn pull_command(&self) -> String {
        match self {
            PullKey::Image(name) => format!("image pull {name}"),
            PullKey::Kernel(name) => format!("kernel pull {name}"),
        }
    }
}

impl std::fmt::Display for PullKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PullKey::Image(name) => write!(f, "image {name}"),
            PullKey::Kernel(name) => write!(f, "kernel {name}"),
        }
    }
}
