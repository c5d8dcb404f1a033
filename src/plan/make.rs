//! Makes the two plans of a VM: its disks, and the objects of one run.
//!
//! The order is the order of dependence: whatever a step uses stands before it, so
//! the way down, in reverse, never removes what is in use.

use crate::model::ids::VmId;
use crate::model::net::{Lease, NetMode, Subnet};
use crate::model::units::Bytes;
use crate::model::vm::{VmSpec, VmmKind};

use super::step::{Machine, Outside, Step};

/// The VM's disks.
pub fn disk_plan(vm: VmId, spec: &VmSpec) -> Vec<Step> {
    vec![
        Step::VmDirectory { vm },
        Step::UpperDisk {
            vm,
            size: spec.root_disk,
        },
        Step::WorkDisk {
            vm,
            size: spec.work_disk,
        },
    ]
}

/// The objects of one run under this VMM.
pub fn run_plan(vm: VmId, spec: &VmSpec, lease: Option<Lease>, kind: VmmKind) -> Vec<Step> {
    let machine = Machine {
        kind,
        vcpu: spec.vcpu,
        memory: spec.memory,
        image: spec.image.content.clone(),
        kernel: spec.kernel.content.clone(),
        net: spec.net,
        publish: spec.publish.clone(),
    };
    let mut steps = vec![Step::RunDirectory { vm }];
    steps.extend(network(vm, spec.net, lease));
    steps.push(Step::Cgroup { vm });
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

fn network(vm: VmId, net: NetMode, lease: Option<Lease>) -> Vec<Step> {
    let outside = match net {
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
        },
    ]
}

/// Every object that a VM of this identity could have, for a row that cannot be read:
/// `absent` needs the identity only, the rest of each step is without meaning.
pub fn everything(vm: VmId, spec: &VmSpec, subnet: Subnet) -> (Vec<Step>, Vec<Step>) {
    let lease = Lease {
        address: subnet.gateway(),
        subnet,
    };
    let spec = VmSpec {
        net: NetMode::Nat,
        work_disk: Bytes(0),
        root_disk: Bytes(0),
        ..spec.clone()
    };
    (
        disk_plan(vm, &spec),
        run_plan(vm, &spec, Some(lease), VmmKind::QemuTcg),
    )
}

#[cfg(test)]
mod tests;
