//! `banger vm prune`.

use argh::{ArgsInfo, FromArgs};

use super::context::Context;
use super::list::table;
use super::render;
use super::words::count;
use crate::failure::Failure;
use crate::proto::reply::VmView;
use crate::proto::request::Request;

/// Delete every sandbox that does not run. Shows them and asks first.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "prune",
    example = "banger vm prune",
    example = "banger vm prune --force"
)]
pub struct VmPrune {
    /// do not ask
    #[argh(switch, short = 'f')]
    pub force: bool,
}

impl VmPrune {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let at_rest = |vm: &VmView| matches!(vm.phase.as_str(), "stopped" | "stuck");
        let vms: Vec<VmView> = context.vms()?.into_iter().filter(at_rest).collect();
        if vms.is_empty() {
            render::say("nothing to delete: no sandbox is stopped");
            return Ok(0);
        }
        if !self.force && !confirmed(&vms, context)? {
            render::say("nothing deleted");
            return Ok(0);
        }
        // Not forced: one that was started in the meantime stays.
        let request = |vm: &VmView| {
            Some(Request::VmDelete {
                vm: vm.id.clone(),
                force: false,
            })
        };
        let outcomes = context.ask_all(vms.iter().map(request).collect());
        let mut status = 0;
        for (vm, outcome) in vms.iter().zip(outcomes.into_iter().flatten()) {
            match outcome {
                Ok(_) => render::line(&format!("{} deleted", vm.name)),
                Err(failure) => {
                    render::failure(&failure);
                    status = failure.kind.exit_status();
                }
            }
        }
        Ok(status)
    }
}

fn confirmed(vms: &[VmView], context: &Context) -> Result<bool, Failure> {
    let these = count(vms.len() as u64, "VM");
    if !render::can_ask() {
        let what = format!("delete {these}: nobody can be asked");
        return Err(Failure::usage(what).hint("`banger vm prune --force` does not ask."));
    }
    table(vms, context.now()).print();
    render::ask(&format!("Delete {these}?"))
}
