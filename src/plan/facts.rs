//! What the mind is told about this machine and this moment, and the choices that
//! follow from it: which VMM runs a guest, which network it gets, how its root is made
//! writable.

use crate::failure::{Failure, FailureKind};
use crate::model::ids::{ImageName, KernelName, VmName};
use crate::model::limits::Limits;
use crate::model::net::{NetMode, NetRequest, Subnet};
use crate::model::units::Bytes;
use crate::model::vm::{Confinement, RootMode, RootModeRequest, VmmKind, VmmRequest};

use super::record::VmmChoice;

/// Facts that hold as long as the daemon runs, but for what is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Whether KVM executes ordinary guests, by trial.
    pub kvm: Fitness,
    /// The programs of VMMs.
    pub installed: Installed,
    /// Whether we may make taps and rules.
    pub taps: Fitness,
    /// Whether files of the state directory can share blocks.
    pub reflink: Fitness,
    /// Whether we may make loop devices and snapshots over them.
    pub device_mapper: Fitness,
    /// Whether the traffic of a tap can be limited.
    pub tap_limits: Fitness,
    /// Whether a VM's share of the processors can be set.
    pub cpu_weight: Fitness,
    /// Whether all that a VM's processes take can be limited; if not, what cannot.
    pub limits: Fitness,
    /// The lowest port that a user-mode network can publish: its VMM has no privilege.
    pub first_port: u16,
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

/// Which programs can be started. What is missing may be installed while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Whether Firecracker can be started.
    pub firecracker: Fitness,
    /// Whether Firecracker can be started by its jailer.
    pub jailer: Fitness,
    /// Whether QEMU and its vsock back end can be started.
    pub qemu: Fitness,
}

impl Installed {
    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        [&self.firecracker, &self.jailer, &self.qemu]
            .iter()
            .all(|program| program.is_fit())
    }
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

/// Space that must be free before a VM is started: less than a boot and its log may write,
/// and the guest would be halted in the middle of it until its start is given up.
pub const MIN_FREE_TO_START: Bytes = Bytes::mib(16);

impl HostFacts {
    /// The VMM for a start, with the reason that is shown.
    pub fn choose_vmm(&self, request: VmmRequest) -> Result<VmmChoice, Failure> {
        match request {
            VmmRequest::Firecracker => self.firecracker_or_refuse(),
            VmmRequest::Qemu => self.qemu_or_refuse("asked for"),
            VmmRequest::Auto => match (&self.kvm, &self.installed.firecracker) {
                (Fitness::Fit, Fitness::Fit) => Ok(self.firecracker("KVM runs ordinary guests")),
                (Fitness::Fit, Fitness::Unfit(reason)) => {
                    self.qemu_or_refuse(&format!("firecracker cannot be used: {reason}"))
                }
                (Fitness::Unfit(reason), _) => self.qemu_or_refuse(reason),
            },
        }
    }

    /// The same for a VM with this network: a user-mode one only QEMU has.
    pub fn choose_vmm_for(&self, net: NetMode, request: VmmRequest) -> Result<VmmChoice, Failure> {
        match (net, request) {
            (NetMode::User, VmmRequest::Auto) => match self.choose_vmm(request)? {
                choice if choice.kind != VmmKind::Firecracker => Ok(choice),
                _ => self.qemu_or_refuse("only QEMU has a user-mode network"),
            },
            (NetMode::User, _) => self.choose_vmm(VmmRequest::Qemu),
            (NetMode::Isolated | NetMode::Nat | NetMode::None, _) => self.choose_vmm(request),
        }
    }

    fn firecracker_or_refuse(&self) -> Result<VmmChoice, Failure> {
        let missing = [&self.kvm, &self.installed.firecracker]
            .into_iter()
            .find(|fitness| !fitness.is_fit());
        match missing {
            None => Ok(self.firecracker("asked for")),
            Some(fitness) => Err(Failure::failed("use firecracker")
                .because(fitness.why_not())
                .hint("Use `--vmm qemu`, or see `banger doctor`.")),
        }
    }

    fn qemu_or_refuse(&self, reason: &str) -> Result<VmmChoice, Failure> {
        if let Fitness::Unfit(why) = &self.installed.qemu {
            return Err(Failure::failed("find a VMM for the guest")
                .because(why)
                .hint("Run `banger doctor`: it names the package to install."));
        }
        let (kind, how) = match &self.kvm {
            Fitness::Fit => (VmmKind::QemuKvm, reason.to_owned()),
            Fitness::Unfit(why) if why == reason => (VmmKind::QemuTcg, reason.to_owned()),
            Fitness::Unfit(why) => (VmmKind::QemuTcg, format!("{reason}; {why}")),
        };
        Ok(VmmChoice {
            kind,
            reason: how,
            confinement: Confinement::Direct,
            confinement_reason: None,
        })
    }

    fn firecracker(&self, reason: &str) -> VmmChoice {
        let (confinement, confinement_reason) = match &self.installed.jailer {
            Fitness::Fit => (Confinement::Jailer, None),
            Fitness::Unfit(why) => (Confinement::Direct, Some(why.clone())),
        };
        VmmChoice {
            kind: VmmKind::Firecracker,
            reason: reason.to_owned(),
            confinement,
            confinement_reason,
        }
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

    /// Refuses a limit of the network that nobody would keep here: QEMU leaves it to the
    /// host's kernel, Firecracker keeps it itself.
    pub fn check_tap_limit(
        &self,
        name: &VmName,
        net: NetMode,
        vmm: VmmRequest,
        limits: &Limits,
    ) -> Result<(), Failure> {
        let Fitness::Unfit(why) = &self.tap_limits else {
            return Ok(());
        };
        let by_kernel = net.has_tap() && self.choose_vmm(vmm)?.kind != VmmKind::Firecracker;
        if limits.net_bandwidth.is_none() || !by_kernel {
            return Ok(());
        }
        Err(Failure::failed(format!("limit the network of vm {name}"))
            .because(why)
            .hint("Load it with `modprobe nft_limit` and `banger daemon stop`, or leave `--net-bandwidth` out."))
    }

    /// What to say where a weight is asked for that this machine does not know.
    pub fn weight_note(&self, limits: &Limits) -> Option<String> {
        match (limits.cpu_weight, &self.cpu_weight) {
            (Some(weight), Fitness::Unfit(why)) => {
                Some(format!("cpu weight {weight} has no effect here: {why}"))
            }
            (Some(_), Fitness::Fit) | (None, _) => None,
        }
    }

    /// Which limits no VM is held to here, and why.
    pub fn missing_limits(&self) -> Option<String> {
        match &self.limits {
            Fitness::Fit => None,
            Fitness::Unfit(what) => Some(what.clone()),
        }
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

    /// The root mode of a VM with a root of this size over a base of that size.
    ///
    /// `auto` takes the copy with shared blocks first: it needs no privilege and no
    /// object of the kernel, and a full disk is an error of one write, where a snapshot
    /// whose store cannot be written is lost (docs/disks.md).
    ///
    /// # Errors
    /// The mode asked for is not to be had on this machine, or not with these sizes.
    pub fn choose_root(
        &self,
        request: RootModeRequest,
        root: Bytes,
        base: Bytes,
    ) -> Result<RootMode, Failure> {
        let holds = root >= base;
        match self.fit_root(request)? {
            RootModeRequest::Overlay => Ok(RootMode::Overlay),
            RootModeRequest::Reflink if holds => Ok(RootMode::Reflink),
            RootModeRequest::DmSnapshot if holds => Ok(RootMode::DmSnapshot),
            RootModeRequest::Reflink | RootModeRequest::DmSnapshot => Err(Failure::usage(format!(
                "make a root of {root} by {request}: the image has {base} already"
            ))
            .hint(format!(
                "Use `--root-size {}M` or more, or `--root-mode overlay`.",
                base.0.div_ceil(Bytes::mib(1).0)
            ))),
            RootModeRequest::Auto if !holds => Ok(RootMode::Overlay),
            RootModeRequest::Auto => Ok(match (&self.reflink, &self.device_mapper) {
                (Fitness::Fit, _) => RootMode::Reflink,
                (Fitness::Unfit(_), Fitness::Fit) => RootMode::DmSnapshot,
                (Fitness::Unfit(_), Fitness::Unfit(_)) => RootMode::Overlay,
            }),
        }
    }

    /// The request, unless this machine cannot meet it whatever the sizes.
    ///
    /// # Errors
    /// It cannot.
    pub fn fit_root(&self, request: RootModeRequest) -> Result<RootModeRequest, Failure> {
        let fitness = match request {
            RootModeRequest::Auto | RootModeRequest::Overlay => &Fitness::Fit,
            RootModeRequest::Reflink => &self.reflink,
            RootModeRequest::DmSnapshot => &self.device_mapper,
        };
        match fitness {
            Fitness::Fit => Ok(request),
            Fitness::Unfit(why) => Err(Failure::failed(format!("use root mode {request}"))
                .because(why)
                .hint("Use `--root-mode overlay`, or see `banger doctor`.")),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(reflink: Fitness, device_mapper: Fitness) -> HostFacts {
        HostFacts {
            kvm: Fitness::Fit,
            installed: Installed {
                firecracker: Fitness::Fit,
                jailer: Fitness::Fit,
                qemu: Fitness::Fit,
            },
            taps: Fitness::Fit,
            memory: Bytes::gib(64),
            reflink,
            device_mapper,
            tap_limits: Fitness::Fit,
            cpu_weight: Fitness::Fit,
            limits: Fitness::Fit,
            first_port: 1024,
            subnet: "172.30.0.0/24".parse().unwrap(),
            catalog_images: Vec::new(),
            catalog_kernels: Vec::new(),
            ready_deadline_ms: None,
        }
    }

    fn unfit() -> Fitness {
        Fitness::Unfit("this host cannot".to_owned())
    }

    #[test]
    fn auto_takes_the_first_root_mode_that_this_machine_has() {
        let base = Bytes::gib(1);
        let auto = |reflink, device_mapper, root| {
            facts(reflink, device_mapper)
                .choose_root(RootModeRequest::Auto, root, base)
                .unwrap()
        };
        assert_eq!(auto(Fitness::Fit, Fitness::Fit, base), RootMode::Reflink);
        assert_eq!(auto(unfit(), Fitness::Fit, base), RootMode::DmSnapshot);
        assert_eq!(auto(unfit(), unfit(), base), RootMode::Overlay);
        // A root smaller than its image can only be what the changes take.
        let small = Bytes::mib(512);
        assert_eq!(auto(Fitness::Fit, Fitness::Fit, small), RootMode::Overlay);
    }

    #[test]
    fn a_mode_that_was_asked_for_is_had_or_refused_with_the_reason() {
        let root = Bytes::gib(8);
        for request in [RootModeRequest::Reflink, RootModeRequest::DmSnapshot] {
            let failure = facts(unfit(), unfit())
                .choose_root(request, root, Bytes::gib(1))
                .unwrap_err();
            assert!(
                failure.to_string().contains("this host cannot"),
                "{failure}"
            );
            let fit = facts(Fitness::Fit, Fitness::Fit);
            let mode = fit.choose_root(request, root, root).unwrap();
            assert_eq!(mode.to_string(), request.to_string());
            let small = fit.choose_root(request, Bytes::gib(7), root).unwrap_err();
            assert_eq!(small.kind, FailureKind::Usage);
            assert!(small.hint.unwrap().contains("--root-size 8192M"));
        }
    }
}
