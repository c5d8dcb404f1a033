//! Where everything of ours lies: every path is derived here, from three roots.
//!
//! ```text
//!  state    (durable)    store.redb, bangerd.log, images/, kernels/, vms/<id>/
//!  cache    (rebuilt)    initrd/, templates/ (empty disks), machines/, apt/, tools/
//!  runtime  (of a boot)  bangerd.sock, start.lock, vms/<id>/ with sockets
//! ```
//!
//! `BANGER_STATE_DIR`, `BANGER_CACHE_DIR` and `BANGER_RUNTIME_DIR` override the XDG
//! directories, so that several daemons live side by side.
//!
//! However a directory was spelled, it has one name here, without symbolic links: that is
//! how the kernel names files behind loop devices, and what marks and markers are made of.

pub mod refused;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::failure::Failure;
use crate::model::ids::{ContentId, VmId};

use refused::Directory;

/// Longest path of a Unix socket, without the closing NUL (`sun_path` of unix(7) has 108 bytes).
pub const SOCKET_PATH_LIMIT: usize = 107;

/// The three roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// What must survive.
    pub state: PathBuf,
    /// What can be made again.
    pub cache: PathBuf,
    /// What ends with the boot.
    pub runtime: PathBuf,
}

impl Layout {
    /// The roots that an environment means.
    ///
    /// `variable` reads one environment variable; `uid` is the caller's. Without
    /// `XDG_RUNTIME_DIR` root uses /run/banger and others /tmp/banger-runtime-UID.
    ///
    /// # Errors
    /// No home directory, or a runtime directory too long for a VM's sockets.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<OsString>,
        uid: u32,
    ) -> Result<Layout, Failure> {
        Layout::roots(variable, uid)?.check()
    }

    /// The same, whether anything could be made there or not: for whoever only looks.
    ///
    /// # Errors
    /// No home directory.
    pub fn roots(variable: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Layout, Failure> {
        Ok(Layout::spelled(variable, uid)?.named_once())
    }

    fn spelled(variable: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Layout, Failure> {
        let set = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let below_home = |xdg: &str, rest: &str| {
            let base = set(xdg).filter(|p| p.is_absolute());
            let base = base.or_else(|| set("HOME").map(|home| home.join(rest)));
            base.map(|base| base.join("banger")).ok_or_else(|| {
                Failure::usage(format!(
                    "find the directory of {xdg}: neither it nor HOME is set"
                ))
                .hint("Set HOME, or BANGER_STATE_DIR, BANGER_CACHE_DIR and BANGER_RUNTIME_DIR.")
            })
        };
        let runtime = set("BANGER_RUNTIME_DIR")
            .or_else(|| set("XDG_RUNTIME_DIR").map(|dir| dir.join("banger")))
            .unwrap_or_else(|| match uid {
                0 => PathBuf::from("/run/banger"),
                _ => PathBuf::from(format!("/tmp/banger-runtime-{uid}")),
            });
        Ok(Layout {
            state: match set("BANGER_STATE_DIR") {
                Some(dir) => dir,
                None => below_home("XDG_STATE_HOME", ".local/state")?,
            },
            cache: match set("BANGER_CACHE_DIR") {
                Some(dir) => dir,
                None => below_home("XDG_CACHE_HOME", ".cache")?,
            },
            runtime,
        })
    }

    /// A link in place of the runtime directory itself is not followed: its folder may be
    /// /tmp, where it could be anybody's. Whoever makes the directories refuses it.
    fn named_once(self) -> Layout {
        let runtime = match (self.runtime.parent(), self.runtime.file_name()) {
            (Some(parent), Some(name)) => without_links(parent).join(name),
            _ => self.runtime,
        };
        Layout {
            state: without_links(&self.state),
            cache: without_links(&self.cache),
            runtime,
        }
    }

    fn check(self) -> Result<Layout, Failure> {
        for (variable, dir) in [
            ("BANGER_STATE_DIR", &self.state),
            ("BANGER_CACHE_DIR", &self.cache),
            ("BANGER_RUNTIME_DIR", &self.runtime),
        ] {
            if !dir.is_absolute() {
                return Err(Failure::usage(format!(
                    "use directory {}: not absolute",
                    dir.display()
                ))
                .hint(format!("Set {variable} to an absolute path.")));
            }
        }
        let longest = self.vsock_listener(VmId::from_bits(0), 1023);
        let length = longest.as_os_str().as_bytes().len();
        if length > SOCKET_PATH_LIMIT {
            return Err(Failure::usage(format!(
                "use runtime directory {}: its sockets would have paths of {length} bytes, {SOCKET_PATH_LIMIT} are possible",
                self.runtime.display()
            ))
            .hint("Set BANGER_RUNTIME_DIR to a shorter path, such as /tmp/banger."));
        }
        Ok(self)
    }

    /// What tells objects of this installation from those of another state directory,
    /// where there is room for a word: `banger 0123abcd`.
    pub fn mark(&self) -> String {
        let digest = Sha256::digest(self.state.as_os_str().as_bytes());
        let [a, b, c, d] = [digest[0], digest[1], digest[2], digest[3]];
        format!("banger {a:02x}{b:02x}{c:02x}{d:02x}")
    }

    /// The store of VMs, images and kernels.
    pub fn store(&self) -> PathBuf {
        self.state.join("store.redb")
    }

    /// What bangerd logs when it was started by the command line; what was in it before
    /// it was full is beside it, with `.1` at the end.
    pub fn daemon_log(&self) -> PathBuf {
        self.state.join("bangerd.log")
    }

    /// The three directories, each with what it is for.
    pub fn directories(&self) -> [(Directory, &Path); 3] {
        [
            (Directory::State, &self.state),
            (Directory::Cache, &self.cache),
            (Directory::Runtime, &self.runtime),
        ]
    }

    /// The daemon's socket.
    pub fn daemon_socket(&self) -> PathBuf {
        self.runtime.join("bangerd.sock")
    }

    /// Locked by whoever starts a daemon.
    pub fn start_lock(&self) -> PathBuf {
        self.runtime.join("start.lock")
    }

    /// Folder of all images, one folder per content id.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// An image's root file system.
    pub fn image_rootfs(&self, content: &ContentId) -> PathBuf {
        self.images().join(content.as_str()).join("rootfs.ext4")
    }

    /// Folder of all kernels, one folder per content id.
    pub fn kernels(&self) -> PathBuf {
        self.state.join("kernels")
    }

    /// A kernel's folder: vmlinux, initrd-modules/, modules.ext4, manifest.json.
    pub fn kernel(&self, content: &ContentId) -> PathBuf {
        self.kernels().join(content.as_str())
    }

    /// A VM's folder in the state directory.
    pub fn vm_directory(&self, vm: VmId) -> PathBuf {
        self.state.join("vms").join(vm.to_string())
    }

    /// The disk that takes the changes to the root.
    pub fn upper_disk(&self, vm: VmId) -> PathBuf {
        self.vm_directory(vm).join("upper.ext4")
    }

    /// The VM's own copy of its image.
    pub fn root_disk(&self, vm: VmId) -> PathBuf {
        self.vm_directory(vm).join("root.ext4")
    }

    /// The exception store of the VM's snapshot.
    pub fn cow_file(&self, vm: VmId) -> PathBuf {
        self.vm_directory(vm).join("root.cow")
    }

    /// A link to the block device of the VM's snapshot: in a folder that the VM's own
    /// user cannot write to, and a link, since not every file system takes devices.
    pub fn root_device(&self, vm: VmId) -> PathBuf {
        self.vm_directory(vm).join("root.device")
    }

    /// The disk at /root.
    pub fn work_disk(&self, vm: VmId) -> PathBuf {
        self.vm_directory(vm).join("work.ext4")
    }

    /// What the client of a VM holds that goes with it. Not in the run directory, which a
    /// restart of the VM makes anew.
    pub fn client_hold(&self, vm: VmId) -> PathBuf {
        self.vm_directory(vm).join("client")
    }

    /// What the guest wrote to its serial console, kept after the VM stops.
    pub fn console_log(&self, vm: VmId) -> PathBuf {
        self.vm_directory(vm).join("console.log")
    }

    /// What the VMM and its helpers wrote, kept after the VM stops.
    pub fn vmm_log(&self, vm: VmId) -> PathBuf {
        self.vm_directory(vm).join("vmm.log")
    }

    /// The folder of the next: where VMs' processes work, so that they reach their
    /// sockets by short names and need no way through the folders above.
    pub fn run_directories(&self) -> PathBuf {
        self.runtime.join("vms")
    }

    /// A VM's folder in the runtime directory.
    pub fn run_directory(&self, vm: VmId) -> PathBuf {
        self.run_directories().join(vm.to_string())
    }

    /// A path of a run directory as the VM's processes say it.
    pub fn as_seen_at_work(&self, path: &Path) -> PathBuf {
        let seen = path.strip_prefix(self.run_directories());
        seen.unwrap_or(path).to_owned()
    }

    /// The named pipe between a VM's processes and what keeps their log.
    pub fn log_pipe(&self, vm: VmId) -> PathBuf {
        self.run_directory(vm).join("log")
    }

    /// The Unix socket by which the host reaches the guest's vsock ports.
    pub fn vsock(&self, vm: VmId) -> PathBuf {
        self.run_directory(vm).join("vsock")
    }

    /// The Unix socket on which the host hears the guest call this port.
    pub fn vsock_listener(&self, vm: VmId, port: u32) -> PathBuf {
        self.run_directory(vm).join(format!("vsock_{port}"))
    }

    /// The VMM's control socket: Firecracker's API or QEMU's QMP.
    pub fn control_socket(&self, vm: VmId) -> PathBuf {
        self.run_directory(vm).join("vmm.sock")
    }

    /// QEMU's second monitor, on which it tells of halts.
    pub fn halt_socket(&self, vm: VmId) -> PathBuf {
        self.run_directory(vm).join("halt.sock")
    }

    /// The socket between QEMU and its vsock back end.
    pub fn vhost_socket(&self, vm: VmId) -> PathBuf {
        self.run_directory(vm).join("vhost.sock")
    }

    /// Folder of the cached initrds.
    pub fn initrds(&self) -> PathBuf {
        self.cache.join("initrd")
    }

    /// Folder of the cached empty file systems.
    pub fn templates(&self) -> PathBuf {
        self.cache.join("templates")
    }

    /// Folder of the machines that others begin from.
    pub fn machines(&self) -> PathBuf {
        self.cache.join("machines")
    }

    /// Private package lists and downloads.
    pub fn apt(&self) -> PathBuf {
        self.cache.join("apt")
    }

    /// Programs that the set-up script installed for us.
    pub fn tools(&self) -> PathBuf {
        self.cache.join("tools").join("bin")
    }
}

/// An absolute path without symbolic links as far as it exists; what does not has none.
fn without_links(path: &Path) -> PathBuf {
    let relative = || path.to_owned();
    if !path.is_absolute() {
        return relative();
    }
    let real = path.ancestors().find_map(|above| {
        let rest = path.strip_prefix(above).ok()?;
        // Joining nothing would add a slash.
        let real = fs::canonicalize(above).ok()?;
        Some(if above == path { real } else { real.join(rest) })
    });
    real.unwrap_or_else(relative)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn layout(pairs: &[(&str, &str)], uid: u32) -> Result<Layout, Failure> {
        let pairs: Vec<(String, OsString)> = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
            .collect();
        Layout::from_environment(
            |name| {
                pairs
                    .iter()
                    .find(|(n, _)| n == name)
                    .map(|(_, v)| v.clone())
            },
            uid,
        )
    }

    #[test]
    fn home_alone_gives_the_xdg_defaults() {
        let layout = layout(&[("HOME", "/nowhere/ada")], 1000).unwrap();
        assert_eq!(layout.state, Path::new("/nowhere/ada/.local/state/banger"));
        assert_eq!(layout.cache, Path::new("/nowhere/ada/.cache/banger"));
        assert_eq!(layout.runtime, Path::new("/tmp/banger-runtime-1000"));
    }

    #[test]
    fn a_runtime_directory_too_long_for_sockets_is_refused_by_name() {
        let long = format!("/{}", "x".repeat(90));
        let failure = layout(&[("HOME", "/h"), ("BANGER_RUNTIME_DIR", &long)], 0).unwrap_err();
        assert!(failure.what.contains(&long), "{failure}");
        assert!(failure.hint.unwrap().contains("BANGER_RUNTIME_DIR"));
    }

    /// Real folders `real/…`, reached through `link`.
    fn spelled_through(link: &Path) -> Layout {
        let path = |name: &str| link.join(name).to_str().unwrap().to_owned();
        let (state, cache, runtime) = (path("state"), path("cache"), path("run"));
        layout(
            &[
                ("BANGER_STATE_DIR", &state),
                ("BANGER_CACHE_DIR", &cache),
                ("BANGER_RUNTIME_DIR", &runtime),
            ],
            0,
        )
        .unwrap()
    }

    #[test]
    fn a_directory_below_a_link_has_the_name_and_mark_of_the_real_one() {
        let room = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(room.path()).unwrap().join("real");
        fs::create_dir_all(real.join("state")).unwrap();
        let link = room.path().join("link");
        symlink(&real, &link).unwrap();
        let (linked, direct) = (spelled_through(&link), spelled_through(&real));
        assert_eq!(linked.state, real.join("state"));
        assert_eq!(linked.runtime, real.join("run"));
        assert_eq!(linked, direct);
        assert_eq!(linked.mark(), direct.mark());
    }

    #[test]
    fn a_link_to_a_state_directory_is_followed_and_one_to_sockets_is_not() {
        let room = tempfile::tempdir().unwrap();
        let room = fs::canonicalize(room.path()).unwrap();
        fs::create_dir(room.join("elsewhere")).unwrap();
        for name in ["state", "run"] {
            symlink("elsewhere", room.join(name)).unwrap();
        }
        let layout = spelled_through(&room);
        assert_eq!(layout.state, room.join("elsewhere"));
        assert_eq!(layout.runtime, room.join("run"));
    }

    #[test]
    fn without_home_the_missing_variable_is_named() {
        let failure = layout(&[], 1000).unwrap_err();
        assert!(failure.to_string().contains("HOME"), "{failure}");
    }
}
