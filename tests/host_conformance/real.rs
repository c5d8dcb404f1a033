//! The side that is this machine: the steps by `RealHost`, and what else happens by
//! whatever does it in life: kill, chmod, `ip`, `nft`, a file that fills the disk.

use std::any::Any;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use banger::host::identity::owners;
use banger::host::loopdev::{self, Role};
use banger::host::process::{Marker, find, kill_all};
use banger::host::{Host, disk, dm, jail, reflink};
use banger::model::ids::VmId;
use banger::model::net::NetMode;
use banger::model::vm::VmmKind;
use banger::plan::retry::Verb;
use banger::plan::step::{Fault, Presence, Step};
use banger::sys::tun::{self, FrameHeader};
use banger::vmm::qmp::{self, Qmp};
use banger::vmm::{Deadline, of};

use crate::both::Side;
use crate::lab::{Lab, PATIENCE, ip, run_program};
use crate::script::{self, Need};
use crate::support::seed;
use crate::tiny_kernel;
use crate::world::Turn;

/// Free space that no disk of a script can do with.
const SCARCE: u64 = 32 << 20;

/// A VM on this machine, in the lab's namespace and folders.
pub struct Real<'a> {
    lab: &'a Lab,
    vm: VmId,
    /// What somebody has open.
    held: Vec<Box<dyn Any>>,
}

/// Why this host cannot play a script with that need.
pub fn lack(lab: &Lab, need: Need) -> Option<&'static str> {
    let programs = &lab.host.settings().programs;
    let has = |name: &str| programs.find(name).is_some();
    let kvm = || File::options().read(true).write(true).open("/dev/kvm");
    match need {
        Need::Qemu if seed::find_tool("qemu-system-x86_64").is_none() => Some("needs QEMU"),
        Need::Qemu if !has("vhost-device-vsock") => Some("needs vhost-device-vsock"),
        Need::Firecracker if !has("firecracker") => Some("needs firecracker"),
        Need::Firecracker if kvm().is_err() => Some("needs /dev/kvm"),
        Need::Jailer if jail::fitness(programs).is_err() => Some("needs firecracker's jailer"),
        Need::Groups if lab.host.vmms().groups().is_none() => Some("needs a cgroup v2 hierarchy"),
        Need::SharedBlocks if reflink::fitness(&lab.host.layout().state).is_err() => {
            Some("needs a file system whose files can share blocks")
        }
        Need::Loops if loopdev::fitness().is_err() => Some("needs loop devices"),
        Need::Snapshots if dm::fitness().is_err() => Some("needs device-mapper's snapshots"),
        Need::Qemu
        | Need::Firecracker
        | Need::Jailer
        | Need::Groups
        | Need::SharedBlocks
        | Need::Loops
        | Need::Snapshots => None,
    }
}

impl Real<'_> {
    pub fn new(lab: &Lab, vm: VmId) -> Real<'_> {
        let layout = lab.host.layout();
        let machine = script::machine(VmmKind::QemuTcg, NetMode::None);
        let kernel = layout.kernel(&machine.kernel);
        let modules = kernel.join("initrd-modules");
        let image = layout.image_rootfs(&machine.image);
        for folder in [&modules, image.parent().unwrap()] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(modules.join("order"), "").unwrap();
        fs::write(kernel.join("vmlinux"), tiny_kernel::image()).unwrap();
        for disk in [image, kernel.join("modules.ext4")] {
            File::create(disk).unwrap().set_len(1 << 20).unwrap();
        }
        let held = Vec::new();
        Real { lab, vm, held }
    }

    fn path(&self, step: &Step) -> PathBuf {
        let layout = self.lab.host.layout();
        match step {
            Step::VmDirectory { vm } => layout.vm_directory(*vm),
            Step::RunDirectory { vm } => layout.run_directory(*vm),
            Step::UpperDisk { vm, .. } => layout.upper_disk(*vm),
            Step::RootDisk { vm, .. } => layout.root_disk(*vm),
            Step::CowFile { vm, .. } => layout.cow_file(*vm),
            Step::WorkDisk { vm, .. } => layout.work_disk(*vm),
            other => panic!("{} has no path", other.kind().word()),
        }
    }

    fn filler(&self) -> PathBuf {
        self.lab.host.layout().state.join("filler")
    }

    fn spoil(&self, step: &Step) {
        match step {
            Step::VmDirectory { .. } | Step::RunDirectory { .. } => {
                fs::set_permissions(self.path(step), fs::Permissions::from_mode(0o755)).unwrap();
            }
            Step::UpperDisk { .. }
            | Step::RootDisk { .. }
            | Step::CowFile { .. }
            | Step::WorkDisk { .. } => {
                let disk = File::options().write(true).open(self.path(step)).unwrap();
                disk.set_len(1 << 20).unwrap();
            }
            Step::Tap { vm, .. } => ip(&format!("link set {} nomaster", vm.tap())),
            other => panic!("nobody knows how to spoil a {}", other.kind().word()),
        }
    }

    fn occupy(&self, step: &Step) {
        match step {
            Step::Tap { vm, .. } => ip(&format!("link add {} type bridge", vm.tap())),
            _ => {
                let path = self.path(step);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "not ours").unwrap();
            }
        }
    }

    fn hold(&mut self, step: &Step) {
        let held: Box<dyn Any> = match step {
            Step::RunDirectory { .. } => {
                Box::new(UnixListener::bind(self.path(step).join("held")).unwrap())
            }
            Step::Tap { vm, .. } => Box::new(tun::open(&vm.tap(), FrameHeader::Virtio).unwrap()),
            _ => Box::new(File::options().write(true).open(self.path(step)).unwrap()),
        };
        self.held.push(held);
    }

    fn fill_up(&self) {
        let filler = File::create(self.filler()).unwrap();
        let free = || disk::free_space(&self.lab.host.layout().state).unwrap().0;
        let mut length = 0;
        // More than once for btrfs, whose figure is right only after a commit.
        while free() > SCARCE {
            let more = free() - SCARCE;
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&filler, flags, length, more).unwrap();
            rustix::fs::syncfs(&filler).unwrap();
            length += more;
        }
    }

    /// Kills the processes with these words and waits for their end.
    fn kill(&self, markers: &[Marker]) {
        let found = find(markers, &owners(self.vm), None).unwrap();
        assert!(kill_all(found, PATIENCE).unwrap().is_empty());
    }

    fn vmm_markers(&self) -> [Marker; 2] {
        [VmmKind::Firecracker, VmmKind::QemuTcg].map(|kind| of(kind).marker(self.vm))
    }

    fn backend_marker(&self) -> Marker {
        Marker::new(["--uds-path".to_owned(), format!("{}/vsock", self.vm)])
    }

    fn keeper_marker(&self) -> Marker {
        let log = self.lab.host.layout().console_log(self.vm);
        Marker::new(["console-log".into(), log.into_os_string()])
    }

    /// Takes away what a reboot does, in no order that anybody relies on.
    fn reboot(&mut self) {
        self.held.clear();
        self.kill(&self.vmm_markers());
        self.kill(&[self.backend_marker(), self.keeper_marker()]);
        if let Some(groups) = self.lab.host.vmms().groups() {
            remove(fs::remove_dir(groups.path(self.vm)));
        }
        self.remove_devices().unwrap();
        remove(fs::remove_dir_all(&self.lab.host.layout().runtime));
        if self.lab.has_network() {
            self.delete_links();
            run_program("nft", "flush ruleset");
        }
    }

    fn remove_devices(&self) -> Result<(), Fault> {
        let link = self.lab.host.layout().root_device(self.vm);
        dm::absent(self.vm, &link)?;
        loopdev::absent(self.vm, Role::Cow)?;
        loopdev::absent(self.vm, Role::Base)
    }

    /// Those that there are: /sys shows another namespace's.
    fn delete_links(&self) {
        for link in [self.vm.tap(), "banger0".to_owned()] {
            let _ = Command::new("ip").args(["link", "delete", &link]).output();
        }
    }
}

/// What is gone already is gone.
fn remove(result: std::io::Result<()>) {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
        _ => {}
    }
}

impl Side for Real<'_> {
    fn act(&mut self, verb: Verb, step: &Step) -> Result<(), Fault> {
        let done = match verb {
            Verb::Ensure => self.lab.host.ensure(step),
            Verb::Absent => self.lab.host.absent(step),
        };
        if done.is_err() && matches!(step, Step::VsockBackend { .. }) {
            // One without a folder for its socket ends by itself a moment later.
            for process in find(&[self.backend_marker()], &owners(self.vm), None).unwrap() {
                process.ends_within(PATIENCE);
            }
        }
        done
    }

    fn probe(&self, step: &Step) -> Result<Presence, Fault> {
        self.lab.host.probe(step)
    }

    fn turn(&mut self, turn: &Turn) {
        match turn {
            Turn::Reboot => self.reboot(),
            Turn::VmmDies(_) => self.kill(&self.vmm_markers()),
            Turn::BackendDies(_) => self.kill(&[self.backend_marker()]),
            Turn::Spoil(step) => self.spoil(step),
            Turn::Occupy(step) => self.occupy(step),
            Turn::Hold(step) => self.hold(step),
            Turn::FlushFirewall => drop(run_program("nft", "flush ruleset")),
            Turn::BridgeGoes => ip("link delete banger0"),
            Turn::Pause(vm) => {
                let control = self.lab.host.layout().control_socket(*vm);
                let limit = Deadline::after(Duration::from_secs(60));
                let mut qmp = Qmp::connect(&control, limit).unwrap();
                qmp.execute(qmp::Command::Stop).unwrap();
            }
            Turn::FillUp => self.fill_up(),
            Turn::MakeRoom => {
                // XFS gives a removed file's space back some time later, that of one cut
                // short at once.
                let filler = File::create(self.filler()).unwrap();
                rustix::fs::syncfs(&filler).unwrap();
            }
        }
    }
}

impl Drop for Real<'_> {
    /// A script may end in the middle of anything, and a failed one does.
    fn drop(&mut self) {
        let layout = self.lab.host.layout();
        self.held.clear();
        let markers = [self.backend_marker(), self.keeper_marker()];
        for markers in [&self.vmm_markers()[..], &markers] {
            let found = find(markers, &owners(self.vm), None).unwrap_or_default();
            let _ = kill_all(found, PATIENCE);
        }
        if let Some(groups) = self.lab.host.vmms().groups() {
            let _ = fs::remove_dir(groups.path(self.vm));
        }
        let _ = self.remove_devices();
        let _ = fs::remove_file(self.filler());
        for folder in [layout.vm_directory(self.vm), layout.run_directory(self.vm)] {
            let _ = fs::remove_dir_all(&folder);
            let _ = fs::remove_file(folder);
        }
        if self.lab.has_network() {
            self.delete_links();
            let _ = Command::new("nft").args(["flush", "ruleset"]).output();
        }
    }
}
