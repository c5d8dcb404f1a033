//! Every row comes back as it went in, and the rows checked in are still read.

use crate::model::limits::Limits;
use crate::model::vm::{Confinement, RootMode, VmmKind};
use crate::plan::make;
use crate::plan::step::{GroupLimits, Step};
use crate::store::fixture::{image, kernel, vm, vm_of};

use super::*;

fn row_of(change: RowChange) -> (String, Vec<u8>) {
    let (_, key, value) = write(&change).unwrap();
    (key, value.unwrap())
}

/// Compares with the sample as JSON, so that its layout is for people.
fn same_json(row: &[u8], sample: &str) {
    let row: serde_json::Value = serde_json::from_slice(row).unwrap();
    let sample: serde_json::Value = serde_json::from_str(sample).unwrap();
    assert_eq!(
        row,
        sample,
        "{}",
        serde_json::to_string_pretty(&row).unwrap()
    );
}

#[test]
fn every_row_comes_back_as_it_went_in() {
    let rows = read(
        vec![row_of(RowChange::PutVm(Box::new(vm())))],
        vec![row_of(RowChange::PutImage(image()))],
        vec![row_of(RowChange::PutKernel(kernel()))],
    )
    .unwrap();
    assert_eq!(rows.vms, [vm()]);
    assert_eq!(rows.images, [image()]);
    assert_eq!(rows.kernels, [kernel()]);
    assert!(rows.unreadable.is_empty());
}

#[test]
fn samples_of_version_1_are_read_and_still_written_so() {
    let vm_sample = include_str!("../samples/vm.v1.json");
    let image_sample = include_str!("../samples/image.v1.json");
    let kernel_sample = include_str!("../samples/kernel.v1.json");
    same_json(&row_of(RowChange::PutVm(Box::new(vm()))).1, vm_sample);
    same_json(&row_of(RowChange::PutImage(image())).1, image_sample);
    same_json(&row_of(RowChange::PutKernel(kernel())).1, kernel_sample);
    let sample = |key: &str, text: &str| vec![(key.to_owned(), text.as_bytes().to_vec())];
    let loaded = read(
        sample("0badcafe", vm_sample),
        sample("debian-bookworm", image_sample),
        sample("debian-6.1-cloud", kernel_sample),
    )
    .unwrap();
    assert_eq!(loaded.vms, [vm()]);
    assert_eq!(loaded.images, [image()]);
    assert_eq!(loaded.kernels, [kernel()]);
}

#[test]
fn every_root_mode_is_read_as_it_was_written_and_rows_without_one_are_overlays() {
    for mode in RootMode::ALL {
        let row = row_of(RowChange::PutVm(Box::new(vm_of(*mode))));
        let loaded = read(vec![row], Vec::new(), Vec::new()).unwrap();
        assert_eq!(loaded.vms, [vm_of(*mode)]);
    }
    let snapshot = vm_of(RootMode::DmSnapshot);
    let sample = include_str!("../samples/vm.v1-dm-snapshot.json");
    same_json(&row_of(RowChange::PutVm(Box::new(snapshot))).1, sample);
    let before = include_str!("../samples/vm.v1-before-root-modes.json");
    let row = ("0badcafe".to_owned(), before.as_bytes().to_vec());
    let loaded = read(vec![row], Vec::new(), Vec::new()).unwrap();
    // Nor had rules a list of ports then, or control groups limits.
    let mut expected = vm();
    for step in &mut expected.run_plan {
        match step {
            Step::NetRules { publish, .. } => publish.clear(),
            Step::Cgroup { limits, .. } => *limits = GroupLimits::default(),
            _ => {}
        }
    }
    assert_eq!(loaded.vms, [expected]);
}

#[test]
fn limits_come_back_and_rows_without_any_have_none() {
    let mut limited = vm();
    limited.spec.limits = Limits {
        disk_iops: Some(500),
        disk_bandwidth: Some(Bytes::mib(20)),
        net_bandwidth: Some(Bytes::mib(1)),
        cpu_weight: Some(200),
    };
    limited.grows = true;
    let (spec, kind) = (&limited.spec, VmmKind::QemuTcg);
    limited.run_plan = make::run_plan(limited.id, spec, limited.lease, kind, Confinement::Direct);
    let row = row_of(RowChange::PutVm(Box::new(limited.clone())));
    same_json(&row.1, include_str!("../samples/vm.v1-limits.json"));
    let loaded = read(vec![row], Vec::new(), Vec::new()).unwrap();
    assert_eq!(loaded.vms, [limited]);
}

#[test]
fn rows_of_before_processor_time_was_limited_have_no_such_limit() {
    let sample = include_str!("../samples/vm.v1.json");
    let before = sample.replace(", \"processors\": 3", "");
    assert_ne!(before, sample);
    let row = ("0badcafe".to_owned(), before.into_bytes());
    let loaded = read(vec![row], Vec::new(), Vec::new()).unwrap();
    let mut expected = vm();
    for step in &mut expected.run_plan {
        if let Step::Cgroup { limits, .. } = step {
            limits.processors = None;
        }
    }
    assert_eq!(loaded.vms, [expected]);
}

#[test]
fn a_confinement_comes_back_and_rows_without_one_are_direct() {
    let mut jailed = vm();
    let (kind, confinement) = (VmmKind::Firecracker, Confinement::Jailer);
    let (spec, lease) = (&jailed.spec, jailed.lease);
    jailed.run_plan = make::run_plan(jailed.id, spec, lease, kind, confinement);
    jailed.vmm = Some(VmmChoice {
        kind,
        reason: "KVM runs ordinary guests".to_owned(),
        confinement,
        confinement_reason: None,
    });
    let row = row_of(RowChange::PutVm(Box::new(jailed.clone())));
    same_json(&row.1, include_str!("../samples/vm.v1-jailed.json"));
    let loaded = read(vec![row], Vec::new(), Vec::new()).unwrap();
    assert_eq!(loaded.vms, [jailed.clone()]);

    // As a version before there was a choice wrote the same, or a direct one with a reason.
    let text = include_str!("../samples/vm.v1-jailed.json");
    let before = text.replace(r#", "confinement": "jailer""#, "");
    let row = ("0badcafe".to_owned(), before.into_bytes());
    let loaded = read(vec![row], Vec::new(), Vec::new()).unwrap();
    let choice = loaded.vms[0].vmm.as_ref().unwrap();
    assert_eq!(choice.confinement, Confinement::Direct);
    assert_ne!(loaded.vms[0].run_plan, jailed.run_plan);
}

#[test]
fn target_of_memory_comes_back_and_so_does_what_gives_it() {
    let mut breathing = vm();
    breathing.spec.memory_target = Some(Bytes::mib(512));
    breathing.run_plan = make::adjustment(breathing.id, &breathing.spec, &breathing.run_plan);
    let row = row_of(RowChange::PutVm(Box::new(breathing.clone())));
    same_json(&row.1, include_str!("../samples/vm.v1-memory-target.json"));
    let loaded = read(vec![row], Vec::new(), Vec::new()).unwrap();
    assert_eq!(loaded.vms, [breathing]);
}

#[test]
fn unreadable_vm_is_reported_with_its_name_and_address() {
    let (key, value) = row_of(RowChange::PutVm(Box::new(vm())));
    let text = String::from_utf8(value).unwrap();
    let newer = text.replace("\"vm_directory\"", "\"hologram\"");
    let torn = text[..text.len() / 2].to_owned();
    let rows = vec![
        (key, newer.into_bytes()),
        ("00000001".to_owned(), torn.into_bytes()),
    ];
    let loaded = read(rows, Vec::new(), Vec::new()).unwrap();
    assert!(loaded.vms.is_empty());
    assert_eq!(loaded.unreadable[0].name, Some("dev".parse().unwrap()));
    assert_eq!(loaded.unreadable[0].lease, vm().lease);
    assert!(loaded.unreadable[0].reason.contains("hologram"));
    assert_eq!(loaded.unreadable[1].name, None);
}

#[test]
fn damaged_image_is_a_clear_failure() {
    let rows = vec![("debian".to_owned(), b"{}".to_vec())];
    let failure = read(Vec::new(), rows, Vec::new()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Storage);
    assert!(failure.what.contains("image debian"));
}
