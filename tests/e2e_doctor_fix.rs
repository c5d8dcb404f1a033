//! End to end: `banger doctor --fix` removes what of ours no VM has, and nothing else; it
//! puts back what running VMs lack.

#![allow(clippy::unwrap_used, reason = "a test's helper fails its test")]

mod support;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use banger::host::cgroup::Groups;
use banger::host::layout::Layout;
use banger::host::link::Links;
use banger::host::{Host, RealHost, Settings};
use banger::model::ids::VmId;
use banger::model::net::Subnet;
use banger::model::units::Bytes;
use banger::plan::step::{Outside, Step};
use support::census::Census;
use support::disk::SmallDisk;
use support::{Banger, is_root, skip};

const IMAGE: &str = "debian-minimal";
const BRIDGE: &str = "bgrfix0";
const SUBNET: &str = "172.29.61.0/24";

/// Without any VM of its daemon; each kind of thing is made in its name.
const ORPHAN: VmId = VmId::from_bits(0x00f1_0001);
/// Has firewall elements and no tap.
const TAPLESS: VmId = VmId::from_bits(0x00f1_0002);
/// Of a daemon with another state directory, on the same bridge.
const FOREIGN: VmId = VmId::from_bits(0x00f1_0003);

/// Of a daemon whose state directory is reached through a link.
const LINKED: VmId = VmId::from_bits(0x00f1_0004);

fn subnet() -> Subnet {
    SUBNET.parse().unwrap()
}

/// A banger with a bridge of its own, whose daemon runs and has one image.
fn with_own_bridge() -> Banger {
    let banger = Banger::with_images(&[IMAGE]);
    let network = format!("[network]\nbridge = \"{BRIDGE}\"\nsubnet = \"{SUBNET}\"\n");
    fs::write(banger.config(), network).unwrap();
    banger.ok(&["vm", "list"]);
    banger
}

/// The host as a daemon with these directories has it.
fn host(state: PathBuf, runtime: PathBuf) -> RealHost {
    host_with(BRIDGE, state, runtime)
}

fn host_with(bridge: &str, state: PathBuf, runtime: PathBuf) -> RealHost {
    let layout = Layout {
        cache: state.join("cache"),
        state,
        runtime,
    };
    for folder in [&layout.state, &layout.cache, &layout.runtime] {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder).unwrap();
    }
    let settings = Settings {
        bridge: bridge.to_owned(),
        ..Settings::default()
    };
    RealHost::new(layout, settings)
}

fn rules(vm: VmId, guest: u32) -> Step {
    Step::NetRules {
        vm,
        address: subnet().guest(guest).unwrap_or(Ipv4Addr::UNSPECIFIED),
        subnet: subnet(),
        outside: Outside::Nat,
        publish: vec![format!("{}:80", 39_000 + guest).parse().unwrap()],
    }
}

fn tap(vm: VmId) -> Step {
    Step::Tap {
        vm,
        subnet: subnet(),
    }
}

/// What stands for a VMM: it has the marker of Firecracker's and works in this folder.
fn process_of(vm: VmId, works_in: &Path) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "read nothing", "sh", "--id", &vm.to_string()]);
    command.current_dir(works_in).stdin(Stdio::piped());
    command.spawn().unwrap()
}

/// A control group that nobody has joined for an hour.
fn old_group(vm: VmId) -> Option<PathBuf> {
    let path = Groups::discover()?.path(vm);
    fs::create_dir_all(&path).unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let folder = fs::File::open(&path).unwrap();
    folder.set_modified(hour_ago).unwrap();
    Some(path)
}

/// Everything that a VM can leave, but for its folder in the state directory.
fn make_all(host: &RealHost, vm: VmId, guest: u32) {
    let size = Bytes::mib(8);
    for step in [
        Step::RunDirectory { vm },
        Step::VmDirectory { vm },
        Step::CowFile { vm, size },
        Step::CowLoop { vm, size },
        tap(vm),
        rules(vm, guest),
    ] {
        host.ensure(&step).unwrap();
    }
}

fn remove_all(host: &RealHost, vm: VmId, guest: u32) {
    let size = Bytes::mib(8);
    for step in [
        rules(vm, guest),
        tap(vm),
        Step::CowLoop { vm, size },
        Step::RunDirectory { vm },
        Step::VmDirectory { vm },
    ] {
        host.absent(&step).unwrap();
    }
}

/// The lines of a report, each with what became of one thing.
fn lines(text: &str, word: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(word));
    lines.map(|line| line.trim().to_owned()).collect()
}

/// What changed since of what has this in its name: other tests run meanwhile.
fn changes(before: &Census, banger: &Banger, part: &str) -> Vec<String> {
    let mut all = before.changes(&Census::take(banger));
    all.retain(|change| change.contains(part));
    all
}

fn has(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

#[test]
fn orphans_of_every_kind_go_and_look_alikes_of_other_daemons_stay() {
    let test = "orphans_of_every_kind_go_and_look_alikes_of_other_daemons_stay";
    if !is_root() {
        return skip(test, "taps need root");
    }
    let banger = with_own_bridge();
    let elsewhere = tempfile::tempdir().unwrap();
    let ours = host(banger.state(), banger.runtime().to_owned());
    let other = host(elsewhere.path().join("s"), elsewhere.path().join("r"));
    make_all(&ours, ORPHAN, 1);
    make_all(&other, FOREIGN, 3);
    ours.ensure(&rules(TAPLESS, 2)).unwrap();
    let group = old_group(ORPHAN);
    let fresh = Groups::discover().map(|groups| groups.path(FOREIGN));
    fresh
        .iter()
        .for_each(|path| fs::create_dir_all(path).unwrap());
    let run_directories = banger.runtime().join("vms");
    let mut orphan = process_of(ORPHAN, &run_directories);
    let mut stranger = process_of(FOREIGN, &elsewhere.path().join("r/vms"));
    let content = banger.state().join("images/00112233445566ff");
    fs::create_dir(&content).unwrap();
    let staging = banger.state().join("images/.making-1-1");
    fs::create_dir(&staging).unwrap();
    let before = Census::take(&banger);

    let told = banger.run(&["doctor", "--fix", "--dry-run"]);
    assert_eq!(told.code(), Some(1), "{told:?}");
    assert_eq!(changes(&before, &banger, "00f1"), [""; 0], "dry run");
    assert!(content.exists() && staging.exists(), "dry run");
    let (would, left) = (
        lines(&told.text(), "would remove"),
        lines(&told.text(), "left"),
    );
    assert!(lines(&told.text(), "removed").is_empty(), "{told:?}");

    let done = banger.run(&["doctor", "--fix"]);
    let removed = lines(&done.text(), "removed");
    assert_eq!(would, removed, "{done:?}");
    for part in [
        "process ",
        "tap bgr-00f10001",
        "firewall elements of tap bgr-00f10002",
        "loop device banger:00f10001:cow",
        "vms/00f10001",
        "content 00112233445566ff",
        ".making-1-1",
    ] {
        assert!(has(&removed, part), "no {part:?} in {removed:?}");
    }
    assert_eq!(has(&removed, "control group"), group.is_some());
    assert!(!has(&removed, "00f10003"), "{removed:?}");
    // What may be somebody's work is left and named, so something remains.
    assert_eq!(done.code(), Some(1));
    assert!(has(&left, "rm -r") && left.len() == 1, "{left:?}");
    assert!(!content.exists() && !staging.exists());
    assert!(!group.is_some_and(|group| group.exists()));
    orphan.wait().unwrap();

    assert!(stranger.try_wait().unwrap().is_none(), "a foreign process");
    assert!(
        fresh.as_ref().is_none_or(|fresh| fresh.exists()),
        "a fresh group"
    );
    for step in [tap(FOREIGN), rules(FOREIGN, 3)] {
        let seen = other.probe(&step);
        assert_eq!(seen, Ok(banger::plan::step::Presence::Present), "{step:?}");
    }
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    remove_all(&other, FOREIGN, 3);
    fresh.iter().for_each(|path| fs::remove_dir(path).unwrap());
    ours.absent(&Step::VmDirectory { vm: ORPHAN }).unwrap();
    let nothing = banger.run(&["doctor", "--fix"]);
    assert_eq!(nothing.code(), Some(0), "{nothing:?}");
    assert_eq!(nothing.text(), "nothing to fix\n");
    ours.remove_network().unwrap();
    let left = Links::open().unwrap().find(BRIDGE).unwrap();
    assert_eq!(left, None);
}

/// Symptom: the kernel names the file behind a loop device without links, and the tap's mark
/// was made of the directory as it was spelled: neither was found.
#[test]
fn orphans_of_a_state_directory_below_a_link_go() {
    let test = "orphans_of_a_state_directory_below_a_link_go";
    if !is_root() {
        return skip(test, "taps need root");
    }
    let mut banger = Banger::with_images(&[IMAGE]);
    let link = banger.home().join("link");
    symlink(banger.state().parent().unwrap(), &link).unwrap();
    banger.set("BANGER_STATE_DIR", link.join("state"));
    let network = "[network]\nbridge = \"bgrfix1\"\nsubnet = \"172.29.62.0/24\"\n";
    fs::write(banger.config(), network).unwrap();
    banger.ok(&["vm", "list"]);
    let ours = host_with("bgrfix1", banger.state(), banger.runtime().to_owned());
    let (vm, size) = (LINKED, Bytes::mib(8));
    let subnet = "172.29.62.0/24".parse().unwrap();
    let tap = Step::Tap { vm, subnet };
    for step in [
        Step::VmDirectory { vm },
        Step::CowFile { vm, size },
        Step::CowLoop { vm, size },
        tap.clone(),
    ] {
        ours.ensure(&step).unwrap();
    }

    let done = banger.run(&["doctor", "--fix"]);

    let removed = lines(&done.text(), "removed");
    ours.absent(&Step::CowLoop { vm, size }).unwrap();
    ours.absent(&tap).unwrap();
    ours.remove_network().unwrap();
    for part in ["loop device banger:00f10004:cow", "tap bgr-00f10004"] {
        assert!(has(&removed, part), "no {part:?} in {done:?}");
    }
}

#[test]
fn running_vm_is_not_touched_and_gets_back_what_others_took() {
    let test = "running_vm_is_not_touched_and_gets_back_what_others_took";
    if !is_root() {
        return skip(test, "taps need root");
    }
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let view = banger.json(&["vm", "show", "a"]);
    let (id, pid) = (view["id"].as_str().unwrap(), &view["pid"]);
    let before = Census::take(&banger);
    assert_eq!(banger.ok(&["doctor", "--fix"]), "nothing to fix");
    assert_eq!(changes(&before, &banger, id), [""; 0]);

    let tap = format!("bgr-{id}");
    let ip = |words: &[&str]| assert!(Command::new("ip").args(words).status().unwrap().success());
    ip(&["link", "set", &tap, "nomaster"]);
    let would = banger.run(&["doctor", "--fix", "--dry-run"]);
    assert_eq!(lines(&would.text(), "would mend").len(), 1, "{would:?}");
    let mended = banger.json(&["doctor", "--fix"]);
    assert_eq!(mended["repairs"][0]["outcome"], "mended", "{mended}");
    assert_eq!(changes(&before, &banger, id), [""; 0]);
    assert_eq!(banger.json(&["vm", "show", "a"])["pid"], *pid);
    assert_eq!(banger.exec("a", &["echo", "alive"]), "alive");

    // A tap cannot be put back under a VMM; what else the VM has stays as it is.
    ip(&["link", "del", &tap]);
    let gone = banger.run(&["doctor", "--fix"]);
    let left = "left         tap of vm a: it is gone; `banger vm restart a` makes it anew\n";
    assert_eq!(gone.text(), left);
    assert_eq!(banger.run(&["doctor", "--fix"]).text(), left);
    banger.ok(&["vm", "restart", "a"]);
    assert_eq!(banger.ok(&["doctor", "--fix"]), "nothing to fix");
}

#[test]
fn stuck_vm_is_tried_again() {
    let test = "stuck_vm_is_tried_again";
    if !is_root() {
        return skip(test, "taps and loop devices need root");
    }
    let disk = SmallDisk::mount(96);
    let Some((banger, point)) = Banger::with_fail_point(&[IMAGE], &disk) else {
        let lack = "BANGER_FAIL_POINTS_BIN names no program with fail-points";
        return skip(test, lack);
    };
    banger.ok(&["vm", "create", "--name", "a", "--image", IMAGE]);
    point.arm("tap.absent.before ebusy always");
    banger.ok(&["vm", "start", "a"]);
    assert_eq!(banger.run(&["vm", "stop", "a"]).code(), Some(1));
    let vain = banger.run(&["doctor", "--fix"]);
    assert_eq!(vain.code(), Some(1), "{vain:?}");
    assert!(lines(&vain.text(), "failed").len() == 1, "{vain:?}");
    point.clear();
    let fixed = banger.ok(&["doctor", "--fix"]);
    assert!(fixed.contains("vm a, stuck while stopping"), "{fixed}");
    assert_eq!(banger.phase("a"), "stopped");
}
