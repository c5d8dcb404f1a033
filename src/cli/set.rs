//! `banger vm set`.

use argh::{ArgsInfo, FromArgs};

use super::context::{Context, unexpected};
use super::render;
use super::values::{DiskSize, MemorySize, Vcpu};
use super::words::{count, size};
use crate::failure::Failure;
use crate::proto::reply::{Reply, VmView};
use crate::proto::request::{Changes, Request};

/// Give a sandbox other sizes. A running one takes a longer work disk and a memory target at once; the others hold from the next start on. Disks only grow, and their file systems with them.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "set",
    note = "Without an option it tells what can be set.",
    example = "banger vm set dev --memory-target 512M",
    example = "banger vm set dev --disk-size 100G",
    example = "banger vm stop dev && banger vm set dev --disk-size 50G && banger vm start dev"
)]
pub struct VmSet {
    /// virtual processors
    #[argh(option, arg_name = "count")]
    pub vcpu: Option<Vcpu>,
    /// memory, such as 2G
    #[argh(option, arg_name = "size")]
    pub memory: Option<MemorySize>,
    /// how much of its memory a running sandbox keeps, such as 512M; its whole memory ends that
    #[argh(option, arg_name = "size")]
    pub memory_target: Option<MemorySize>,
    /// size of the work disk (/root), at least what it is; also while it runs
    #[argh(option, arg_name = "size")]
    pub disk_size: Option<DiskSize>,
    /// size of the root file system, at least what it is
    #[argh(option, arg_name = "size")]
    pub root_size: Option<DiskSize>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// name or id of the sandbox, or the beginning of its id
    #[argh(positional)]
    pub name: String,
}

impl VmSet {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let changes = Changes {
            vcpu: self.vcpu.map(|Vcpu(count)| count),
            memory: self.memory.map(|MemorySize(size)| size.0),
            work_disk: self.disk_size.map(|DiskSize(size)| size.0),
            root_disk: self.root_size.map(|DiskSize(size)| size.0),
            memory_target: self.memory_target.map(|MemorySize(size)| size.0),
        };
        let vm = context.vm(&self.name)?;
        if changes == Changes::default() {
            match self.json {
                true => render::json(&vm),
                false => render::out(&settable(&vm)),
            }
            return Ok(0);
        }
        let request = Request::VmSet { vm: vm.id, changes };
        match context.ask(request)? {
            Reply::Vm(vm) if self.json => render::json(&vm),
            Reply::Vm(vm) => render::line(&said(&vm)),
            other => return Err(unexpected("vm_set", &other)),
        }
        Ok(0)
    }
}

fn said(vm: &VmView) -> String {
    format!(
        "{}: {}, {} memory{}, work disk {}, root disk {}",
        vm.name,
        count(u64::from(vm.vcpu), "cpu"),
        size(vm.memory),
        vm.balloon
            .memory_target
            .map(|target| format!(" (target {})", size(target)))
            .unwrap_or_default(),
        size(vm.work_disk),
        size(vm.root_disk)
    )
}

fn settable(vm: &VmView) -> String {
    let rows = [
        ("--vcpu", vm.vcpu.to_string()),
        ("--memory", size(vm.memory)),
        (
            "--memory-target",
            size(vm.balloon.memory_target.unwrap_or(vm.memory)),
        ),
        ("--disk-size", size(vm.work_disk)),
        ("--root-size", size(vm.root_disk)),
    ];
    let row = |(option, now): (&str, String)| format!("{option:<15} {now}\n");
    rows.map(row).concat()
}
