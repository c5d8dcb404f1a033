//! Pulls a real kernel and builds a real image with the host's tools and mirror.
//!
//! Everything goes to a temporary directory, but packages are kept in
//! `BANGER_CACHE_DIR` when it is set, so that a second run downloads nothing. Without
//! apt or a mirror these tests cannot run: they say so by name and are skipped.

#![allow(clippy::print_stderr)]

use std::fs;
use std::path::Path;
use std::process::Command;

use banger::failure::Failure;
use banger::host::layout::Layout;
use banger::image::job::{Cancel, Job};
use banger::image::kernel::{delete_kernel, pull_kernel, verify_kernel};
use banger::image::manifest::Depth;

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
        Job {
            layout: &self.layout,
            cancel: &self.cancel,
            progress: &|_| (),
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
            eprintln!("SKIPPED {test}: {failure}");
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

    delete_kernel(&job, &kernel.content)?;
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
