//! The one table of configuration keys.
//!
//! Parsing, `config show|get|set|unset`, and the test that `docs/config.md` lists every key
//! all read it. Imports only model: a value is checked by the word it will become.

use std::str::FromStr;

use crate::model::ids::{ImageName, KernelName};
use crate::model::limits::{check_disk_rate, check_iops, check_net_rate, check_weight};
use crate::model::net::Subnet;
use crate::model::units::Bytes;
use crate::model::vm::{RootModeRequest, VmSpec};

/// What a key's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Text,
    /// A whole number.
    Number,
    /// true or false.
    Switch,
}

impl Shape {
    /// For messages.
    pub fn word(self) -> &'static str {
        match self {
            Shape::Text => "a string in quotes",
            Shape::Number => "a whole number",
            Shape::Switch => "true or false",
        }
    }
}

/// A value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// A string.
    Text(String),
    /// A whole number.
    Number(i64),
    /// true or false.
    Switch(bool),
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Setting::Text(text) => f.pad(text),
            Setting::Number(number) => f.pad(&number.to_string()),
            Setting::Switch(on) => f.pad(&on.to_string()),
        }
    }
}

/// What holds where the file says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This text.
    Text(&'static str),
    /// This switch.
    Switch(bool),
    /// Worked out from this machine, see `sizes`.
    Machine,
    /// Nothing: a program is looked up on PATH, a limit does not exist.
    Unset,
}

/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Its name, with its table: `vm_defaults.vcpu`.
    pub name: &'static str,
    /// What its value is.
    pub shape: Shape,
    /// What holds without it.
    pub fallback: Fallback,
    /// Why a value of the right shape is refused; `Ok` when it is not.
    pub check: fn(&Setting) -> Result<(), String>,
    /// One line for people.
    pub about: &'static str,
}

impl Key {
    /// The table it stands in, empty for the top, and its name there.
    pub fn split(&self) -> (&'static str, &'static str) {
        self.name.split_once('.').unwrap_or(("", self.name))
    }
}

/// Every key, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    Key {
        name: "default_image",
        shape: Shape::Text,
        fallback: Fallback::Text("debian-bookworm"),
        check: |value| parses::<ImageName>(value),
        about: "image of a VM that names none",
    },
    Key {
        name: "default_kernel",
        shape: Shape::Text,
        fallback: Fallback::Text("debian-6.1-cloud"),
        check: |value| parses::<KernelName>(value),
        about: "kernel of a VM that names none",
    },
    Key {
        name: "log_level",
        shape: Shape::Text,
        fallback: Fallback::Text("info"),
        check: |value| one_of(value, &["error", "warn", "info", "debug", "trace"]),
        about: "what bangerd logs: error, warn, info, debug or trace",
    },
    Key {
        name: "templates",
        shape: Shape::Switch,
        fallback: Fallback::Switch(true),
        check: |_| Ok(()),
        about: "whether translated guests go on from a template instead of booting a kernel",
    },
    Key {
        name: "vm_defaults.vcpu",
        shape: Shape::Number,
        fallback: Fallback::Machine,
        check: |value| check_vcpu(whole(value)),
        about: "virtual processors",
    },
    Key {
        name: "vm_defaults.memory",
        shape: Shape::Text,
        fallback: Fallback::Machine,
        check: |value| size(value).and_then(check_memory),
        about: "memory of the guest",
    },
    Key {
        name: "vm_defaults.disk_size",
        shape: Shape::Text,
        fallback: Fallback::Text("8G"),
        check: |value| size(value).and_then(check_disk),
        about: "size of the work disk (/root)",
    },
    Key {
        name: "vm_defaults.root_size",
        shape: Shape::Text,
        fallback: Fallback::Text("8G"),
        check: |value| size(value).and_then(check_disk),
        about: "size of the root file system",
    },
    Key {
        name: "vm_defaults.root_mode",
        shape: Shape::Text,
        fallback: Fallback::Text("auto"),
        check: |value| parses::<RootModeRequest>(value),
        about: "how the root is made writable: auto, dm-snapshot, reflink or overlay",
    },
    Key {
        name: "vm_defaults.nat",
        shape: Shape::Switch,
        fallback: Fallback::Switch(false),
        check: |_| Ok(()),
        about: "whether guests reach the outside, as with --nat",
    },
    Key {
        name: "vm_defaults.disk_iops",
        shape: Shape::Number,
        fallback: Fallback::Unset,
        check: |value| check_iops(whole(value)),
        about: "most requests per second, of each disk by itself",
    },
    Key {
        name: "vm_defaults.disk_bandwidth",
        shape: Shape::Text,
        fallback: Fallback::Unset,
        check: |value| size(value).and_then(check_disk_rate),
        about: "most bytes per second, of each disk by itself",
    },
    Key {
        name: "vm_defaults.net_bandwidth",
        shape: Shape::Text,
        fallback: Fallback::Unset,
        check: |value| size(value).and_then(check_net_rate),
        about: "most bytes per second on the network, each way by itself",
    },
    Key {
        name: "vm_defaults.cpu_weight",
        shape: Shape::Number,
        fallback: Fallback::Unset,
        check: |value| check_weight(whole(value)),
        about: "share of busy processors, 1 to 10000; others have 100",
    },
    Key {
        name: "network.bridge",
        shape: Shape::Text,
        fallback: Fallback::Text("banger0"),
        check: check_interface,
        about: "name of the bridge that taps are attached to",
    },
    Key {
        name: "network.subnet",
        shape: Shape::Text,
        fallback: Fallback::Text("172.30.0.0/16"),
        check: |value| parses::<Subnet>(value),
        about: "network of the bridge; guests get their addresses from it",
    },
    Key {
        name: "programs.firecracker",
        shape: Shape::Text,
        fallback: Fallback::Unset,
        check: check_program,
        about: "path of firecracker; looked up on PATH otherwise",
    },
    Key {
        name: "programs.jailer",
        shape: Shape::Text,
        fallback: Fallback::Unset,
        check: check_program,
        about: "path of firecracker's jailer; looked up beside firecracker and on PATH otherwise",
    },
    Key {
        name: "programs.qemu",
        shape: Shape::Text,
        fallback: Fallback::Unset,
        check: check_program,
        about: "path of qemu-system-x86_64; looked up on PATH otherwise",
    },
    Key {
        name: "programs.vhost_device_vsock",
        shape: Shape::Text,
        fallback: Fallback::Unset,
        check: check_program,
        about: "path of vhost-device-vsock; looked up on PATH otherwise",
    },
];

/// The key with this full name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether a number of virtual processors is possible.
///
/// # Errors
/// The reason why not, for people.
pub fn check_vcpu(vcpu: i64) -> Result<(), String> {
    match (1..=i64::from(VmSpec::MAX_VCPU)).contains(&vcpu) {
        true => Ok(()),
        false => Err(format!("1 to {} are possible", VmSpec::MAX_VCPU)),
    }
}

/// Whether a guest can have this much memory.
///
/// # Errors
/// The reason why not, for people.
pub fn check_memory(memory: Bytes) -> Result<(), String> {
    if !memory.0.is_multiple_of(1 << 20) {
        return Err("whole MiB are possible".to_owned());
    }
    between(memory, VmSpec::MIN_MEMORY, VmSpec::MAX_MEMORY)
}

/// Whether a disk of ours can have this size.
///
/// # Errors
/// The reason why not, for people.
pub fn check_disk(size: Bytes) -> Result<(), String> {
    if !size.0.is_multiple_of(1 << 20) {
        return Err("whole MiB are possible".to_owned());
    }
    between(size, VmSpec::MIN_DISK, VmSpec::MAX_DISK)
}

fn between(size: Bytes, least: Bytes, most: Bytes) -> Result<(), String> {
    match (least..=most).contains(&size) {
        true => Ok(()),
        false => Err(format!("{least} to {most} are possible")),
    }
}

fn parses<T: FromStr<Err: std::fmt::Display>>(value: &Setting) -> Result<(), String> {
    let parsed = value.to_string().parse::<T>();
    parsed.map(drop).map_err(|error| error.to_string())
}

fn size(value: &Setting) -> Result<Bytes, String> {
    let parsed = value.to_string().parse::<Bytes>();
    parsed.map_err(|error| error.to_string())
}

fn whole(value: &Setting) -> i64 {
    value.to_string().parse().unwrap_or(-1)
}

fn one_of(value: &Setting, allowed: &[&str]) -> Result<(), String> {
    match allowed.contains(&value.to_string().as_str()) {
        true => Ok(()),
        false => Err(format!("one of {} is possible", allowed.join(", "))),
    }
}

/// An interface name: 1 to 15 bytes (IFNAMSIZ of linux/if.h holds 16 with the NUL), and
/// plain enough to stand in a firewall rule.
fn check_interface(value: &Setting) -> Result<(), String> {
    let name = value.to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match (1..=15).contains(&name.len()) && name.chars().all(plain) {
        true => Ok(()),
        false => Err("1 to 15 letters, digits, '-' and '_' are possible".to_owned()),
    }
}

fn check_program(value: &Setting) -> Result<(), String> {
    match value.to_string().starts_with('/') {
        true => Ok(()),
        false => Err("an absolute path is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_passes_its_own_check() {
        for key in KEYS {
            let value = match key.fallback {
                Fallback::Text(text) => Setting::Text(text.to_owned()),
                Fallback::Switch(on) => Setting::Switch(on),
                Fallback::Machine | Fallback::Unset => continue,
            };
            assert_eq!((key.check)(&value), Ok(()), "{}", key.name);
        }
    }

    #[test]
    fn absurd_sizes_are_refused_with_the_range() {
        assert!(check_vcpu(0).is_err() && check_vcpu(-1).is_err() && check_vcpu(33).is_err());
        assert_eq!(check_vcpu(32), Ok(()));
        assert!(check_memory(Bytes(0)).unwrap_err().contains("96M to"));
        assert!(
            check_memory(Bytes((1 << 30) + 1))
                .unwrap_err()
                .contains("whole MiB")
        );
        assert!(check_disk(Bytes::mib(1)).unwrap_err().contains("64M to"));
        assert!(check_disk(Bytes::gib(1 << 20)).is_err());
    }

    #[test]
    fn the_documentation_lists_every_key_with_its_default() {
        let text = include_str!("../../docs/config.md");
        for key in KEYS {
            let (table, name) = key.split();
            let heading = format!("| `{name}` |");
            assert!(text.contains(&heading), "docs/config.md lacks {}", key.name);
            assert!(
                text.contains(&format!("[{table}]")) || table.is_empty(),
                "{table}"
            );
            if let Fallback::Text(default) = key.fallback {
                assert!(text.contains(&format!("`\"{default}\"`")), "{}", key.name);
            }
        }
    }
}
