//! What keeps a VM's console and log, started with its VMM and ended after it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::host::console;
use crate::host::fault::fault;
use crate::host::launch::{Launch, Launched};
use crate::model::ids::VmId;
use crate::plan::step::Fault;

use super::machine::Parts;
use super::steps::Vmms;

/// How long it may take to end after its VMM.
pub(super) const KEEPER_LIMIT: Duration = Duration::from_secs(2);

impl Vmms {
    /// The ends of the VM's log pipe: the one that is read, the one that is written to.
    pub(super) fn log_pipe(&self, vm: VmId) -> Result<(OwnedFd, OwnedFd), Fault> {
        let path = self.layout.log_pipe(vm);
        console::pipe_to_read(&path)
            .and_then(|read| Ok((read, console::pipe_to_write(&path)?)))
            .map_err(|error| fault(format!("make the pipe {}", path.display()), error))
    }

    /// Starts what keeps the guest's console and what is `told` by the log pipe; the end
    /// of the console that the VMM gets.
    pub(super) fn start_keeper(
        &self,
        parts: &Parts,
        told: OwnedFd,
    ) -> Result<(Launched, OwnedFd), Fault> {
        // Here, because a keeper that cannot make them would be missed by nobody.
        for path in [&parts.console, &parts.log] {
            console::make(path)
                .map_err(|error| fault(format!("make the log {}", path.display()), error))?;
        }
        let attempt = "make a pipe for the console";
        let (output, input) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| fault(attempt, error))?;
        if let Some(user) = self.user_of(parts) {
            // QEMU opens its end once more, as the VM's user.
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(user.uid),
                rustix::fs::Gid::from_raw(user.gid),
            );
            rustix::fs::fchown(&input, Some(uid), Some(gid))
                .map_err(|error| fault("give the console's pipe away", error))?;
        }
        let (_, errors) = self.log_pipe(parts.vm)?;
        let launched = Launch {
            arguments: console::arguments(&parts.console),
            files: console::files(&parts.console, &parts.log),
            input: Some(output),
            output: Some(told),
            ..self.launch(parts.vm, errors, &parts.log)
        }
        .start()?;
        Ok((launched, input))
    }

    /// Ends it; by itself it does so once it has written what was said last.
    pub(super) fn end_keeper(&self, vm: VmId) -> Result<(), Fault> {
        let keepers = self.processes(vm, &[console::marker(&self.layout.console_log(vm))])?;
        let late = keepers
            .into_iter()
            .filter(|keeper| !keeper.ends_within(KEEPER_LIMIT))
            .collect();
        self.end(late, "console log", vm)
    }
}
