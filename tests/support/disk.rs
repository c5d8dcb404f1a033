//! A small disk that a test may fill or make read-only: a file, mounted by a loop device.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Mounted as long as this lives.
#[derive(Debug)]
pub struct SmallDisk {
    /// Where it is mounted.
    mount: PathBuf,
    file: PathBuf,
}

impl SmallDisk {
    /// Makes an ext4 file system of so many MiB and mounts it. Needs root.
    pub fn mount(mebibytes: u64) -> SmallDisk {
        let mount = tempfile::Builder::new().prefix("bd-").tempdir_in("/tmp");
        let mount = mount.expect("/tmp takes a folder").keep();
        let file = mount.with_extension("disk");
        let made = File::create(&file).and_then(|disk| disk.set_len(mebibytes << 20));
        made.expect("/tmp takes a file");
        let disk = SmallDisk { mount, file };
        // Without room that only root may use: the daemon under test is root.
        must(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-m", "0"])
                .arg(&disk.file),
        );
        must(
            Command::new("mount")
                .args(["-o", "loop"])
                .args([&disk.file, &disk.mount]),
        );
        let own = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&disk.mount, own).expect("a fresh file system is ours");
        disk
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Leaves no byte free.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file can be named on it");
        for size in [1 << 20, 4096, 1] {
            while filler.write_all(&vec![0xa5; size]).is_ok() {}
            filler.sync_all().ok();
        }
    }

    /// Gives the room back.
    pub fn free(&self) {
        fs::remove_file(self.filler()).ok();
    }

    /// Mounts it again, read-only or not.
    pub fn remount(&self, how: &str) {
        let option = format!("remount,{how}");
        must(Command::new("mount").args(["-o", &option]).arg(&self.mount));
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("lost+found/filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there is ending.
        must(Command::new("umount").arg("--lazy").arg(&self.mount));
        fs::remove_dir(&self.mount).ok();
        fs::remove_file(&self.file).ok();
    }
}

fn must(command: &mut Command) {
    let output = command.output().expect("the program is installed");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {words}");
}
