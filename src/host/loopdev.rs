//! The block devices below a VM's snapshot: its base, read-only, and its store.
//!
//! The kernel hands out loop devices by number, so ours are found by what we write into
//! each when it is bound (`lo_file_name`): `banger:<id>:base`, `banger:<id>:cow`. That
//! name is not in sysfs (which shows the file's path, cut and perhaps of another mount):
//! every bound device is asked. Nothing is remembered, so what a dead daemon bound is
//! found like what we bound.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;

use crate::model::ids::VmId;
use crate::plan::step::{Fault, FaultKind, Presence};
use crate::sys::loop_device::{self, Status, Writable};

use super::fault::fault;
use super::uevent::Uevents;

const CONTROL: &str = "/dev/loop-control";
/// The major number of loop devices (Documentation/admin-guide/devices.txt).
const MAJOR: u32 = 7;
/// How often a device that was free is taken by others before we give up.
const ATTEMPTS: usize = 64;
/// How long a device may be held by its last user (udev that looks at it: milliseconds).
const DETACH_LIMIT: Duration = Duration::from_secs(5);

/// What a loop device is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The image, which nobody writes to.
    Base,
    /// The snapshot's store.
    Cow,
}

/// A loop device as it must be.
#[derive(Debug, Clone, Copy)]
pub struct LoopDevice<'a> {
    /// Whose.
    pub vm: VmId,
    /// What for.
    pub role: Role,
    /// The file behind it.
    pub file: &'a Path,
}

impl LoopDevice<'_> {
    fn writable(&self) -> Writable {
        match self.role {
            Role::Base => Writable::No,
            Role::Cow => Writable::Yes,
        }
    }

    fn attempt(&self, verb: &str) -> String {
        format!("{verb} loop device {}", tag(self.vm, self.role))
    }
}

/// What is written into a device of ours.
pub fn tag(vm: VmId, role: Role) -> String {
    let role = match role {
        Role::Base => "base",
        Role::Cow => "cow",
    };
    format!("banger:{vm}:{role}")
}

/// A bound device that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// N of /dev/loopN.
    pub number: u32,
    /// What it says of itself.
    pub status: Status,
}

/// Binds the file if it is not bound, and lets the device follow the file's length, also
/// while it is in use.
pub fn ensure(device: &LoopDevice<'_>) -> Result<(), Fault> {
    match probe(device)? {
        Presence::Present => return Ok(()),
        Presence::Absent => {}
        Presence::Different if follow_length(device)? => return Ok(()),
        Presence::Different => absent(device.vm, device.role)?,
    }
    bind(device)?;
    match probe(device)? {
        Presence::Present => Ok(()),
        Presence::Absent | Presence::Different => Err(Fault::new(
            FaultKind::Other,
            format!("{}: it was taken away at once", device.attempt("bind")),
        )),
    }
}

/// Lets go of whatever has the tag and waits until nothing has it. A device in use lets
/// go when its last user does, which is waited for too.
pub fn absent(vm: VmId, role: Role) -> Result<(), Fault> {
    let tag = tag(vm, role);
    let failed = |error: io::Error| fault(format!("clear loop device {tag}"), error);
    if find(&tag).map_err(failed)?.is_empty() {
        return Ok(());
    }
    let uevents = Uevents::subscribe().map_err(failed)?;
    for found in find(&tag).map_err(failed)? {
        match clear(found.number, &tag) {
            Err(error) if error.raw_os_error() != Some(Errno::NXIO.raw_os_error()) => {
                return Err(failed(error));
            }
            _ => {}
        }
    }
    let gone = uevents
        .wait_until(DETACH_LIMIT, || Ok::<_, io::Error>(find(&tag)?.is_empty()))
        .map_err(failed)?;
    match gone {
        true => Ok(()),
        false => Err(fault(format!("clear loop device {tag}"), Errno::BUSY)),
    }
}

/// Present means one device with the tag, over this file, of its length, writable as it
/// must be, and not about to let go.
pub fn probe(device: &LoopDevice<'_>) -> Result<Presence, Fault> {
    let failed = |error: io::Error| fault(device.attempt("find"), error);
    let found = find(&tag(device.vm, device.role)).map_err(failed)?;
    let [found] = found.as_slice() else {
        return Ok(match found.len() {
            0 => Presence::Absent,
            _ => Presence::Different,
        });
    };
    let same = is_over(device, found).map_err(failed)?
        && sectors(found.number).map_err(failed)? == file_sectors(device.file).map_err(failed)?;
    Ok(match same {
        true => Presence::Present,
        false => Presence::Different,
    })
}

/// Every bound device with this tag, by number.
///
/// A device that this user may not open is not ours: binding one takes the same right.
pub fn find(tag: &str) -> io::Result<Vec<Found>> {
    let mut all = Vec::new();
    for number in bound()? {
        let status = open(number, OFlags::RDONLY).and_then(loop_device::status);
        match status {
            Ok(status) if status.tag == tag.as_bytes() => all.push(Found { number, status }),
            Ok(_) => {}
            // It let go meanwhile, or was removed with its node.
            Err(error) if is_gone(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    all.sort_by_key(|found| found.number);
    Ok(all)
}

/// Every bound device with a tag of ours, whoever's: the VM, what for, the file behind it.
pub fn tagged() -> io::Result<Vec<(VmId, Role, PathBuf)>> {
    let mut all = Vec::new();
    for number in bound()? {
        let status = open(number, OFlags::RDONLY).and_then(loop_device::status);
        let Ok(status) = status else {
            // Not ours to open, or gone.
            continue;
        };
        let shown = fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file"));
        let file = PathBuf::from(shown.unwrap_or_default().trim_end());
        let parsed = read_tag(&String::from_utf8_lossy(&status.tag));
        all.extend(parsed.map(|(vm, role)| (vm, role, file)));
    }
    Ok(all)
}

fn read_tag(text: &str) -> Option<(VmId, Role)> {
    let (id, role) = text.strip_prefix("banger:")?.split_once(':')?;
    let role = match role {
        "base" => Role::Base,
        "cow" => Role::Cow,
        _ => return None,
    };
    Some((id.parse().ok()?, role))
}

/// The length of a bound device, in sectors of 512 bytes.
pub fn sectors(number: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/sys/block/loop{number}/size"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Whether we may bind loop devices; if not, why.
pub fn fitness() -> Result<(), String> {
    let opened = open_control().and_then(|control| loop_device::free_number(&control));
    opened
        .map(drop)
        .map_err(|error| fault(format!("use {CONTROL}"), error).what)
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::NXIO, Errno::NODEV, Errno::NOENT];
    Errno::from_io_error(error).is_some_and(|errno| gone.contains(&errno))
}

/// Numbers of devices that are bound, or were an instant ago.
fn bound() -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir("/sys/block") {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop"));
        if let Some(number) = number.and_then(|text| text.parse().ok())
            && entry.path().join("loop").exists()
        {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

fn open_control() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(CONTROL, flags, Mode::empty())?)
}

/// Opens a device by its node, which is made where nobody else makes it.
fn open(number: u32, access: OFlags) -> io::Result<OwnedFd> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(&path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            make_node(&path, makedev(MAJOR, number))?;
            Ok(rustix::fs::open(&path, flags, Mode::empty())?)
        }
        opened => Ok(opened?),
    }
}

/// Makes the node of a block device, mode 0600.
pub fn make_node(path: &Path, device: u64) -> io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::mknodat(CWD, path, FileType::BlockDevice, mode, device) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the device is over the right file in the right way.
fn is_over(device: &LoopDevice<'_>, found: &Found) -> io::Result<bool> {
    let file = match fs::metadata(device.file) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let status = &found.status;
    Ok(status.backing == (file.dev(), file.ino())
        && status.writable == device.writable()
        && !status.is_detaching)
}

/// A loop device has whole sectors of its file.
fn file_sectors(file: &Path) -> io::Result<u64> {
    Ok(fs::metadata(file)?.len() / 512)
}

/// Whether the one thing that differed was the length, which is now the file's.
fn follow_length(device: &LoopDevice<'_>) -> Result<bool, Fault> {
    let failed = |error: io::Error| fault(device.attempt("grow"), error);
    let found = find(&tag(device.vm, device.role)).map_err(failed)?;
    let [found] = found.as_slice() else {
        return Ok(false);
    };
    if !is_over(device, found).map_err(failed)? {
        return Ok(false);
    }
    open(found.number, OFlags::RDONLY)
        .and_then(loop_device::follow_length)
        .map_err(failed)?;
    Ok(probe(device)? == Presence::Present)
}

/// Binds the file to some free device.
fn bind(device: &LoopDevice<'_>) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(device.attempt("bind"), error);
    let writes = device.writable() == Writable::Yes;
    let file = OpenOptions::new()
        .read(true)
        .write(writes)
        .open(device.file)
        .map_err(|error| fault(format!("open {}", device.file.display()), error))?;
    let control = open_control().map_err(|error| fault(format!("open {CONTROL}"), error))?;
    for _ in 0..ATTEMPTS {
        match bind_next(device, &control, &file) {
            // Another process was faster: the kernel names another free one.
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
            result => return result.map_err(failed),
        }
    }
    Err(failed(Errno::BUSY.into()))
}

fn bind_next(device: &LoopDevice<'_>, control: &OwnedFd, file: &File) -> io::Result<()> {
    let number = loop_device::free_number(control)?;
    let node = open(number, OFlags::RDWR)?;
    let tag = tag(device.vm, device.role);
    loop_device::configure(node, file.as_fd(), &tag, device.writable())
}

/// Lets a device go, if it is still the one with this tag.
fn clear(number: u32, tag: &str) -> io::Result<()> {
    let node = open(number, OFlags::RDONLY)?;
    match loop_device::status(&node)?.tag == tag.as_bytes() {
        true => loop_device::clear(&node),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_name_vm_and_role_and_fit() {
        let vm = VmId::from_bits(0x2a);
        assert_eq!(tag(vm, Role::Base), "banger:0000002a:base");
        assert_eq!(tag(vm, Role::Cow), "banger:0000002a:cow");
        assert!(tag(vm, Role::Base).len() <= loop_device::TAG_LIMIT);
    }

    #[test]
    fn a_tag_that_nobody_has_is_found_nowhere() {
        assert_eq!(find("banger:no-such:tag").unwrap(), Vec::new());
    }
}
