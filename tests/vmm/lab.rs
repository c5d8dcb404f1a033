//! A VM's files in directories of its own, and the steps that run it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use banger::host::identity::owners;
use banger::host::layout::Layout;
use banger::host::loopdev::{self, LoopDevice, Role};
use banger::host::process::{Marker, find};
use banger::host::program::Programs;
use banger::host::{Host, RealHost, Settings};
use banger::model::ids::VmId;
use banger::model::limits::Limits;
use banger::model::net::NetMode;
use banger::model::units::Bytes;
use banger::model::vm::{Confinement, RootMode, VmmKind};
use banger::plan::step::{Fault, GroupLimits, Machine, Presence, Step};
use banger::vmm::initrd::OwnProgram;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::kernel;
use crate::support::events::wait_for_change;
use crate::support::seed;

/// A host with one VM whose kernel is tiny and whose disks are empty.
pub struct Lab {
    pub host: RealHost,
    pub vm: VmId,
    pub machine: Machine,
    _root: TempDir,
}

impl Lab {
    /// `vm` tells the tests of this process apart.
    pub fn new(kind: VmmKind, vm: u32) -> Lab {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout {
            state: root.path().join("s"),
            cache: root.path().join("c"),
            runtime: root.path().join("r"),
        };
        let machine = Machine {
            kind,
            vcpu: 1,
            memory: Bytes::mib(128),
            image: "00000000000000aa".parse().unwrap(),
            root: RootMode::Overlay,
            kernel: "00000000000000bb".parse().unwrap(),
            net: NetMode::None,
            publish: Vec::new(),
            limits: Limits {
                disk_iops: Some(1000),
                disk_bandwidth: Some(Bytes::mib(64)),
                net_bandwidth: Some(Bytes::mib(4)),
                cpu_weight: None,
            },
            confinement: Confinement::Direct,
        };
        let vm = VmId::from_bits(std::process::id() << 8 | vm);
        lay_out(&layout, vm, &machine);
        let program = OwnProgram::at(env!("CARGO_BIN_EXE_banger"));
        Lab {
            host: RealHost::with_program(layout, settings(), program),
            vm,
            machine,
            _root: root,
        }
    }

    /// The same VM with a device on a tap.
    pub fn on_a_tap(mut self) -> Lab {
        self.machine.net = NetMode::Isolated;
        self
    }

    /// Gives the VM a block device as its root, in the place where a snapshot's would be.
    pub fn root_on_a_loop_device(&mut self) -> LoopRoot {
        self.machine.root = RootMode::DmSnapshot;
        let layout = self.host.layout();
        let device = LoopDevice {
            vm: self.vm,
            role: Role::Cow,
            file: &layout.upper_disk(self.vm),
        };
        loopdev::ensure(&device).unwrap();
        let found = loopdev::find(&loopdev::tag(self.vm, Role::Cow)).unwrap();
        let node = format!("/dev/loop{}", found[0].number);
        symlink(node, layout.root_device(self.vm)).unwrap();
        LoopRoot(self.vm)
    }

    /// The steps that make processes, in order.
    pub fn steps(&self) -> Vec<Step> {
        let (vm, machine) = (self.vm, self.machine.clone());
        let group = Step::Cgroup {
            vm,
            limits: GroupLimits::default(),
        };
        let mut steps = vec![Step::RunDirectory { vm }, group];
        if machine.net.has_tap() {
            let subnet = "172.30.0.0/24".parse().unwrap();
            steps.push(Step::Tap { vm, subnet });
        }
        if machine.kind != VmmKind::Firecracker {
            steps.push(Step::VsockBackend { vm });
        }
        steps.extend([
            Step::Vmm {
                vm,
                machine: machine.clone(),
            },
            Step::Configured {
                vm,
                machine: machine.clone(),
            },
            Step::Booted {
                vm,
                kind: machine.kind,
            },
        ]);
        steps
    }

    /// Everything up to the step of this word.
    pub fn ensure_until(&self, word: &str) {
        for step in self.steps() {
            self.host.ensure(&step).unwrap();
            if step.kind().word() == word {
                return;
            }
        }
    }

    /// The step of this word.
    pub fn step(&self, word: &str) -> Step {
        let mut steps = self.steps().into_iter();
        steps.find(|step| step.kind().word() == word).unwrap()
    }

    /// What the guest wrote, once it holds `text`.
    pub fn console_with(&self, text: &str) -> String {
        let path = self.host.layout().console_log(self.vm);
        wait_for_change(path.parent().unwrap(), || {
            let seen = fs::read(&path).unwrap_or_default();
            let seen = String::from_utf8_lossy(&seen).into_owned();
            seen.contains(text).then_some(seen)
        })
    }

    /// Undoes everything, twice; nothing of the VM is left.
    pub fn remove_and_find_nothing(&self) {
        for step in self.steps().into_iter().rev() {
            for _ in 0..2 {
                self.host.absent(&step).unwrap();
            }
        }
        let markers = [
            Marker::new(["-name".to_owned(), format!("banger-{}", self.vm)]),
            Marker::new(["--id".to_owned(), self.vm.to_string()]),
            Marker::new(["--uds-path".to_owned(), format!("{}/vsock", self.vm)]),
            Marker::new([
                "console-log".into(),
                self.host.layout().console_log(self.vm),
            ]),
        ];
        assert!(find(&markers, &owners(self.vm), None).unwrap().is_empty());
        assert!(!self.host.layout().run_directory(self.vm).exists());
        if let Some(groups) = self.host.vmms().groups() {
            assert!(!groups.path(self.vm).exists());
        }
    }
}

/// A loop device that goes with this.
pub struct LoopRoot(VmId);

impl LoopRoot {
    /// Removes it, if nobody has it open.
    pub fn remove(&self) -> Result<(), Fault> {
        loopdev::absent(self.0, Role::Cow)
    }
}

impl Drop for LoopRoot {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

impl Drop for Lab {
    /// A failed test leaves no process behind either.
    fn drop(&mut self) {
        for step in self.steps().into_iter().rev() {
            let _ = self.host.absent(&step);
        }
        if self.machine.root == RootMode::DmSnapshot {
            let _ = loopdev::absent(self.vm, Role::Cow);
        }
    }
}

/// Runs a test in a network namespace of its own, on a thread of its own; says whether
/// this host can.
pub fn in_a_network_of_its_own(name: &str, test: impl FnOnce() + Send) -> bool {
    let ip = |arguments: &[&str]| {
        let output = Command::new("ip").args(arguments).output();
        output.is_ok_and(|output| output.status.success())
    };
    let name = format!("vmm-{}-{name}", std::process::id());
    if !ip(&["netns", "add", &name]) {
        return false;
    }
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    let ended = std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            test();
        });
        inside.join()
    });
    assert!(ip(&["netns", "delete", &name]));
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
    true
}

/// Asserts what a probe of the step sees.
#[track_caller]
pub fn assert_sees(lab: &Lab, word: &str, presence: Presence) {
    assert_eq!(lab.host.probe(&lab.step(word)), Ok(presence), "{word}");
}

/// The program that a test uses: named by a variable, or found where banger looks.
pub fn program(name: &str) -> Option<PathBuf> {
    let variable = format!("BANGER_{}", name.to_uppercase().replace('-', "_"));
    std::env::var_os(variable)
        .map(PathBuf::from)
        .or_else(|| seed::find_tool(name))
}

/// The programs of this test, by name.
fn settings() -> Settings {
    let named = ["vhost-device-vsock", "firecracker", "jailer"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), program(name)?)))
        .collect();
    Settings {
        programs: Programs::new(named, PathBuf::new()),
        ..Settings::default()
    }
}

fn lay_out(layout: &Layout, vm: VmId, machine: &Machine) {
    let kernel = layout.kernel(&machine.kernel);
    let modules = kernel.join("initrd-modules");
    for folder in [&layout.vm_directory(vm), &modules] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(modules.join("order"), "").unwrap();
    fs::write(kernel.join("vmlinux"), kernel::image()).unwrap();
    let image = layout.image_rootfs(&machine.image);
    fs::create_dir_all(image.parent().unwrap()).unwrap();
    let disks = [
        image,
        kernel.join("modules.ext4"),
        layout.upper_disk(vm),
        layout.work_disk(vm),
    ];
    for disk in disks {
        File::create(disk).unwrap().set_len(1 << 20).unwrap();
    }
}
