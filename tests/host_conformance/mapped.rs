//! A disk of a test's own, below a file system: a file, a loop device over it, and a
//! target of device-mapper that does to its writes what a test wants.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use banger::sys::dm::{Access, Control, IfBusy, Target};
use banger::sys::loop_device::{self, Writable};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Runs a program, which must succeed; what it printed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    text
}

/// A file as a block device, until this is dropped.
#[derive(Debug)]
pub struct LoopDevice(String);

impl LoopDevice {
    /// Over a file that is there.
    pub fn over(file: &Path) -> LoopDevice {
        let open = |path: &str| File::options().read(true).write(true).open(path).unwrap();
        let (control, file) = (open("/dev/loop-control"), open(text(file)));
        loop {
            let number = loop_device::free_number(&control).unwrap();
            let node = format!("/dev/loop{number}");
            match loop_device::configure(open(&node), &file, "test", Writable::Yes) {
                Ok(()) => return LoopDevice(node),
                // Another process was faster.
                Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::BUSY)),
            }
        }
    }

    /// Its node.
    pub fn node(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Not asserted: a second panic would hide the first.
        let _ = File::open(&self.0).and_then(loop_device::clear);
    }
}

/// A path that a program is told.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An empty file of so many MiB, sparse.
pub fn empty_file(path: PathBuf, mebibytes: u64) -> PathBuf {
    let file = File::create(&path).unwrap();
    file.set_len(mebibytes << 20).unwrap();
    path
}

/// A mounted file system, until this is dropped.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// An ext4 of this device.
    pub fn ext4(device: &str, at: PathBuf) -> Mounted {
        fs::create_dir_all(&at).unwrap();
        mount(device, &at, "ext4", MountFlags::empty(), None).unwrap();
        Mounted(at)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::empty());
    }
}

/// Device-mapper, where it is there.
pub fn control() -> Control {
    let mut options = File::options();
    let node = options.read(true).write(true).open("/dev/mapper/control");
    Control::over(node.unwrap().into())
}

/// A device of device-mapper with one target, until this is dropped.
#[derive(Debug)]
pub struct Mapped {
    name: String,
    control: Control,
}

impl Mapped {
    /// Over all of a loop device.
    pub fn over(device: &LoopDevice, kind: &str, parameters: &str) -> Mapped {
        let control = control();
        let number = device.node().strip_prefix("/dev/loop").unwrap();
        let name = format!("test-{}-{number}", std::process::id());
        control.create(&name, "").unwrap();
        let mapped = Mapped { name, control };
        mapped.becomes(device, kind, parameters);
        mapped
    }

    /// Gives it another target over the same device. What is mounted there is written out
    /// first, by the old one.
    pub fn becomes(&self, device: &LoopDevice, kind: &str, parameters: &str) {
        let length: u64 = run("blockdev", &["--getsz", device.node()])
            .parse()
            .unwrap();
        let target = Target {
            start: 0,
            length,
            kind: kind.to_owned(),
            text: parameters.to_owned(),
        };
        let loaded = self.control.load(&self.name, &[target], Access::ReadWrite);
        loaded
            .and_then(|()| self.control.resume(&self.name))
            .unwrap();
    }

    /// Tells the target something.
    pub fn message(&self, message: &str) {
        self.control.message(&self.name, message).unwrap();
    }

    /// Its node.
    pub fn node(&self) -> String {
        let number = self.control.find(&self.name).unwrap().unwrap().number;
        format!("/dev/dm-{}", rustix::fs::minor(number))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = self.control.remove(&self.name, IfBusy::Later);
    }
}
