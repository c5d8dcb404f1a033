//! What `doctor --fix` is told.

use serde::{Deserialize, Serialize};

/// Everything that is not as it must be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    /// What was looked after already.
    pub repairs: Vec<Repair>,
    /// Contents and staging folders that nothing names: `Sweep` removes them.
    pub contents: Vec<String>,
    /// VMs that are stuck, to be tried again.
    pub stuck: Vec<StuckVm>,
}

/// One object, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// What became of it.
    pub outcome: Outcome,
    /// `tap bgr-0000002a`
    pub what: String,
    /// What was wrong with it, or why it is as before.
    pub why: String,
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is gone.
    Removed,
    /// It is as it must be again.
    Mended,
    /// It would be gone.
    WouldRemove,
    /// It would be mended.
    WouldMend,
    /// It is for somebody else to decide on.
    Left,
    /// It was tried in vain.
    Failed,
}

impl Outcome {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Removed => "removed",
            Outcome::Mended => "mended",
            Outcome::WouldRemove => "would remove",
            Outcome::WouldMend => "would mend",
            Outcome::Left => "left",
            Outcome::Failed => "failed",
        }
    }

    /// Whether something is still not as it must be.
    pub fn remains(self) -> bool {
        !matches!(self, Outcome::Removed | Outcome::Mended)
    }
}

/// A VM that is stuck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckVm {
    /// Its name.
    pub name: String,
    /// `stopping`, `deleting`, `resetting`, or `unreadable` for its row.
    pub at: String,
    /// Why.
    pub reason: String,
}
