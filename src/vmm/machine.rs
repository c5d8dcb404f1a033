//! A machine with every path that a VMM needs: the step's [`Machine`], made concrete.

use std::path::{Path, PathBuf};

use crate::host::launch::{FIRST_FILE, Inherited};
use crate::host::layout::Layout;
use crate::model::ids::VmId;
use crate::model::limits::Limits;
use crate::model::net::{Mac, NetMode, PortForward};
use crate::model::units::Bytes;
use crate::model::vm::{Confinement, RootMode, VmmKind};
use crate::plan::boot_args::{GuestDisks, HostClock, kernel_command_line, template_command_line};
use crate::plan::step::Machine;

/// The context identifier of every guest: each has a vsock back end of its own.
pub const GUEST_CID: u32 = 3;

/// The name of the disk mounted at /root.
pub const WORK_DISK: &str = "work";

/// A machine, ready to be given to a VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Whose.
    pub vm: VmId,
    /// Which VMM, and how it executes guest code.
    pub kind: VmmKind,
    /// Virtual processors.
    pub vcpu: u8,
    /// Guest memory.
    pub memory: Bytes,
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub boot_args: String,
    /// What it begins with.
    pub beginning: Beginning,
    /// In the order that the guest numbers them (vda, vdb, ...): both VMMs keep the order
    /// they are given (QEMU 7.2 with ACPI and Firecracker 1.14.1, seen).
    pub disks: Vec<Disk>,
    /// The network device, if any.
    pub net: Net,
    /// What the VMM holds the guest to.
    pub limits: Limits,
    /// What the VMM is shut in.
    pub confinement: Confinement,
    /// The VMM's control socket.
    pub control: PathBuf,
    /// QEMU's second monitor.
    pub halts: PathBuf,
    /// The host's side of the guest's vsock.
    pub vsock: PathBuf,
    /// The socket between QEMU and its vsock back end, as they say it.
    pub vhost: PathBuf,
    /// Takes what the guest writes to its serial console.
    pub console: PathBuf,
    /// Where what the VMM has to say is kept.
    pub log: PathBuf,
    /// The named pipe by which it comes there.
    pub log_pipe: PathBuf,
    /// The last few as the VMM says them.
    pub said: Said,
}

/// What a machine begins with. The files of memory hold the guest's from its first byte on
/// and are written while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beginning {
    /// Its kernel.
    Kernel,
    /// Its kernel, which stops before it sees a device: see [`super::template`].
    ForTemplate {
        /// Takes the guest's memory.
        memory: PathBuf,
    },
    /// What a template had come to.
    FromTemplate {
        /// Holds the guest's memory.
        memory: PathBuf,
        /// What the processors and the board had come to, as QEMU wrote it down.
        state: PathBuf,
    },
}

/// Files of the run directory as the VMM says them: below the folder that it works in,
/// since the way there may be closed to the VM's user; in a jail, where nothing else is,
/// by their own names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// [`Parts::control`].
    pub control: PathBuf,
    /// [`Parts::vsock`].
    pub vsock: PathBuf,
    /// [`Parts::log_pipe`].
    pub log_pipe: PathBuf,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What it is for: `base`, `upper`, `root`, `work` or `modules`.
    pub name: &'static str,
    /// The file or block device.
    pub path: PathBuf,
    /// Who may write.
    pub access: Access,
}

/// Who may write to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody: shared by any number of machines.
    ReadOnly,
    /// This machine alone.
    ReadWrite,
    /// The same, and it is a block device.
    Device,
}

/// A machine's network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Net {
    /// None at all.
    None,
    /// Frames go to and from this tap.
    Tap {
        /// The interface's name.
        name: String,
        /// The guest's address.
        mac: Mac,
    },
    /// QEMU's own network.
    User {
        /// The guest's address.
        mac: Mac,
        /// Ports of 127.0.0.1 that lead to the guest.
        publish: Vec<PortForward>,
    },
}

impl Said {
    fn new(layout: &Layout, vm: VmId, confinement: Confinement) -> Said {
        let said = |path: PathBuf| match confinement {
            Confinement::Direct => layout.as_seen_at_work(&path),
            Confinement::Jailer => path,
        };
        Said {
            control: said(layout.control_socket(vm)),
            vsock: said(layout.vsock(vm)),
            log_pipe: said(layout.log_pipe(vm)),
        }
    }
}

impl Parts {
    /// The parts of a VM's machine. `clock` is what a translated guest is told.
    pub fn new(
        layout: &Layout,
        vm: VmId,
        machine: &Machine,
        initrd: PathBuf,
        clock: Option<HostClock>,
    ) -> Parts {
        let kernel = layout.kernel(&machine.kernel);
        let disks = disks(layout, vm, machine);
        Parts {
            vm,
            kind: machine.kind,
            vcpu: machine.vcpu,
            memory: machine.memory,
            kernel: kernel.join("vmlinux"),
            initrd,
            boot_args: kernel_command_line(machine.kind, &guest_disks(&disks), clock),
            beginning: Beginning::Kernel,
            disks,
            net: net(vm, machine),
            limits: machine.limits,
            confinement: machine.confinement,
            control: layout.control_socket(vm),
            halts: layout.halt_socket(vm),
            vsock: layout.vsock(vm),
            vhost: layout.as_seen_at_work(&layout.vhost_socket(vm)),
            console: layout.console_log(vm),
            log: layout.vmm_log(vm),
            log_pipe: layout.log_pipe(vm),
            said: Said::new(layout, vm, machine.confinement),
        }
    }

    /// The machine of which a template for this one is made: without devices.
    pub fn for_template(
        &self,
        initrd: PathBuf,
        memory: PathBuf,
        clock: Option<HostClock>,
    ) -> Parts {
        Parts {
            initrd,
            boot_args: self.template_words(clock),
            beginning: Beginning::ForTemplate { memory },
            disks: Vec::new(),
            net: Net::None,
            ..self.clone()
        }
    }

    /// The command line of that machine's kernel.
    pub fn template_words(&self, clock: Option<HostClock>) -> String {
        template_command_line(&guest_disks(&self.disks), clock)
    }

    /// The same machine, begun from a template.
    pub fn from_template(self, memory: PathBuf, state: PathBuf) -> Parts {
        let beginning = Beginning::FromTemplate { memory, state };
        Parts { beginning, ..self }
    }
}

/// The places of these in [`Parts::opened`]; a disk each from the last on.
pub const KERNEL_FILE: usize = 0;
/// See [`KERNEL_FILE`].
pub const INITRD_FILE: usize = 1;
/// See [`KERNEL_FILE`].
pub const DISK_FILES: usize = 2;
/// The memory of [`Beginning::ForTemplate`], which has no disks.
pub const TEMPLATE_MEMORY_FILE: usize = DISK_FILES;
/// The memory of [`Beginning::FromTemplate`], which has no kernel to load.
pub const MEMORY_FILE: usize = KERNEL_FILE;
/// The state of the same.
pub const STATE_FILE: usize = INITRD_FILE;

/// The number under which a VMM has the file at this place open.
pub fn descriptor(place: usize) -> usize {
    // A small constant, and no negative one.
    FIRST_FILE as usize + place
}

impl Parts {
    /// What a VMM reads of the owner's files: what it begins with, the disks in their
    /// order.
    pub fn opened(&self) -> Vec<Inherited> {
        let boot = [&self.kernel, &self.initrd].map(|path| Inherited::Read(path.clone()));
        let mut files = match &self.beginning {
            Beginning::Kernel => boot.to_vec(),
            Beginning::ForTemplate { memory } => {
                let memory = Inherited::ReadWrite(memory.clone());
                boot.into_iter().chain([memory]).collect()
            }
            Beginning::FromTemplate { memory, state } => vec![
                Inherited::ReadWrite(memory.clone()),
                Inherited::Read(state.clone()),
            ],
        };
        files.extend(self.disks.iter().map(|disk| match disk.access {
            Access::ReadOnly => Inherited::Read(disk.path.clone()),
            Access::ReadWrite | Access::Device => Inherited::ReadWrite(disk.path.clone()),
        }));
        files
    }

    /// The files of those disks.
    pub fn disks_with(&self, access: Access) -> impl Iterator<Item = &Path> {
        let disks = self.disks.iter();
        disks
            .filter(move |disk| disk.access == access)
            .map(|disk| &*disk.path)
    }
}

fn disks(layout: &Layout, vm: VmId, machine: &Machine) -> Vec<Disk> {
    let disk = |name, path, access| Disk { name, path, access };
    let mut disks = match machine.root {
        RootMode::Overlay => vec![
            disk(
                "base",
                layout.image_rootfs(&machine.image),
                Access::ReadOnly,
            ),
            disk("upper", layout.upper_disk(vm), Access::ReadWrite),
        ],
        RootMode::Reflink => vec![disk("root", layout.root_disk(vm), Access::ReadWrite)],
        RootMode::DmSnapshot => vec![disk("root", layout.root_device(vm), Access::Device)],
    };
    let modules = layout.kernel(&machine.kernel).join("modules.ext4");
    disks.push(disk(WORK_DISK, layout.work_disk(vm), Access::ReadWrite));
    disks.push(disk("modules", modules, Access::ReadOnly));
    disks
}

/// The guest's names of these disks.
fn guest_disks(disks: &[Disk]) -> GuestDisks {
    let named = |name: &str| {
        let at = disks.iter().position(|disk| disk.name == name)?;
        Some(format!("vd{}", char::from(b'a' + at as u8)))
    };
    let own = || named("root").unwrap_or_else(|| "vda".to_owned());
    GuestDisks {
        base: named("base").unwrap_or_else(own),
        upper: named("upper"),
        work: named(WORK_DISK).unwrap_or_default(),
        modules: named("modules").unwrap_or_default(),
    }
}

fn net(vm: VmId, machine: &Machine) -> Net {
    let mac = Mac::of(vm);
    match machine.net {
        NetMode::None => Net::None,
        NetMode::Isolated | NetMode::Nat => Net::Tap {
            name: vm.tap(),
            mac,
        },
        NetMode::User => Net::User {
            mac,
            publish: machine.publish.clone(),
        },
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The parts of a small machine with the usual paths.
    pub fn parts(kind: VmmKind, net: NetMode) -> Parts {
        parts_of(kind, net, RootMode::Overlay)
    }

    /// The same machine in another confinement.
    pub fn confined(parts: Parts, confinement: Confinement) -> Parts {
        Parts {
            said: Said::new(&layout(), parts.vm, confinement),
            confinement,
            ..parts
        }
    }

    fn layout() -> Layout {
        Layout {
            state: "/s".into(),
            cache: "/c".into(),
            runtime: "/r".into(),
        }
    }

    pub fn parts_of(kind: VmmKind, net: NetMode, root: RootMode) -> Parts {
        let machine = Machine {
            kind,
            vcpu: 2,
            memory: Bytes::mib(512),
            image: "00000000000000aa".parse().unwrap(),
            root,
            kernel: "00000000000000bb".parse().unwrap(),
            net,
            publish: vec!["8080:80".parse().unwrap()],
            limits: Limits::default(),
            confinement: Confinement::Direct,
        };
        let vm = VmId::from_bits(0x2a);
        let clock = (kind == VmmKind::QemuTcg).then(|| HostClock::of_tsc_khz(2_500_000));
        Parts::new(&layout(), vm, &machine, "/c/initrd/x.cpio".into(), clock)
    }

    #[test]
    fn shared_disks_are_read_only_and_own_disks_are_not() {
        let parts = parts(VmmKind::QemuTcg, NetMode::None);
        let seen: Vec<_> = parts
            .disks
            .iter()
            .map(|disk| (disk.name, disk.path.to_str().unwrap(), disk.access))
            .collect();
        assert_eq!(
            seen,
            [
                (
                    "base",
                    "/s/images/00000000000000aa/rootfs.ext4",
                    Access::ReadOnly
                ),
                ("upper", "/s/vms/0000002a/upper.ext4", Access::ReadWrite),
                ("work", "/s/vms/0000002a/work.ext4", Access::ReadWrite),
                (
                    "modules",
                    "/s/kernels/00000000000000bb/modules.ext4",
                    Access::ReadOnly
                ),
            ]
        );
    }

    #[test]
    fn a_root_of_its_own_is_the_first_disk_and_writable() {
        for (mode, path, access) in [
            (
                RootMode::Reflink,
                "/s/vms/0000002a/root.ext4",
                Access::ReadWrite,
            ),
            (
                RootMode::DmSnapshot,
                "/s/vms/0000002a/root.device",
                Access::Device,
            ),
        ] {
            let parts = parts_of(VmmKind::Firecracker, NetMode::None, mode);
            let root = Disk {
                name: "root",
                path: path.into(),
                access,
            };
            assert_eq!(parts.disks[0], root);
            assert_eq!(parts.disks.len(), 3);
            let words = "banger.base=vda banger.work=vdb banger.modules=vdc";
            assert!(parts.boot_args.ends_with(words), "{}", parts.boot_args);
        }
    }

    #[test]
    fn only_modes_with_a_tap_name_one() {
        assert_eq!(parts(VmmKind::QemuTcg, NetMode::None).net, Net::None);
        for mode in [NetMode::Isolated, NetMode::Nat] {
            let Net::Tap { name, .. } = parts(VmmKind::Firecracker, mode).net else {
                panic!("{mode} has a tap");
            };
            assert_eq!(name, "bgr-0000002a");
        }
    }
}
