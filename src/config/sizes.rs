//! The sizes of a new VM: configuration, else this machine, else a floor.
//!
//! Pure: the machine is given as two numbers. The command line is the only place
//! that resolves sizes; what it sends to the daemon is explicit.

use super::file::{Config, Origin};
use crate::model::units::Bytes;

/// What decides defaults about this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Processors.
    pub cpus: usize,
    /// Main memory.
    pub memory: Bytes,
}

/// The sizes of a VM for which nothing was said on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Virtual processors.
    pub vcpu: u8,
    /// Guest memory.
    pub memory: Bytes,
    /// Work disk.
    pub disk: Bytes,
    /// Upper disk.
    pub root: Bytes,
}

/// A quarter of the processors, 1 to 4.
pub fn vcpu_of(machine: Machine) -> u8 {
    (machine.cpus / 4).clamp(1, 4) as u8
}

/// An eighth of the memory, 512 MiB to 8 GiB, in steps of 128 MiB.
pub fn memory_of(machine: Machine) -> Bytes {
    let eighth = machine.memory.whole_mib() / 8;
    Bytes::mib((eighth / 128 * 128).clamp(512, 8192))
}

impl Sizes {
    /// The sizes that hold on this machine with this configuration.
    pub fn resolve(config: &Config, machine: Machine) -> Sizes {
        Sizes {
            vcpu: config.vcpu().unwrap_or_else(|| vcpu_of(machine)),
            memory: config.memory().unwrap_or_else(|| memory_of(machine)),
            disk: config.disk_size(),
            root: config.root_size(),
        }
    }
}

/// Every key with its effective value as text and where it comes from, in table order.
pub fn effective(config: &Config, machine: Machine) -> Vec<(&'static str, String, Origin)> {
    let sizes = Sizes::resolve(config, machine);
    let row = |key: &'static super::keys::Key| {
        let (value, origin) = config.value(key);
        let text = match (value, key.name) {
            (Some(value), _) => value.to_string(),
            (None, "vm_defaults.vcpu") => sizes.vcpu.to_string(),
            (None, "vm_defaults.memory") => sizes.memory.to_string(),
            (None, _) => String::new(),
        };
        (key.name, text, origin)
    };
    super::keys::KEYS.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn machine(cpus: usize, gib: u64) -> Machine {
        Machine {
            cpus,
            memory: Bytes::gib(gib),
        }
    }

    #[test]
    fn machines_small_and_large_stay_within_floor_and_cap() {
        let sizes = |cpus, gib| {
            let sizes = Sizes::resolve(&Config::default(), machine(cpus, gib));
            (sizes.vcpu, sizes.memory)
        };
        assert_eq!(sizes(1, 1), (1, Bytes::mib(512)));
        assert_eq!(sizes(8, 16), (2, Bytes::gib(2)));
        assert_eq!(sizes(128, 512), (4, Bytes::gib(8)));
    }

    #[test]
    fn the_file_wins_over_the_machine_and_says_so() {
        let config = Config::parse("[vm_defaults]\nvcpu = 7\n", Path::new("/c")).unwrap();
        let all = effective(&config, machine(4, 8));
        assert!(all.contains(&("vm_defaults.vcpu", "7".to_owned(), Origin::Line(2))));
        assert!(all.contains(&("vm_defaults.memory", "1G".to_owned(), Origin::Machine)));
        assert!(all.contains(&("programs.qemu", String::new(), Origin::Default)));
    }
}
