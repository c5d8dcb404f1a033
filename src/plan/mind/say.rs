//! Who waits for an answer, and how it is given: exactly one to each request.

use std::collections::BTreeSet;

use crate::failure::{Failure, FailureKind};
use crate::model::ids::{VmId, VmName};
use crate::plan::event::Action;
use crate::plan::operation::Goal;
use crate::plan::request::{ClientId, OpId, Progress, Reply};
use crate::plan::step::{Fault, FaultKind, StepKind};

use super::Mind;

/// Somebody who is told how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiter {
    to: To,
    /// What to tell instead of success: the end that is awaited is only the
    /// clearing-up of this failure.
    news: Option<Failure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Client(ClientId, OpId),
    Prune(u64),
}

/// A prune with deletions under way.
#[derive(Debug, Clone)]
pub(super) struct Prune {
    pub(super) waiter: Waiter,
    pub(super) pending: BTreeSet<VmId>,
    pub(super) deleted: Vec<VmName>,
    pub(super) failures: Vec<Failure>,
}

impl Waiter {
    pub(super) fn client(client: ClientId, op: OpId) -> Waiter {
        Waiter {
            to: To::Client(client, op),
            news: None,
        }
    }

    pub(super) fn prune(number: u64) -> Waiter {
        Waiter {
            to: To::Prune(number),
            news: None,
        }
    }

    pub(super) fn with_news(mut self, failure: &Failure) -> Waiter {
        self.news.get_or_insert_with(|| failure.clone());
        self
    }

    pub(super) fn is_client(&self, client: ClientId) -> bool {
        matches!(self.to, To::Client(own, _) if own == client)
    }

    pub(super) fn op(&self) -> Option<OpId> {
        match self.to {
            To::Client(_, op) => Some(op),
            To::Prune(_) => None,
        }
    }

    pub(super) fn owner(&self) -> Option<ClientId> {
        match self.to {
            To::Client(client, _) => Some(client),
            To::Prune(_) => None,
        }
    }
}

impl Mind {
    /// Gives the final answer, or the news that stands before it.
    pub(super) fn reply(&mut self, waiter: Waiter, reply: Reply) {
        let reply = match waiter.news {
            Some(failure) => Reply::Failed(failure),
            None => reply,
        };
        match waiter.to {
            To::Client(client, op) => self.out.push(Action::Reply { client, op, reply }),
            To::Prune(number) => self.prune_progress(number, reply),
        }
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
        for waiter in waiters {
            if let To::Client(client, op) = waiter.to {
                self.out.push(Action::Progress {
                    client,
                    op,
                    progress: progress.clone(),
                });
            }
        }
    }

    fn prune_progress(&mut self, number: u64, reply: Reply) {
        let Some(prune) = self.prunes.get_mut(&number) else {
            return;
        };
        match reply {
            Reply::Deleted { name } => prune.deleted.push(name),
            Reply::Failed(failure) => prune.failures.push(failure),
            other => debug_assert!(false, "a deletion is answered with {other:?}"),
        }
    }

    /// Answers the prunes that waited for this VM only.
    pub(super) fn prunes_without(&mut self, vm: VmId) {
        for prune in self.prunes.values_mut() {
            prune.pending.remove(&vm);
        }
        self.finish_prunes();
    }

    pub(super) fn finish_prunes(&mut self) {
        let done: Vec<u64> = self
            .prunes
            .iter()
            .filter(|(_, prune)| prune.pending.is_empty())
            .map(|(number, _)| *number)
            .collect();
        for number in done {
            let Some(prune) = self.prunes.remove(&number) else {
                continue;
            };
            let reply = Reply::Pruned {
                deleted: prune.deleted,
                failures: prune.failures,
            };
            self.reply(prune.waiter, reply);
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
    };
    let kind = match fault.kind {
        FaultKind::Denied => FailureKind::Denied,
        FaultKind::Cancelled => FailureKind::Cancelled,
        FaultKind::Busy
        | FaultKind::Full
        | FaultKind::Missing
        | FaultKind::Timeout
        | FaultKind::Exited
        | FaultKind::Other => FailureKind::Failed,
    };
    let failure = Failure::new(kind, format!("{verb} vm {name}")).because(&fault.what);
    match hint(name, fault.kind, at) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn hint(name: &VmName, kind: FaultKind, at: Option<StepKind>) -> Option<String> {
    match (kind, at) {
        (FaultKind::Cancelled, _) => None,
        (FaultKind::Full, _) => Some("Free space, for example with `banger vm prune`.".to_owned()),
        (_, Some(StepKind::Ready)) => Some(format!(
            "The VM is kept: see `banger vm logs {name} --console`, then `banger vm start {name}` or `banger vm delete {name}`."
        )),
        (
            FaultKind::Busy
            | FaultKind::Missing
            | FaultKind::Denied
            | FaultKind::Timeout
            | FaultKind::Exited
            | FaultKind::Other,
            _,
        ) => Some("Run `banger doctor`: it checks what a VM needs.".to_owned()),
    }
}

/// The failure of an operation that got stuck.
pub(super) fn stuck_failure(name: &VmName, fault: &Fault) -> Failure {
    Failure::failed(format!("clear up vm {name}: it is stuck"))
        .because(&fault.what)
        .hint(format!(
            "See `banger vm show {name}`; `banger vm stop {name}` or `banger vm delete {name}` tries again."
        ))
}
