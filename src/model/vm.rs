//! What a VM is asked to be, and the phases of its life.
//!
//! ```text
//!  (create) -> Stopped -> Starting -> Running -> Stopping -> Stopped -> Deleting -> (gone)
//!                            |                      ^            |          |
//!                            +---- fault, cancel ---+            +-- Stuck -+
//!
//!  Stopped -> Resetting -> Stopped
//! ```

use std::fmt;
use std::str::FromStr;

use super::ids::{ContentId, ImageName, KernelName, VmName};
use super::limits::Limits;
use super::net::{NetMode, PortForward};
use super::units::Bytes;

/// A value outside a closed list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {kind}: {allowed}")]
pub struct ChoiceError {
    kind: &'static str,
    text: String,
    allowed: &'static str,
}

impl ChoiceError {
    /// `text` is not one of `allowed`.
    pub fn new(kind: &'static str, text: &str, allowed: &'static str) -> ChoiceError {
        ChoiceError {
            kind,
            text: text.to_owned(),
            allowed,
        }
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $allowed:literal, $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            /// Every variant, in the order of declaration.
            pub const ALL: &'static [$type] = &[$($type::$variant,)*];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $($type::$variant => $word,)* })
            }
        }

        impl FromStr for $type {
            type Err = ChoiceError;

            fn from_str(text: &str) -> Result<$type, ChoiceError> {
                match text {
                    $($word => Ok($type::$variant),)*
                    _ => Err(ChoiceError::new($kind, text, $allowed)),
                }
            }
        }
    };
}

choice! {
    /// How the guest's first process is chosen.
    InitMode, "init mode", "auto, systemd, agent",
    /// systemd where the image has it, else the agent.
    Auto = "auto",
    /// The image's systemd.
    Systemd = "systemd",
    /// Our agent stays process 1.
    Agent = "agent",
}

choice! {
    /// Which VMM the user asked for.
    VmmRequest, "VMM", "auto, firecracker, qemu",
    /// Firecracker where KVM runs ordinary guests, else QEMU.
    Auto = "auto",
    /// Firecracker or a clear refusal.
    Firecracker = "firecracker",
    /// QEMU, with KVM where fit.
    Qemu = "qemu",
}

choice! {
    /// The VMM that a VM runs under, with how it executes guest code.
    VmmKind, "VMM kind", "firecracker, qemu-kvm, qemu-tcg",
    /// Firecracker on KVM.
    Firecracker = "firecracker",
    /// QEMU `microvm` on KVM.
    QemuKvm = "qemu-kvm",
    /// QEMU `microvm` with its own translator.
    QemuTcg = "qemu-tcg",
}

choice! {
    /// What a VMM's process is shut in, besides having no rights.
    Confinement, "confinement", "direct, jailer",
    /// Nothing of ours; its own system call filter.
    Direct = "direct",
    /// A root of its own with what the VM needs, by Firecracker's jailer.
    Jailer = "jailer",
}

choice! {
    /// How a VM comes to a root that it can write to; a VM keeps the mode it was made with.
    RootMode, "root mode", "dm-snapshot, reflink, overlay",
    /// A device-mapper snapshot over the image: a whole ext4, its changes in a sparse file.
    DmSnapshot = "dm-snapshot",
    /// A copy of the image that shares its blocks until they are written.
    Reflink = "reflink",
    /// The image read-only, joined in the guest with a disk that takes the changes.
    Overlay = "overlay",
}

choice! {
    /// Which root mode the user asked for.
    RootModeRequest, "root mode", "auto, dm-snapshot, reflink, overlay",
    /// What this machine can, see `plan::facts`.
    Auto = "auto",
    /// A snapshot or a clear refusal.
    DmSnapshot = "dm-snapshot",
    /// A copy with shared blocks or a clear refusal.
    Reflink = "reflink",
    /// Always possible.
    Overlay = "overlay",
}

choice! {
    /// Where a VM is in its life.
    Phase, "phase", "creating, stopped, starting, running, stopping, resetting, deleting, stuck",
    /// Its disks are being made.
    Creating = "creating",
    /// At rest; only its disks exist.
    Stopped = "stopped",
    /// Its run plan is being carried out.
    Starting = "starting",
    /// Usable: the agent has answered.
    Running = "running",
    /// Its run plan is being undone.
    Stopping = "stopping",
    /// Its root is being made anew.
    Resetting = "resetting",
    /// Run plan and disks are being undone.
    Deleting = "deleting",
    /// `absent` kept failing; retried on request and at daemon start.
    Stuck = "stuck",
}

/// The image a VM was made from: the name as asked, the content it then meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// The catalogue or store name.
    pub name: ImageName,
    /// The content that the VM's upper disk belongs to.
    pub content: ContentId,
}

/// The kernel a VM boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRef {
    /// The catalogue or store name.
    pub name: KernelName,
    /// Its content.
    pub content: ContentId,
}

/// Everything that decides how a VM is made. While it runs only its work disk may grow and
/// its memory's target change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Unique among this daemon's VMs.
    pub name: VmName,
    /// The root file system.
    pub image: ImageRef,
    /// The kernel.
    pub kernel: KernelRef,
    /// Virtual processors, 1 to [`VmSpec::MAX_VCPU`].
    pub vcpu: u8,
    /// Guest memory, whole mebibytes.
    pub memory: Bytes,
    /// What its balloon is to leave of that to the guest; `None`: all.
    pub memory_target: Option<Bytes>,
    /// Size of the work disk (/root).
    pub work_disk: Bytes,
    /// Size of the root: of the whole disk, or under `overlay` of what its changes can
    /// take.
    pub root_disk: Bytes,
    /// How the root is made writable.
    pub root_mode: RootMode,
    /// The network, decided at creation.
    pub net: NetMode,
    /// Published ports.
    pub publish: Vec<PortForward>,
    /// The guest's first process.
    pub init: InitMode,
    /// The VMM asked for; the one used is decided at each start.
    pub vmm: VmmRequest,
    /// Environment of every command that is run in it, over the guest's own.
    pub env: Vec<(String, String)>,
    /// Absolute directory in the guest where commands start that name none.
    pub workdir: Option<String>,
    /// What it may take of its host.
    pub limits: Limits,
}

impl VmSpec {
    /// Most virtual processors of a VM (Firecracker's limit, its API definition).
    pub const MAX_VCPU: u8 = 32;
    /// Least guest memory: under it Debian's kernel does not reach its init.
    pub const MIN_MEMORY: Bytes = Bytes::mib(96);
    /// Least that a balloon leaves to a guest (docs/limits.md has what was measured).
    pub const MIN_TARGET: Bytes = Bytes::mib(96);
    /// Most guest memory that is believed to be meant.
    pub const MAX_MEMORY: Bytes = Bytes::gib(1024);
    /// Least size of a disk of ours.
    pub const MIN_DISK: Bytes = Bytes::mib(64);
    /// Largest disk: ext4 with 4 KiB blocks and no 64bit feature ends at 16 TiB.
    pub const MAX_DISK: Bytes = Bytes::gib(16 * 1024 - 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_round_trips() {
        for phase in Phase::ALL {
            assert_eq!(phase.to_string().parse(), Ok(*phase));
        }
        for kind in VmmKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(*kind));
        }
        for mode in RootMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(*mode));
            assert!(mode.to_string().parse::<RootModeRequest>().is_ok());
        }
    }

    #[test]
    fn an_unknown_choice_lists_the_known_ones() {
        let error = "vmware".parse::<VmmRequest>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"vmware\" is no VMM: auto, firecracker, qemu"
        );
    }
}
