//! One row of each kind, with something in every field, for the tests of this room.

use crate::model::ids::VmId;
use crate::model::image::{Image, Kernel};
use crate::model::limits::Limits;
use crate::model::net::{Lease, NetMode, PortForward};
use crate::model::units::Bytes;
use crate::model::vm::{
    Confinement, ImageRef, InitMode, KernelRef, Phase, RootMode, VmSpec, VmmKind, VmmRequest,
};
use crate::plan::make;
use crate::plan::record::{BootReport, GitIdentity, Removal, Stuck, VmRecord, VmmChoice};

fn spec(root_mode: RootMode) -> VmSpec {
    VmSpec {
        name: "dev".parse().unwrap(),
        image: ImageRef {
            name: "debian-bookworm".parse().unwrap(),
            content: "00112233445566aa".parse().unwrap(),
        },
        kernel: KernelRef {
            name: "debian-6.1-cloud".parse().unwrap(),
            content: "00112233445566bb".parse().unwrap(),
        },
        vcpu: 2,
        memory: Bytes::gib(1),
        memory_target: None,
        work_disk: Bytes::gib(8),
        root_disk: Bytes::gib(4),
        root_mode,
        net: NetMode::Nat,
        publish: vec![PortForward::local(8080, 80)],
        init: InitMode::Auto,
        vmm: VmmRequest::Auto,
        env: vec![("LANG".to_owned(), "C.UTF-8".to_owned())],
        workdir: Some("/root/repo".to_owned()),
        limits: Limits::default(),
    }
}

/// A VM with something in every field.
pub(super) fn vm() -> VmRecord {
    vm_of(RootMode::Overlay)
}

/// The same with another root.
pub(super) fn vm_of(root: RootMode) -> VmRecord {
    let id = VmId::from_bits(0x0bad_cafe);
    let lease = Some(Lease {
        address: "172.30.0.2".parse().unwrap(),
        subnet: "172.30.0.0/16".parse().unwrap(),
    });
    VmRecord {
        id,
        lease,
        phase: Phase::Stuck,
        stuck: Some(Stuck::Stopping),
        reason: Some("remove tap bgr-0badcafe: device or resource busy".to_owned()),
        net_reason: Some("asked for".to_owned()),
        git: Some(GitIdentity {
            name: "A U Thor".to_owned(),
            email: "author@example.org".to_owned(),
        }),
        removal: Removal::WithClient,
        grows: false,
        disk_plan: make::disk_plan(id, &spec(root)),
        run_plan: make::run_plan(
            id,
            &spec(root),
            lease,
            VmmKind::QemuTcg,
            Confinement::Direct,
        ),
        vmm: Some(VmmChoice {
            kind: VmmKind::QemuTcg,
            reason: "/dev/kvm does not exist".to_owned(),
            confinement: Confinement::Direct,
            confinement_reason: None,
        }),
        boot: Some(BootReport {
            init: "systemd".to_owned(),
            phases: vec![("modules".to_owned(), 812), ("root".to_owned(), 1104)],
            warnings: vec!["no /etc/ssl in the image".to_owned()],
        }),
        created_at: 1_700_000_000,
        started_at: Some(1_700_000_004),
        spec: spec(root),
    }
}

pub(super) fn image() -> Image {
    Image {
        name: "debian-bookworm".parse().unwrap(),
        content: "00112233445566aa".parse().unwrap(),
        size: Bytes::gib(2),
        allocated: Bytes::mib(700),
        source: "recipe debian-bookworm (bookworm)".to_owned(),
        created_at: 1_700_000_000,
    }
}

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "debian-6.1-cloud".parse().unwrap(),
        content: "00112233445566bb".parse().unwrap(),
        release: "6.1.0-31-cloud-amd64".to_owned(),
        source: "linux-image-6.1.0-31-cloud-amd64 6.1.128-1".to_owned(),
        allocated: Bytes::mib(120),
        created_at: 1_700_000_000,
    }
}
