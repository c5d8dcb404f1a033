//! Makes the two plans of a VM: its disks, and the objects of one run.
//!
//! The order is the order of dependence: whatever a step uses stands before it, so
//! the way down, in reverse, never removes what is in use.

use crate::model::ids::{VmId, VmName};
use crate::model::limits::Limits;
use crate::model::net::{Lease, NetMode, Subnet};
use crate::model::units::Bytes;
use crate::model::vm::{
    Confinement, ImageRef, InitMode, KernelRef, RootMode, VmSpec, VmmKind, VmmRequest,
};

use super::step::{GroupLimits, LiveSizes, Machine, Outside, Step, TapLimit};

/// The VM's disks.
pub fn disk_plan(vm: VmId, spec: &VmSpec) -> Vec<Step> {
    vec![
        Step::VmDirectory { vm },
        root_changes(vm, spec),
        Step::WorkDisk {
            vm,
            size: spec.work_disk,
        },
    ]
}

/// What holds the changes to the root.
fn root_changes(vm: VmId, spec: &VmSpec) -> Step {
    let size = spec.root_disk;
    match spec.root_mode {
        RootMode::Overlay => Step::UpperDisk { vm, size },
        RootMode::Reflink => Step::RootDisk {
            vm,
            image: spec.image.content.clone(),
            size,
        },
        RootMode::DmSnapshot => Step::CowFile { vm, size },
    }
}

/// The objects of one run under this VMM.
pub fn run_plan(
    vm: VmId,
    spec: &VmSpec,
    lease: Option<Lease>,
    kind: VmmKind,
    confinement: Confinement,
) -> Vec<Step> {
    let machine = Machine {
        kind,
        vcpu: spec.vcpu,
        memory: spec.memory,
        image: spec.image.content.clone(),
        root: spec.root_mode,
        kernel: spec.kernel.content.clone(),
        net: spec.net,
        publish: spec.publish.clone(),
        limits: spec.limits,
        confinement,
    };
    let mut steps = vec![Step::RunDirectory { vm }];
    steps.extend(snapshot(vm, spec));
    steps.extend(network(vm, spec, lease));
    steps.extend(net_limit(vm, spec, lease, kind));
    let limits = group_limits(spec, kind);
    steps.push(Step::Cgroup { vm, limits });
    match kind {
        VmmKind::QemuKvm | VmmKind::QemuTcg => steps.push(Step::VsockBackend { vm }),
        VmmKind::Firecracker => {}
    }
    steps.extend([
        Step::Vmm {
            vm,
            machine: machine.clone(),
        },
        Step::Configured { vm, machine },
        Step::Booted { vm, kind },
        Step::Ready { vm },
    ]);
    steps
}

/// What gives a running VM the sizes of its row: the work disk's file first, then the VMM
/// and the guest.
pub fn adjustment(vm: VmId, spec: &VmSpec, run_plan: &[Step]) -> Vec<Step> {
    let machine = run_plan.iter().find_map(|step| match step {
        Step::Configured { machine, .. } => Some(machine.clone()),
        _ => None,
    });
    let sizes = LiveSizes {
        work_disk: spec.work_disk,
        memory_target: spec.memory_target,
    };
    let size = spec.work_disk;
    let mut steps = vec![Step::WorkDisk { vm, size }];
    steps.extend(machine.map(|machine| Step::Adjusted { vm, machine, sizes }));
    steps
}

/// The block devices of a root that is a snapshot.
fn snapshot(vm: VmId, spec: &VmSpec) -> Vec<Step> {
    match spec.root_mode {
        RootMode::Overlay | RootMode::Reflink => Vec::new(),
        RootMode::DmSnapshot => vec![
            Step::BaseLoop {
                vm,
                image: spec.image.content.clone(),
            },
            Step::CowLoop {
                vm,
                size: spec.root_disk,
            },
            Step::DmSnapshot {
                vm,
                size: spec.root_disk,
            },
        ],
    }
}

/// QEMU's cache of translated code, MiB. Its own default is a gibibyte, which no VM's limit
/// should have to include; a boot to systemd fills 140, and the cache starts anew when it
/// is full.
pub const TRANSLATED_MIB: u64 = 512;

/// Processes and threads of a VM: QEMU has at most 64 workers for disks and one thread per
/// virtual processor, and none of its neighbours comes near.
const TASKS: u32 = 256;

/// What a VM's processes may take: the guest's memory, and what the VMM needs besides
/// (docs/privileges.md has what was measured). As much of the guest as the host likes may
/// go to swap space, and no more than that.
fn group_limits(spec: &VmSpec, kind: VmmKind) -> GroupLimits {
    let overhead = match kind {
        VmmKind::Firecracker => Bytes::mib(64),
        VmmKind::QemuKvm => Bytes::mib(192),
        // The translated code, and what QEMU keeps about it.
        VmmKind::QemuTcg => Bytes::mib(TRANSLATED_MIB + 128),
    };
    GroupLimits {
        memory: Some(Bytes(spec.memory.0.saturating_add(overhead.0))),
        swap: Some(spec.memory),
        tasks: Some(TASKS),
        cpu_weight: spec.limits.cpu_weight,
        // The guest's own, and one for what the VMM and its neighbours do for it.
        processors: Some(u16::from(spec.vcpu) + 1),
    }
}

fn network(vm: VmId, spec: &VmSpec, lease: Option<Lease>) -> Vec<Step> {
    let outside = match spec.net {
        NetMode::Isolated => Outside::Closed,
        NetMode::Nat => Outside::Nat,
        NetMode::User | NetMode::None => return Vec::new(),
    };
    let Some(Lease { address, subnet }) = lease else {
        return Vec::new();
    };
    vec![
        Step::Tap { vm, subnet },
        Step::NetRules {
            vm,
            address,
            subnet,
            outside,
            publish: spec.publish.clone(),
        },
    ]
}

/// Firecracker limits its network device itself; QEMU cannot, so the tap is limited.
fn net_limit(vm: VmId, spec: &VmSpec, lease: Option<Lease>, kind: VmmKind) -> Option<Step> {
    let limited = spec.net.has_tap() && kind != VmmKind::Firecracker;
    let bandwidth = spec.limits.net_bandwidth.filter(|_| limited)?;
    let subnet = lease?.subnet;
    let limit = TapLimit { subnet, bandwidth };
    Some(Step::NetLimit { vm, limit })
}

/// Every object that a VM of this identity could have, for a row that cannot be read:
/// `absent` needs the identity only, the rest of each step is without meaning.
pub fn everything(vm: VmId, spec: &VmSpec, subnet: Subnet) -> (Vec<Step>, Vec<Step>) {
    let lease = Lease {
        address: subnet.gateway(),
        subnet,
    };
    let of_mode = |root_mode| VmSpec {
        net: NetMode::Nat,
        limits: Limits {
            net_bandwidth: Some(Bytes::mib(1)),
            ..Limits::default()
        },
        work_disk: Bytes(0),
        root_disk: Bytes(0),
        root_mode,
        ..spec.clone()
    };
    let snapshot = of_mode(RootMode::DmSnapshot);
    let mut disks = disk_plan(vm, &snapshot);
    for mode in [RootMode::Overlay, RootMode::Reflink] {
        disks.insert(1, root_changes(vm, &of_mode(mode)));
    }
    let run = run_plan(
        vm,
        &snapshot,
        Some(lease),
        VmmKind::QemuTcg,
        Confinement::Direct,
    );
    (disks, run)
}

/// What stands for a VM of which nothing is known but its name.
pub fn unknown(name: VmName) -> VmSpec {
    let unknown = "unknown";
    VmSpec {
        name,
        image: ImageRef {
            name: unknown.parse().expect("a plain word"),
            content: "0".parse().expect("a digit"),
        },
        kernel: KernelRef {
            name: unknown.parse().expect("a plain word"),
            content: "0".parse().expect("a digit"),
        },
        vcpu: 1,
        memory: Bytes(0),
        memory_target: None,
        work_disk: Bytes(0),
        root_disk: Bytes(0),
        root_mode: RootMode::Overlay,
        net: NetMode::None,
        publish: Vec::new(),
        init: InitMode::Auto,
        vmm: VmmRequest::Auto,
        env: Vec::new(),
        workdir: None,
        limits: Limits::default(),
    }
}

/// Every object that a VM could have of which nothing is known but its identity.
pub fn by_identity(vm: VmId, subnet: Subnet) -> Vec<Step> {
    let name = format!("unknown-{vm}");
    let name = name.parse().expect("lower-case and hexadecimal");
    let (disks, run) = everything(vm, &unknown(name), subnet);
    disks.into_iter().chain(run).collect()
}

#[cfg(test)]
mod tests;
