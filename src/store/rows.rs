//! What a row looks like. Frozen: a change of meaning is a new version in a new table,
//! with the old one read and moved by `migrate`. Samples of every version are checked
//! in and loaded by a test.
//!
//! A row of a VM that cannot be read is never dropped: it is reported with what could
//! be salvaged, and the mind shows that VM as stuck.

use std::fmt::Display;
use std::str::FromStr;

use redb::TableDefinition;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureKind};
use crate::model::ids::VmId;
use crate::model::image::{Image, Kernel};
use crate::model::net::Lease;
use crate::model::units::Bytes;
use crate::model::vm::{ImageRef, KernelRef, VmSpec};
use crate::plan::record::{
    BootReport, GitIdentity, Loaded, Removal, RowChange, Stuck, Unreadable, VmRecord, VmmChoice,
};

use super::steps::{LimitsRow, StepRow, direct, is_direct};

/// A table of ours: text to JSON.
pub type Table = TableDefinition<'static, &'static str, &'static [u8]>;
/// Rows as they lie in a table.
pub type Rows = Vec<(String, Vec<u8>)>;

/// VMs by id.
pub const VMS: Table = TableDefinition::new("vms.v1");
/// Images by name.
pub const IMAGES: Table = TableDefinition::new("images.v1");
/// Kernels by name.
pub const KERNELS: Table = TableDefinition::new("kernels.v1");

/// Why a row cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unread(String);

/// A VM, version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmRowV1 {
    name: String,
    image: ContentRow,
    kernel: ContentRow,
    vcpu: u8,
    memory: u64,
    /// Rows of before there were targets have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_target: Option<u64>,
    work_disk: u64,
    root_disk: u64,
    /// Rows of before it was recorded are of overlays.
    #[serde(default = "super::steps::overlay")]
    root_mode: String,
    net: String,
    net_reason: Option<String>,
    publish: Vec<String>,
    init: String,
    vmm_request: String,
    env: Vec<(String, String)>,
    workdir: Option<String>,
    /// Rows of before there were any have none.
    #[serde(default, skip_serializing_if = "LimitsRow::is_none")]
    limits: LimitsRow,
    git: Option<GitRow>,
    lease: Option<LeaseRow>,
    phase: String,
    stuck: Option<StuckRow>,
    reason: Option<String>,
    goes_with_client: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    grows: bool,
    disk_plan: Vec<StepRow>,
    run_plan: Vec<StepRow>,
    vmm: Option<VmmRow>,
    boot: Option<BootRow>,
    created_at: u64,
    started_at: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentRow {
    name: String,
    content: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GitRow {
    name: String,
    email: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseRow {
    address: String,
    subnet: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StuckRow {
    Stopping,
    Deleting,
    Resetting,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmmRow {
    kind: String,
    reason: String,
    /// Rows of before there was a choice are of VMMs that were started directly.
    #[serde(default = "direct", skip_serializing_if = "is_direct")]
    confinement: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confinement_reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BootRow {
    init: String,
    phases: Vec<(String, u64)>,
    warnings: Vec<String>,
}

/// An image, version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRowV1 {
    content: String,
    size: u64,
    allocated: u64,
    source: String,
    created_at: u64,
}

/// A kernel, version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRowV1 {
    content: String,
    release: String,
    source: String,
    allocated: u64,
    created_at: u64,
}

/// The table, the key and the value (`None`: none any more) of a change.
///
/// # Errors
/// Never for what our types can hold; serialisation has an error all the same.
pub fn write(change: &RowChange) -> Result<(Table, String, Option<Vec<u8>>), Failure> {
    let (table, key, value) = match change {
        RowChange::PutVm(vm) => (VMS, vm.id.to_string(), Some(json(&VmRowV1::of(vm))?)),
        RowChange::DropVm(id) => (VMS, id.to_string(), None),
        RowChange::PutImage(image) => {
            let row = json(&ImageRowV1::of(image))?;
            (IMAGES, image.name.to_string(), Some(row))
        }
        RowChange::DropImage(name) => (IMAGES, name.to_string(), None),
        RowChange::PutKernel(kernel) => {
            let row = json(&KernelRowV1::of(kernel))?;
            (KERNELS, kernel.name.to_string(), Some(row))
        }
        RowChange::DropKernel(name) => (KERNELS, name.to_string(), None),
    };
    Ok((table, key, value))
}

fn json(row: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(row).map_err(|error| Failure::bug("write a row as JSON").because(error))
}

/// What the rows of the three tables mean.
///
/// # Errors
/// An image or a kernel that cannot be read, or a VM's key that is no id: damage that
/// cannot be shown as a stuck VM.
pub fn read(vms: Rows, images: Rows, kernels: Rows) -> Result<Loaded, Failure> {
    let mut loaded = Loaded::default();
    for (key, value) in vms {
        let id: VmId = read_text(&key).map_err(|error| damaged("vm", &key, error))?;
        match VmRowV1::parse(&value).and_then(|row| row.read(id)) {
            Ok(vm) => loaded.vms.push(vm),
            Err(why) => loaded.unreadable.push(salvage(id, &value, &why)),
        }
    }
    for (name, value) in images {
        let image = image_of(&name, &value);
        loaded
            .images
            .push(image.map_err(|error| damaged("image", &name, error))?);
    }
    for (name, value) in kernels {
        let kernel = kernel_of(&name, &value);
        loaded
            .kernels
            .push(kernel.map_err(|error| damaged("kernel", &name, error))?);
    }
    Ok(loaded)
}

/// A VM by its row; `None` if it cannot be read.
pub fn vm_of((key, value): &(String, Vec<u8>)) -> Option<VmRecord> {
    let id = read_text(key).ok()?;
    VmRowV1::parse(value).and_then(|row| row.read(id)).ok()
}

/// Why a VM's row cannot be read, if so.
pub fn vm_unread(key: &str, value: &[u8]) -> Option<Unread> {
    let read = read_text(key).and_then(|id| VmRowV1::parse(value)?.read(id));
    read.err()
}

fn image_of(key: &str, value: &[u8]) -> Result<Image, Unread> {
    parse::<ImageRowV1>(value)?.read(key)
}

fn kernel_of(key: &str, value: &[u8]) -> Result<Kernel, Unread> {
    parse::<KernelRowV1>(value)?.read(key)
}

/// Why an image's row cannot be read, if so.
pub fn image_unread(key: &str, value: &[u8]) -> Option<Unread> {
    image_of(key, value).err()
}

/// Why a kernel's row cannot be read, if so.
pub fn kernel_unread(key: &str, value: &[u8]) -> Option<Unread> {
    kernel_of(key, value).err()
}

/// The name and the content of an image that can be read.
pub fn image_content((key, value): &(String, Vec<u8>)) -> Option<(String, String)> {
    let image = image_of(key, value).ok()?;
    Some((key.clone(), image.content.to_string()))
}

/// The name and the content of a kernel that can be read.
pub fn kernel_content((key, value): &(String, Vec<u8>)) -> Option<(String, String)> {
    let kernel = kernel_of(key, value).ok()?;
    Some((key.clone(), kernel.content.to_string()))
}

fn damaged(noun: &str, key: &str, error: Unread) -> Failure {
    Failure::new(
        FailureKind::Storage,
        format!("read {noun} {key} in the store"),
    )
    .because(error)
    .hint("Set BANGER_STATE_DIR to another directory, or restore store.redb from a copy.")
}

fn parse<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, Unread> {
    serde_json::from_slice(value).map_err(|error| Unread(error.to_string()))
}

/// Reads a model type from its text.
pub fn read_text<T: FromStr<Err: Display>>(text: &str) -> Result<T, Unread> {
    text.parse()
        .map_err(|error: T::Err| Unread(error.to_string()))
}

/// Reads a list of model types from their texts.
pub fn read_list<T: FromStr<Err: Display>>(texts: &[String]) -> Result<Vec<T>, Unread> {
    texts.iter().map(|text| read_text(text)).collect()
}

/// What can be told of a VM whose row cannot be read: perhaps its name and address.
fn salvage(id: VmId, value: &[u8], why: &Unread) -> Unreadable {
    let loose: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let name = text(&loose["name"]).and_then(|name| read_text(&name).ok());
    let lease = text(&loose["lease"]["address"])
        .zip(text(&loose["lease"]["subnet"]))
        .and_then(|(address, subnet)| LeaseRow { address, subnet }.read().ok());
    Unreadable {
        id,
        name,
        lease,
        reason: format!("its row in the store cannot be read: {why}"),
    }
}

impl VmRowV1 {
    fn parse(value: &[u8]) -> Result<VmRowV1, Unread> {
        parse(value)
    }

    fn of(vm: &VmRecord) -> VmRowV1 {
        let spec = &vm.spec;
        VmRowV1 {
            name: spec.name.to_string(),
            image: ContentRow::of(&spec.image.name, &spec.image.content),
            kernel: ContentRow::of(&spec.kernel.name, &spec.kernel.content),
            vcpu: spec.vcpu,
            memory: spec.memory.0,
            memory_target: spec.memory_target.map(|target| target.0),
            work_disk: spec.work_disk.0,
            root_disk: spec.root_disk.0,
            root_mode: spec.root_mode.to_string(),
            net: spec.net.to_string(),
            net_reason: vm.net_reason.clone(),
            publish: spec.publish.iter().map(ToString::to_string).collect(),
            init: spec.init.to_string(),
            vmm_request: spec.vmm.to_string(),
            env: spec.env.clone(),
            workdir: spec.workdir.clone(),
            limits: LimitsRow::of(&spec.limits),
            git: vm.git.as_ref().map(GitRow::of),
            lease: vm.lease.as_ref().map(LeaseRow::of),
            phase: vm.phase.to_string(),
            stuck: vm.stuck.and_then(StuckRow::of),
            reason: vm.reason.clone(),
            goes_with_client: vm.removal == Removal::WithClient,
            grows: vm.grows,
            disk_plan: vm.disk_plan.iter().map(StepRow::of).collect(),
            run_plan: vm.run_plan.iter().map(StepRow::of).collect(),
            vmm: vm.vmm.as_ref().map(VmmRow::of),
            boot: vm.boot.as_ref().map(BootRow::of),
            created_at: vm.created_at,
            started_at: vm.started_at,
        }
    }

    fn read(self, id: VmId) -> Result<VmRecord, Unread> {
        let steps = |rows: &[StepRow]| {
            rows.iter()
                .map(|row| row.read(id))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(VmRecord {
            id,
            spec: self.spec()?,
            lease: self.lease.as_ref().map(LeaseRow::read).transpose()?,
            phase: read_text(&self.phase)?,
            stuck: self.stuck.map(StuckRow::read),
            reason: self.reason,
            net_reason: self.net_reason,
            git: self.git.map(GitRow::read),
            removal: match self.goes_with_client {
                true => Removal::WithClient,
                false => Removal::Keep,
            },
            grows: self.grows,
            disk_plan: steps(&self.disk_plan)?,
            run_plan: steps(&self.run_plan)?,
            vmm: self.vmm.map(VmmRow::read).transpose()?,
            boot: self.boot.map(BootRow::read),
            created_at: self.created_at,
            started_at: self.started_at,
        })
    }

    fn spec(&self) -> Result<VmSpec, Unread> {
        Ok(VmSpec {
            name: read_text(&self.name)?,
            image: ImageRef {
                name: read_text(&self.image.name)?,
                content: read_text(&self.image.content)?,
            },
            kernel: KernelRef {
                name: read_text(&self.kernel.name)?,
                content: read_text(&self.kernel.content)?,
            },
            vcpu: self.vcpu,
            memory: Bytes(self.memory),
            memory_target: self.memory_target.map(Bytes),
            work_disk: Bytes(self.work_disk),
            root_disk: Bytes(self.root_disk),
            root_mode: read_text(&self.root_mode)?,
            net: read_text(&self.net)?,
            publish: read_list(&self.publish)?,
            init: read_text(&self.init)?,
            vmm: read_text(&self.vmm_request)?,
            env: self.env.clone(),
            workdir: self.workdir.clone(),
            limits: self.limits.read(),
        })
    }
}

impl ContentRow {
    fn of(name: &impl Display, content: &impl Display) -> ContentRow {
        ContentRow {
            name: name.to_string(),
            content: content.to_string(),
        }
    }
}

impl GitRow {
    fn of(git: &GitIdentity) -> GitRow {
        GitRow {
            name: git.name.clone(),
            email: git.email.clone(),
        }
    }

    fn read(self) -> GitIdentity {
        GitIdentity {
            name: self.name,
            email: self.email,
        }
    }
}

impl LeaseRow {
    fn of(lease: &Lease) -> LeaseRow {
        LeaseRow {
            address: lease.address.to_string(),
            subnet: lease.subnet.to_string(),
        }
    }

    fn read(&self) -> Result<Lease, Unread> {
        Ok(Lease {
            address: read_text(&self.address)?,
            subnet: read_text(&self.subnet)?,
        })
    }
}

impl StuckRow {
    /// `None` for a row that could not be read: it is written again only to be deleted.
    fn of(stuck: Stuck) -> Option<StuckRow> {
        match stuck {
            Stuck::Stopping => Some(StuckRow::Stopping),
            Stuck::Deleting => Some(StuckRow::Deleting),
            Stuck::Resetting => Some(StuckRow::Resetting),
            Stuck::Unreadable => None,
        }
    }

    fn read(self) -> Stuck {
        match self {
            StuckRow::Stopping => Stuck::Stopping,
            StuckRow::Deleting => Stuck::Deleting,
            StuckRow::Resetting => Stuck::Resetting,
        }
    }
}

impl VmmRow {
    fn of(choice: &VmmChoice) -> VmmRow {
        VmmRow {
            kind: choice.kind.to_string(),
            reason: choice.reason.clone(),
            confinement: choice.confinement.to_string(),
            confinement_reason: choice.confinement_reason.clone(),
        }
    }

    fn read(self) -> Result<VmmChoice, Unread> {
        Ok(VmmChoice {
            kind: read_text(&self.kind)?,
            reason: self.reason,
            confinement: read_text(&self.confinement)?,
            confinement_reason: self.confinement_reason,
        })
    }
}

impl BootRow {
    fn of(boot: &BootReport) -> BootRow {
        BootRow {
            init: boot.init.clone(),
            phases: boot.phases.clone(),
            warnings: boot.warnings.clone(),
        }
    }

    fn read(self) -> BootReport {
        BootReport {
            init: self.init,
            phases: self.phases,
            warnings: self.warnings,
        }
    }
}

impl ImageRowV1 {
    fn of(image: &Image) -> ImageRowV1 {
        ImageRowV1 {
            content: image.content.to_string(),
            size: image.size.0,
            allocated: image.allocated.0,
            source: image.source.clone(),
            created_at: image.created_at,
        }
    }

    fn read(self, name: &str) -> Result<Image, Unread> {
        Ok(Image {
            name: read_text(name)?,
            content: read_text(&self.content)?,
            size: Bytes(self.size),
            allocated: Bytes(self.allocated),
            source: self.source,
            created_at: self.created_at,
        })
    }
}

impl KernelRowV1 {
    fn of(kernel: &Kernel) -> KernelRowV1 {
        KernelRowV1 {
            content: kernel.content.to_string(),
            release: kernel.release.clone(),
            source: kernel.source.clone(),
            allocated: kernel.allocated.0,
            created_at: kernel.created_at,
        }
    }

    fn read(self, name: &str) -> Result<Kernel, Unread> {
        Ok(Kernel {
            name: read_text(name)?,
            content: read_text(&self.content)?,
            release: self.release,
            source: self.source,
            allocated: Bytes(self.allocated),
            created_at: self.created_at,
        })
    }
}

#[cfg(test)]
mod tests;
