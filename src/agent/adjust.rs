//! Gives a guest that runs what its machine has been given: a balloon that breathes, a
//! longer work disk. Each part may be asked for again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::proto::agent::{Adjust, AgentFailure, AgentFailureKind, Done};
use crate::sys::ext4;

use super::{device, during, grow, init, modules};

/// Where the work disk is mounted.
const HOME: &str = "/root";
/// The devices that the balloon's driver serves are links in here.
const BALLOONS: &str = "/sys/bus/virtio/drivers/virtio_balloon";

/// Carries it out.
///
/// # Errors
/// The guest has no balloon (kind `Unsupported`), or its disk does not follow.
pub fn adjust(wanted: &Adjust) -> Result<Done, AgentFailure> {
    if wanted.balloon {
        balloon()?;
    }
    if let Some(size) = wanted.work_disk {
        grow_home(size).map_err(other)?;
    }
    Ok(Done {})
}

fn other(failure: Failure) -> AgentFailure {
    let kind = AgentFailureKind::Other;
    let what = failure.to_string();
    AgentFailure { kind, what }
}

/// Loads the balloon's driver, which a start does not wait for. Whoever loads it at the
/// same time is waited for by the kernel.
fn balloon() -> Result<(), AgentFailure> {
    modules::load_late(&init::kernel_release()).map_err(other)?;
    let served = fs::read_dir(BALLOONS).into_iter().flatten().flatten();
    let is_device = |name: &str| name.starts_with("virtio");
    match served
        .map(|entry| entry.file_name())
        .any(|name| name.to_str().is_some_and(is_device))
    {
        true => Ok(()),
        false => Err(AgentFailure {
            kind: AgentFailureKind::Unsupported,
            what: "find a balloon: this guest's machine has none, or its kernel no driver of it"
                .to_owned(),
        }),
    }
}

/// The kernel hears of a longer disk some time after the VMM was told; its event tells.
fn grow_home(size: u64) -> Result<(), Failure> {
    let home = Path::new(HOME);
    let path = disk_of(home)?;
    let attempt = || format!("find {} longer", path.display());
    let disk = File::open(&path).map_err(during(attempt()))?;
    let is_longer = || ext4::disk_size(&disk).is_ok_and(|now| now >= size);
    device::wait_until(&attempt(), is_longer)?;
    grow::to_whole_disk(&path, home)
}

/// The disk that a folder is on, by its number (sysfs(5), `/sys/dev/block`).
fn disk_of(folder: &Path) -> Result<PathBuf, Failure> {
    let attempt = || format!("find the disk of {}", folder.display());
    let number = rustix::fs::stat(folder).map_err(during(attempt()))?.st_dev;
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let told = format!("/sys/dev/block/{major}:{minor}/uevent");
    let told = fs::read_to_string(told).map_err(during(attempt()))?;
    let name = told.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| Failure::failed(attempt()).because("it has no name"))?;
    Ok(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_no_disk_has_none() {
        let failure = disk_of(Path::new("/proc")).unwrap_err();
        assert!(failure.what.contains("find the disk of /proc"), "{failure}");
    }
}
