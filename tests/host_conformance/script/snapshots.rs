//! The lines of loop devices and snapshots.

use banger::model::ids::VmId;
use banger::model::net::NetMode;
use banger::model::vm::VmmKind;

use super::{Cast, Need, Script, absent, all, ensure, happens, twice};
use crate::world::Turn;

/// What is below a root that is a snapshot, up, down and in the wrong order.
pub fn scripts(vm: VmId) -> Vec<Script> {
    let cast = Cast::new(vm, VmmKind::QemuTcg, NetMode::None);
    let (base, cow, snapshot) = (cast.base_loop(), cast.cow_loop(), cast.snapshot(64));
    let folders = || vec![ensure(cast.folder()), ensure(cast.run())];
    let whole = || vec![cast.store(64), base.clone(), cow.clone(), snapshot.clone()];
    let down = || all(whole().into_iter().rev().collect(), absent);
    vec![
        Script::of(
            "loop devices, without and with their files",
            [
                folders(),
                twice(&base),
                vec![ensure(cow.clone()), ensure(cast.store(64))],
                twice(&cow),
                vec![ensure(cow.clone()), absent(cast.store(64))],
                vec![ensure(cast.store(64)), ensure(cow.clone())],
                vec![ensure(base.clone()), happens(Turn::Reboot)],
                vec![
                    ensure(cast.run()),
                    ensure(base.clone()),
                    ensure(cow.clone()),
                ],
                vec![absent(cow.clone()), absent(base.clone())],
            ]
            .concat(),
        )
        .needs(&[Need::Loops]),
        Script::of(
            "a snapshot, without and with what it needs",
            [
                folders(),
                vec![ensure(snapshot.clone()), ensure(base.clone())],
                vec![ensure(snapshot.clone()), absent(base.clone())],
                all(whole(), ensure),
                twice(&snapshot),
                all(whole(), ensure),
                vec![happens(Turn::Reboot), ensure(cast.run())],
                all(whole(), ensure),
                vec![ensure(cast.snapshot(128)), ensure(snapshot.clone())],
                down(),
                down(),
            ]
            .concat(),
        )
        .needs(&[Need::Snapshots]),
        Script::of(
            "loop devices that a snapshot holds",
            [
                folders(),
                all(whole(), ensure),
                vec![absent(base.clone()), ensure(base.clone())],
                vec![absent(snapshot.clone()), ensure(base.clone())],
                all(whole(), ensure),
                vec![absent(base.clone()), absent(cow.clone())],
                down(),
            ]
            .concat(),
        )
        .needs(&[Need::Snapshots]),
    ]
}
