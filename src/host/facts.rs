//! What this machine offers: looked at, not judged.
//!
//! `banger doctor` judges [`findings`] (they run programs for their versions, a tenth
//! of a second in all); the plan asks only [`taps`], the sizes ask [`processors`] and
//! [`memory`]. Nothing is changed, except that asking for nf_tables loads its module.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::system::{sysinfo, uname};

use crate::model::units::Bytes;
use crate::plan::facts::MIN_FREE;

use super::bridge::{self, Bridge};
use super::cgroup::Groups;
use super::firewall;
use super::identity::Separation;
use super::layout::Layout;
use super::link::Links;
use super::program::Programs;
use super::tables::Tables;
use super::{disk, dm, jail, program, reflink};
use crate::sys::fiemap;

const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// The first version of e2fsprogs with `assume_storage_prezeroed`.
const E2FSPROGS: (u32, u32) = (1, 47);

/// Each piece of an image is 20 to 50 µs of every `FICLONE` of it (docs/disks.md), so
/// these are a tenth of a second. An image as it is made lies in under ten.
const MANY_EXTENTS: u32 = 2_000;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What: `nft`, `taps`.
    pub name: &'static str,
    /// Whether it is as a VM would want it.
    pub ok: bool,
    /// What was found, or what is wrong.
    pub detail: String,
}

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// Our directories.
    pub layout: &'a Layout,
    /// Our bridge, which need not exist.
    pub bridge: Bridge<'a>,
    /// Where programs are looked for.
    pub programs: &'a Programs,
}

/// Everything, in the order in which it is shown.
pub fn findings(look: &Look<'_>) -> Vec<Finding> {
    let mut all = vec![architecture(), kernel(), size()];
    all.extend([
        version_of(look, "qemu", "qemu-system-x86_64", "--version"),
        version_of(
            look,
            "vhost_device_vsock",
            "vhost-device-vsock",
            "--version",
        ),
        version_of(look, "firecracker", "firecracker", "--version"),
    ]);
    all.extend(jailer(look));
    all.extend([
        mke2fs(look),
        version_of(look, "mmdebstrap", "mmdebstrap", "--version"),
        version_of(look, "apt", "apt-get", "--version"),
    ]);
    if !rustix::process::geteuid().is_root() {
        all.push(user_namespaces());
    }
    all.push(finding(
        "tun",
        open_tun().map(|()| "/dev/net/tun".to_owned()),
    ));
    all.push(version_of(look, "nft", "nft", "--version"));
    let taps = taps(&look.bridge);
    let permitted = taps.is_ok();
    all.push(finding("taps", taps.map(|()| "may be made".to_owned())));
    if permitted {
        all.push(finding("bridge", bridge_state(&look.bridge)));
        all.push(finding("firewall", firewall::conflicts(look.bridge.name)));
    }
    all.push(finding("cgroup", cgroup()));
    all.push(finding("users", users()));
    all.push(root_modes(look.layout));
    all.extend(base_extents(look.layout));
    all.push(free_space(&look.layout.state));
    all
}

/// Whether we may make taps, a bridge and rules in this network namespace; if not, why.
pub fn taps(bridge: &Bridge<'_>) -> Result<(), String> {
    open_tun()?;
    program::require("nft", "nftables").map_err(|fault| fault.what)?;
    // nfnetlink answers nobody without CAP_NET_ADMIN over this namespace, so this asks
    // the kernel instead of guessing from uid and capability sets.
    let asked = Tables::open(bridge.name).and_then(|tables| tables.exist());
    asked
        .map(drop)
        .map_err(|error| super::fault::fault("use nftables as this user", error).what)
}

/// Processors that this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Main memory of the machine.
pub fn memory() -> Bytes {
    let found = sysinfo();
    Bytes(found.totalram.saturating_mul(u64::from(found.mem_unit)))
}

fn finding(name: &'static str, found: Result<String, String>) -> Finding {
    Finding {
        name,
        ok: found.is_ok(),
        detail: found.unwrap_or_else(|why| why),
    }
}

fn architecture() -> Finding {
    let machine = uname().machine().to_string_lossy().into_owned();
    Finding {
        name: "arch",
        ok: machine == "x86_64",
        detail: machine,
    }
}

fn kernel() -> Finding {
    let release = uname().release().to_string_lossy().into_owned();
    finding("kernel", Ok(format!("Linux {release}")))
}

fn size() -> Finding {
    let detail = format!("{} processors, {} MiB", processors(), memory().whole_mib());
    finding("machine", Ok(detail))
}

/// The program's first line about itself, and where it lies.
fn version_of(look: &Look<'_>, name: &'static str, file: &str, flag: &str) -> Finding {
    finding(name, version(look, file, flag))
}

fn version(look: &Look<'_>, file: &str, flag: &str) -> Result<String, String> {
    let path = look.programs.require(file, "see the hint");
    version_at(&path.map_err(|fault| fault.what)?, flag)
}

fn version_at(path: &Path, flag: &str) -> Result<String, String> {
    let outcome = program::run(path, [flag], b"", VERSION_DEADLINE);
    let outcome = outcome.map_err(|fault| fault.what)?;
    let said = [&outcome.output, &outcome.complaint];
    let line = said.into_iter().find_map(|text| text.lines().next());
    Ok(format!(
        "{} ({})",
        line.unwrap_or("no version"),
        path.display()
    ))
}

/// `None` without a firecracker. That an ordinary user's is not jailed is as it must be.
fn jailer(look: &Look<'_>) -> Option<Finding> {
    look.programs.find("firecracker")?;
    let unused = |why: String| match rustix::process::geteuid().is_root() {
        true => Err(format!("firecracker is started directly: {why}")),
        false => Ok(format!("not used: {why}")),
    };
    let found = match jail::fitness(look.programs) {
        Ok(path) => version_at(&path, "--version"),
        Err(why) => unused(why),
    };
    Some(finding("jailer", found))
}

fn mke2fs(look: &Look<'_>) -> Finding {
    let mut found = version_of(look, "mke2fs", "mke2fs", "-V");
    if found.ok && e2fsprogs_version(&found.detail).is_none_or(|have| have < E2FSPROGS) {
        found.ok = false;
        found.detail += ": 1.47 or newer is needed";
    }
    found
}

/// The numbers in `mke2fs 1.47.0 (5-Feb-2023)`.
fn e2fsprogs_version(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_whitespace().nth(1)?.split(['.', '-']);
    let number = |text: Option<&str>| text?.parse().ok();
    Some((number(numbers.next())?, number(numbers.next())?))
}

/// Whether an ordinary user may make namespaces (Debian and Ubuntu have switches).
fn user_namespaces() -> Finding {
    let switch = |name: &str| fs::read_to_string(format!("/proc/sys/{name}"));
    let is_off = |name: &str, off: &str| switch(name).is_ok_and(|text| text.trim() == off);
    let found = if is_off("kernel/unprivileged_userns_clone", "0") {
        Err("kernel.unprivileged_userns_clone is 0".to_owned())
    } else if is_off("kernel/apparmor_restrict_unprivileged_userns", "1") {
        Err("kernel.apparmor_restrict_unprivileged_userns is 1".to_owned())
    } else if is_off("user/max_user_namespaces", "0") {
        Err("user.max_user_namespaces is 0".to_owned())
    } else if program::find("newuidmap").is_none() {
        Err("newuidmap is not installed".to_owned())
    } else {
        Ok("may be made".to_owned())
    };
    finding("userns", found)
}

fn open_tun() -> Result<(), String> {
    let wanted = Access::READ_OK | Access::WRITE_OK;
    accessat(CWD, "/dev/net/tun", wanted, AtFlags::EACCESS)
        .map_err(|error| super::fault::fault("open /dev/net/tun", error).what)
}

fn bridge_state(bridge: &Bridge<'_>) -> Result<String, String> {
    let links = Links::open().map_err(|error| error.to_string())?;
    bridge::check(&links, bridge).map_err(|fault| fault.what)?;
    Ok(format!("{} for {}", bridge.name, bridge.subnet))
}

fn cgroup() -> Result<String, String> {
    let Some(groups) = Groups::discover() else {
        return Err("no cgroup v2 hierarchy that we may write to".to_owned());
    };
    match groups.controllers() {
        all if all.len() == 3 => Ok(format!("version 2, ours to use, with {}", all.join(", "))),
        some => Err(format!(
            "version 2, ours to use, without every controller: what VMs take is limited by {}",
            match some.is_empty() {
                true => "nothing".to_owned(),
                false => format!("{} only", some.join(" and ")),
            }
        )),
    }
}

/// Whose processes VMs are. That an ordinary user's VMs are his own is as it should be.
fn users() -> Result<String, String> {
    match Separation::discover() {
        Separation::PerVm => Ok("each VM is a user of its own".to_owned()),
        Separation::Own(why) if rustix::process::geteuid().is_root() => Err(why),
        Separation::Own(why) => Ok(format!("VMs run as this user: {why}")),
    }
}

/// Which root modes there are; a want of some is no fault, `overlay` is always there.
fn root_modes(layout: &Layout) -> Finding {
    let tried = [
        ("reflink", reflink::fitness(&layout.state)),
        ("dm-snapshot", dm::fitness()),
    ];
    let first = tried.iter().find(|(_, fit)| fit.is_ok());
    let mut detail = first.map_or("overlay", |(name, _)| *name).to_owned() + " by default";
    for (name, fit) in &tried {
        if let Err(why) = fit {
            detail += &format!("; no {name}: {why}");
        }
    }
    finding("root_modes", Ok(detail))
}

/// The image that lies in most pieces; `None` without images, or where none tells.
fn base_extents(layout: &Layout) -> Option<Finding> {
    let images = fs::read_dir(layout.images()).ok()?;
    let count = |folder: fs::DirEntry| {
        let file = File::open(folder.path().join("rootfs.ext4")).ok()?;
        let extents = fiemap::extents(&file).ok()?;
        Some((extents, folder.file_name()))
    };
    let (extents, image) = images.filter_map(Result::ok).filter_map(count).max()?;
    Some(Finding {
        name: "base_extents",
        ok: extents <= MANY_EXTENTS,
        detail: format!("{extents} at most, image {}", image.display()),
    })
}

/// Of the nearest folder that exists.
fn free_space(state: &Path) -> Finding {
    let folder = state.ancestors().find(|folder| folder.exists());
    let folder = folder.unwrap_or(Path::new("/"));
    match disk::free_space(folder) {
        Ok(free) => Finding {
            name: "disk",
            ok: free >= MIN_FREE,
            detail: format!("{} MiB free in {}", free.whole_mib(), folder.display()),
        },
        Err(error) => finding("disk", Err(format!("{}: {error}", folder.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_e2fsprogs_are_compared_by_number() {
        let read = |line: &str| e2fsprogs_version(line);
        assert_eq!(
            read("mke2fs 1.47.0 (5-Feb-2023) (/sbin/mke2fs)"),
            Some((1, 47))
        );
        assert_eq!(read("mke2fs 1.46.5"), Some((1, 46)));
        assert_eq!(read("mke2fs 1.48-WIP"), Some((1, 48)));
        assert_eq!(read("no version"), None);
        assert!(read("mke2fs 1.9.1").is_some_and(|have| have < E2FSPROGS));
    }

    #[test]
    fn every_finding_has_a_name_of_its_own_and_a_detail() {
        let folder = tempfile::tempdir().unwrap();
        let below = |name: &str| folder.path().join(name);
        let layout = Layout {
            state: below("state"),
            cache: below("cache"),
            runtime: below("runtime"),
        };
        let named = [("qemu-system-x86_64".to_owned(), below("no-qemu"))];
        let programs = Programs::new(named.into(), below("tools"));
        let all = findings(&Look {
            layout: &layout,
            bridge: Bridge {
                name: "bgr-facts",
                subnet: "172.30.0.0/16".parse().unwrap(),
            },
            programs: &programs,
        });
        let names: std::collections::BTreeSet<_> = all.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|one| !one.detail.is_empty()), "{all:?}");
        let qemu = all.iter().find(|one| one.name == "qemu").unwrap();
        assert!(!qemu.ok && qemu.detail.contains("no-qemu"), "{qemu:?}");
    }
}
