//! Puts the guest's root together from its disks and makes it the root.
//!
//! ```text
//!  base (read-only) + upper --overlay--> /            or: base (writable, grown) --> /
//!  work:/root               --bind-----> /root        first boot: the image's /root copied
//!  modules:/VERSION         --bind-----> /lib/modules/VERSION
//! ```
//!
//! Everything below the new root is reached through [`Place`], so an image's links
//! (`lib -> usr/lib`, or a hostile one) lead nowhere else. Nothing is an fstab line.

use std::ffi::CString;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, unmount};
use rustix::process::{chdir, chroot};

use super::cmdline::Words;
use super::place::{Place, by_descriptor};
use super::record::Journal;
use super::{copy, device, during, grow};
use crate::failure::Failure;

const NEW_ROOT: &str = "/newroot";
const BASE: &str = "/disks/base";
const UPPER: &str = "/disks/upper";
const WORK: &str = "/disks/work";
const MODULES: &str = "/disks/modules";

/// The folder of the work disk that becomes /root. Its name is the marker that the
/// first boot's copy was finished: it is renamed into place after it is on the disk.
const HOME: &str = "/disks/work/root";
const HOME_UNFINISHED: &str = "/disks/work/root.new";

/// The disks of a guest, each being mounted by a thread of its own as soon as it
/// appears, while the drivers of other devices are still being loaded.
#[derive(Debug)]
pub struct Disks {
    base: Mounting,
    upper: Option<Mounting>,
    work: Option<Mounting>,
    modules: Option<Mounting>,
}

impl Disks {
    /// Begins to wait for the disks and to mount them.
    ///
    /// # Errors
    /// The command line names no base.
    pub fn begin(words: &Words) -> Result<Disks, Failure> {
        let base = words.base.clone().ok_or_else(|| {
            Failure::failed("find the root disk")
                .because("no banger.base= on the kernel command line")
        })?;
        let writable = |name: &Option<String>, target| {
            let name = name.clone()?;
            Some(Mounting::begin(name, target, MountFlags::empty()))
        };
        Ok(Disks {
            base: match words.upper {
                Some(_) => Mounting::begin(base, BASE, MountFlags::RDONLY),
                None => Mounting::begin(base, NEW_ROOT, MountFlags::empty()),
            },
            upper: writable(&words.upper, UPPER),
            work: writable(&words.work, WORK),
            modules: words
                .modules
                .clone()
                .map(|name| Mounting::begin(name, MODULES, MountFlags::RDONLY)),
        })
    }

    /// Joins them below [`NEW_ROOT`]; all drivers are loaded by now.
    ///
    /// # Errors
    /// A disk is missing or damaged. Missing modules are a warning only.
    pub fn join(self, release: &str, journal: &mut Journal) -> Result<(), Failure> {
        self.base.finish(journal)?;
        if let Some(upper) = self.upper {
            upper.finish(journal)?;
            overlay()?;
        }
        let place = Place::at(Path::new(NEW_ROOT)).map_err(during("open the new root"))?;
        if let Some(work) = self.work {
            work.finish(journal)?;
            work_disk(&place)?;
        }
        if let Some(modules) = self.modules {
            let mounted = modules.finish(journal);
            journal.tolerate(mounted.and_then(|()| module_tree(release, &place)));
        }
        Ok(())
    }
}

/// A disk that a thread waits for and mounts.
#[derive(Debug)]
struct Mounting {
    name: String,
    target: &'static str,
    flags: MountFlags,
    thread: JoinHandle<Result<rustix::io::Result<()>, Failure>>,
}

impl Mounting {
    fn begin(name: String, target: &'static str, flags: MountFlags) -> Mounting {
        let awaited = name.clone();
        let thread = thread::spawn(move || {
            make_folder(Path::new(target))?;
            let node = device::wait_for(&awaited)?;
            Ok(mount_ext4(&node, target, flags))
        });
        Mounting {
            name,
            target,
            flags,
            thread,
        }
    }

    /// Mounted, and grown to its disk if it may be written: one that does not grow is
    /// still of use.
    fn finish(self, journal: &mut Journal) -> Result<(), Failure> {
        let node = Path::new("/dev").join(&self.name);
        let mounted = match self.thread.join().expect("a panic ends the process")? {
            // ext4 itself was a module that was not loaded yet.
            Err(Errno::NODEV) => mount_ext4(&node, self.target, self.flags),
            mounted => mounted,
        };
        let attempt = format!("mount {} (ext4) at {}", node.display(), self.target);
        mounted.map_err(during(attempt))?;
        if !self.flags.contains(MountFlags::RDONLY) {
            journal.tolerate(grow::to_whole_disk(&node, Path::new(self.target)));
        }
        Ok(())
    }
}

/// Makes the assembled root the root of this process and of all that come after it.
/// /proc, /sys, /dev and /run move along with what is mounted in them.
///
/// # Errors
/// A mount cannot be moved.
pub fn switch() -> Result<(), Failure> {
    let place = Place::at(Path::new(NEW_ROOT)).map_err(during("open the new root"))?;
    // /proc goes last: the others are reached through it.
    for folder in ["/sys", "/dev", "/run", "/proc"] {
        let attempt = format!("move {folder} into the new root");
        let target = place
            .directory(Path::new(folder))
            .map_err(during(attempt.clone()))?;
        mount_move(folder, by_descriptor(target.as_fd())).map_err(during(attempt))?;
    }
    drop(place);
    let attempt = || during("make the new root the root");
    chdir(NEW_ROOT).map_err(attempt())?;
    mount_move(".", "/").map_err(attempt())?;
    chroot(".").map_err(attempt())?;
    chdir("/").map_err(attempt())
}

fn overlay() -> Result<(), Failure> {
    let layer = Path::new(UPPER).join("upper");
    make_folder(&layer)?;
    make_folder(&Path::new(UPPER).join("work"))?;
    // The merged root shows the mode of the upper folder, which must be the image's.
    let attempt = || during::<io::Error>("give the upper layer the mode of the image's root");
    let mode = fs::metadata(BASE).map_err(attempt())?.mode();
    fs::set_permissions(&layer, Permissions::from_mode(mode & 0o7777)).map_err(attempt())?;
    make_folder(Path::new(NEW_ROOT))?;
    // redirect_dir: without it, renaming a folder of the image gives EXDEV.
    let options =
        format!("lowerdir={BASE},upperdir={UPPER}/upper,workdir={UPPER}/work,redirect_dir=on");
    let options = CString::new(options).expect("our own paths hold no NUL");
    mount(
        "overlay",
        NEW_ROOT,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .map_err(during("join the image and the upper disk"))?;
    // The overlay keeps both alive; this only takes their own mount points away.
    detach(BASE)?;
    detach(UPPER)
}

fn work_disk(place: &Place) -> Result<(), Failure> {
    if !Path::new(HOME).exists() {
        fill_home()?;
    }
    let attempt = || during("mount the work disk at /root");
    let target = place
        .directory(Path::new("/root"))
        .map_err(during("make /root"))?;
    mount_bind(HOME, by_descriptor(target.as_fd())).map_err(attempt())?;
    detach(WORK)
}

/// Copies the image's /root onto an empty work disk.
fn fill_home() -> Result<(), Failure> {
    let unfinished = Path::new(HOME_UNFINISHED);
    let attempt = || during::<io::Error>("copy the image's /root to the work disk");
    match fs::remove_dir_all(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(attempt()(error)),
        _ => {}
    }
    let image_home = Path::new(NEW_ROOT).join("root");
    match fs::symlink_metadata(&image_home) {
        Ok(found) if found.is_dir() => copy::tree(&image_home, unfinished)?,
        _ => DirBuilder::new()
            .mode(0o700)
            .create(unfinished)
            .map_err(attempt())?,
    }
    // The copy's content is on its way: the name reaches the disk after it or not at all.
    fs::rename(unfinished, HOME).map_err(attempt())
}

fn module_tree(release: &str, place: &Place) -> Result<(), Failure> {
    let source = Path::new(MODULES).join(release);
    let mounted = bind_modules(&source, release, place);
    detach(MODULES)?;
    mounted
}

fn bind_modules(source: &Path, release: &str, place: &Place) -> Result<(), Failure> {
    let at = Path::new("/lib/modules").join(release);
    let attempt = format!("mount the kernel's modules at {}", at.display());
    let target = place.directory(&at).map_err(during(attempt.clone()))?;
    mount_bind(source, by_descriptor(target.as_fd())).map_err(during(attempt))
}

fn mount_ext4(node: &Path, target: &str, flags: MountFlags) -> rustix::io::Result<()> {
    // Without noinit_itable a kernel thread would fill a sparse disk's inode tables.
    let options = match flags.contains(MountFlags::RDONLY) {
        true => None,
        false => Some(c"noinit_itable"),
    };
    mount(node, target, "ext4", flags, options)
}

fn detach(target: &str) -> Result<(), Failure> {
    unmount(target, UnmountFlags::DETACH).map_err(during(format!("detach {target}")))
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(during(format!("make {}", path.display())))
}
