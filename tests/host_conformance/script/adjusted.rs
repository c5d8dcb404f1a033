//! Scripts about sizes that a machine is given while it runs.

use banger::model::ids::VmId;
use banger::model::net::NetMode;
use banger::model::units::Bytes;
use banger::model::vm::{Confinement, VmmKind};
use banger::plan::step::{LiveSizes, Step};

use super::{Cast, Need, Script, absent, all, ensure, happens, twice};
use crate::world::Turn;

pub fn scripts(vm: VmId) -> Vec<Script> {
    let of = |kind, net| Cast::new(vm, kind, net);
    let mut jailed = of(VmmKind::Firecracker, NetMode::None);
    jailed.machine.confinement = Confinement::Jailer;
    vec![
        sizes("sizes in a jail", &jailed).needs(&[Need::Firecracker, Need::Jailer]),
        sizes("sizes under QEMU", &of(VmmKind::QemuTcg, NetMode::None)).needs(&[Need::Qemu]),
        sizes(
            "sizes under Firecracker",
            &of(VmmKind::Firecracker, NetMode::None),
        )
        .needs(&[Need::Firecracker]),
    ]
}

/// Of a machine that runs, of one that died, and of none. Without a target: a guest without
/// a driver has no balloon that Firecracker could tell anything.
fn sizes(name: &'static str, cast: &Cast) -> Script {
    let adjusted = Step::Adjusted {
        vm: cast.vm,
        machine: cast.machine.clone(),
        sizes: LiveSizes {
            work_disk: Bytes::mib(64),
            memory_target: None,
        },
    };
    let lines = [
        all(cast.plan(), ensure),
        twice(&adjusted),
        vec![happens(Turn::VmmDies(cast.vm)), ensure(adjusted.clone())],
        vec![absent(cast.vmm()), ensure(adjusted)],
        all(cast.plan().into_iter().rev().collect(), absent),
    ];
    Script::of(name, lines.concat())
}
