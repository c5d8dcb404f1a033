//! Saves that nothing was done between are one: each waits for the disk.
//!
//! A creation that goes on to a start says `Stopped` and then `Starting`, a restart the
//! same. Only the last of them is worth a wait: before it nobody was told anything and no
//! step was begun, so an end of the process in between leaves what an end before the
//! first would have left.

use crate::plan::event::Action;
use crate::plan::record::RowChange;

/// The same actions, with the changes of a save in the next one where only lines of the
/// log are between them.
pub(super) fn joined(actions: Vec<Action>) -> Vec<Action> {
    let mut out: Vec<Action> = Vec::with_capacity(actions.len());
    for action in actions {
        match action {
            Action::Save(changes) => {
                let earlier = take_last_save(&mut out);
                out.push(Action::Save(after(earlier, changes)));
            }
            other => out.push(other),
        }
    }
    out
}

fn take_last_save(out: &mut Vec<Action>) -> Vec<RowChange> {
    let last = out
        .iter()
        .rposition(|action| !matches!(action, Action::Log { .. }));
    match last.map(|index| (index, &mut out[index])) {
        Some((index, Action::Save(changes))) => {
            let changes = std::mem::take(changes);
            out.remove(index);
            changes
        }
        _ => Vec::new(),
    }
}

/// What both say, without rows that the later ones replace.
fn after(mut earlier: Vec<RowChange>, later: Vec<RowChange>) -> Vec<RowChange> {
    earlier.retain(|change| {
        let RowChange::PutVm(old) = change else {
            return true;
        };
        let replaced = |new: &RowChange| match new {
            RowChange::PutVm(new) => new.id == old.id,
            RowChange::DropVm(id) => *id == old.id,
            RowChange::PutImage(_)
            | RowChange::DropImage(_)
            | RowChange::PutKernel(_)
            | RowChange::DropKernel(_) => false,
        };
        !later.iter().any(replaced)
    });
    earlier.extend(later);
    earlier
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::event::{Action, TimerId};

    fn save(id: &str) -> Action {
        Action::Save(vec![RowChange::DropVm(id.parse().unwrap())])
    }

    fn log() -> Action {
        Action::Log {
            vm: None,
            op: None,
            text: "said".to_owned(),
        }
    }

    #[test]
    fn saves_with_lines_of_the_log_between_are_one_and_others_stay_apart() {
        let timer = Action::ArmTimer {
            timer: TimerId(1),
            after_ms: 0,
        };
        let (a, b) = (save("0000000a"), save("0000000b"));
        let both = match (&a, &b) {
            (Action::Save(a), Action::Save(b)) => Action::Save([a.clone(), b.clone()].concat()),
            _ => unreachable!(),
        };
        let near = vec![a.clone(), log(), b.clone(), timer.clone()];
        assert_eq!(joined(near), [log(), both, timer.clone()]);
        let apart = vec![a, log(), timer, b];
        assert_eq!(joined(apart.clone()), apart);
    }
}
