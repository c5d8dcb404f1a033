//! Properties of the plans of every VM.

use proptest::prelude::*;

use crate::model::limits::Limits;
use crate::model::vm::{Confinement, ImageRef, InitMode, KernelRef, RootMode, VmmRequest};
use crate::plan::operation::{Effect, Operation};
use crate::plan::step::StepKind;

use super::*;

fn spec(net: NetMode, root_mode: RootMode) -> VmSpec {
    VmSpec {
        name: "dev".parse().unwrap(),
        image: ImageRef {
            name: "small".parse().unwrap(),
            content: "aa".parse().unwrap(),
        },
        kernel: KernelRef {
            name: "cloud".parse().unwrap(),
            content: "bb".parse().unwrap(),
        },
        vcpu: 1,
        memory: Bytes::mib(512),
        memory_target: None,
        work_disk: Bytes::gib(1),
        root_disk: Bytes::gib(2),
        root_mode,
        net,
        publish: Vec::new(),
        init: InitMode::Auto,
        vmm: VmmRequest::Auto,
        env: Vec::new(),
        workdir: None,
        limits: Limits::default(),
    }
}

const NETS: [NetMode; 4] = [
    NetMode::Isolated,
    NetMode::Nat,
    NetMode::User,
    NetMode::None,
];

fn lease() -> Lease {
    Lease {
        address: "10.0.0.2".parse().unwrap(),
        subnet: "10.0.0.0/24".parse().unwrap(),
    }
}

fn kinds(steps: &[Step]) -> Vec<StepKind> {
    steps.iter().map(Step::kind).collect()
}

proptest! {
    #[test]
    fn users_stand_after_what_they_use(
        bits: u32,
        net in prop::sample::select(&NETS[..]),
        root in prop::sample::select(RootMode::ALL),
        vmm in prop::sample::select(VmmKind::ALL),
    ) {
        let vm = VmId::from_bits(bits);
        let plan = run_plan(vm, &spec(net, root), Some(lease()), vmm, Confinement::Direct);
        prop_assert!(plan.iter().all(|step| step.vm() == vm));
        let kinds = kinds(&plan);
        let vmm_at = kinds.iter().position(|kind| *kind == StepKind::Vmm).unwrap();
        let before = [StepKind::RunDirectory, StepKind::BaseLoop, StepKind::CowLoop, StepKind::DmSnapshot, StepKind::Tap, StepKind::NetRules, StepKind::Cgroup, StepKind::VsockBackend];
        for (at, kind) in kinds.iter().enumerate() {
            prop_assert_eq!(before.contains(kind), at < vmm_at, "{:?}", kinds);
            prop_assert_eq!(kinds.iter().filter(|other| *other == kind).count(), 1);
        }
        prop_assert_eq!(kinds.last(), Some(&StepKind::Ready));
        let devices: Vec<_> = kinds.iter().filter(|kind| before[1..4].contains(kind)).collect();
        let snapshot = root == RootMode::DmSnapshot;
        prop_assert_eq!(devices, before[1..4].iter().filter(|_| snapshot).collect::<Vec<_>>());
        prop_assert_eq!(kinds.contains(&StepKind::Tap), net.has_tap());
        prop_assert_eq!(kinds.contains(&StepKind::VsockBackend), vmm != VmmKind::Firecracker);
    }

    #[test]
    fn undo_is_the_exact_reverse_of_both_plans(
        net in prop::sample::select(&NETS[..]),
        root in prop::sample::select(RootMode::ALL),
        vmm in prop::sample::select(VmmKind::ALL),
    ) {
        let vm = VmId::from_bits(1);
        let disks = disk_plan(vm, &spec(net, root));
        let run = run_plan(vm, &spec(net, root), Some(lease()), vmm, Confinement::Direct);
        let mut operation = Operation::delete(&disks, &run);
        let mut undone = Vec::new();
        while let Some(effect) = operation.next() {
            if let Effect::Absent(step) = effect {
                undone.push(step);
            }
            operation.report(Ok(()));
        }
        undone.reverse();
        prop_assert_eq!(undone, [disks, run].concat());
    }

    #[test]
    fn plan_of_an_unreadable_vm_covers_every_plan(
        net in prop::sample::select(&NETS[..]),
        root in prop::sample::select(RootMode::ALL),
        vmm in prop::sample::select(VmmKind::ALL),
    ) {
        let vm = VmId::from_bits(1);
        let (all_disks, all_run) =
            everything(vm, &spec(NetMode::None, RootMode::Overlay), lease().subnet);
        for step in disk_plan(vm, &spec(net, root)) {
            prop_assert!(kinds(&all_disks).contains(&step.kind()));
        }
        for step in run_plan(vm, &spec(net, root), Some(lease()), vmm, Confinement::Direct) {
            prop_assert!(kinds(&all_run).contains(&step.kind()));
        }
    }

    #[test]
    fn reset_renews_exactly_what_holds_the_root(root in prop::sample::select(RootMode::ALL)) {
        let vm = VmId::from_bits(1);
        let disks = disk_plan(vm, &spec(NetMode::None, root));
        let mut operation = Operation::reset(&disks);
        let mut touched = Vec::new();
        while let Some(effect) = operation.next() {
            if let Effect::Absent(step) | Effect::Ensure(step) = effect {
                touched.push(step.kind());
            }
            operation.report(Ok(()));
        }
        let expected = match root {
            RootMode::Overlay => StepKind::UpperDisk,
            RootMode::Reflink => StepKind::RootDisk,
            RootMode::DmSnapshot => StepKind::CowFile,
        };
        prop_assert_eq!(touched, vec![expected; 2]);
    }
}
