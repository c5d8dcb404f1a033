//! The one error shape that a person sees, whatever room it comes from.
//!
//! Rooms whose callers decide on an error have an enum of their own and turn it
//! into a [`Failure`] at their border. The wire carries the same fields, so the
//! command line and the daemon print alike; only `cli/render.rs` prints.

use std::fmt;

/// What kind of failure this is; decides the exit status and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The attempt failed (exit status 1).
    Failed,
    /// The command line or a value in it was wrong (2).
    Usage,
    /// The daemon could not be reached or started (3).
    Unreachable,
    /// The named object does not exist (4).
    NotFound,
    /// Not allowed (5).
    Denied,
    /// Something else is using it, or its state forbids the request (5).
    Busy,
    /// The caller gave up (130, as a shell reports SIGINT).
    Cancelled,
    /// A broken invariant of ours (70, EX_SOFTWARE).
    Bug,
    /// The store or the state directory failed (74, EX_IOERR).
    Storage,
}

impl FailureKind {
    /// Every kind, in the order of its exit status.
    pub const ALL: [FailureKind; 9] = [
        FailureKind::Failed,
        FailureKind::Usage,
        FailureKind::Unreachable,
        FailureKind::NotFound,
        FailureKind::Denied,
        FailureKind::Busy,
        FailureKind::Bug,
        FailureKind::Storage,
        FailureKind::Cancelled,
    ];

    /// The process exit status of a command that ends with this failure.
    pub fn exit_status(self) -> u8 {
        match self {
            FailureKind::Failed => 1,
            FailureKind::Usage => 2,
            FailureKind::Unreachable => 3,
            FailureKind::NotFound => 4,
            FailureKind::Denied | FailureKind::Busy => 5,
            FailureKind::Bug => 70,
            FailureKind::Storage => 74,
            FailureKind::Cancelled => 130,
        }
    }

    /// The word for this kind on the wire.
    pub fn word(self) -> &'static str {
        match self {
            FailureKind::Failed => "failed",
            FailureKind::Usage => "usage",
            FailureKind::Unreachable => "unreachable",
            FailureKind::NotFound => "not_found",
            FailureKind::Denied => "denied",
            FailureKind::Busy => "busy",
            FailureKind::Cancelled => "cancelled",
            FailureKind::Bug => "bug",
            FailureKind::Storage => "storage",
        }
    }

    /// The kind that a wire word means; an unknown word is plain `Failed`.
    pub fn from_word(word: &str) -> FailureKind {
        Self::ALL
            .into_iter()
            .find(|kind| kind.word() == word)
            .unwrap_or(FailureKind::Failed)
    }
}

/// A failure as it is shown: what was attempted on what, what to type next, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Decides the exit status.
    pub kind: FailureKind,
    /// Lower case, no full stop: the attempt and the object.
    pub what: String,
    /// A sentence with a command to type.
    pub hint: Option<String>,
    /// From the nearest cause to the innermost.
    pub causes: Vec<String>,
}

impl Failure {
    /// A failure of the given kind with neither hint nor cause.
    pub fn new(kind: FailureKind, what: impl Into<String>) -> Failure {
        Failure {
            kind,
            what: what.into(),
            hint: None,
            causes: Vec::new(),
        }
    }

    /// A plain failure (exit status 1).
    pub fn failed(what: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Failed, what)
    }

    /// A wrong command line or value (exit status 2).
    pub fn usage(what: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Usage, what)
    }

    /// An object that does not exist (exit status 4).
    pub fn not_found(what: impl Into<String>) -> Failure {
        Failure::new(FailureKind::NotFound, what)
    }

    /// A broken invariant of ours (exit status 70).
    pub fn bug(what: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Bug, what)
    }

    /// Adds the sentence that says what to type next.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a cause below the ones already there.
    pub fn because(mut self, cause: impl fmt::Display) -> Failure {
        self.causes.push(cause.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_its_wire_word() {
        for kind in FailureKind::ALL {
            assert_eq!(FailureKind::from_word(kind.word()), kind);
        }
    }

    #[test]
    fn display_joins_what_and_causes_without_the_hint() {
        let failure = Failure::failed("start vm dev")
            .hint("Run `banger doctor`.")
            .because("launch qemu")
            .because("no such file");
        assert_eq!(
            failure.to_string(),
            "start vm dev: launch qemu: no such file"
        );
    }
}
