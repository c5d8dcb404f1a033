//! The conversation of a guest that boots: it dials CID 2, port
//! [`CONTROL_PORT`](super::agent::CONTROL_PORT), and sends a `Request` frame with a
//! [`GuestCall`]; the host answers with one `Reply` frame and the guest closes.
//!
//! ```text
//!  /init   hello  -> GuestConfig     before the root is handed over
//!  agent   ready  -> ReadyAck        listening on its port; phases of the boot
//! ```
//!
//! Each of the two is taken once in a run; after `ready` nobody listens any more. Any
//! process of a guest can dial, so the second call proves by a token that it comes from
//! where the first answer went.

use serde::{Deserialize, Serialize};

/// What a booting guest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub enum GuestCall {
    /// `/init` asks for its configuration.
    Hello {
        /// `AGENT_VERSION` of the binary.
        version: u32,
        /// `uname -r`.
        kernel_release: String,
    },
    /// The agent listens.
    Ready {
        /// `AGENT_VERSION` of the binary.
        version: u32,
        /// [`GuestConfig::token`].
        token: String,
        /// `systemd` or `agent`.
        init: String,
        /// Name and end of each boot phase, milliseconds since the kernel started.
        phases: Vec<(String, u64)>,
        /// What was skipped, and why, in words for people.
        warnings: Vec<String>,
    },
    /// `/init` cannot go on; the guest powers off after this.
    Failed {
        /// [`GuestConfig::token`], unless that had not come yet.
        token: Option<String>,
        /// The attempt, the object and the cause.
        what: String,
    },
}

/// Everything that is set inside the guest; nothing is edited from the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// Also written to /etc/hostname and /etc/hosts.
    pub hostname: String,
    /// The host's clock, nanoseconds since the epoch.
    pub host_time_ns: u64,
    /// Which process becomes number 1: `auto`, `systemd`, `agent`.
    pub init: String,
    /// `None`: only loopback is brought up.
    pub interface: Option<Interface>,
    /// Files to write, in order, parents made as needed.
    pub files: Vec<GuestFile>,
    /// Environment of every command the agent runs.
    pub env: Vec<(String, String)>,
    /// Where commands start that name no directory, as long as it exists; else root's home.
    #[serde(default)]
    pub workdir: Option<String>,
    /// The image's own command to keep running in `agent` mode; empty for none.
    pub entrypoint: Vec<String>,
    /// Random bytes for the kernel's pool, hexadecimal: each boot of each VM has its own.
    pub seed: String,
    /// 32 hexadecimal digits for /etc/machine-id: a VM's own, the same at each boot.
    pub machine_id: String,
    /// Random, hexadecimal, each boot's own: goes with the next call, for root's eyes only.
    pub token: String,
}

/// The guest's one network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Finds the device: `06:00:…`.
    pub mac: String,
    /// IPv4 address.
    pub address: String,
    /// Prefix length.
    pub prefix: u8,
    /// Default route; `None` for none.
    pub gateway: Option<String>,
    /// For /etc/resolv.conf.
    pub resolvers: Vec<String>,
}

/// A file to write in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestFile {
    /// Absolute.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Its text.
    pub content: String,
}

/// The answer to `Ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyAck {}

/// What `/init` leaves in the guest's /run for the agent of the same boot and the
/// same binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootRecord {
    /// `systemd` or `agent`: who is process 1.
    pub init: String,
    /// How this machine is switched off: `poweroff` or `reboot`.
    pub off: String,
    /// Environment of every command.
    pub env: Vec<(String, String)>,
    /// Where commands start that name no directory.
    pub workdir: Option<String>,
    /// The image's own command, run by process 1 in `agent` mode.
    pub entrypoint: Vec<String>,
    /// Name and end of each phase so far, milliseconds since the kernel started.
    pub phases: Vec<(String, u64)>,
    /// What was skipped so far.
    pub warnings: Vec<String>,
}
