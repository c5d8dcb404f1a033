//! Firecracker started by its jailer: what the jailer is told, and what is to be seen in
//! the jail. How that is made is for [`crate::host::jail`].
//!
//! The jailer stays in the foreground and executes firecracker in its own place, so the
//! process that was started is the VMM. It is told of no control group: it is born in the
//! VM's.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::host::fault::fault;
use crate::host::identity::Identity;
use crate::host::jail::{self, Jail, Shown};
use crate::host::program::Programs;
use crate::plan::step::{Fault, FaultKind};
use crate::vmm::machine::{Access, Disk, Parts};

use super::options;

/// A jailer to be started.
#[derive(Debug, PartialEq, Eq)]
pub struct Jailed {
    /// The jailer.
    pub program: PathBuf,
    /// Its words.
    pub arguments: Vec<OsString>,
    /// What it is started in.
    pub jail: Jail,
}

/// The jailer for a machine. It makes its root below `work`, which the jail covers.
///
/// # Errors
/// A program is missing, or cannot be looked at.
pub fn jailed(
    programs: &Programs,
    firecracker: &Path,
    parts: &Parts,
    user: &Identity,
    work: &Path,
) -> Result<Jailed, Fault> {
    let program = jail::jailer(programs, firecracker).ok_or_else(|| {
        let what = format!("find the jailer of {}: it is gone", firecracker.display());
        Fault::new(FaultKind::Missing, what)
    })?;
    let failed = |error| fault(format!("look at {}", firecracker.display()), error);
    let real = fs::canonicalize(firecracker).map_err(failed)?;
    let size = jail::size_for(&real).map_err(failed)?;
    Ok(Jailed {
        program,
        arguments: arguments(&real, parts, user, work),
        jail: Jail {
            cover: work.to_owned(),
            root: root(&real, parts, work),
            size,
            shown: shown(parts),
        },
    })
}

/// `<base>/<name of the program>/<id>/root`, as the jailer makes it up (docs/jailer.md of
/// Firecracker).
fn root(firecracker: &Path, parts: &Parts, work: &Path) -> PathBuf {
    let name = firecracker.file_name().unwrap_or_default();
    work.join(name).join(parts.vm.to_string()).join("root")
}

fn arguments(firecracker: &Path, parts: &Parts, user: &Identity, work: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![
        "--id".into(),
        parts.vm.to_string().into(),
        "--exec-file".into(),
        firecracker.into(),
        "--uid".into(),
        user.uid.to_string().into(),
        "--gid".into(),
        user.gid.to_string().into(),
        "--chroot-base-dir".into(),
        work.into(),
        "--".into(),
    ];
    words.extend(options(parts));
    words
}

/// The run directory, with the sockets, and the files of the machine.
fn shown(parts: &Parts) -> Vec<Shown> {
    let folder = parts.control.parent().unwrap_or(&parts.control);
    let mut shown = vec![
        Shown::Folder(folder.to_owned()),
        Shown::ToRead(parts.kernel.clone()),
        Shown::ToRead(parts.initrd.clone()),
    ];
    shown.extend(parts.disks.iter().map(|Disk { path, access, .. }| {
        let path = path.clone();
        match access {
            Access::ReadOnly => Shown::ToRead(path),
            Access::ReadWrite => Shown::ToWrite(path),
            Access::Device => Shown::Device(path),
        }
    }));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::identity::Separation;
    use crate::model::net::NetMode;
    use crate::model::vm::{Confinement, RootMode, VmmKind};
    use crate::vmm::firecracker::requests;
    use crate::vmm::machine::tests::{confined, parts_of};

    fn jailed_parts(root: RootMode) -> Parts {
        confined(
            parts_of(VmmKind::Firecracker, NetMode::Nat, root),
            Confinement::Jailer,
        )
    }

    #[test]
    fn a_jailer_is_told_who_to_become_and_what_to_start() {
        let parts = jailed_parts(RootMode::Overlay);
        let user = Separation::PerVm.identity(parts.vm).unwrap();
        let words = arguments(Path::new("/bin/fc"), &parts, &user, Path::new("/r/vms"));
        let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
        let expected = "--id 0000002a --exec-file /bin/fc --uid 2013265962 --gid 2013265962 \
                        --chroot-base-dir /r/vms -- --api-sock /r/vms/0000002a/vmm.sock \
                        --log-path /r/vms/0000002a/log --level Warn";
        assert_eq!(words.join(" "), expected);
        let root = root(Path::new("/bin/fc"), &parts, Path::new("/r/vms"));
        assert_eq!(root, Path::new("/r/vms/fc/0000002a/root"));
    }

    #[test]
    fn every_path_that_a_jailed_machine_names_is_to_be_seen_in_its_jail() {
        for root in RootMode::ALL {
            let parts = jailed_parts(*root);
            let shown = shown(&parts);
            let told = requests(&parts);
            let told = told
                .iter()
                .map(|one| String::from_utf8(one.body()).unwrap());
            let named: Vec<String> = told
                .flat_map(|body| body.split('"').map(str::to_owned).collect::<Vec<_>>())
                .filter(|word| word.starts_with('/'))
                .collect();
            assert_eq!(named.len(), 4 + parts.disks.len());
            for path in named {
                let mut seen = shown.iter();
                let is_seen = seen.any(|one| Path::new(&path).starts_with(one.path()));
                assert!(is_seen, "{path}");
            }
        }
        let shared = shown(&jailed_parts(RootMode::DmSnapshot));
        assert_eq!(
            shared[3],
            Shown::Device("/s/vms/0000002a/root.device".into())
        );
        assert_eq!(
            shared[4],
            Shown::ToWrite("/s/vms/0000002a/work.ext4".into())
        );
    }
}
