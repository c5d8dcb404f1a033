//! A VM's root as a snapshot: two device-mapper devices over two loop devices.
//!
//! ```text
//!  bgr-<id>       snapshot   writable: the VMM's root disk, by <VM's folder>/root.device
//!    bgr-<id>-base  linear + zero   read-only: the base, then zeros up to the root's size
//!      loop banger:<id>:base          the image
//!    loop banger:<id>:cow           the exception store
//! ```
//!
//! A snapshot cannot be longer than its origin, so the zeros are what makes a root of
//! 8 GiB out of an image of 1 GiB in no time. Both devices are found by name with nothing
//! remembered; their tables name the loop devices by number, so a table is compared with
//! what it would be made of now, and a device with another is removed and made anew, but
//! only while nobody uses it. Read next: [`super::loopdev`], [`super::cow`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, major, makedev, minor, mknodat};
use rustix::io::Errno;

use crate::model::ids::VmId;
use crate::model::units::Bytes;
use crate::plan::step::{Fault, FaultKind, Presence};
use crate::plan::store_level::{Level, StoreState};
use crate::sys::dm::{Access, Control, Device, IfBusy, Removed, State, Target};

use super::fault::fault;
use super::loopdev::{self, Role};
use super::uevent::Uevents;
use super::{cow, loopdev::make_node};

const CONTROL: &str = "/dev/mapper/control";
/// The major number of control nodes (Documentation/admin-guide/devices.txt).
const MISC: u32 = 10;
/// Sectors are of 512 bytes everywhere in device-mapper.
const SECTOR: u64 = 512;
/// How long a device may be held by its last user (udev that looks at it: milliseconds).
const REMOVE_LIMIT: Duration = Duration::from_secs(5);

/// A snapshot as it must be.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// Whose.
    pub vm: VmId,
    /// Virtual size of the root.
    pub size: Bytes,
    /// The link that leads to its block device.
    pub link: &'a Path,
}

/// One of a VM's two devices.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    name: String,
    uuid: String,
    table: Vec<Target>,
    access: Access,
}

fn name(vm: VmId) -> String {
    format!("bgr-{vm}")
}

fn base_name(vm: VmId) -> String {
    format!("bgr-{vm}-base")
}

fn uuid(vm: VmId) -> String {
    format!("banger-{vm}")
}

fn base_uuid(vm: VmId) -> String {
    format!("banger-{vm}-base")
}

/// Makes both devices and the link.
pub fn ensure(snapshot: &Snapshot<'_>) -> Result<(), Fault> {
    let attempt = || format!("make snapshot {}", name(snapshot.vm));
    let failed = |error: io::Error| fault(attempt(), error);
    let control = open_control().map_err(|error| fault(format!("open {CONTROL}"), error))?;
    // Both asked for before anything is made.
    loop_number(snapshot.vm, Role::Cow).map_err(failed)?;
    let base = base_layer(snapshot).map_err(failed)?;
    if !is_live(&control, &base).map_err(failed)? {
        absent(snapshot.vm, snapshot.link)?;
        make(&control, &base)?;
    }
    let top = top_layer(&control, snapshot).map_err(failed)?;
    if !is_live(&control, &top).map_err(failed)? {
        remove(&control, &top.name, &top.uuid)?;
        make(&control, &top)?;
    }
    link(&control, snapshot).map_err(failed)?;
    let level = level_by(&control, snapshot.vm).map_err(failed)?;
    match level.map(|level| level.state) {
        Some(StoreState::Invalid) => Err(lost(&attempt())),
        Some(StoreState::Active | StoreState::Overflow) => match probe(snapshot)? {
            Presence::Present => Ok(()),
            Presence::Absent | Presence::Different => Err(Fault::new(
                FaultKind::Other,
                format!("{}: it was taken away at once", attempt()),
            )),
        },
        None => Err(fault(attempt(), Errno::NXIO)),
    }
}

fn lost(attempt: &str) -> Fault {
    let what = format!(
        "{attempt}: its store is invalid, the changes to the root are lost: the host's disk failed or was full while it was written"
    );
    Fault::new(FaultKind::Other, what).remedy(Some(
        "`banger vm reset` makes the root anew from its image; /root is kept.".to_owned(),
    ))
}

/// Removes link and devices; whoever still holds one is waited for, for a while.
pub fn absent(vm: VmId, link: &Path) -> Result<(), Fault> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(fault(format!("remove {}", link.display()), error));
        }
        _ => {}
    }
    let Some(control) = existing_control()? else {
        return Ok(());
    };
    remove(&control, &name(vm), &uuid(vm))?;
    remove(&control, &base_name(vm), &base_uuid(vm))
}

/// Present means both devices with the tables that they would get now, live, the store
/// valid, the link leading there.
pub fn probe(snapshot: &Snapshot<'_>) -> Result<Presence, Fault> {
    let failed = |error: io::Error| fault(format!("find snapshot {}", name(snapshot.vm)), error);
    let Some(control) = existing_control()? else {
        return Ok(Presence::Absent);
    };
    let names = [name(snapshot.vm), base_name(snapshot.vm)];
    let mut exist = 0;
    for name in &names {
        exist += usize::from(control.find(name).map_err(failed)?.is_some());
    }
    // A link alone leads nowhere: it is left of before a reboot of the host.
    if exist == 0 {
        return Ok(Presence::Absent);
    }
    Ok(match is_whole(&control, snapshot) {
        Ok(true) => Presence::Present,
        Ok(false) => Presence::Different,
        // A loop device or the upper device is missing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Presence::Different,
        Err(error) => return Err(failed(error)),
    })
}

fn is_whole(control: &Control, snapshot: &Snapshot<'_>) -> io::Result<bool> {
    let layers = [base_layer(snapshot)?, top_layer(control, snapshot)?];
    for layer in &layers {
        if !is_live(control, layer)? {
            return Ok(false);
        }
    }
    let leads = fs::read_link(snapshot.link).ok() == Some(node(number(control, &layers[1].name)?));
    let level = level_by(control, snapshot.vm)?;
    Ok(leads && level.is_some_and(|level| level.state != StoreState::Invalid))
}

/// How full the store of a VM's snapshot is; `None` where there is no snapshot.
///
/// # Errors
/// Device-mapper does not answer, or says what we do not understand.
pub fn level(vm: VmId) -> Result<Option<Level>, Fault> {
    let failed = |error: io::Error| fault(format!("ask snapshot {}", name(vm)), error);
    match existing_control()? {
        Some(control) => level_by(&control, vm).map_err(failed),
        None => Ok(None),
    }
}

fn level_by(control: &Control, vm: VmId) -> io::Result<Option<Level>> {
    let name = name(vm);
    if control.find(&name)?.is_none() {
        return Ok(None);
    }
    let status = control.status(&name)?;
    Ok(status.first().and_then(|target| read_level(&target.text)))
}

/// The status of a snapshot (Documentation/admin-guide/device-mapper/snapshot.rst):
/// `<used>/<total> <metadata>` in sectors, or a word.
fn read_level(text: &str) -> Option<Level> {
    let word = |state| Level {
        used: Bytes(0),
        total: Bytes(0),
        state,
    };
    match text.split_whitespace().next()? {
        // `Merge failed` is of another target and would be as lost.
        "Invalid" | "Merge" => Some(word(StoreState::Invalid)),
        "Overflow" => Some(word(StoreState::Overflow)),
        numbers => {
            let (used, total) = numbers.split_once('/')?;
            let bytes = |text: &str| Some(Bytes(text.parse::<u64>().ok()?.checked_mul(SECTOR)?));
            Some(Level {
                used: bytes(used)?,
                total: bytes(total)?,
                state: StoreState::Active,
            })
        }
    }
}

/// Whether we may make snapshots over loop devices; if not, why.
pub fn fitness() -> Result<(), String> {
    let failed = |attempt: String, error: io::Error| fault(attempt, error).what;
    let control = open_control().map_err(|error| failed(format!("open {CONTROL}"), error))?;
    control
        .version()
        .map_err(|error| failed("ask device-mapper".to_owned(), error))?;
    for kind in ["linear", "zero", "snapshot"] {
        control
            .target_version(kind)
            .map_err(|error| failed(format!("find device-mapper's target {kind}"), error))?;
    }
    loopdev::fitness()
}

/// Names of our devices that exist, whoever's: `bgr-<id>` and `bgr-<id>-base`.
///
/// # Errors
/// Device-mapper does not answer.
pub fn ours() -> Result<Vec<(VmId, String)>, Fault> {
    let failed = |error: io::Error| fault("list device-mapper's devices", error);
    let Some(control) = existing_control()? else {
        return Ok(Vec::new());
    };
    let names = control.names().map_err(failed)?;
    let ours = names.into_iter().filter_map(|name| {
        let id = name.strip_prefix("bgr-")?;
        let id = id.strip_suffix("-base").unwrap_or(id);
        Some((id.parse().ok()?, name))
    });
    Ok(ours.collect())
}

/// Opens the control node, which is made where device-mapper is there without it.
fn open_control() -> io::Result<Control> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let opened = match rustix::fs::open(CONTROL, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            let number = misc_number().ok_or(io::Error::from(Errno::NOENT))?;
            fs::create_dir_all("/dev/mapper")?;
            let mode = Mode::RUSR | Mode::WUSR;
            let device = makedev(MISC, number);
            mknodat(CWD, CONTROL, FileType::CharacterDevice, mode, device)?;
            rustix::fs::open(CONTROL, flags, Mode::empty())?
        }
        opened => opened?,
    };
    Ok(Control::over(opened))
}

/// The control node's minor number, where the module is loaded.
fn misc_number() -> Option<u32> {
    let table = fs::read_to_string("/proc/misc").ok()?;
    let mut lines = table.lines().map(str::split_whitespace);
    lines.find_map(|mut words| {
        let number = words.next()?.parse().ok()?;
        (words.next()? == "device-mapper").then_some(number)
    })
}

/// The control node, or `None` where nothing of ours can exist: without device-mapper,
/// or for a user who may not use it (making a device takes the same right).
fn existing_control() -> Result<Option<Control>, Fault> {
    match open_control() {
        Ok(control) => Ok(Some(control)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::ACCESS | Errno::PERM) => {
                Ok(None)
            }
            _ => Err(fault(format!("open {CONTROL}"), error)),
        },
    }
}

/// The read-only device of the root's size over the image.
fn base_layer(snapshot: &Snapshot<'_>) -> io::Result<Layer> {
    let loop_number = loop_number(snapshot.vm, Role::Base)?;
    let base = loopdev::sectors(loop_number)?;
    Ok(Layer {
        name: base_name(snapshot.vm),
        uuid: base_uuid(snapshot.vm),
        table: base_table(&format!("7:{loop_number}"), base, snapshot.size.0 / SECTOR)?,
        access: Access::ReadOnly,
    })
}

fn base_table(device: &str, base: u64, size: u64) -> io::Result<Vec<Target>> {
    let target = |start, length, kind: &str, text: String| Target {
        start,
        length,
        kind: kind.to_owned(),
        text,
    };
    let Some(more) = size.checked_sub(base) else {
        let what = format!("the image has {base} sectors, the root {size}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    };
    let mut table = vec![target(0, base, "linear", format!("{device} 0"))];
    if more > 0 {
        table.push(target(base, more, "zero", String::new()));
    }
    Ok(table)
}

/// The writable device, over a base that is there.
fn top_layer(control: &Control, snapshot: &Snapshot<'_>) -> io::Result<Layer> {
    let base = number(control, &base_name(snapshot.vm))?;
    let origin = format!("{}:{}", major(base), minor(base));
    let store = format!("7:{}", loop_number(snapshot.vm, Role::Cow)?);
    Ok(Layer {
        name: name(snapshot.vm),
        uuid: uuid(snapshot.vm),
        table: vec![Target {
            start: 0,
            length: snapshot.size.0 / SECTOR,
            kind: "snapshot".to_owned(),
            // P: the store is found again. O: a full store refuses further writes and
            // stays valid, where it would be lost without.
            text: format!("{origin} {store} PO {}", cow::CHUNK.0 / SECTOR),
        }],
        access: Access::ReadWrite,
    })
}

fn loop_number(vm: VmId, role: Role) -> io::Result<u32> {
    let tag = loopdev::tag(vm, role);
    match loopdev::find(&tag)?.as_slice() {
        [found] => Ok(found.number),
        found => {
            let what = format!("{} loop devices are tagged {tag}", found.len());
            Err(io::Error::new(io::ErrorKind::NotFound, what))
        }
    }
}

fn number(control: &Control, name: &str) -> io::Result<u64> {
    let found = control.find(name)?;
    found
        .map(|device| device.number)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Whether a device exists, is ours by its uuid, and carries out exactly this table.
fn is_live(control: &Control, layer: &Layer) -> io::Result<bool> {
    let Some(device) = control.find(&layer.name)? else {
        return Ok(false);
    };
    Ok(device.uuid == layer.uuid
        && device.state == State::Live
        && !device.is_leaving
        && control
            .table(&layer.name)?
            .iter()
            .map(trimmed)
            .eq(layer.table.iter().map(trimmed)))
}

/// The kernel may end a parameter list with a blank.
fn trimmed(target: &Target) -> (u64, u64, &str, &str) {
    (
        target.start,
        target.length,
        &target.kind,
        target.text.trim(),
    )
}

fn make(control: &Control, layer: &Layer) -> Result<(), Fault> {
    let made = control
        .create(&layer.name, &layer.uuid)
        .and_then(|()| control.load(&layer.name, &layer.table, layer.access))
        .and_then(|()| control.resume(&layer.name));
    made.map_err(|error| fault(format!("make device {}", layer.name), error))
}

/// Removes a device of ours. One in use is told to go when it is let go, and that is waited
/// for.
fn remove(control: &Control, name: &str, uuid: &str) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(format!("remove device {name}"), error);
    match control.find(name).map_err(failed)? {
        Some(device) => check_ours(&device, name, uuid)?,
        None => return Ok(()),
    }
    let uevents = Uevents::subscribe().map_err(failed)?;
    match control.remove(name, IfBusy::Later) {
        Ok(Removed::Now | Removed::Later) => {}
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    let gone = uevents
        .wait_until(REMOVE_LIMIT, || {
            Ok::<_, io::Error>(control.find(name)?.is_none())
        })
        .map_err(failed)?;
    match gone {
        true => Ok(()),
        false => Err(failed(Errno::BUSY.into())),
    }
}

/// Another's device may have a name like ours: what is on it is not ours to take away.
fn check_ours(device: &Device, name: &str, uuid: &str) -> Result<(), Fault> {
    if device.uuid == uuid {
        return Ok(());
    }
    let what = format!(
        "remove device {name}: it is not ours, for its uuid is {:?} and not {uuid:?}",
        device.uuid
    );
    Err(Fault::new(FaultKind::Denied, what).remedy(Some(format!(
        "If nothing needs it, `dmsetup remove {name}`; else `dmsetup rename {name}`."
    ))))
}

fn node(device: u64) -> PathBuf {
    PathBuf::from(format!("/dev/dm-{}", minor(device)))
}

/// Lets the link lead to the device's node, which is made where nobody else makes it.
fn link(control: &Control, snapshot: &Snapshot<'_>) -> io::Result<()> {
    let device = number(control, &name(snapshot.vm))?;
    let node = node(device);
    make_node(&node, device)?;
    if fs::read_link(snapshot.link).ok().as_ref() == Some(&node) {
        return Ok(());
    }
    match fs::remove_file(snapshot.link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(node, snapshot.link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_made_as_long_as_the_root_by_zeros() {
        let table = base_table("7:3", 2048, 8192).unwrap();
        let lines: Vec<_> = table.iter().map(trimmed).collect();
        assert_eq!(
            lines,
            [(0, 2048, "linear", "7:3 0"), (2048, 6144, "zero", "")]
        );
        assert_eq!(base_table("7:3", 2048, 2048).unwrap().len(), 1);
        let error = base_table("7:3", 2048, 2047).unwrap_err();
        assert!(error.to_string().contains("2048 sectors"), "{error}");
    }

    #[test]
    fn the_words_of_a_status_are_told_from_its_numbers() {
        let level = |text| read_level(text).map(|level| (level.used.0, level.total.0, level.state));
        assert_eq!(
            level("32/2097152 32"),
            Some((16384, 1 << 30, StoreState::Active))
        );
        assert_eq!(level("Invalid"), Some((0, 0, StoreState::Invalid)));
        assert_eq!(level("Overflow"), Some((0, 0, StoreState::Overflow)));
        for nonsense in ["", "Unknown", "1/", "/1", "99999999999999999999/1 0"] {
            assert_eq!(level(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_device_of_our_name_with_anothers_uuid_is_not_ours_to_remove() {
        let vm = VmId::from_bits(42);
        let device = |uuid: &str| Device {
            number: 0,
            uuid: uuid.to_owned(),
            users: 0,
            state: State::Live,
            is_leaving: false,
        };
        let check = |found: &str| check_ours(&device(found), &name(vm), &uuid(vm));
        assert_eq!(check(&uuid(vm)), Ok(()));
        for foreign in ["", "LVM-x", &base_uuid(vm)] {
            let fault = check(foreign).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Denied);
            assert!(fault.what.contains(&name(vm)), "{fault}");
        }
    }

    #[test]
    fn without_device_mapper_nothing_of_it_is_there() {
        let vm = VmId::from_bits(0xffff_fff0);
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("root");
        let snapshot = Snapshot {
            vm,
            size: Bytes::mib(64),
            link: &link,
        };
        assert_eq!(probe(&snapshot), Ok(Presence::Absent));
        assert_eq!(absent(vm, &link), Ok(()));
        assert_eq!(level(vm), Ok(None));
    }
}
