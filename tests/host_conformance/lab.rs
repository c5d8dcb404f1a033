//! A network of our own to experiment in: a namespace that plays this machine, and one
//! that plays the internet. Nothing outside them is touched; both go with the lab.

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use banger::host::layout::Layout;
use banger::host::program::Programs;
use banger::host::{RealHost, Settings};
use banger::vmm::initrd::OwnProgram;

pub use crate::support::namespace::{Namespace, ip, run_program};
use crate::support::seed;

/// Long enough for a loaded machine; nothing waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const UPLINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

pub struct Lab {
    pub host: RealHost,
    _disk: Option<Disk>,
    _folder: tempfile::TempDir,
    machine: Option<Namespace>,
    internet: Option<Namespace>,
    inside: Option<Namespace>,
}

/// Runs a test inside a machine of its own, on a thread of its own: a thread that has
/// changed its network namespace runs nothing else. Says so if the host cannot.
pub fn run(name: &str, test: impl FnOnce(&mut Lab) + Send) {
    run_on(name, None, test);
}

/// The same with state and cache on a file system of this kind, small enough to be filled.
pub fn run_on(name: &str, kind: Option<FileSystem>, test: impl FnOnce(&mut Lab) + Send) {
    if let Some(lack) = lack().or_else(|| kind.and_then(FileSystem::lack)) {
        println!("skipped: {name}: {lack}");
        return;
    }
    std::thread::scope(|scope| {
        let ended = scope.spawn(move || {
            let machine = Namespace::new("machine");
            machine.enter();
            test(&mut Lab::new(kind, Some(machine)));
        });
        if let Err(panic) = ended.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The same without any network, for what does not need one nor has the programs for it.
pub fn run_without_network(name: &str, test: impl FnOnce(&mut Lab)) {
    match rustix::process::geteuid().is_root() {
        true => test(&mut Lab::new(Some(FileSystem::Tmpfs), None)),
        false => println!("skipped: {name}: needs root"),
    }
}

/// Gives a test a host with folders of its own and this machine's network: for steps
/// that leave it alone.
pub fn on_this_machine(test: impl FnOnce(&RealHost)) {
    let folder = tempfile::tempdir().unwrap();
    test(&RealHost::new(
        layout_in(folder.path()),
        Settings::default(),
    ));
}

fn layout_in(folder: &Path) -> Layout {
    Layout {
        state: folder.join("state"),
        cache: folder.join("cache"),
        runtime: folder.join("runtime"),
    }
}

fn lack() -> Option<&'static str> {
    let works = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !rustix::process::geteuid().is_root() {
        Some("needs root")
    } else if !works("ip", &["netns", "list"]) {
        Some("needs iproute2 and network namespaces")
    } else if !works("nft", &["--version"]) {
        Some("needs nft")
    } else if !std::path::Path::new("/dev/net/tun").exists() {
        Some("needs /dev/net/tun")
    } else {
        None
    }
}

impl Lab {
    fn new(kind: Option<FileSystem>, machine: Option<Namespace>) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let disk = kind.map(|kind| Disk::new(folder.path(), kind));
        let kept = disk.as_ref().map_or(folder.path(), |disk| &disk.root);
        let layout = Layout {
            runtime: folder.path().join("runtime"),
            ..layout_in(kept)
        };
        let program = OwnProgram::at(env!("CARGO_BIN_EXE_banger"));
        let settings = Settings {
            claims: folder.path().join("claims"),
            ..settings()
        };
        Lab {
            host: RealHost::with_program(layout, settings, program),
            machine,
            internet: None,
            inside: None,
            _disk: disk,
            _folder: folder,
        }
    }

    /// Whether it has a network of its own, which may be taken away.
    pub fn has_network(&self) -> bool {
        self.machine.is_some()
    }

    /// Gives the machine an uplink to a namespace with one server in it.
    pub fn connect_to_internet(&mut self) -> UdpSocket {
        let internet = Namespace::new("internet");
        let peer = internet.name.clone();
        ip(&format!(
            "link add up0 type veth peer name eth0 netns {peer}"
        ));
        ip(&format!("addr add {UPLINK}/24 dev up0"));
        ip("link set up0 up");
        ip(&format!("-n {peer} addr add {INTERNET}/24 dev eth0"));
        ip(&format!("-n {peer} link set eth0 up"));
        ip(&format!("route add default via {INTERNET}"));
        let server = internet.inside(|| UdpSocket::bind("0.0.0.0:9").unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        self.internet = Some(internet);
        server
    }

    /// Gives the machine another interface, to a namespace with one server in it that
    /// reaches everything by the machine.
    pub fn connect_inside(&mut self, own: Ipv4Addr, theirs: Ipv4Addr) -> UdpSocket {
        let inside = Namespace::new("inside");
        let peer = inside.name.clone();
        ip(&format!(
            "link add in0 type veth peer name eth0 netns {peer}"
        ));
        ip(&format!("addr add {own}/24 dev in0"));
        ip("link set in0 up");
        ip(&format!("-n {peer} addr add {theirs}/24 dev eth0"));
        ip(&format!("-n {peer} link set eth0 up"));
        ip(&format!("-n {peer} route add default via {own}"));
        let server = inside.inside(|| UdpSocket::bind("0.0.0.0:9").unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        self.inside = Some(inside);
        server
    }

    /// Adds an address in the namespace that plays the internet.
    pub fn address_in_internet(&self, address: &str) {
        let internet = self.internet.as_ref().expect("connected before");
        ip(&format!("-n {} addr add {address}", internet.name));
    }

    /// Adds a route in the namespace that plays the internet.
    pub fn route_from_internet(&self, route: &str) {
        let internet = self.internet.as_ref().expect("connected before");
        ip(&format!("-n {} route add {route}", internet.name));
    }
}

/// Where state and cache may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    Tmpfs,
    /// The two that copy by reference.
    Xfs,
    Btrfs,
}

impl FileSystem {
    fn lack(self) -> Option<&'static str> {
        let has = |program: &str| seed::find_tool(program).is_some();
        match self {
            FileSystem::Xfs if !has("mkfs.xfs") => Some("needs mkfs.xfs"),
            FileSystem::Btrfs if !has("mkfs.btrfs") => Some("needs mkfs.btrfs"),
            _ => None,
        }
    }
}

/// A mounted file system of 512 MiB; a loop device under it goes with the mount.
#[derive(Debug)]
struct Disk {
    root: PathBuf,
}

impl Disk {
    fn new(folder: &Path, kind: FileSystem) -> Disk {
        let (root, image) = (folder.join("disk"), folder.join("disk.img"));
        std::fs::create_dir(&root).unwrap();
        let (at, from) = (root.display(), image.display());
        let (make, mount) = match kind {
            FileSystem::Tmpfs => (None, format!("-t tmpfs -o size=512m none {at}")),
            FileSystem::Xfs => (Some("mkfs.xfs"), format!("-o loop {from} {at}")),
            FileSystem::Btrfs => (Some("mkfs.btrfs"), format!("-o loop {from} {at}")),
        };
        if let Some(make) = make {
            File::create(&image).unwrap().set_len(512 << 20).unwrap();
            run_program(make, &format!("-q {from}"));
        }
        run_program("mount", &mount);
        Disk { root }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Not asserted: a second panic would hide the first.
        let _ = Command::new("umount").arg("-l").arg(&self.root).status();
    }
}

/// The programs of a test, by name: named by a variable, or found where banger looks.
fn settings() -> Settings {
    let program = |name: &str| {
        let variable = format!("BANGER_{}", name.to_uppercase().replace('-', "_"));
        let named = std::env::var_os(variable).map(PathBuf::from);
        Some((name.to_owned(), named.or_else(|| seed::find_tool(name))?))
    };
    let named = ["vhost-device-vsock", "firecracker", "jailer"];
    Settings {
        programs: Programs::new(
            named.into_iter().filter_map(program).collect(),
            PathBuf::new(),
        ),
        ..Settings::default()
    }
}
