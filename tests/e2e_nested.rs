//! End to end: a whole VM on a device-mapper snapshot, from its creation to its deletion.
//! This machine's kernel need not have device-mapper, a guest's has. So a guest plays the
//! host, with all that a host has installed, and everything in it is emulated twice.
//!
//! ```text
//!  this machine    banger vm exec outer -- inner COMMAND
//!   outer          the program under test as banger and bangerd, this machine's QEMU and
//!    |             vhost-device-vsock, a seed of images; dm-snapshot and loop of its kernel
//!    inner         its first disk is the snapshot
//! ```
//!
//! The VM boots once. `BANGER_NESTED=all` starts it again after a stop and after a reset:
//! `scripts/nested.sh` sets that.

#![allow(clippy::unwrap_used, reason = "a test's helper fails its test")]
#![allow(clippy::print_stdout, reason = "progress of a test of many minutes")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use support::events::ask_until;
use support::running::{Ran, Running};
use support::{Banger, COMMAND_DEADLINE, in_shell, seed, skip};

const TEST: &str = "a_vm_on_a_snapshot_lives_outlives_its_daemon_and_leaves_nothing";
/// What the inner VM boots.
const IMAGE: &str = "debian-minimal";
const BACK_END: &str = "vhost-device-vsock";
/// The program of the outer guest, in directories of its own. A start that takes too long
/// is to be told by the inner program, not by this one.
const PROGRAM: &str = "#!/bin/sh
export BANGER_STATE_DIR=/root/state BANGER_RUNTIME_DIR=/run/b BANGER_CACHE_DIR=/root/cache
export BANGER_READY_DEADLINE_MS=540000
exec /usr/local/bin/banger \"$@\"
";
/// Beside the libraries: what QEMU's `microvm` machine reads under emulation.
const QEMU_FILES: [&str; 6] = [
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/qboot.rom",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
];
/// What exists in the outer guest of the inner VM, an object a line. The tree of the state
/// directory does not tell sizes, so it is the same before and after.
const CENSUS: &str = "
cat /sys/block/dm-*/dm/name /sys/block/loop*/loop/backing_file 2>/dev/null
find /root/state/vms /run/b/vms -mindepth 1 2>/dev/null
find /sys/fs/cgroup -mindepth 2 -type d -path '*banger/*'
ps -eo stat=,comm= | sed -n '/^Z/d; s/^[^ ]* *\\(qemu.*\\|vhost-device.*\\)/process \\1/p'";
/// As a crash would.
const KILL_DAEMON: &str = "kill -9 $(grep -lz '^bangerd' /proc/[0-9]*/cmdline | cut -d/ -f3)";
/// Makes the store of the VM that runs shorter than its root, as it would be after an
/// interrupted growth, and says how many sectors it has then.
const SHORTEN: &str = "
device=$(grep -l root.cow /sys/block/loop*/loop/backing_file | cut -d/ -f4)
truncate -s 300M /root/state/vms/*/root.cow
losetup --set-capacity /dev/$device
cat /sys/block/$device/size";
const SHORT_SECTORS: &str = "614400";
const MIB: u64 = 1 << 20;

/// The outer guest, as a machine with banger on it.
struct Machine {
    banger: Banger,
    began: Instant,
}

impl Machine {
    fn boot() -> Machine {
        let machine = Machine {
            banger: Banger::with_images(&["debian-bookworm"]),
            began: Instant::now(),
        };
        let run = "vm run -d --name outer --net none --vcpu 2 --memory 2G --disk-size 4G";
        let words: Vec<&str> = run.split(' ').collect();
        machine.banger.ok(&words);
        machine
    }

    /// Gives it programs, kernel modules and images. What of it does not run there, if any.
    fn furnish(&self, qemu: &Path, back_end: &Path) -> Option<String> {
        let more = QEMU_FILES.map(PathBuf::from).into_iter();
        let mut files: Vec<PathBuf> = more.filter(|file| file.exists()).collect();
        files.push(qemu.to_owned());
        let libraries: Vec<PathBuf> = files.iter().flat_map(|file| libraries(file)).collect();
        files.extend(libraries);
        self.send("-chP", &files, "tar -xP --skip-old-files");
        self.send("-chP", &[back_end.to_owned()], "tar -xP");
        let seed = seed::prepare(&[IMAGE]);
        self.send(
            "-cSC",
            &[seed, ".".into()],
            "mkdir /root/state && tar -xSC /root/state",
        );
        self.write("/usr/local/bin/inner", PROGRAM);
        self.shell("cp /run/banger/agent /usr/local/bin/banger");
        self.shell(&format!("ln -s {} /usr/local/bin", back_end.display()));
        self.shell("modprobe -a dm-snapshot dm-zero loop");
        let tries = format!("{} --version && {BACK_END} --version", qemu.display());
        let ran = self.banger.run(&in_shell("outer", &tries));
        (ran.code() != Some(0)).then(|| ran.error())
    }

    /// Packs files of this machine and lets a script of the outer guest unpack them.
    #[track_caller]
    fn send(&self, flags: &str, files: &[PathBuf], unpack: &str) {
        let mut pack = Command::new("tar");
        let mut pack = pack
            .arg(flags)
            .args(files)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut receiver = self.banger.command(&in_shell("outer", unpack));
        receiver.stdin(Stdio::from(pack.stdout.take().unwrap()));
        let ran = Running::spawn(receiver, Vec::new()).finish(COMMAND_DEADLINE);
        assert_eq!(ran.code(), Some(0), "{unpack}: {ran:?}");
        // 1: other tests link the files of the seed meanwhile, which changes no content.
        let packed = pack.wait().unwrap().code();
        assert!(matches!(packed, Some(0 | 1)), "pack {files:?}: {packed:?}");
    }

    fn write(&self, path: &str, text: &str) {
        let script = format!("cat > {path} && chmod 755 {path}");
        let ran = self
            .banger
            .run_with_input(&in_shell("outer", &script), text.into());
        assert_eq!(ran.code(), Some(0), "{path}: {ran:?}");
    }

    /// A script of the outer guest, which must succeed.
    #[track_caller]
    fn shell(&self, script: &str) -> String {
        self.banger.ok(&in_shell("outer", script))
    }

    /// A command of the inner program, and how it ended.
    fn run(&self, command: &str) -> Ran {
        let mut words = vec!["vm", "exec", "outer", "--", "inner"];
        words.extend(command.split(' '));
        self.banger.run(&words)
    }

    /// The same; it must succeed.
    #[track_caller]
    fn ok(&self, command: &str) -> String {
        let ran = self.run(command);
        assert_eq!(ran.code(), Some(0), "inner {command}: {ran:?}");
        println!("{:4} s: {command}", self.began.elapsed().as_secs());
        ran.text().trim_end().to_owned()
    }

    #[track_caller]
    fn show(&self) -> Value {
        let text = self.ok("vm show inner --json");
        serde_json::from_str(&text).unwrap()
    }

    /// Size of a file system of the inner guest, MiB.
    #[track_caller]
    fn mebibytes(&self, path: &str) -> u64 {
        let size = self.ok(&format!("vm exec inner -- df -m --output=size {path}"));
        size.split_whitespace().last().unwrap().parse().unwrap()
    }

    fn census(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.shell(CENSUS).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

/// The shared libraries that a program of this machine loads.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.lines().filter_map(|line| line.split_once("=> "));
    let paths = paths.filter_map(|(_, path)| path.split(' ').next());
    paths
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// Bytes of the root's store: taken, and in all.
#[track_caller]
fn store(view: &Value) -> (u64, u64) {
    let store = &view["root_store"];
    assert_eq!(store["state"], "active", "{view}");
    let bytes = |key: &str| store[key].as_u64().unwrap();
    (bytes("used"), bytes("total"))
}

#[test]
fn a_vm_on_a_snapshot_lives_outlives_its_daemon_and_leaves_nothing() {
    let tools = ["qemu-system-x86_64", BACK_END, "tar", "ldd"];
    let found = tools.map(seed::find_tool);
    if let Some(lack) = tools.iter().zip(&found).find(|(_, found)| found.is_none()) {
        return skip(TEST, &format!("needs {}", lack.0));
    }
    let [Some(qemu), Some(back_end), ..] = found else {
        unreachable!("each was found");
    };
    let machine = Machine::boot();
    if let Some(why) = machine.furnish(&qemu, &back_end) {
        return skip(TEST, &format!("its QEMU does not run in Debian 12: {why}"));
    }
    machine.ok("vm list");
    let before = machine.census();
    is_made(&machine);
    outlives_its_daemon(&machine);
    if std::env::var("BANGER_NESTED").is_ok_and(|which| which == "all") {
        is_started_again_with_a_larger_root(&machine);
        is_started_again_with_a_new_root(&machine);
    }
    is_stopped(&machine);
    machine.ok("vm delete inner");
    assert_eq!(machine.census(), before, "with nothing of the VM");
}

fn is_made(machine: &Machine) {
    machine.ok("vm run -d --name inner --image debian-minimal --root-mode dm-snapshot --init agent --net none --vcpu 1 --memory 128M --disk-size 64M --root-size 1G");
    let view = machine.show();
    assert_eq!(view["root_mode"], "dm-snapshot", "{view}");
    assert_eq!(view["phase"], "running", "{view}");
    let (used, total) = store(&view);
    assert!(used > 0 && total > 1024 * MIB, "{view}");
    assert!(used < 64 * MIB, "a root just made: {view}");
    let mounts = machine.ok("vm exec inner -- cat /proc/mounts");
    assert!(mounts.contains("/dev/vda / ext4"), "{mounts}");
    machine.ok("vm exec inner -- touch /etc/kept /root/kept");
    let devices = machine.census().join("\n");
    let id = view["id"].as_str().unwrap();
    for wanted in [
        &format!("bgr-{id}\n"),
        &format!("bgr-{id}-base\n"),
        "root.cow",
    ] {
        assert!(devices.contains(wanted), "no {wanted:?} in {devices}");
    }
}

/// The daemon dies, and the store becomes too short behind its back: the next daemon takes
/// the VM over and makes it longer, while the guest writes to it.
fn outlives_its_daemon(machine: &Machine) {
    let view = machine.show();
    let (used, total) = store(&view);
    machine.shell(KILL_DAEMON);
    assert_eq!(machine.shell(SHORTEN), SHORT_SECTORS);
    let adopted = ask_until(|| machine.show(), |view| store(view).1 == total);
    assert_eq!(store(&adopted).1, total, "{adopted}");
    assert_eq!(adopted["pid"], view["pid"]);
    machine.ok("vm exec inner -- dd if=/dev/urandom of=/root-of-8M bs=1M count=8 conv=fsync");
    let after = machine.show();
    assert!(store(&after).0 >= used + 8 * MIB, "{used}, then {after}");
    machine.ok("vm set inner --disk-size 96M");
    let size = machine.mebibytes("/root");
    assert!((80..=96).contains(&size), "{size} MiB of 96");
}

fn is_started_again_with_a_larger_root(machine: &Machine) {
    is_stopped(machine);
    machine.ok("vm set inner --root-size 1200M");
    machine.ok("vm start inner");
    let view = machine.show();
    assert!(store(&view).1 > 1200 * MIB, "{view}");
    machine.ok("vm exec inner -- ls /etc/kept /root/kept /root-of-8M");
    let size = machine.mebibytes("/");
    assert!((1100..=1200).contains(&size), "{size} MiB of 1200");
}

fn is_started_again_with_a_new_root(machine: &Machine) {
    is_stopped(machine);
    machine.ok("vm reset inner");
    machine.ok("vm start inner");
    let (used, _) = store(&machine.show());
    assert!(used < 8 * MIB, "{used} bytes");
    machine.ok("vm exec inner -- ls /root/kept");
    for file in ["/etc/kept", "/root-of-8M"] {
        let ran = machine.run(&format!("vm exec inner -- test -e {file}"));
        assert_eq!(ran.code(), Some(1), "{file}: {ran:?}");
    }
}

/// Files stay, and nothing else.
fn is_stopped(machine: &Machine) {
    machine.ok("vm stop inner");
    let left = machine.census();
    let others = left.iter().filter(|line| !line.starts_with('/'));
    assert_eq!(others.collect::<Vec<_>>(), [""; 0], "of devices, processes");
    let loops = left.iter().filter(|line| line.ends_with("root.cow"));
    assert_eq!(loops.count(), 1, "the store itself: {left:?}");
    let images = left.iter().filter(|line| line.contains("/images/"));
    assert_eq!(images.count(), 0, "a loop device of the image: {left:?}");
}
