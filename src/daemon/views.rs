//! Records as clients see them.

use std::os::unix::fs::MetadataExt;

use super::base;
use crate::host::layout::Layout;
use crate::host::{cow, disk, dm};
use crate::model::ids::VmId;
use crate::model::image::{Image, Kernel};
use crate::model::units::Bytes;
use crate::model::vm::{RootMode, VmSpec, VmmKind};
use crate::plan::facts::HostFacts;
use crate::plan::record::{VmRecord, VmmChoice};
use crate::plan::request::{self as plan, PullKey};
use crate::plan::retry::Verb;
use crate::plan::step::StepKind;
use crate::plan::store_level;
use crate::proto::reply::{Balloon, ImageView, KernelView, Progress, RootStore, VmView};

/// A VM, with what only this machine knows of it.
pub fn vm(record: &VmRecord, layout: &Layout, facts: &HostFacts, pid: Option<u32>) -> VmView {
    let (spec, boot, vmm) = (&record.spec, record.boot.as_ref(), record.vmm.as_ref());
    VmView {
        id: record.id.to_string(),
        name: spec.name.to_string(),
        phase: record.phase.to_string(),
        retry: record.stuck.map(|stuck| stuck.retry().to_owned()),
        reason: record.reason.clone(),
        image: spec.image.name.to_string(),
        image_content: spec.image.content.to_string(),
        kernel: spec.kernel.name.to_string(),
        vcpu: spec.vcpu,
        memory: spec.memory.0,
        balloon: balloon(spec, pid),
        work_disk: spec.work_disk.0,
        root_disk: spec.root_disk.0,
        root_mode: spec.root_mode.to_string(),
        root_store: root_store(record, layout),
        allocated: allocated(record.id, layout),
        net: spec.net.to_string(),
        net_reason: record.net_reason.clone(),
        address: record.lease.map(|lease| lease.address.to_string()),
        publish: spec.publish.iter().map(ToString::to_string).collect(),
        init: boot.map_or_else(|| spec.init.to_string(), |boot| boot.init.clone()),
        vmm: vmm.map(|vmm| vmm.kind.to_string()),
        vmm_reason: vmm.map(|vmm| vmm.reason.clone()),
        confinement: vmm.map(confinement),
        confinement_reason: vmm.and_then(|vmm| vmm.confinement_reason.clone()),
        pid,
        workdir: spec.workdir.clone(),
        limits: spec.limits.into(),
        limits_note: facts.weight_note(&spec.limits),
        limits_missing: facts.missing_limits(),
        created_at: record.created_at,
        started_at: record.started_at,
        boot_phases: boot.map(|boot| boot.phases.clone()).unwrap_or_default(),
        warnings: boot.map(|boot| boot.warnings.clone()).unwrap_or_default(),
        delete_on_disconnect: record.removal == crate::plan::record::Removal::WithClient,
    }
}

fn confinement(vmm: &VmmChoice) -> String {
    match vmm.kind {
        VmmKind::Firecracker => vmm.confinement.to_string(),
        VmmKind::QemuKvm | VmmKind::QemuTcg => "sandbox".to_owned(),
    }
}

/// How full the store of a root is that is a snapshot, while it is there.
fn root_store(record: &VmRecord, layout: &Layout) -> Option<RootStore> {
    if record.spec.root_mode != RootMode::DmSnapshot {
        return None;
    }
    let level = match dm::level(record.id) {
        Ok(level) => level?,
        Err(fault) => {
            return Some(RootStore {
                used: 0,
                total: 0,
                state: "unknown".to_owned(),
                warning: Some(fault.what),
            });
        }
    };
    let needed = cow::length_for(record.spec.root_disk);
    let free = disk::free_space(&layout.vm_directory(record.id)).unwrap_or(Bytes(0));
    Some(RootStore {
        used: level.used.0,
        total: level.total.0,
        state: level.state.word().to_owned(),
        warning: store_level::warning(record.spec.name.as_str(), &level, needed, free),
    })
}

/// What is known without asking the VMM.
fn balloon(spec: &VmSpec, pid: Option<u32>) -> Balloon {
    Balloon {
        memory_target: spec.memory_target.map(|target| target.0),
        memory_actual: None,
        memory_resident: pid.and_then(resident),
    }
}

/// Bytes of a process in memory: the second number of proc_pid_statm(5), in pages.
fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Bytes that a VM's disks take on the host; a disk that is not there takes none.
fn allocated(vm: VmId, layout: &Layout) -> u64 {
    let disks = [
        layout.upper_disk(vm),
        layout.root_disk(vm),
        layout.cow_file(vm),
        layout.work_disk(vm),
    ];
    // st_blocks counts 512-byte units whatever the file system's block (stat(2)).
    disks
        .iter()
        .filter_map(|disk| std::fs::metadata(disk).ok())
        .map(|seen| seen.blocks() * 512)
        .sum()
}

/// An image of the store.
pub fn image<'a>(
    image: &Image,
    vms: impl Iterator<Item = &'a VmRecord>,
    layout: &Layout,
) -> ImageView {
    let key = PullKey::Image(image.name.clone());
    let users = vms.filter(|vm| vm.spec.image.content == image.content);
    ImageView {
        name: image.name.to_string(),
        present: true,
        content: image.content.to_string(),
        size: image.size.0,
        allocated: image.allocated.0,
        source: image.source.clone(),
        created_at: image.created_at,
        damaged: base::damage(layout, &key, &image.content),
        used_by: users.map(|vm| vm.spec.name.to_string()).collect(),
    }
}

/// A kernel of the store.
pub fn kernel<'a>(
    kernel: &Kernel,
    vms: impl Iterator<Item = &'a VmRecord>,
    layout: &Layout,
) -> KernelView {
    let key = PullKey::Kernel(kernel.name.clone());
    let users = vms.filter(|vm| vm.spec.kernel.content == kernel.content);
    KernelView {
        name: kernel.name.to_string(),
        present: true,
        content: kernel.content.to_string(),
        release: kernel.release.clone(),
        allocated: kernel.allocated.0,
        source: kernel.source.clone(),
        created_at: kernel.created_at,
        damaged: base::damage(layout, &key, &kernel.content),
        used_by: users.map(|vm| vm.spec.name.to_string()).collect(),
    }
}

/// An image that could be pulled.
pub fn catalog_image(name: &str, source: &str) -> ImageView {
    ImageView {
        name: name.to_owned(),
        present: false,
        content: String::new(),
        size: 0,
        allocated: 0,
        source: source.to_owned(),
        created_at: 0,
        damaged: None,
        used_by: Vec::new(),
    }
}

/// A kernel that could be pulled.
pub fn catalog_kernel(name: &str, source: &str) -> KernelView {
    KernelView {
        name: name.to_owned(),
        present: false,
        content: String::new(),
        release: String::new(),
        allocated: 0,
        source: source.to_owned(),
        created_at: 0,
        damaged: None,
        used_by: Vec::new(),
    }
}

/// News of a request.
pub fn progress(news: &plan::Progress) -> Progress {
    let plain = |stage: String, detail: String| Progress {
        stage,
        detail,
        current: None,
        total: None,
    };
    match news {
        plan::Progress::Named { vm, name } => plain("vm".to_owned(), format!("{name} ({vm})")),
        plan::Progress::Step { verb, kind } => {
            plain(stage(*verb, *kind).to_owned(), kind.word().to_owned())
        }
        plan::Progress::Note(text) => plain("note".to_owned(), text.clone()),
        plan::Progress::Pull(pull) => Progress {
            stage: pull.what.clone(),
            detail: pull.stage.clone(),
            current: Some(pull.done).filter(|_| pull.total.is_some()),
            total: pull.total,
        },
    }
}

/// The stage that people see for a step; steps of one stage follow one another.
fn stage(verb: Verb, kind: StepKind) -> &'static str {
    match (verb, kind) {
        (Verb::Absent, _) => "clean up",
        (
            Verb::Ensure,
            StepKind::VmDirectory
            | StepKind::UpperDisk
            | StepKind::RootDisk
            | StepKind::CowFile
            | StepKind::WorkDisk
            | StepKind::BaseLoop
            | StepKind::CowLoop
            | StepKind::DmSnapshot,
        ) => "disks",
        (Verb::Ensure, StepKind::Tap | StepKind::NetRules | StepKind::NetLimit) => "network",
        (
            Verb::Ensure,
            StepKind::RunDirectory
            | StepKind::Cgroup
            | StepKind::VsockBackend
            | StepKind::Vmm
            | StepKind::Configured,
        ) => "vmm",
        (Verb::Ensure, StepKind::Booted | StepKind::Ready) => "boot",
        (Verb::Ensure, StepKind::Adjusted) => "adjust",
    }
}
