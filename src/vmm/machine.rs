//! A machine with every path that a VMM needs: the step's [`Machine`], made concrete.

use std::path::PathBuf;

use crate::host::layout::Layout;
use crate::model::ids::VmId;
use crate::model::net::{Mac, NetMode, PortForward};
use crate::model::units::Bytes;
use crate::model::vm::VmmKind;
use crate::plan::boot_args::{GuestDisks, HostClock, kernel_command_line};
use crate::plan::step::Machine;

/// The context identifier of every guest: each has a vsock back end of its own.
pub const GUEST_CID: u32 = 3;

/// The disks in the order that the guest numbers them (vda, vdb, ...): both VMMs keep
/// the order they are given (QEMU 7.2 with ACPI and Firecracker 1.14.1, seen).
pub const DISKS: [&str; 4] = ["base", "upper", "work", "modules"];

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
    /// In guest order; see [`DISKS`].
    pub disks: Vec<Disk>,
    /// The network device, if any.
    pub net: Net,
    /// The VMM's control socket.
    pub control: PathBuf,
    /// The host's side of the guest's vsock.
    pub vsock: PathBuf,
    /// The socket between QEMU and its vsock back end.
    pub vhost: PathBuf,
    /// Takes what the guest writes to its serial console.
    pub console: PathBuf,
    /// Takes what the VMM has to say.
    pub log: PathBuf,
    /// Takes Firecracker's counters.
    pub metrics: PathBuf,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What it is for; one of [`DISKS`].
    pub name: &'static str,
    /// The file.
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
        Parts {
            vm,
            kind: machine.kind,
            vcpu: machine.vcpu,
            memory: machine.memory,
            kernel: kernel.join("vmlinux"),
            initrd,
            boot_args: kernel_command_line(machine.kind, &guest_disks(), clock),
            disks: disks(layout, vm, machine),
            net: net(vm, machine),
            control: layout.control_socket(vm),
            vsock: layout.vsock(vm),
            vhost: layout.vhost_socket(vm),
            console: layout.console_log(vm),
            log: layout.vmm_log(vm),
            metrics: layout.run_directory(vm).join("metrics"),
        }
    }
}

fn disks(layout: &Layout, vm: VmId, machine: &Machine) -> Vec<Disk> {
    let modules = layout.kernel(&machine.kernel).join("modules.ext4");
    let files = [
        (layout.image_rootfs(&machine.image), Access::ReadOnly),
        (layout.upper_disk(vm), Access::ReadWrite),
        (layout.work_disk(vm), Access::ReadWrite),
        (modules, Access::ReadOnly),
    ];
    DISKS
        .into_iter()
        .zip(files)
        .map(|(name, (path, access))| Disk { name, path, access })
        .collect()
}

fn guest_disks() -> GuestDisks {
    let [base, upper, work, modules] = ["vda", "vdb", "vdc", "vdd"].map(str::to_owned);
    GuestDisks {
        base,
        upper,
        work,
        modules,
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
        let layout = Layout {
            state: "/s".into(),
            cache: "/c".into(),
            runtime: "/r".into(),
        };
        let machine = Machine {
            kind,
            vcpu: 2,
            memory: Bytes::mib(512),
            image: "00000000000000aa".parse().unwrap(),
            kernel: "00000000000000bb".parse().unwrap(),
            net,
            publish: vec!["8080:80".parse().unwrap()],
        };
        let vm = VmId::from_bits(0x2a);
        let clock = (kind == VmmKind::QemuTcg).then(|| HostClock::of_tsc_khz(2_500_000));
        Parts::new(&layout, vm, &machine, "/c/initrd/x.cpio".into(), clock)
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
