//! What the host asks of a running guest's agent, one request per vsock stream.
//!
//! The host connects to [`AGENT_PORT`] and sends one `Request` frame. Then, by
//! request:
//!
//! ```text
//!  exec     host: Input* InputEnd, Resize, Signal      agent: (Output|ErrorOutput|Credit)* Exit
//!  unpack   host: Input* InputEnd (a tar stream)       agent: Credit* Reply
//!  others   -                                          agent: Reply
//! ```
//!
//! Any of them may end with `Failed` instead. Whoever has received the last frame
//! closes. Every request carries the host's time, and the agent sets its clock when
//! it is off by more than 100 ms: that mends it after a pause or a laptop's sleep.

use serde::{Deserialize, Serialize};

/// The vsock port on which the agent listens in the guest.
pub const AGENT_PORT: u32 = 1024;
/// The vsock port on which the host listens for a guest that boots.
pub const CONTROL_PORT: u32 = 1023;
/// Version of this conversation; host and agent are the same binary, so another
/// version is a VM started before an upgrade, and is refused with that hint.
pub const AGENT_VERSION: u32 = 1;
/// Bytes of input that may be sent before the first `Credit`.
pub const INITIAL_CREDIT: u32 = 256 * 1024;

/// The first frame of a stream to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentCall {
    /// [`AGENT_VERSION`] of the caller.
    pub version: u32,
    /// The host's clock, nanoseconds since the epoch.
    pub host_time_ns: u64,
    /// What to do.
    pub request: AgentRequest,
}

/// What can be asked of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum AgentRequest {
    /// Run a command.
    Exec(Exec),
    /// Unpack a tar stream below a directory, which is made if missing.
    Unpack(Unpack),
    /// Follow what the running machine has been given.
    Adjust(Adjust),
    /// Write back all file systems, then power off. The reply precedes the power-off.
    PowerOff,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments, never joined; an empty list means the user's login shell.
    pub argv: Vec<String>,
    /// Set over the guest's own environment, in order.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Absolute; `None` means `GuestConfig::workdir` where that exists, else root's home.
    #[serde(default)]
    pub workdir: Option<String>,
    /// The terminal to allocate; `None` means three pipes.
    #[serde(default)]
    pub terminal: Option<Terminal>,
}

/// A terminal to allocate for a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// The caller's TERM.
    pub term: String,
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this status.
    Code(u8),
    /// This signal ended it (Linux number).
    Signal(u8),
}

impl Exit {
    /// The status a shell would report: the code, or 128 plus the signal.
    pub fn status(self) -> u8 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// Where a tar stream goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unpack {
    /// Absolute directory in the guest.
    pub path: String,
}

/// The answer to `Unpack`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Entries written.
    pub entries: u64,
    /// Bytes of file content written.
    pub bytes: u64,
}

/// What a running guest is to follow; each part may be asked for again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adjust {
    /// Whether its balloon must have a driver.
    #[serde(default)]
    pub balloon: bool,
    /// How long its work disk is, bytes: the file system on it is to be as long.
    #[serde(default)]
    pub work_disk: Option<u64>,
}

/// The answer to a request that needs none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// Why the agent could not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFailure {
    /// What kind of failure.
    pub kind: AgentFailureKind,
    /// The attempt, the object and the cause.
    pub what: String,
}

/// Kinds of agent failures, as far as callers treat them differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentFailureKind {
    /// The program does not exist: status 127.
    NotFound,
    /// The program exists and cannot be executed: status 126.
    NotExecutable,
    /// The working directory does not exist or cannot be entered.
    Workdir,
    /// It has as much to do as it takes at once.
    Busy,
    /// Another version of the conversation.
    Version,
    /// A request that makes no sense.
    Malformed,
    /// No space left in the guest.
    Full,
    /// The guest's kernel or machine has no such thing.
    Unsupported,
    /// Anything else.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_those_of_a_shell() {
        assert_eq!(Exit::Code(42).status(), 42);
        assert_eq!(Exit::Signal(9).status(), 137);
    }
}
