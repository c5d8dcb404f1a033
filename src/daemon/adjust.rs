//! Gives a running VM other sizes, off the loop: the guest is asked whether it can follow,
//! its VMM is told, the guest is asked to follow. Each part may be done again.

use std::path::Path;
use std::sync::Arc;

use super::guest;
use super::halts::Halts;
use super::hands::Hands;
use super::moment;
use crate::host::Host;
use crate::model::ids::VmId;
use crate::plan::step::{Fault, FaultKind, LiveSizes, Step};
use crate::proto::agent::{Adjust, AgentFailureKind, AgentRequest};

/// Carries the step out; `sizes` are its own.
///
/// # Errors
/// What refused, or did not answer. Of kind `Missing`: the VM has no balloon.
pub async fn adjust(
    host: Arc<Hands>,
    halts: &Halts,
    socket: &Path,
    step: Step,
    sizes: LiveSizes,
) -> Result<(), Fault> {
    let vm = step.vm();
    let guest = Guest { vm, halts, socket };
    let balloon = sizes.memory_target.is_some();
    if balloon {
        // Firecracker's balloon is deaf until the guest has a driver for it.
        let wanted = Adjust {
            balloon,
            work_disk: None,
        };
        guest.ask(wanted).await?;
    }
    smol::unblock(move || host.ensure(&step))
        .await
        .map_err(without_balloon)?;
    let wanted = Adjust {
        balloon: false,
        work_disk: Some(sizes.work_disk.0),
    };
    guest.ask(wanted).await
}

/// Whom to ask.
struct Guest<'a> {
    vm: VmId,
    halts: &'a Halts,
    socket: &'a Path,
}

impl Guest<'_> {
    async fn ask(&self, wanted: Adjust) -> Result<(), Fault> {
        let attempt = "adjust the guest";
        if let Some(silence) = self.halts.settled(self.vm).await {
            return Err(silence.fault(attempt));
        }
        let request = AgentRequest::Adjust(wanted);
        match guest::ask(self.socket, moment::now_ns(), request, attempt).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refusal)) if refusal.kind == AgentFailureKind::Unsupported => {
                let what = guest::words(&refusal.what);
                Err(without_balloon(Fault::new(FaultKind::Missing, what)))
            }
            Ok(Err(refusal)) => {
                let what = format!("{attempt}: {}", guest::words(&refusal.what));
                Err(Fault::new(FaultKind::Other, what))
            }
            Err(failure) => Err(Fault::new(FaultKind::Other, failure.to_string())),
        }
    }
}

/// What is missing can only be the balloon.
fn without_balloon(fault: Fault) -> Fault {
    match fault.kind {
        FaultKind::Missing => fault.remedy(Some(
            "A VM that was started by an older banger has no balloon: stop and start it. A kernel without virtio_balloon has none ever.".to_owned(),
        )),
        _ => fault,
    }
}
