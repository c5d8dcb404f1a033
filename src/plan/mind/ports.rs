//! Published ports: what a VM may ask for, and who has a port already.
//!
//! A port belongs to a VM from the beginning of its start to the end of its stop,
//! whatever its network; two that rest may name the same one. What other programs of the
//! host have, the step finds out that takes the port.

use crate::failure::{Failure, FailureKind};
use crate::model::ids::VmId;
use crate::model::net::{NetMode, PortForward};
use crate::plan::request::{AfterCreate, CreateRequest};

use super::Mind;

impl Mind {
    /// Refuses ports without a network, too many, and for a VM that is to start ports
    /// that another one has.
    pub(super) fn check_ports(
        &self,
        what: &str,
        net: NetMode,
        request: &CreateRequest,
    ) -> Result<(), Failure> {
        let wanted = &request.publish;
        if wanted.is_empty() {
            return Ok(());
        }
        if net == NetMode::None {
            return Err(
                Failure::usage(format!("{what}: ports of a vm without a network"))
                    .hint("Use `--net nat` or `--net user`, or leave out `--publish`."),
            );
        }
        let first = self.facts.first_port;
        let closed = wanted.iter().find(|port| port.host < first);
        if let Some(port) = closed.filter(|_| net == NetMode::User) {
            let what = format!("{what}: port {port} of this host, in a user-mode network");
            return Err(Failure::usage(what)
                .because(format!("ports below {first} need a privilege that its VMM has not"))
                .hint(format!(
                    "Choose a port from {first} on, or `sudo sysctl net.ipv4.ip_unprivileged_port_start={}`.",
                    port.host
                )));
        }
        if wanted.len() > PortForward::MAX {
            let most = PortForward::MAX;
            return Err(
                Failure::usage(format!("{what}: {} published ports", wanted.len()))
                    .hint(format!("At most {most} `--publish` are possible.")),
            );
        }
        match request.then {
            AfterCreate::Start => self.refuse_taken(what, wanted, None),
            AfterCreate::Rest => Ok(()),
        }
    }

    /// Refuses ports that another VM's run has.
    pub(super) fn refuse_taken(
        &self,
        what: &str,
        wanted: &[PortForward],
        own: Option<VmId>,
    ) -> Result<(), Failure> {
        let others = self.vms.iter().filter(|(id, _)| Some(**id) != own);
        let runs = others.filter(|(_, vm)| !vm.record.run_plan.is_empty());
        let taken = runs.flat_map(|(_, vm)| {
            let name = &vm.record.spec.name;
            vm.record.spec.publish.iter().map(move |port| (*port, name))
        });
        let collision = taken
            .flat_map(|(port, name)| wanted.iter().map(move |mine| (*mine, port, name)))
            .find(|(mine, port, _)| mine.collides(*port));
        let Some((mine, port, name)) = collision else {
            return Ok(());
        };
        Err(Failure::new(
            FailureKind::Busy,
            format!("{what}: port {mine} is taken by vm {name} ({port})"),
        )
        .hint(format!(
            "Choose another port of the host with `--publish`, or stop that VM with `banger vm stop {name}`."
        )))
    }
}
