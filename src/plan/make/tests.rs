//! Properties of the plans of every VM.

use proptest::prelude::*;

use crate::model::vm::{ImageRef, InitMode, KernelRef, VmmRequest};
use crate::plan::operation::{Effect, Operation};
use crate::plan::step::StepKind;

use super::*;

fn spec(net: NetMode) -> VmSpec {
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
        work_disk: Bytes::gib(1),
        root_disk: Bytes::gib(2),
        net,
        publish: Vec::new(),
        init: InitMode::Auto,
        vmm: VmmRequest::Auto,
        env: Vec::new(),
        workdir: None,
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
        vmm in prop::sample::select(VmmKind::ALL),
    ) {
        let vm = VmId::from_bits(bits);
        let plan = run_plan(vm, &spec(net), Some(lease()), vmm);
        prop_assert!(plan.iter().all(|step| step.vm() == vm));
        let kinds = kinds(&plan);
        let vmm_at = kinds.iter().position(|kind| *kind == StepKind::Vmm).unwrap();
        let before = [StepKind::RunDirectory, StepKind::Tap, StepKind::NetRules, StepKind::Cgroup, StepKind::VsockBackend];
        for (at, kind) in kinds.iter().enumerate() {
            prop_assert_eq!(before.contains(kind), at < vmm_at, "{:?}", kinds);
            prop_assert_eq!(kinds.iter().filter(|other| *other == kind).count(), 1);
        }
        prop_assert_eq!(kinds.last(), Some(&StepKind::Ready));
        prop_assert_eq!(kinds.contains(&StepKind::Tap), net.has_tap());
        prop_assert_eq!(kinds.contains(&StepKind::VsockBackend), vmm != VmmKind::Firecracker);
    }

    #[test]
    fn undo_is_the_exact_reverse_of_both_plans(
        net in prop::sample::select(&NETS[..]),
        vmm in prop::sample::select(VmmKind::ALL),
    ) {
        let vm = VmId::from_bits(1);
        let disks = disk_plan(vm, &spec(net));
        let run = run_plan(vm, &spec(net), Some(lease()), vmm);
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
        vmm in prop::sample::select(VmmKind::ALL),
    ) {
        let vm = VmId::from_bits(1);
        let (all_disks, all_run) = everything(vm, &spec(NetMode::None), lease().subnet);
        for step in disk_plan(vm, &spec(net)) {
            prop_assert!(kinds(&all_disks).contains(&step.kind()));
        }
        for step in run_plan(vm, &spec(net), Some(lease()), vmm) {
            prop_assert!(kinds(&all_run).contains(&step.kind()));
        }
    }
}
