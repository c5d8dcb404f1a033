//! One operation on one VM, sans-IO: it says which effect comes next and is told how
//! it went.
//!
//! ```text
//!  create   save Creating  -> ensure disk 0..n -> save Stopped -> rest
//!  start    save Starting  -> ensure run 0..n  -> save Running -> rest
//!                                 | fault or cancel
//!                                 v
//!  stop     save Stopping  -> absent run n..0           -> save Stopped -> rest
//!  delete   save Deleting  -> absent run n..0, disk n..0 -> row gone     -> rest
//!                                 | limit reached
//!                                 v
//!                             save Stuck -> rest
//!
//!  reset    save Resetting -> absent root -> ensure root -> save Stopped -> rest
//!
//!  adjust   (saved) -> ensure step 0..n -> save Adjusted -> rest
//!                          | fault or cancel
//!                          v
//!                         rest: it runs on, and its row says what it still lacks
//! ```
//!
//! A failed creation goes down the way of `delete`, a failed start the way of `stop`.
//! The way down covers the whole plan, the failed step included: a step that reported
//! failure may have taken effect. It stops at the first object that does not go: what
//! lies below is still in use.

use crate::model::vm::Phase;

use super::planted::{Bug, planted};
use super::record::Stuck;
use super::retry;
use super::step::{Fault, Step, StepKind};

/// What the shell must do next, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make this mark of the VM durable.
    Save(Mark),
    /// Make the object exist as described.
    Ensure(Step),
    /// Make the object not exist.
    Absent(Step),
}

/// What is saved of an operation: no journal, the phase alone tells recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The VM's row with this phase.
    Phase(Phase),
    /// The VM's row, saying that what runs has the sizes that it names.
    Adjusted,
    /// No row any more.
    Gone,
}

/// What an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Make the disks.
    Create,
    /// Make the run's objects, up to a guest that answers.
    Start,
    /// Remove the run's objects.
    Stop,
    /// Remove everything.
    Delete,
    /// Make the root anew.
    Reset,
    /// Give what runs the sizes of its row.
    Adjust,
}

/// How an operation came to rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Done,
    /// Not as asked, and everything it made is gone again.
    Failed {
        /// What ended it.
        fault: Fault,
        /// The step under way, if it ended in one.
        at: Option<StepKind>,
    },
    /// Something does not go away.
    Stuck(Fault),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The first save of a way up (or of a reset).
    Intent,
    /// This step of the way up is next.
    Up(usize),
    /// Up is done and must be saved.
    Arrived,
    /// The first save of a way down.
    Turn,
    /// So many steps of the way down remain.
    Down(usize),
    /// Down is done and must be saved.
    Undone,
    /// The limit is reached and must be saved.
    GivingUp,
    /// Nothing is left to do.
    Rest,
}

/// See the head of this file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    goal: Goal,
    up: Vec<Step>,
    down: Vec<Step>,
    state: State,
    /// Failures in a row of the step that is being undone.
    failures: u32,
    /// Why the way up ended, or is to end at the next report.
    fault: Option<Fault>,
    at: Option<StepKind>,
}

impl Operation {
    /// Makes the objects of a disk plan.
    pub fn create(disk_plan: &[Step]) -> Operation {
        Operation::new(Goal::Create, disk_plan.to_vec(), disk_plan.to_vec())
    }

    /// Makes the objects of a run plan.
    pub fn start(run_plan: &[Step]) -> Operation {
        Operation::new(Goal::Start, run_plan.to_vec(), run_plan.to_vec())
    }

    /// The same after its disks, which have been given other sizes. They stay when the
    /// start fails.
    pub fn start_grown(disk_plan: &[Step], run_plan: &[Step]) -> Operation {
        let up = [disk_plan, run_plan].concat();
        Operation::new(Goal::Start, up, run_plan.to_vec())
    }

    /// Removes the objects of a run plan.
    pub fn stop(run_plan: &[Step]) -> Operation {
        Operation::new(Goal::Stop, Vec::new(), run_plan.to_vec())
    }

    /// Removes everything that a VM has.
    pub fn delete(disk_plan: &[Step], run_plan: &[Step]) -> Operation {
        let all = [disk_plan, run_plan].concat();
        Operation::new(Goal::Delete, Vec::new(), all)
    }

    /// Makes the root anew: of a disk plan, only what holds its changes is touched.
    pub fn reset(disk_plan: &[Step]) -> Operation {
        let steps = disk_plan.iter();
        let root: Vec<Step> = steps
            .filter(|step| step.kind().holds_root())
            .cloned()
            .collect();
        Operation::new(Goal::Reset, root.clone(), root)
    }

    /// Carries these steps out on a VM that runs; its row names them already. Nothing is
    /// undone.
    pub fn adjust(steps: Vec<Step>) -> Operation {
        Operation::new(Goal::Adjust, steps, Vec::new())
    }

    fn new(goal: Goal, up: Vec<Step>, down: Vec<Step>) -> Operation {
        let state = match goal {
            Goal::Create | Goal::Start | Goal::Reset => State::Intent,
            Goal::Adjust => State::Up(0),
            Goal::Stop | Goal::Delete => State::Turn,
        };
        Operation {
            goal,
            up,
            down,
            state,
            failures: 0,
            fault: None,
            at: None,
        }
    }

    /// What it is for.
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// The next effect; the same answer until [`report`](Self::report); `None` at rest.
    pub fn next(&self) -> Option<Effect> {
        Some(match self.state {
            State::Intent => Effect::Save(Mark::Phase(self.intent())),
            State::Up(index) => Effect::Ensure(self.up[index].clone()),
            State::Arrived => Effect::Save(match self.goal {
                Goal::Start => Mark::Phase(Phase::Running),
                Goal::Create | Goal::Reset | Goal::Stop | Goal::Delete => {
                    Mark::Phase(Phase::Stopped)
                }
                Goal::Adjust => Mark::Adjusted,
            }),
            State::Turn => Effect::Save(Mark::Phase(match self.goal {
                Goal::Start | Goal::Stop | Goal::Adjust => Phase::Stopping,
                Goal::Create | Goal::Delete | Goal::Reset => Phase::Deleting,
            })),
            State::Down(left) => Effect::Absent(self.undone_next(left).clone()),
            State::Undone => Effect::Save(match self.goal {
                Goal::Start | Goal::Stop | Goal::Reset | Goal::Adjust => {
                    Mark::Phase(Phase::Stopped)
                }
                Goal::Create | Goal::Delete => Mark::Gone,
            }),
            State::GivingUp => Effect::Save(Mark::Phase(Phase::Stuck)),
            State::Rest => return None,
        })
    }

    /// How long to wait before the next effect, milliseconds; not 0 only when
    /// `absent` is tried again.
    pub fn pause_ms(&self) -> u64 {
        match self.state {
            State::Down(_) => retry::absent_delay_ms(self.failures).unwrap_or(0),
            State::Intent
            | State::Up(_)
            | State::Arrived
            | State::Turn
            | State::Undone
            | State::GivingUp
            | State::Rest => 0,
        }
    }

    /// Tells how the effect of [`next`](Self::next) went. Total: a failed save leaves
    /// the operation where it is (the process is about to end), a report at rest is
    /// without effect.
    pub fn report(&mut self, result: Result<(), Fault>) {
        self.state = match (self.state, result) {
            (State::Intent, Ok(())) => self.after_intent(),
            (State::Up(index), Ok(())) => self.after_step(index + 1),
            (State::Up(index), Err(fault)) => self.turn(fault, Some(index)),
            (State::Down(left), Ok(())) => self.after_undo(left - 1),
            (State::Down(left), Err(fault)) => self.after_failed_undo(left, fault),
            (State::Turn, Ok(())) => self.after_undo(self.down.len()),
            (State::Arrived | State::Undone | State::GivingUp | State::Rest, Ok(())) => State::Rest,
            (
                state @ (State::Intent
                | State::Arrived
                | State::Turn
                | State::Undone
                | State::GivingUp
                | State::Rest),
                Err(_),
            ) => state,
        };
    }

    /// Asks for the way down; takes effect at the next report. Of no effect on a way
    /// down and on a reset, which both end by themselves.
    pub fn cancel(&mut self, why: Fault) {
        if self.is_going_up() && self.fault.is_none() {
            self.fault = Some(why);
        }
    }

    /// Whether it is on a way up, so that a cancel would turn it.
    pub fn is_going_up(&self) -> bool {
        matches!(self.goal, Goal::Create | Goal::Start | Goal::Adjust)
            && matches!(self.state, State::Intent | State::Up(_) | State::Arrived)
    }

    /// How it came to rest; `None` before.
    pub fn outcome(&self) -> Option<Outcome> {
        match (self.state, &self.fault) {
            (State::Rest, None) => Some(Outcome::Done),
            (State::Rest, Some(fault)) if self.is_given_up() => Some(Outcome::Stuck(fault.clone())),
            (State::Rest, Some(fault)) => Some(Outcome::Failed {
                fault: fault.clone(),
                at: self.at,
            }),
            (
                State::Intent
                | State::Up(_)
                | State::Arrived
                | State::Turn
                | State::Down(_)
                | State::Undone
                | State::GivingUp,
                _,
            ) => None,
        }
    }

    /// The step under way when it turned.
    pub fn turned_at(&self) -> Option<StepKind> {
        self.at
    }

    /// Why it turned or got stuck, so far.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// What a VM that this operation leaves stuck was in the middle of.
    pub fn stuck(&self) -> Stuck {
        match self.goal {
            Goal::Start | Goal::Stop | Goal::Adjust => Stuck::Stopping,
            Goal::Create | Goal::Delete => Stuck::Deleting,
            Goal::Reset => Stuck::Resetting,
        }
    }

    fn intent(&self) -> Phase {
        match self.goal {
            Goal::Create => Phase::Creating,
            Goal::Start => Phase::Starting,
            Goal::Reset => Phase::Resetting,
            Goal::Adjust => Phase::Running,
            Goal::Stop => Phase::Stopping,
            Goal::Delete => Phase::Deleting,
        }
    }

    fn after_intent(&mut self) -> State {
        match self.goal {
            Goal::Reset => self.after_undo(self.down.len()),
            Goal::Create | Goal::Start | Goal::Stop | Goal::Delete | Goal::Adjust => {
                self.after_step(0)
            }
        }
    }

    fn after_step(&self, next: usize) -> State {
        if self.fault.is_some() && self.goal == Goal::Adjust {
            State::Rest
        } else if self.fault.is_some() {
            State::Turn
        } else if next < self.up.len() {
            State::Up(next)
        } else {
            State::Arrived
        }
    }

    fn turn(&mut self, fault: Fault, index: Option<usize>) -> State {
        self.at = index.map(|index| self.up[index].kind());
        self.fault.get_or_insert(fault);
        if planted(Bug::FailedStepSkipped) {
            self.down.truncate(index.unwrap_or(0));
        }
        match self.goal {
            // A root that cannot be made again leaves nothing to go back to.
            Goal::Reset => self.give_up(),
            // What was given stays given.
            Goal::Adjust => State::Rest,
            Goal::Create | Goal::Start | Goal::Stop | Goal::Delete => State::Turn,
        }
    }

    fn after_undo(&mut self, left: usize) -> State {
        self.failures = 0;
        match (left, self.goal) {
            (0, Goal::Reset) => self.after_step(0),
            (0, Goal::Create | Goal::Start | Goal::Stop | Goal::Delete | Goal::Adjust) => {
                State::Undone
            }
            (left, _) => State::Down(left),
        }
    }

    fn after_failed_undo(&mut self, left: usize, fault: Fault) -> State {
        self.failures += 1;
        match retry::absent_delay_ms(self.failures) {
            Some(_) => State::Down(left),
            None => {
                self.fault = Some(fault);
                self.give_up()
            }
        }
    }

    fn give_up(&mut self) -> State {
        self.failures = GIVEN_UP;
        State::GivingUp
    }

    fn is_given_up(&self) -> bool {
        self.failures == GIVEN_UP
    }

    fn undone_next(&self, left: usize) -> &Step {
        if planted(Bug::UndoForward) {
            return &self.down[self.down.len() - left];
        }
        &self.down[left - 1]
    }
}

/// Marks an operation that reached its limit.
const GIVEN_UP: u32 = u32::MAX;

#[cfg(test)]
mod tests;
