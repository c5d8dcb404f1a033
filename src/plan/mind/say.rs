//! Who waits for an answer, and how it is given: exactly one to each request.

use crate::failure::{Failure, FailureKind};
use crate::model::ids::VmName;
use crate::plan::event::Action;
use crate::plan::operation::Goal;
use crate::plan::record::Stuck;
use crate::plan::request::{ClientId, OpId, Progress, Reply};
use crate::plan::step::{Fault, FaultKind, StepKind};

use super::Mind;

/// Somebody who is told how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiter {
    client: ClientId,
    op: OpId,
    /// What to tell instead of success: the end that is awaited is only the
    /// clearing-up of this failure.
    news: Option<Failure>,
}

impl Waiter {
    pub(super) fn client(client: ClientId, op: OpId) -> Waiter {
        Waiter {
            client,
            op,
            news: None,
        }
    }

    pub(super) fn with_news(mut self, failure: &Failure) -> Waiter {
        self.news.get_or_insert_with(|| failure.clone());
        self
    }

    pub(super) fn is_client(&self, client: ClientId) -> bool {
        self.client == client
    }

    pub(super) fn op(&self) -> OpId {
        self.op
    }

    pub(super) fn owner(&self) -> ClientId {
        self.client
    }
}

impl Mind {
    /// Gives the final answer, or the news that stands before it.
    pub(super) fn reply(&mut self, waiter: Waiter, reply: Reply) {
        let reply = match waiter.news {
            Some(failure) => Reply::Failed(failure),
            None => reply,
        };
        let Waiter { client, op, .. } = waiter;
        self.out.push(Action::Reply { client, op, reply });
    }

    pub(super) fn fail(&mut self, waiter: Waiter, failure: Failure) {
        self.reply(waiter, Reply::Failed(failure));
    }

    pub(super) fn reply_all(&mut self, waiters: Vec<Waiter>, reply: &Reply) {
        for waiter in waiters {
            self.reply(waiter, reply.clone());
        }
    }

    pub(super) fn progress(&mut self, waiters: &[Waiter], progress: &Progress) {
        for Waiter { client, op, .. } in waiters {
            self.out.push(Action::Progress {
                client: *client,
                op: *op,
                progress: progress.clone(),
            });
        }
    }
}

/// A step's fault as the failure of what the user asked for.
pub(super) fn failure(goal: Goal, name: &VmName, fault: &Fault, at: Option<StepKind>) -> Failure {
    let verb = match goal {
        Goal::Create => "create",
        Goal::Start => "start",
        Goal::Stop => "stop",
        Goal::Delete => "delete",
        Goal::Reset => "reset",
        Goal::Adjust => "give other sizes to",
    };
    let kind = match fault.kind {
        FaultKind::Denied => FailureKind::Denied,
        FaultKind::Cancelled => FailureKind::Cancelled,
        FaultKind::Busy
        | FaultKind::Full
        | FaultKind::Missing
        | FaultKind::Timeout
        | FaultKind::Exited
        | FaultKind::CutOff
        | FaultKind::Other => FailureKind::Failed,
    };
    let failure = Failure::new(kind, format!("{verb} vm {name}")).because(&fault.what);
    match fault
        .remedy
        .clone()
        .or_else(|| hint(goal, name, fault.kind, at))
    {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn hint(goal: Goal, name: &VmName, kind: FaultKind, at: Option<StepKind>) -> Option<String> {
    let room = "Free space, for example with `banger vm prune`.";
    match (kind, at) {
        (FaultKind::Cancelled, _) => None,
        (FaultKind::Full, _) if goal == Goal::Adjust => Some(format!("{room} {}", again(name))),
        (FaultKind::Full, _) => Some(room.to_owned()),
        (FaultKind::Exited, _) if goal == Goal::Adjust => Some(format!(
            "What was asked is kept: `banger vm start {name}` brings it about."
        )),
        (FaultKind::CutOff, _) if goal == Goal::Adjust => Some(format!(
            "What was asked is kept: `banger vm restart {name}` brings it about."
        )),
        _ if goal == Goal::Adjust => Some(again(name)),
        (_, Some(StepKind::Ready)) => Some(format!(
            "The VM is kept: see `banger vm logs {name} --console`, then `banger vm start {name}` or `banger vm delete {name}`. `banger store check --contents` tells whether its image or kernel is damaged."
        )),
        (
            FaultKind::Busy
            | FaultKind::Missing
            | FaultKind::Denied
            | FaultKind::Timeout
            | FaultKind::Exited
            | FaultKind::CutOff
            | FaultKind::Other,
            _,
        ) => Some("Run `banger doctor`: it checks what a VM needs.".to_owned()),
    }
}

/// The row has the new sizes, whichever step failed.
fn again(name: &VmName) -> String {
    format!(
        "What was asked is kept: the same `banger vm set {name}` again, or `banger vm restart {name}`, brings it about."
    )
}

/// The failure of an operation that got stuck.
pub(super) fn stuck_failure(name: &VmName, stuck: Stuck, fault: &Fault) -> Failure {
    let attempt = match stuck {
        Stuck::Resetting => "rebuild the root of",
        Stuck::Stopping | Stuck::Deleting | Stuck::Unreadable => "clear up",
    };
    let hint = match stuck.retry() {
        "delete" => format!("See `banger vm show {name}`; `banger vm delete {name}` tries again."),
        retry => format!(
            "See `banger vm show {name}`; `banger vm {retry} {name}` or `banger vm delete {name}` tries again."
        ),
    };
    Failure::failed(format!("{attempt} vm {name}: it is stuck"))
        .because(&fault.what)
        .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjustment_that_fails_at_any_step_says_that_it_can_be_asked_for_again() {
        let name: VmName = "a".parse().unwrap();
        let steps = [StepKind::WorkDisk, StepKind::Adjusted];
        for (kind, at) in [FaultKind::Busy, FaultKind::Full, FaultKind::Other]
            .into_iter()
            .flat_map(|kind| steps.map(|at| (kind, at)))
        {
            let failure = failure(Goal::Adjust, &name, &Fault::new(kind, "why"), Some(at));
            let hint = failure.hint.unwrap_or_default();
            assert!(hint.contains("banger vm set a"), "{kind:?} {at:?}: {hint}");
            let says_room = hint.contains("banger vm prune");
            assert_eq!(says_room, kind == FaultKind::Full, "{hint}");
        }
    }

    #[test]
    fn adjustment_of_a_guest_nobody_reaches_names_what_boots_it_anew() {
        let name: VmName = "a".parse().unwrap();
        let fault = Fault::new(FaultKind::CutOff, "why");

        let failure = failure(Goal::Adjust, &name, &fault, Some(StepKind::Adjusted));

        let hint = failure.hint.unwrap_or_default();
        assert!(hint.contains("`banger vm restart a`"), "{hint}");
        assert!(!hint.contains("banger vm set"), "{hint}");
    }
}
