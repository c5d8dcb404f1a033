//! Scripts about Firecracker, started directly and in a jail.

use banger::model::ids::VmId;
use banger::model::net::NetMode;
use banger::model::vm::{Confinement, VmmKind};
use banger::plan::step::Step;

use super::{Cast, Need, Script, absent, all, ensure, happens, whole_life};
use crate::world::Turn;

pub fn scripts(vm: VmId) -> Vec<Script> {
    let mut cast = Cast::new(vm, VmmKind::Firecracker, NetMode::Nat);
    let direct = [Need::Firecracker, Need::Groups];
    let mut scripts = vec![
        whole_life("a life under Firecracker", &cast).needs(&direct),
        without_files("Firecracker without its files", &cast).needs(&direct),
    ];
    cast.machine.confinement = Confinement::Jailer;
    let jailed = [Need::Firecracker, Need::Groups, Need::Jailer];
    scripts.push(whole_life("a life in a jail", &cast).needs(&jailed));
    scripts.push(without_files("a jail without its files", &cast).needs(&jailed));
    scripts
}

/// A Firecracker that ends, that lacks what it is given, and that loses it afterwards.
fn without_files(name: &'static str, cast: &Cast) -> Script {
    let up_to = |end: &Step| cast.plan_before(end);
    let again = |need: Step| {
        let mut lines = up_to(&cast.vmm());
        lines.extend([absent(need), ensure(cast.vmm()), absent(cast.vmm())]);
        lines
    };
    let (upper, work) = (cast.upper(64), cast.work(64));
    let needs = [
        cast.run(),
        cast.group(),
        cast.folder(),
        upper.clone(),
        work.clone(),
    ];
    let lines = [
        all(cast.plan(), ensure),
        vec![happens(Turn::VmmDies(cast.vm))],
        needs.into_iter().flat_map(again).collect(),
        up_to(&cast.configured()),
        vec![absent(work), absent(upper)],
        vec![ensure(cast.configured()), ensure(cast.booted())],
        all(cast.plan().into_iter().rev().collect(), absent),
    ];
    Script::of(name, lines.concat())
}
