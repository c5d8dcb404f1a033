//! What the mind is told about this machine and this moment, and the two choices that
//! follow from it: which VMM runs a guest, and which network it gets.

use crate::failure::{Failure, FailureKind};
use crate::model::ids::{ImageName, KernelName};
use crate::model::net::{NetMode, NetRequest, Subnet};
use crate::model::units::Bytes;
use crate::model::vm::{VmmKind, VmmRequest};

use super::record::VmmChoice;

/// Facts that hold as long as the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Whether KVM executes ordinary guests, by trial.
    pub kvm: Fitness,
    /// Whether Firecracker can be started.
    pub firecracker: Fitness,
    /// Whether QEMU and its vsock back end can be started.
    pub qemu: Fitness,
    /// Whether we may make taps and rules.
    pub taps: Fitness,
    /// The network of our bridge.
    pub subnet: Subnet,
    /// Main memory of this machine, without its swap.
    pub memory: Bytes,
    /// The names that can be pulled.
    pub catalog_images: Vec<ImageName>,
    /// The names that can be pulled.
    pub catalog_kernels: Vec<KernelName>,
    /// Overrides the deadline for a guest to answer, milliseconds.
    pub ready_deadline_ms: Option<u64>,
}

/// Whether something can be used, and if not, why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitness {
    /// It can.
    Fit,
    /// It cannot, for this reason: `/dev/kvm does not exist`.
    Unfit(String),
}

impl Fitness {
    /// Whether it can be used.
    pub fn is_fit(&self) -> bool {
        matches!(self, Fitness::Fit)
    }

    fn why_not(&self) -> &str {
        match self {
            Fitness::Fit => "it can be used",
            Fitness::Unfit(reason) => reason,
        }
    }
}

/// Facts of the instant at which an event arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since the epoch.
    pub unix_s: u64,
    /// Fresh random bits: a VM's identity or name may be made of them.
    pub random: u64,
    /// Bytes free for us where VMs' disks live.
    pub state_free: Bytes,
}

/// Space that must be free before a VM is created: its disks are sparse, so this is
/// what their metadata and a first boot take.
pub const MIN_FREE: Bytes = Bytes::mib(64);

impl HostFacts {
    /// The VMM for a start, with the reason that is shown.
    pub fn choose_vmm(&self, request: VmmRequest) -> Result<VmmChoice, Failure> {
        match request {
            VmmRequest::Firecracker => self.firecracker_or_refuse(),
            VmmRequest::Qemu => self.qemu_or_refuse("asked for"),
            VmmRequest::Auto => match (&self.kvm, &self.firecracker) {
                (Fitness::Fit, Fitness::Fit) => Ok(VmmChoice {
                    kind: VmmKind::Firecracker,
                    reason: "KVM runs ordinary guests".to_owned(),
                }),
                (Fitness::Fit, Fitness::Unfit(reason)) => {
                    self.qemu_or_refuse(&format!("firecracker cannot be used: {reason}"))
                }
                (Fitness::Unfit(reason), _) => self.qemu_or_refuse(reason),
            },
        }
    }

    fn firecracker_or_refuse(&self) -> Result<VmmChoice, Failure> {
        let missing = [&self.kvm, &self.firecracker]
            .into_iter()
            .find(|fitness| !fitness.is_fit());
        match missing {
            None => Ok(VmmChoice {
                kind: VmmKind::Firecracker,
                reason: "asked for".to_owned(),
            }),
            Some(fitness) => Err(Failure::failed("use firecracker")
                .because(fitness.why_not())
                .hint("Use `--vmm qemu`, or see `banger doctor`.")),
        }
    }

    fn qemu_or_refuse(&self, reason: &str) -> Result<VmmChoice, Failure> {
        if let Fitness::Unfit(why) = &self.qemu {
            return Err(Failure::failed("find a VMM for the guest")
                .because(why)
                .hint("Run `banger doctor`: it names the package to install."));
        }
        let (kind, how) = match &self.kvm {
            Fitness::Fit => (VmmKind::QemuKvm, reason.to_owned()),
            Fitness::Unfit(why) if why == reason => (VmmKind::QemuTcg, reason.to_owned()),
            Fitness::Unfit(why) => (VmmKind::QemuTcg, format!("{reason}; {why}")),
        };
        Ok(VmmChoice { kind, reason: how })
    }

    /// Refuses more guest memory than this machine has. A guest fills its memory in
    /// time: what is lacking would end in the swap, or with a VMM that the kernel kills.
    pub fn check_memory(&self, memory: Bytes) -> Result<(), Failure> {
        if memory <= self.memory {
            return Ok(());
        }
        let has = Bytes::mib(self.memory.whole_mib());
        Err(Failure::usage(format!(
            "memory of {memory} is more than this machine has, {has}"
        )))
    }

    /// The network of a VM under this VMM, with what is worth saying about it.
    pub fn choose_net(
        &self,
        request: NetRequest,
        vmm: VmmKind,
    ) -> Result<(NetMode, Option<String>), Failure> {
        match (request, &self.taps) {
            (NetRequest::None, _) => Ok((NetMode::None, None)),
            (NetRequest::User, _) if vmm == VmmKind::Firecracker => {
                Err(Failure::usage("use the user-mode network with firecracker")
                    .hint("Use `--net nat`, or `--vmm qemu`."))
            }
            (NetRequest::User, _) => Ok((NetMode::User, None)),
            (NetRequest::Nat, Fitness::Fit) => Ok((NetMode::Nat, None)),
            (NetRequest::Auto, Fitness::Fit) => Ok((NetMode::Isolated, None)),
            (NetRequest::Nat, Fitness::Unfit(why)) => Err(Failure::new(
                FailureKind::Denied,
                "make a network with translation to the outside",
            )
            .because(why)
            .hint("Use `--net user`, or start the root helper: `sudo bangerd-root --owner $(id -u)`, then `banger daemon stop`.")),
            (NetRequest::Auto, Fitness::Unfit(why)) => Ok(self.without_tap(vmm, why)),
        }
    }

    fn without_tap(&self, vmm: VmmKind, why: &str) -> (NetMode, Option<String>) {
        match vmm {
            VmmKind::Firecracker => (
                NetMode::None,
                Some(format!(
                    "no network: {why}; for one, use `--vmm qemu`, or `sudo bangerd-root --owner $(id -u)` and `banger daemon stop`"
                )),
            ),
            VmmKind::QemuKvm | VmmKind::QemuTcg => (
                NetMode::User,
                Some(format!(
                    "user-mode network: {why}; the guest reaches what listens on this host's 127.0.0.1 (as 10.0.2.2); for a tap with an address of its own, `sudo bangerd-root --owner $(id -u)` and `banger daemon stop`"
                )),
            ),
        }
    }
}
