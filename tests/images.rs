//! Pulls a real kernel and builds a real image with the host's tools and mirror.
//!
//! Everything goes to a temporary directory, but packages are kept in
//! `BANGER_CACHE_DIR` when it is set, so that a second run downloads nothing. Without
//! apt or a mirror these tests cannot run: they say so by name and are skipped.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use banger::failure::{Failure, FailureKind};
use banger::host::layout::Layout;
use banger::image::job::{Cancel, Job, Stage};
use banger::image::kernel::{pull_kernel, verify_kernel};
use banger::image::manifest::Depth;
use banger::image::rootfs::{pull_image, verify_image};
use banger::image::store;

/// A job over a temporary state directory.
struct World {
    _folder: tempfile::TempDir,
    layout: Layout,
    cancel: Cancel,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let cache = std::env::var_os("BANGER_CACHE_DIR");
        let layout = Layout {
            state: folder.path().join("state"),
            cache: cache.map_or_else(|| folder.path().join("cache"), Into::into),
            runtime: folder.path().join("run"),
        };
        World {
            _folder: folder,
            layout,
            cancel: Cancel::new().unwrap(),
        }
    }

    fn job(&self) -> Job<'_> {
        self.job_telling(&|_| ())
    }

    fn job_telling<'a>(&'a self, progress: &'a dyn Fn(Stage)) -> Job<'a> {
        Job {
            layout: &self.layout,
            cancel: &self.cancel,
            progress,
        }
    }
}

/// Whether packages can be had here; says so when a test is skipped.
fn archive_is_reachable(test: &str) -> bool {
    let world = World::new();
    let job = world.job();
    match banger::image::apt::Apt::open(&job, "bookworm") {
        Ok(_) => true,
        Err(failure) => {
            // scripts/test.sh counts lines of this form, so it must be one line.
            let reason = failure.to_string().replace('\n', " ");
            eprintln!("skipped: {test}: {reason}");
            false
        }
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .map(|all| all.map(|e| e.unwrap().file_name().into_string().unwrap()))
        .map(Iterator::collect)
        .unwrap_or_default();
    names.retain(|name| !name.starts_with(".pull-"));
    names.sort();
    names
}

fn assert_fsck_clean(file: &Path) {
    let check = Command::new("/usr/sbin/e2fsck")
        .arg("-fn")
        .arg(file)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success(), "{}: {text}", file.display());
}

#[test]
fn a_pulled_kernel_is_whole_and_can_be_deleted() -> Result<(), Failure> {
    if !archive_is_reachable("a_pulled_kernel_is_whole_and_can_be_deleted") {
        return Ok(());
    }
    let world = World::new();
    let job = world.job();
    let kernel = pull_kernel(&job, &"debian-6.1-cloud".parse().unwrap())?;
    let folder = world.layout.kernel(&kernel.content);
    assert!(kernel.release.starts_with("6.1."), "{}", kernel.release);
    assert_eq!(entries(&world.layout.kernels()), [kernel.content.as_str()]);
    verify_kernel(&job, &kernel.content, Depth::Full)?;
    assert_fsck_clean(&folder.join("modules.ext4"));
    let order = fs::read_to_string(folder.join("initrd-modules/order")).unwrap();
    let order: Vec<&str> = order.lines().collect();
    let place = |name: &str| order.iter().position(|line| *line == name).unwrap();
    assert!(place("virtio.ko") < place("virtio_mmio.ko"));
    assert!(place("vsock.ko") < place("vmw_vsock_virtio_transport.ko"));
    assert!(place("net_failover.ko") < place("virtio_net.ko"));
    let listed = debugfs(
        &folder.join("modules.ext4"),
        &format!("ls -p /{}", kernel.release),
    );
    assert!(listed.contains("/modules.dep/"), "{listed}");

    let rootfs = folder.join("modules.ext4");
    let length = fs::metadata(&rootfs).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&rootfs).unwrap();
    file.set_len(length - 4096).unwrap();
    let failure = verify_kernel(&job, &kernel.content, Depth::Quick).unwrap_err();
    assert!(failure.to_string().contains("modules.ext4"), "{failure}");

    store::remove(&world.layout.kernels(), &kernel.content)?;
    assert!(entries(&world.layout.kernels()).is_empty());
    Ok(())
}

fn debugfs(image: &Path, request: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", request])
        .arg(image)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn two_pulls_at_once_build_once_and_another_machine_gets_the_same_bytes() -> Result<(), Failure> {
    let name = "two_pulls_at_once_build_once_and_another_machine_gets_the_same_bytes";
    if !archive_is_reachable(name) {
        return Ok(());
    }
    let minimal = "debian-minimal".parse().unwrap();
    let world = World::new();
    let builds = AtomicU32::new(0);
    let count = |stage: Stage| {
        if stage.detail == "creating tarball" {
            builds.fetch_add(1, Ordering::Relaxed);
        }
    };
    let pull = || pull_image(&world.job_telling(&count), &minimal);
    let (first, second) = std::thread::scope(|scope| {
        let both = [scope.spawn(pull), scope.spawn(pull)];
        let [first, second] = both.map(|thread| thread.join().unwrap());
        (first, second)
    });
    let image = first?;
    assert_eq!(image, second?);
    assert_eq!(builds.load(Ordering::Relaxed), 1);
    assert_eq!(entries(&world.layout.images()), [image.content.as_str()]);

    let rootfs = world.layout.image_rootfs(&image.content);
    assert_eq!(fs::metadata(&rootfs).unwrap().len(), image.size.0);
    assert_fsck_clean(&rootfs);
    verify_image(&world.job(), &image.content, Depth::Full)?;
    let absent = [
        "/etc/hostname",
        "/etc/resolv.conf",
        "/var/cache/apt/archives",
    ];
    for path in absent {
        let found = debugfs(&rootfs, &format!("ls -p {path}"));
        assert!(
            !found.contains(".deb") && !found.contains("100644"),
            "{path}: {found}"
        );
    }
    assert!(debugfs(&rootfs, "stat /usr/bin/passwd").contains("04755"));

    let other = World::new();
    let again = pull_image(&other.job(), &minimal)?;
    assert_eq!(
        again.content, image.content,
        "the build is not reproducible"
    );

    store::remove(&world.layout.images(), &image.content)?;
    assert!(entries(&world.layout.images()).is_empty());
    Ok(())
}

#[test]
fn a_cancelled_build_leaves_nothing() {
    if !archive_is_reachable("a_cancelled_build_leaves_nothing") {
        return;
    }
    let world = World::new();
    let cancel_midway = |stage: Stage| {
        if stage.detail == "extracting archives" {
            world.cancel.set();
        }
    };
    let job = world.job_telling(&cancel_midway);
    let failure = pull_image(&job, &"debian-minimal".parse().unwrap()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Cancelled, "{failure}");
    assert!(entries(&world.layout.images()).is_empty());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let state = world.layout.state.display().to_string();
    assert!(!mounts.contains(&state), "{mounts}");
}
