//! Who a VM's processes run as: where we are root, a user of the VM's own, who owns
//! nothing on this machine but the VM's sockets.
//!
//! ```text
//!  uid = gid = 2013265920 + the low 27 bits of the VM's id      (0x78000000 to 0x7fffffff)
//! ```
//!
//! No two VMs of one daemon share these bits. The number before the first is for VMMs of
//! which templates are made: what other VMs will go on from is nothing that a VM's user may
//! touch. The range lies above what distributions,
//! systemd, subordinate ids and directory services hand out, and below 2^31, where some
//! programs take a uid for a negative number (systemd's docs/UIDS-GIDS.md calls it
//! unused). Nobody has to make the users: a uid needs no entry anywhere.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::thread::CapabilitySet;

use crate::model::ids::{USER_BITS, VmId};

/// The first uid and gid of VMs.
const FIRST: u32 = 0x7800_0000;
/// See the head of this file.
const MAKER: u32 = FIRST - 1;

/// What taking another user's identity, and living with its files and processes, needs.
const NEEDED: [(CapabilitySet, &str); 7] = [
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    (CapabilitySet::SETPCAP, "CAP_SETPCAP"),
    (CapabilitySet::CHOWN, "CAP_CHOWN"),
    (CapabilitySet::FOWNER, "CAP_FOWNER"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (CapabilitySet::KILL, "CAP_KILL"),
];

/// A user and his groups, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// His group, which has no other members.
    pub gid: u32,
    /// Supplementary groups: that of a device he needs, or none.
    pub groups: Vec<u32>,
}

/// Whether VMs have users of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Separation {
    /// Each VM has one.
    PerVm,
    /// They run as we do, for this reason.
    Own(String),
}

impl Separation {
    /// What this process may do.
    pub fn discover() -> Separation {
        match obstacle() {
            None => Separation::PerVm,
            Some(why) => Separation::Own(why),
        }
    }

    /// The VM's user; `None` where it is ours.
    pub fn identity(&self, vm: VmId) -> Option<Identity> {
        self.user(FIRST + vm.user_bits())
    }

    /// The user of VMMs of which templates are made; `None` where it is ours.
    pub fn maker(&self) -> Option<Identity> {
        self.user(MAKER)
    }

    fn user(&self, number: u32) -> Option<Identity> {
        (*self == Separation::PerVm).then(|| Identity {
            uid: number,
            gid: number,
            groups: Vec::new(),
        })
    }
}

impl Identity {
    /// The VM's user as far as he can open these device nodes, with the groups that own
    /// them; else root in the VM's group, whom a node of root's own does not refuse.
    pub fn able_to_open(mut self, devices: &[&Path]) -> Identity {
        for device in devices {
            let Ok(found) = fs::metadata(device) else {
                continue;
            };
            match found.mode() & 0o066 {
                bits if bits & 0o006 == 0o006 => {}
                bits if bits & 0o060 == 0o060 && found.gid() != 0 => self.groups.push(found.gid()),
                _ => {
                    return Identity {
                        uid: 0,
                        groups: Vec::new(),
                        ..self
                    };
                }
            }
        }
        self
    }
}

/// Lets everybody who is given the open file read it again: what VMs share, kernels and
/// initrds and the bases of disks, which VMMs open by the path of a descriptor. The folders
/// above them stay closed.
pub fn let_read(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    match mode & 0o004 {
        0 => fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o044)),
        _ => Ok(()),
    }
}

/// Lets the members of this group read and write the file, which keeps its owner.
pub fn let_write(path: &Path, group: u32) -> io::Result<()> {
    let found = fs::metadata(path)?;
    if found.gid() != group {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    let mode = found.permissions().mode();
    match mode & 0o060 {
        0o060 => Ok(()),
        _ => fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o060)),
    }
}

/// The users whose processes may be this VM's: ourselves, its own, and that of makers.
pub fn owners(vm: VmId) -> [u32; 3] {
    let own = rustix::process::geteuid().as_raw();
    match own {
        0 => [0, FIRST + vm.user_bits(), MAKER],
        _ => [own; 3],
    }
}

fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("bangerd is not root".to_owned());
    }
    let held = match rustix::thread::capabilities(None) {
        Ok(sets) => sets.effective,
        Err(error) => return Some(format!("read our capabilities: {error}")),
    };
    if let Some((_, name)) = NEEDED.iter().find(|(one, _)| !held.contains(*one)) {
        return Some(format!("root has no {name} here"));
    }
    let maps = ["/proc/self/uid_map", "/proc/self/gid_map"];
    let is_mapped = |map: &str| fs::read_to_string(map).is_ok_and(|text| covers(&text));
    maps.into_iter()
        .find(|map| !is_mapped(map))
        .map(|map| format!("this user namespace lacks the ids of VMs: see {map}"))
}

/// Whether one line of a map (user_namespaces(7): first inside, first outside, count) has
/// the whole range.
fn covers(map: &str) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        matches!(numbers[..], [inside, _, count]
            if inside <= u64::from(MAKER) && inside + count > u64::from(FIRST + USER_BITS))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vms_user_is_its_ids_low_bits_above_the_first() {
        let identity = Separation::PerVm.identity(VmId::from_bits(0xffff_ffff));
        assert_eq!(identity.unwrap().uid, 0x7fff_ffff);
        let identity = Separation::PerVm.identity(VmId::from_bits(0x2a)).unwrap();
        assert_eq!((identity.uid, identity.gid), (0x7800_002a, 0x7800_002a));
        let maker = Separation::PerVm.maker().unwrap();
        assert_eq!((maker.uid, maker.gid), (0x77ff_ffff, 0x77ff_ffff));
        let own = Separation::Own("not root".to_owned());
        assert_eq!(own.maker(), None);
        assert_eq!(own.identity(VmId::from_bits(1)), None);
    }

    #[test]
    fn only_a_map_of_the_whole_range_will_do() {
        assert!(covers("         0          0 4294967295\n"));
        assert!(!covers("0 1000 1\n1 100000 65536\n"));
        assert!(!covers("0 100000 2013265920\n"));
        assert!(!covers(""));
    }

    #[test]
    fn a_device_for_all_changes_nothing_and_one_of_roots_needs_root() {
        let identity = Separation::PerVm.identity(VmId::from_bits(7)).unwrap();
        let open = identity.clone().able_to_open(&[Path::new("/dev/null")]);
        assert_eq!(open, identity);
        let folder = tempfile::tempdir().unwrap();
        let node = folder.path().join("kvm");
        fs::write(&node, "").unwrap();
        fs::set_permissions(&node, fs::Permissions::from_mode(0o600)).unwrap();
        let closed = identity.clone().able_to_open(&[&node]);
        assert_eq!((closed.uid, closed.gid), (0, identity.gid));
    }
}
