//! A host with an image and the folders of one VM, whose root is to be a snapshot.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use banger::host::layout::Layout;
use banger::host::loopdev::{self, Role};
use banger::host::{Host, RealHost, Settings, dm};
use banger::model::ids::{ContentId, VmId};
use banger::model::units::Bytes;
use banger::plan::step::Step;

/// How long the image is.
pub const BASE: Bytes = Bytes::mib(16);
/// How long the root is.
pub const ROOT: Bytes = Bytes::mib(64);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A VM's root and what is below it.
pub struct Place {
    pub host: RealHost,
    pub vm: VmId,
    when_dropped: WhenDropped,
    _folder: Option<tempfile::TempDir>,
}

/// What becomes of a VM's objects with its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenDropped {
    Gone,
    /// Its files stay for another boot.
    Kept,
}

impl Place {
    /// One of its own, over an image with a few bytes in it.
    pub fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let mut place = Place::below(folder.path(), folder.path());
        place._folder = Some(folder);
        image_with_a_few_bytes(&place.image()).unwrap();
        place
    }

    /// One with its folders at these places, without an image.
    pub fn below(state: &Path, runtime: &Path) -> Place {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let vm = VmId::from_bits(std::process::id() << 8 | number);
        let mut place = Place::of(vm, state, runtime);
        place.when_dropped = WhenDropped::Gone;
        place
    }

    /// The same for this VM, which may have been there before and is to stay.
    pub fn of(vm: VmId, state: &Path, runtime: &Path) -> Place {
        let layout = Layout {
            state: state.join("state"),
            cache: state.join("cache"),
            runtime: runtime.join("run"),
        };
        let images = layout.image_rootfs(&image());
        fs::create_dir_all(images.parent().unwrap()).unwrap();
        let host = RealHost::new(layout, Settings::default());
        for step in [Step::VmDirectory { vm }, Step::RunDirectory { vm }] {
            host.ensure(&step).unwrap();
        }
        Place {
            host,
            vm,
            when_dropped: WhenDropped::Kept,
            _folder: None,
        }
    }

    pub fn base_loop(&self) -> Step {
        Step::BaseLoop {
            vm: self.vm,
            image: image(),
        }
    }

    pub fn cow_loop(&self) -> Step {
        self.cow_loop_of(ROOT)
    }

    /// The device over a store for a root of this size.
    pub fn cow_loop_of(&self, size: Bytes) -> Step {
        Step::CowLoop { vm: self.vm, size }
    }

    pub fn cow_file(&self) -> Step {
        Step::CowFile {
            vm: self.vm,
            size: ROOT,
        }
    }

    /// What a snapshot root is made of, in order.
    pub fn steps(&self) -> [Step; 4] {
        let snapshot = Step::DmSnapshot {
            vm: self.vm,
            size: ROOT,
        };
        [self.cow_file(), self.base_loop(), self.cow_loop(), snapshot]
    }

    /// All of it; each must succeed.
    #[track_caller]
    pub fn make(&self, steps: &[Step]) {
        for step in steps {
            assert_eq!(self.host.ensure(step), Ok(()), "{}", step.kind().word());
        }
    }

    /// The way down; each must succeed.
    #[track_caller]
    pub fn remove(&self, steps: &[Step]) {
        for step in steps.iter().rev() {
            assert_eq!(self.host.absent(step), Ok(()), "{}", step.kind().word());
        }
    }

    /// The one device with this role.
    pub fn device(&self, role: Role) -> PathBuf {
        let found = loopdev::find(&loopdev::tag(self.vm, role)).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        PathBuf::from(format!("/dev/loop{}", found[0].number))
    }

    /// The link to the root's device.
    pub fn root(&self) -> PathBuf {
        self.host.layout().root_device(self.vm)
    }

    /// The image's file.
    pub fn image(&self) -> PathBuf {
        self.host.layout().image_rootfs(&image())
    }

    /// What the kernel has of this VM: its devices of both kinds, by name.
    pub fn devices(&self) -> Vec<String> {
        let mapped = dm::ours().unwrap().into_iter();
        let loops = loopdev::tagged().unwrap().into_iter();
        let loops = loops.map(|(vm, role, _)| (vm, loopdev::tag(vm, role)));
        let all = mapped.chain(loops).filter(|(vm, _)| *vm == self.vm);
        all.map(|(_, name)| name).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.when_dropped == WhenDropped::Kept {
            return;
        }
        for step in self.steps().iter().rev() {
            let _ = self.host.absent(step);
        }
    }
}

pub fn image() -> ContentId {
    "00000000000000aa".parse().unwrap()
}

fn image_with_a_few_bytes(path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(BASE.0)?;
    file.write_all_at(b"the image", 4096)
}

/// Runs a test where loop devices may be bound, or says why not.
pub fn with_loops(name: &str, test: impl FnOnce(Place)) {
    match loopdev::fitness() {
        Ok(()) => test(Place::new()),
        Err(why) => println!("skipped: {name}: {why}"),
    }
}

/// Runs a test where snapshots may be made, or says why not.
pub fn with_snapshots(name: &str, test: impl FnOnce(Place)) {
    match dm::fitness() {
        Ok(()) => test(Place::new()),
        Err(why) => println!("skipped: {name}: {why}"),
    }
}
