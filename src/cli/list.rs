//! `banger vm list`.

use argh::{ArgsInfo, FromArgs};

use super::context::Context;
use super::render::{self, Paint, printable};
use super::table::Table;
use super::words::{ago, size, stuck_advice};
use crate::failure::Failure;
use crate::proto::reply::VmView;

/// List all sandboxes, oldest first.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "list",
    example = "banger vm list",
    example = "banger vm list --quiet | xargs -r banger vm stop",
    example = "banger vm list --json"
)]
pub struct VmList {
    /// print JSON
    #[argh(switch)]
    pub json: bool,
    /// print names only
    #[argh(switch, short = 'q')]
    pub quiet: bool,
}

impl VmList {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let vms = context.vms()?;
        if self.json {
            render::json(&vms);
        } else if self.quiet {
            let names: String = vms.iter().map(|vm| format!("{}\n", vm.name)).collect();
            render::out(&names);
        } else if vms.is_empty() {
            render::say("no sandboxes yet: `banger vm run` makes one");
        } else {
            table(&vms, context.now()).print();
            for vm in vms.iter().filter(|vm| vm.phase == "stuck") {
                render::say(&stuck(vm));
            }
            for (vm, warning) in vms.iter().filter_map(warned) {
                render::say(&format!("{vm}: {warning}"));
            }
        }
        Ok(0)
    }
}

/// Why a sandbox is stuck, and what to type.
fn stuck(vm: &VmView) -> String {
    let reason = vm.reason.as_deref().unwrap_or("of unknown reason");
    let advice = stuck_advice(&vm.name, vm.retry.as_deref());
    printable(&format!("vm {} is stuck: {reason}: {advice}", vm.name))
}

/// The VM's name with what is wrong or soon will be with its root.
fn warned(vm: &VmView) -> Option<(&str, &str)> {
    let warning = vm.root_store.as_ref()?.warning.as_deref()?;
    Some((&vm.name, warning))
}

/// VMs as a table; `now` is seconds since the epoch.
pub fn table(vms: &[VmView], now: u64) -> Table {
    let mut table = Table::new(&[
        "ID", "NAME", "STATE", "IMAGE", "IP", "VCPU", "MEM", "DISK", "CREATED",
    ]);
    for vm in vms {
        let plain = |text: String| (Paint::Plain, text);
        let address = vm.address.clone().unwrap_or_else(|| "-".to_owned());
        table.painted(vec![
            (Paint::Dim, vm.id.clone()),
            (Paint::Bold, vm.name.clone()),
            (phase_paint(&vm.phase), vm.phase.clone()),
            plain(vm.image.clone()),
            plain(address),
            plain(vm.vcpu.to_string()),
            plain(size(vm.memory)),
            plain(size(vm.allocated)),
            plain(ago(now, vm.created_at)),
        ]);
    }
    table
}

/// The colour of a phase.
pub fn phase_paint(phase: &str) -> Paint {
    match phase {
        "running" => Paint::Green,
        "stuck" => Paint::Red,
        "stopped" => Paint::Dim,
        _ => Paint::Yellow,
    }
}
