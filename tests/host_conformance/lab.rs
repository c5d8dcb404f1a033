//! A network of our own to experiment in: a namespace that plays this machine, and one
//! that plays the internet. Nothing outside them is touched; both go with the lab.

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use banger::host::layout::Layout;
use banger::host::{RealHost, Settings};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Long enough for a loaded machine; nothing waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const UPLINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Lab {
    pub host: RealHost,
    _folder: tempfile::TempDir,
    machine: Namespace,
    internet: Option<Namespace>,
}

/// Runs a test inside a machine of its own, on a thread of its own: a thread that has
/// changed its network namespace runs nothing else. Says so if the host cannot.
pub fn run(name: &str, test: impl FnOnce(&mut Lab) + Send) {
    if let Some(lack) = lack() {
        println!("skipped: {name}: {lack}");
        return;
    }
    std::thread::scope(|scope| {
        let ended = scope.spawn(move || {
            let mut lab = Lab::new();
            lab.machine.enter();
            test(&mut lab);
        });
        if let Err(panic) = ended.join() {
            std::panic::resume_unwind(panic);
        }
    });
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
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        Lab {
            host: RealHost::new(layout_in(folder.path()), Settings::default()),
            machine: Namespace::new(),
            internet: None,
            _folder: folder,
        }
    }

    /// Gives the machine an uplink to a namespace with one server in it.
    pub fn connect_to_internet(&mut self) -> UdpSocket {
        let internet = Namespace::new();
        let peer = internet.name.clone();
        ip(&format!(
            "link add up0 type veth peer name eth0 netns {peer}"
        ));
        ip(&format!("addr add {UPLINK}/24 dev up0"));
        ip("link set up0 up");
        ip(&format!("-n {peer} addr add {INTERNET}/24 dev eth0"));
        ip(&format!("-n {peer} link set eth0 up"));
        ip(&format!("route add default via {INTERNET}"));
        let entered = &internet;
        let server = std::thread::scope(|scope| {
            let bound = scope.spawn(move || {
                entered.enter();
                UdpSocket::bind("0.0.0.0:9").unwrap()
            });
            bound.join().unwrap()
        });
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        self.internet = Some(internet);
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

/// Runs `ip` in the namespace of the calling thread.
pub fn ip(arguments: &str) {
    run_program("ip", arguments);
}

/// Runs a program in the namespace of the calling thread and gives its output.
pub fn run_program(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments}: {complaint}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

struct Namespace {
    name: String,
}

impl Namespace {
    fn new() -> Namespace {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bgrlab-{}-{count}", std::process::id());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Namespace { name }
    }

    fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Not asserted: a second panic would hide the first.
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
    }
}
