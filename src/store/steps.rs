//! The steps inside a VM's row. Frozen: a kind stays readable for at least one release
//! after the last release that created it.

use serde::{Deserialize, Serialize};

use crate::model::ids::VmId;
use crate::model::limits::Limits;
use crate::model::units::Bytes;
use crate::model::vm::{Confinement, RootMode};
use crate::plan::step::{GroupLimits, LiveSizes, Machine, Outside, Step, TapLimit};

use super::rows::{Unread, read_list, read_text};

/// A step, without the VM: the row's key names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case", deny_unknown_fields)]
pub enum StepRow {
    /// See `plan::step`.
    VmDirectory {},
    /// See `plan::step`.
    UpperDisk {
        /// Bytes.
        size: u64,
    },
    /// See `plan::step`.
    RootDisk {
        /// Content id of the base.
        image: String,
        /// Bytes.
        size: u64,
    },
    /// See `plan::step`.
    CowFile {
        /// Bytes.
        size: u64,
    },
    /// See `plan::step`.
    WorkDisk {
        /// Bytes.
        size: u64,
    },
    /// See `plan::step`.
    RunDirectory {},
    /// See `plan::step`.
    BaseLoop {
        /// Content id of the base.
        image: String,
    },
    /// See `plan::step`.
    CowLoop {
        /// Bytes.
        size: u64,
    },
    /// See `plan::step`.
    DmSnapshot {
        /// Bytes.
        size: u64,
    },
    /// See `plan::step`.
    Tap {
        /// `172.30.0.0/16`
        subnet: String,
    },
    /// See `plan::step`.
    NetRules {
        /// `172.30.0.2`
        address: String,
        /// `172.30.0.0/16`
        subnet: String,
        /// `closed` or `nat`.
        outside: OutsideRow,
        /// `8080:80`; rows from before there was this have none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        publish: Vec<String>,
    },
    /// See `plan::step`.
    NetLimit(TapLimitRow),
    /// See `plan::step`.
    Cgroup(GroupLimitsRow),
    /// See `plan::step`.
    VsockBackend {},
    /// See `plan::step`.
    Vmm {
        /// What it makes.
        machine: MachineRow,
    },
    /// See `plan::step`.
    Configured {
        /// What it makes.
        machine: MachineRow,
    },
    /// See `plan::step`.
    Booted {
        /// `qemu-tcg`
        kind: String,
    },
    /// See `plan::step`.
    Ready {},
    /// See `plan::step`.
    Adjusted(AdjustedRow),
}

/// Whether packets may leave the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutsideRow {
    /// They may not.
    Closed,
    /// Masqueraded.
    Nat,
}

/// The machine that a VMM makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRow {
    kind: String,
    vcpu: u8,
    memory: u64,
    image: String,
    /// Rows of before it was recorded are of overlays.
    #[serde(default = "overlay")]
    root: String,
    kernel: String,
    net: String,
    publish: Vec<String>,
    /// Rows of before there were any have none.
    #[serde(default, skip_serializing_if = "LimitsRow::is_none")]
    limits: LimitsRow,
    /// Rows of before there was a choice are of VMMs that were started directly.
    #[serde(default = "direct", skip_serializing_if = "is_direct")]
    confinement: String,
}

impl StepRow {
    /// The row of a step.
    pub fn of(step: &Step) -> StepRow {
        match step {
            Step::VmDirectory { .. } => StepRow::VmDirectory {},
            Step::UpperDisk { size, .. } => StepRow::UpperDisk { size: size.0 },
            Step::RootDisk { image, size, .. } => StepRow::RootDisk {
                image: image.to_string(),
                size: size.0,
            },
            Step::CowFile { size, .. } => StepRow::CowFile { size: size.0 },
            Step::WorkDisk { size, .. } => StepRow::WorkDisk { size: size.0 },
            Step::RunDirectory { .. } => StepRow::RunDirectory {},
            Step::BaseLoop { image, .. } => StepRow::BaseLoop {
                image: image.to_string(),
            },
            Step::CowLoop { size, .. } => StepRow::CowLoop { size: size.0 },
            Step::DmSnapshot { size, .. } => StepRow::DmSnapshot { size: size.0 },
            Step::Tap { subnet, .. } => StepRow::Tap {
                subnet: subnet.to_string(),
            },
            Step::NetRules {
                address,
                subnet,
                outside,
                publish,
                ..
            } => StepRow::NetRules {
                address: address.to_string(),
                subnet: subnet.to_string(),
                outside: OutsideRow::of(*outside),
                publish: publish.iter().map(ToString::to_string).collect(),
            },
            Step::NetLimit { limit, .. } => StepRow::NetLimit(TapLimitRow::of(limit)),
            Step::Cgroup { limits, .. } => StepRow::Cgroup(GroupLimitsRow::of(*limits)),
            Step::VsockBackend { .. } => StepRow::VsockBackend {},
            Step::Vmm { machine, .. } => {
                let machine = MachineRow::of(machine);
                StepRow::Vmm { machine }
            }
            Step::Configured { machine, .. } => {
                let machine = MachineRow::of(machine);
                StepRow::Configured { machine }
            }
            Step::Booted { kind, .. } => StepRow::Booted {
                kind: kind.to_string(),
            },
            Step::Ready { .. } => StepRow::Ready {},
            Step::Adjusted { machine, sizes, .. } => StepRow::Adjusted(AdjustedRow {
                machine: MachineRow::of(machine),
                work_disk: sizes.work_disk.0,
                memory_target: sizes.memory_target.map(|target| target.0),
            }),
        }
    }

    /// The step of this VM that the row means.
    pub fn read(&self, vm: VmId) -> Result<Step, Unread> {
        Ok(match self {
            StepRow::VmDirectory {} => Step::VmDirectory { vm },
            StepRow::UpperDisk { size } => Step::UpperDisk {
                vm,
                size: Bytes(*size),
            },
            StepRow::RootDisk { image, size } => Step::RootDisk {
                vm,
                image: read_text(image)?,
                size: Bytes(*size),
            },
            StepRow::CowFile { size } => Step::CowFile {
                vm,
                size: Bytes(*size),
            },
            StepRow::WorkDisk { size } => Step::WorkDisk {
                vm,
                size: Bytes(*size),
            },
            StepRow::RunDirectory {} => Step::RunDirectory { vm },
            StepRow::BaseLoop { image } => Step::BaseLoop {
                vm,
                image: read_text(image)?,
            },
            StepRow::CowLoop { size } => Step::CowLoop {
                vm,
                size: Bytes(*size),
            },
            StepRow::DmSnapshot { size } => Step::DmSnapshot {
                vm,
                size: Bytes(*size),
            },
            StepRow::Tap { subnet } => Step::Tap {
                vm,
                subnet: read_text(subnet)?,
            },
            StepRow::NetRules {
                address,
                subnet,
                outside,
                publish,
            } => Step::NetRules {
                vm,
                address: read_text(address)?,
                subnet: read_text(subnet)?,
                outside: outside.read(),
                publish: read_list(publish)?,
            },
            StepRow::NetLimit(row) => row.step(vm)?,
            StepRow::Cgroup(row) => row.step(vm),
            StepRow::VsockBackend {} => Step::VsockBackend { vm },
            StepRow::Vmm { machine } => Step::Vmm {
                vm,
                machine: machine.read()?,
            },
            StepRow::Configured { machine } => Step::Configured {
                vm,
                machine: machine.read()?,
            },
            StepRow::Booted { kind } => Step::Booted {
                vm,
                kind: read_text(kind)?,
            },
            StepRow::Ready {} => Step::Ready { vm },
            StepRow::Adjusted(row) => row.step(vm)?,
        })
    }
}

impl OutsideRow {
    fn of(outside: Outside) -> OutsideRow {
        match outside {
            Outside::Closed => OutsideRow::Closed,
            Outside::Nat => OutsideRow::Nat,
        }
    }

    fn read(self) -> Outside {
        match self {
            OutsideRow::Closed => Outside::Closed,
            OutsideRow::Nat => Outside::Nat,
        }
    }
}

/// The root mode of rows that name none.
pub fn overlay() -> String {
    RootMode::Overlay.to_string()
}

/// The confinement of rows that name none.
pub fn direct() -> String {
    Confinement::Direct.to_string()
}

/// Whether it need not be written.
pub fn is_direct(confinement: &str) -> bool {
    confinement == direct()
}

impl MachineRow {
    fn of(machine: &Machine) -> MachineRow {
        MachineRow {
            kind: machine.kind.to_string(),
            vcpu: machine.vcpu,
            memory: machine.memory.0,
            image: machine.image.to_string(),
            root: machine.root.to_string(),
            kernel: machine.kernel.to_string(),
            net: machine.net.to_string(),
            publish: machine.publish.iter().map(ToString::to_string).collect(),
            limits: LimitsRow::of(&machine.limits),
            confinement: machine.confinement.to_string(),
        }
    }

    fn read(&self) -> Result<Machine, Unread> {
        Ok(Machine {
            kind: read_text(&self.kind)?,
            vcpu: self.vcpu,
            memory: Bytes(self.memory),
            image: read_text(&self.image)?,
            root: read_text(&self.root)?,
            kernel: read_text(&self.kernel)?,
            net: read_text(&self.net)?,
            publish: read_list(&self.publish)?,
            limits: self.limits.read(),
            confinement: read_text(&self.confinement)?,
        })
    }
}

/// Sizes of a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdjustedRow {
    /// As it was started.
    machine: MachineRow,
    /// Bytes.
    work_disk: u64,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_target: Option<u64>,
}

impl AdjustedRow {
    fn step(&self, vm: VmId) -> Result<Step, Unread> {
        let sizes = LiveSizes {
            work_disk: Bytes(self.work_disk),
            memory_target: self.memory_target.map(Bytes),
        };
        let machine = self.machine.read()?;
        Ok(Step::Adjusted { vm, machine, sizes })
    }
}

/// The limit of a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapLimitRow {
    /// `172.30.0.0/16`
    subnet: String,
    /// Bytes per second.
    bandwidth: u64,
}

impl TapLimitRow {
    fn of(limit: &TapLimit) -> TapLimitRow {
        TapLimitRow {
            subnet: limit.subnet.to_string(),
            bandwidth: limit.bandwidth.0,
        }
    }

    fn step(&self, vm: VmId) -> Result<Step, Unread> {
        let limit = TapLimit {
            subnet: read_text(&self.subnet)?,
            bandwidth: Bytes(self.bandwidth),
        };
        Ok(Step::NetLimit { vm, limit })
    }
}

/// What the members of a control group may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupLimitsRow {
    /// Bytes; rows of before there were limits have none of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    swap: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tasks: Option<u32>,
    /// 1 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpu_weight: Option<u16>,
    /// Processors' worth of time; rows of before it was limited have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    processors: Option<u16>,
}

impl GroupLimitsRow {
    fn of(limits: GroupLimits) -> GroupLimitsRow {
        GroupLimitsRow {
            memory: limits.memory.map(|bytes| bytes.0),
            swap: limits.swap.map(|bytes| bytes.0),
            tasks: limits.tasks,
            cpu_weight: limits.cpu_weight,
            processors: limits.processors,
        }
    }

    fn step(&self, vm: VmId) -> Step {
        let limits = GroupLimits {
            memory: self.memory.map(Bytes),
            swap: self.swap.map(Bytes),
            tasks: self.tasks,
            cpu_weight: self.cpu_weight,
            processors: self.processors,
        };
        Step::Cgroup { vm, limits }
    }
}

/// The limits of a VM, in its row and in those of its machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsRow {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk_iops: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk_bandwidth: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    net_bandwidth: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpu_weight: Option<u16>,
}

impl LimitsRow {
    /// The row of these limits.
    pub fn of(limits: &Limits) -> LimitsRow {
        LimitsRow {
            disk_iops: limits.disk_iops,
            disk_bandwidth: limits.disk_bandwidth.map(|rate| rate.0),
            net_bandwidth: limits.net_bandwidth.map(|rate| rate.0),
            cpu_weight: limits.cpu_weight,
        }
    }

    /// The limits that it means.
    pub fn read(self) -> Limits {
        Limits {
            disk_iops: self.disk_iops,
            disk_bandwidth: self.disk_bandwidth.map(Bytes),
            net_bandwidth: self.net_bandwidth.map(Bytes),
            cpu_weight: self.cpu_weight,
        }
    }

    /// Whether there is nothing to write.
    pub fn is_none(&self) -> bool {
        *self == LimitsRow::default()
    }
}
