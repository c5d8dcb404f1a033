//! QEMU's `microvm` machine: its arguments, and its half of the seam over QMP.
//!
//! `acpi=on` gives a guest that can power itself off and finds its devices in the
//! order given; `pit`, `pic` and `rtc` are what a kernel calibrates its clock against.
//! The guest starts stopped (`-S`), so that a machine that cannot be made (a missing
//! disk, a taken port) is an error of the step that starts the VMM, and running it is a
//! step of its own.
//!
//! A machine that goes on from a template ([`super::template`]) has a PCI Express port
//! besides: a device that QEMU 7.2 cannot put into a machine before its state has come in
//! (`vhost-user-vsock` counts as not migratable) is plugged in there afterwards.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::host::identity::Identity;
use crate::host::launch::{CONTROL_DESCRIPTOR, Inherited};
use crate::host::process::Marker;
use crate::host::program::Programs;
use crate::model::ids::VmId;
use crate::model::limits::Limits;
use crate::model::template::PAUSE_PORT;
use crate::model::units::Bytes;
use crate::model::vm::VmmKind;
use crate::plan::make::TRANSLATED_MIB;
use crate::plan::step::{Fault, FaultKind, LiveSizes};

use super::machine::{
    Access, Beginning, DISK_FILES, Disk, INITRD_FILE, KERNEL_FILE, MEMORY_FILE, Net, Parts,
    TEMPLATE_MEMORY_FILE, WORK_DISK, descriptor,
};
use super::qmp::{Command, Qmp, RunState};
use super::{ControlSocket, Deadline, GuestState, Vmm, out_of_reach};

/// All that the emulator can do, but for strings of bytes said to be fast (`erms`, `fsrm`):
/// kernel and C library then copy and clear by single bytes, each of them a turn of the
/// translated loop, where they else go by eight or more.
const TRANSLATED_PROCESSOR: &str = "max,-erms,-fsrm";

/// The implementation over `qemu-system-x86_64`.
#[derive(Debug)]
pub struct Qemu;

impl Vmm for Qemu {
    fn program(&self, programs: &Programs) -> Result<PathBuf, Fault> {
        programs.require(
            "qemu-system-x86_64",
            "run `apt-get install qemu-system-x86`",
        )
    }

    fn arguments(&self, parts: &Parts) -> Vec<OsString> {
        let mut words = Words(Vec::new());
        machine(&mut words, parts);
        beginning(&mut words, parts);
        if let Beginning::ForTemplate { .. } = parts.beginning {
            console(&mut words);
            monitor(&mut words, "control", CONTROL_DESCRIPTOR);
            return words.0;
        }
        for (disk, file) in parts.disks.iter().zip(DISK_FILES..) {
            attach(&mut words, disk, file, &parts.limits);
        }
        let tap = DISK_FILES + parts.disks.len();
        network(&mut words, &parts.net, tap);
        small_devices(&mut words);
        vsock(&mut words, parts);
        console(&mut words);
        monitor(&mut words, "control", CONTROL_DESCRIPTOR);
        monitor(&mut words, "halts", descriptor(self.files(parts).len() - 1));
        words.0
    }

    fn files(&self, parts: &Parts) -> Vec<Inherited> {
        let mut files = parts.opened();
        if let Beginning::ForTemplate { .. } = parts.beginning {
            return files;
        }
        if let Net::Tap { name, .. } = &parts.net {
            files.push(Inherited::Tap(name.clone()));
        }
        files.push(Inherited::Listener(parts.halts.clone()));
        files
    }

    fn read_anew<'a>(&self, parts: &'a Parts) -> Vec<&'a Path> {
        match parts.beginning {
            Beginning::Kernel => vec![&parts.kernel, &parts.initrd],
            // Its initial RAM disk is a file in memory, which is open to all.
            Beginning::ForTemplate { .. } => vec![&parts.kernel],
            // It reads the state by its descriptor.
            Beginning::FromTemplate { .. } => Vec::new(),
        }
    }

    /// It uses the descriptors of its disks as they are.
    fn written_anew<'a>(&self, _parts: &'a Parts) -> Vec<&'a Path> {
        Vec::new()
    }

    fn identity(&self, parts: &Parts, user: Identity) -> Identity {
        match parts.kind {
            VmmKind::QemuKvm => user.able_to_open(&[Path::new("/dev/kvm")]),
            VmmKind::QemuTcg | VmmKind::Firecracker => user,
        }
    }

    fn marker(&self, vm: VmId) -> Marker {
        Marker::new(["-name".to_owned(), name(vm)])
    }

    fn control(&self) -> ControlSocket {
        ControlSocket::Given
    }

    fn configure(&self, parts: &Parts, limit: Deadline) -> Result<(), Fault> {
        // It read the whole machine from its arguments before it answers at all.
        Qmp::connect(&parts.control, limit).map(drop)
    }

    fn is_configured(&self, parts: &Parts, limit: Deadline) -> Result<bool, Fault> {
        Qmp::connect(&parts.control, limit).map(|_| true)
    }

    fn boot(&self, control: &Path, limit: Deadline) -> Result<(), Fault> {
        Qmp::connect(control, limit)?.execute(Command::Cont)
    }

    fn state(&self, control: &Path, limit: Deadline) -> Result<GuestState, Fault> {
        let mut qmp = Qmp::connect(control, limit)?;
        match qmp.status()? {
            RunState::Prelaunch => Ok(GuestState::NotStarted),
            RunState::Inmigrate => Ok(GuestState::Unfinished),
            TEMPLATE_STATE => Ok(match qmp.has_device(VSOCK_DEVICE)? {
                true => GuestState::NotStarted,
                false => GuestState::Unfinished,
            }),
            RunState::Running => Ok(GuestState::Running),
            RunState::Paused | RunState::Suspended | RunState::Debug => Ok(GuestState::Paused),
            RunState::Shutdown => Ok(GuestState::Ended),
            RunState::InternalError | RunState::IoError | RunState::Other => Err(Fault::new(
                FaultKind::Other,
                format!(
                    "run the guest: QEMU stopped it on an error; see {}",
                    control.display()
                ),
            )),
        }
    }

    fn adjust(&self, parts: &Parts, sizes: LiveSizes, limit: Deadline) -> Result<(), Fault> {
        let mut qmp = Qmp::connect(&parts.control, limit).map_err(out_of_reach)?;
        qmp.execute(Command::BlockResize {
            device: WORK_DISK,
            size: sizes.work_disk.0,
        })?;
        match sizes.memory_target {
            Some(Bytes(value)) => qmp.execute(Command::Balloon { value }),
            None => Ok(()),
        }
    }

    fn memory_left(&self, control: &Path, _memory: Bytes, limit: Deadline) -> Result<Bytes, Fault> {
        Qmp::connect(control, limit)?.balloon().map(Bytes)
    }
}

/// What the guest of a template has come to, and one that was begun from it and does not
/// run yet: it stopped by QEMU's device for panics. No machine of ours has that device
/// otherwise, so no guest comes there by a panic.
pub(super) const TEMPLATE_STATE: RunState = RunState::GuestPanicked;

/// What QEMU does when a guest comes there.
const TEMPLATE_ACTION: [&str; 2] = ["-action", "panic=pause"];

/// The port for the device that is plugged in.
pub(super) const PORT: &str = "late";
/// That device, and the character device by which it reaches its back end.
pub(super) const VSOCK_DEVICE: &str = "vsock-device";
pub(super) const VSOCK: &str = "vsock";

/// The name by which a VM's QEMU is known, to us and to whoever reads `ps`.
fn name(vm: VmId) -> String {
    format!("banger-{vm}")
}

/// Arguments in the making.
struct Words(Vec<OsString>);

impl Words {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn pair(&mut self, flag: &str, value: impl Into<OsString>) {
        self.0.push(flag.into());
        self.0.push(value.into());
    }

    /// `flag options,last=PATH`: commas of the path doubled, as QEMU's option lists
    /// want it (qemu(1), "-drive").
    fn with_path(&mut self, flag: &str, options: &str, path: &Path) {
        let mut value = options.as_bytes().to_vec();
        for byte in path.as_os_str().as_bytes() {
            value.push(*byte);
            if *byte == b',' {
                value.push(b',');
            }
        }
        self.pair(flag, OsString::from_vec(value));
    }
}

/// What only a QEMU of which a template is made has on its command line.
pub fn template_marker(vm: VmId) -> Marker {
    let [action, pause] = TEMPLATE_ACTION;
    Marker::new([
        "-name".to_owned(),
        name(vm),
        action.to_owned(),
        pause.to_owned(),
    ])
}

fn machine(words: &mut Words, parts: &Parts) {
    words.pair("-name", name(parts.vm));
    if let Beginning::ForTemplate { .. } = parts.beginning {
        let [action, pause] = TEMPLATE_ACTION;
        words.pair(action, pause);
    }
    for flag in [
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
        "-S",
    ] {
        words.flag(flag);
    }
    words.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    let bus = match parts.beginning {
        Beginning::Kernel => "",
        Beginning::ForTemplate { .. } | Beginning::FromTemplate { .. } => ",pcie=on",
    };
    words.pair(
        "-machine",
        format!("microvm,acpi=on,pit=on,pic=on,rtc=on{bus},memory-backend=memory"),
    );
    let (accelerator, processor) = match parts.kind {
        VmmKind::QemuKvm => ("kvm".to_owned(), "host"),
        VmmKind::QemuTcg | VmmKind::Firecracker => (
            format!("tcg,tb-size={TRANSLATED_MIB}"),
            TRANSLATED_PROCESSOR,
        ),
    };
    words.pair("-accel", accelerator);
    words.pair("-cpu", processor);
    words.pair("-smp", parts.vcpu.to_string());
    memory(words, parts);
}

fn memory(words: &mut Words, parts: &Parts) {
    let memory = parts.memory.whole_mib();
    words.pair("-m", format!("{memory}M"));
    // Shared, because the vsock back end reads and writes the guest's memory.
    let file = match parts.beginning {
        Beginning::Kernel => {
            let object = format!("memory-backend-memfd,id=memory,size={memory}M,share=on");
            words.pair("-object", object);
            return;
        }
        Beginning::ForTemplate { .. } => TEMPLATE_MEMORY_FILE,
        Beginning::FromTemplate { .. } => MEMORY_FILE,
    };
    words.pair(
        "-object",
        format!(
            "memory-backend-file,id=memory,size={memory}M,share=on,mem-path=/proc/self/fd/{}",
            descriptor(file)
        ),
    );
}

fn beginning(words: &mut Words, parts: &Parts) {
    match parts.beginning {
        Beginning::Kernel => boot(words, parts),
        Beginning::ForTemplate { .. } => {
            boot(words, parts);
            port(words);
            // By this device the guest says that it has come so far.
            words.pair("-device", format!("pvpanic,ioport={PAUSE_PORT}"));
        }
        Beginning::FromTemplate { .. } => {
            port(words);
            words.pair("-incoming", "defer");
        }
    }
}

/// A slot without a switch for its power, which the guest would have to turn on, and without
/// room for ports of the processor, which the machine has none of.
fn port(words: &mut Words) {
    let without = "io-reserve=0,power_controller_present=off";
    let port = format!("pcie-root-port,id={PORT},chassis=1,slot=1,{without}");
    words.pair("-device", port);
}

fn boot(words: &mut Words, parts: &Parts) {
    // Read by their paths, which lead to what the launcher has opened: the user that QEMU
    // runs as need not reach their folders. The same holds for the disks.
    words.pair(
        "-kernel",
        format!("/proc/self/fd/{}", descriptor(KERNEL_FILE)),
    );
    words.pair(
        "-initrd",
        format!("/proc/self/fd/{}", descriptor(INITRD_FILE)),
    );
    words.pair("-append", OsStr::new(&parts.boot_args));
}

fn attach(words: &mut Words, disk: &Disk, file: usize, limits: &Limits) {
    let name = disk.name;
    let set = descriptor(file);
    words.pair("-add-fd", format!("fd={set},set={set}"));
    // A shared file is not locked: nobody writes it, and a lock would be one more thing
    // that VMs have in common. An own file is: no two VMMs may ever write it.
    let access = match disk.access {
        Access::ReadOnly => "readonly=on,file.locking=off",
        Access::ReadWrite | Access::Device => "discard=unmap,auto-read-only=off",
    };
    // QEMU tells files and devices apart by their path, if nobody else does.
    let file = match disk.access {
        Access::ReadOnly | Access::ReadWrite => "file=",
        Access::Device => "file.driver=host_device,file.filename=",
    };
    words.pair(
        "-drive",
        format!(
            "if=none,id={name},format=raw,{access}{},{file}/dev/fdset/{set}",
            throttling(limits)
        ),
    );
    words.pair(
        "-device",
        format!("virtio-blk-device,drive={name},serial={name}"),
    );
}

/// What a disk is held to, each by itself (qemu(1), "-drive", throttling).
fn throttling(limits: &Limits) -> String {
    let iops = limits.disk_iops.map(u64::from);
    let option = |name: &str, limit: Option<u64>| {
        limit.map(|limit| format!(",throttling.{name}-total={limit}"))
    };
    let rate = limits.disk_bandwidth.map(|rate| rate.0);
    let both = [option("iops", iops), option("bps", rate)];
    both.into_iter().flatten().collect()
}

fn network(words: &mut Words, net: &Net, tap: usize) {
    let mac = match net {
        Net::None => return,
        Net::Tap { mac, .. } => {
            let descriptor = descriptor(tap);
            words.pair("-netdev", format!("tap,id=net,fd={descriptor}"));
            mac
        }
        Net::User { mac, publish } => {
            // Nothing here keeps the guest from the host's 127.0.0.1: `restrict=on` would
            // cut all, and libslirp's disable_host_loopback is no option of QEMU's (7.2).
            let mut value = "user,id=net,ipv6=off".to_owned();
            for port in publish {
                let (protocol, address) = (port.protocol, port.address);
                value += &format!(
                    ",hostfwd={protocol}:{address}:{}-:{}",
                    port.host, port.guest
                );
            }
            words.pair("-netdev", value);
            mac
        }
    };
    words.pair("-device", format!("virtio-net-device,netdev=net,mac={mac}"));
}

fn small_devices(words: &mut Words) {
    words.pair("-device", "virtio-rng-device");
    // Free pages come back to the host; after the disks, which the guest counts.
    words.pair(
        "-device",
        "virtio-balloon-device,id=balloon,free-page-reporting=on,deflate-on-oom=on",
    );
}

fn vsock(words: &mut Words, parts: &Parts) {
    let socket = format!("socket,id={VSOCK},path=");
    words.with_path("-chardev", &socket, &parts.vhost);
    if let Beginning::FromTemplate { .. } = parts.beginning {
        // To be plugged in: see `template::talk`.
        return;
    }
    // A kick that comes before the back end has enabled the queue is lost in it. With event
    // indices the guest, waiting for an answer to that one, would never kick again.
    words.pair(
        "-device",
        format!("vhost-user-vsock-device,chardev={VSOCK},event_idx=off"),
    );
}

fn console(words: &mut Words) {
    // The pipe to our console log, opened anew: QEMU has no character device that writes
    // to a descriptor and does not also read.
    words.pair("-chardev", "file,id=console,path=/proc/self/fd/1");
    words.pair("-serial", "chardev:console");
}

/// QEMU serves one client of a monitor at a time, so whoever stays has one of their own.
fn monitor(words: &mut Words, id: &str, descriptor: impl fmt::Display) {
    let socket = format!("socket,id={id},fd={descriptor},server=on,wait=off");
    words.pair("-chardev", socket);
    words.pair("-mon", format!("chardev={id},mode=control"));
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::{parts, parts_of};
    use super::*;
    use crate::model::net::NetMode;
    use crate::model::vm::RootMode;

    fn arguments(kind: VmmKind, net: NetMode) -> Vec<String> {
        Qemu.arguments(&parts(kind, net))
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_translated_machine_with_user_network_is_written_like_this() {
        let mut parts = parts(VmmKind::QemuTcg, NetMode::User);
        parts.boot_args = "BOOT ARGUMENTS".to_owned();
        let mut text = String::new();
        for word in Qemu.arguments(&parts) {
            text.push_str(word.to_str().unwrap());
            text.push('\n');
        }
        assert_eq!(text, include_str!("qemu.golden.txt"));
    }

    #[test]
    fn kvm_uses_the_hosts_processor_and_a_tap_comes_open() {
        let words = arguments(VmmKind::QemuKvm, NetMode::Nat).join(" ");
        assert!(words.contains("-accel kvm -cpu host"), "{words}");
        assert!(words.contains("-netdev tap,id=net,fd=10"), "{words}");
        let files = Qemu.files(&parts(VmmKind::QemuKvm, NetMode::Nat));
        assert_eq!(files.len(), 8);
        assert_eq!(files[6], Inherited::Tap("bgr-0000002a".to_owned()));
        assert!(words.contains("mac=06:00:00:00:00:2a"), "{words}");
    }

    #[test]
    fn a_block_device_is_named_as_one() {
        let parts = parts_of(VmmKind::QemuTcg, NetMode::None, RootMode::DmSnapshot);
        let words = Qemu.arguments(&parts);
        let root = "if=none,id=root,format=raw,discard=unmap,auto-read-only=off,\
                    file.driver=host_device,file.filename=/dev/fdset/6";
        assert!(words.iter().any(|word| word == root), "{words:?}");
    }

    #[test]
    fn limits_of_disks_are_written_on_each_of_them() {
        let mut parts = parts(VmmKind::QemuTcg, NetMode::None);
        parts.limits.disk_iops = Some(300);
        parts.limits.disk_bandwidth = Some(Bytes::mib(2));
        let words = Qemu.arguments(&parts);
        let drives = words.iter().filter_map(|word| word.to_str());
        let limit = ",throttling.iops-total=300,throttling.bps-total=2097152";
        assert_eq!(drives.filter(|word| word.contains(limit)).count(), 4);
    }

    #[test]
    fn no_network_is_no_device() {
        let words = arguments(VmmKind::QemuTcg, NetMode::None).join(" ");
        assert!(!words.contains("net"), "{words}");
    }

    #[test]
    fn a_comma_in_a_path_stays_part_of_the_path() {
        let mut words = Words(Vec::new());
        words.with_path("-chardev", "file,id=console,path=", Path::new("/a,b/c"));
        assert_eq!(words.0[1], "file,id=console,path=/a,,b/c");
    }

    #[test]
    fn a_machine_for_a_template_has_its_kernel_and_no_device() {
        let parts = parts(VmmKind::QemuTcg, NetMode::Nat);
        let parts = parts.for_template("/p/initrd".into(), "/p/memory".into(), None);
        let words = Qemu.arguments(&parts);
        let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let line = words.join(" ");
        for wanted in [
            "-machine microvm,acpi=on,pit=on,pic=on,rtc=on,pcie=on,memory-backend=memory",
            "id=memory,size=512M,share=on,mem-path=/proc/self/fd/6 ",
            "-kernel /proc/self/fd/4 -initrd /proc/self/fd/5 ",
            "banger.template",
            "-device pvpanic,ioport=1285",
        ] {
            assert!(line.contains(wanted), "{wanted}: {line}");
        }
        for none in ["virtio", "vsock", "-drive", "-netdev", "halts", "-incoming"] {
            assert!(!line.contains(none), "{none}: {line}");
        }
        let files = [
            Inherited::Read(parts.kernel.clone()),
            Inherited::Read("/p/initrd".into()),
            Inherited::ReadWrite("/p/memory".into()),
        ];
        assert_eq!(Qemu.files(&parts), files);
        let marker = ["-name", "banger-0000002a", "-action", "panic=pause"];
        assert_eq!(words[..4], marker);
        assert_eq!(template_marker(parts.vm), Marker::new(marker));
    }

    #[test]
    fn a_machine_from_a_template_has_devices_and_no_kernel() {
        let from_kernel = parts(VmmKind::QemuTcg, NetMode::Nat);
        let parts = from_kernel
            .clone()
            .from_template("/p/memory".into(), "/p/state".into());
        let line = Qemu.arguments(&parts).join(OsStr::new(" "));
        let line = line.to_str().unwrap();
        for wanted in [
            "pcie=on",
            "mem-path=/proc/self/fd/4 ",
            "-incoming defer",
            "-chardev socket,id=vsock,path=",
            "drive=base",
            "-netdev tap,id=net,fd=10",
        ] {
            assert!(line.contains(wanted), "{wanted}: {line}");
        }
        for none in ["-kernel", "-append", "-initrd", "vsock-", "panic"] {
            assert!(!line.contains(none), "{none}: {line}");
        }
        let files = Qemu.files(&parts);
        let usual = Qemu.files(&from_kernel);
        assert_eq!(files[2..], usual[2..]);
        assert_eq!(files[0], Inherited::ReadWrite("/p/memory".into()));
        assert_eq!(files[1], Inherited::Read("/p/state".into()));
        assert_eq!(Qemu.read_anew(&parts), Vec::<&Path>::new());
    }

    #[test]
    fn the_marker_is_in_the_arguments() {
        let words = arguments(VmmKind::QemuTcg, NetMode::None);
        assert_eq!(words[..2], ["-name", "banger-0000002a"]);
        assert_eq!(
            Qemu.marker(VmId::from_bits(0x2a)),
            Marker::new(["-name", "banger-0000002a"])
        );
    }
}
