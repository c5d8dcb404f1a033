//! The kernel command line of a guest, by VMM.
//!
//! Every word is here for a reason that was measured or read (Linux,
//! Documentation/admin-guide/kernel-parameters.txt):
//!
//! * `quiet`: each byte on the serial console is an exit of the virtual machine.
//! * `panic=-1 reboot=t`: a panic or reboot ends the VMM at once (triple fault)
//!   instead of a guest that hangs. Firecracker documents `reboot=k`.
//! * `banger.off=reboot`: Firecracker has no way to be switched off from inside; it ends
//!   when its guest resets.
//! * `pci=off`: neither machine has the bus, and looking for it takes 30 ms.
//! * `i8042.*`: probing for a keyboard that is not there takes half a second.
//! * `tsc=reliable tsc_early_khz lpj no_timer_check`: a translated processor is too
//!   irregular to calibrate against; without these the kernel hangs there.
//! * `norandmaps`: QEMU keeps what it translated by address, so a translated guest with
//!   random addresses translates every library anew for each process: 25 ms of a processor
//!   for a `fork` and `exec` instead of 5 (QEMU 7.2). What guards the host is the VM.
//! * `noreplace-smp`: a kernel that finds one processor rewrites each locked instruction
//!   as an unlocked one, by switching address spaces for each: 80 ms of a translated boot,
//!   for instructions that QEMU translates to the same.
//! * `random.trust_cpu=on`: nobody waits for entropy.
//!
//! A machine that is to become a template (`vmm::template`) has the bus, for the one device
//! that QEMU cannot put into a machine before it begins, and gives no port of it to a driver
//! of its own (`pcie_ports=compat`): that one would wait five seconds for somebody to press
//! the slot's button.

use crate::model::vm::VmmKind;

/// What each of the guest's disks is for: device names without `/dev/`, given by
/// whoever attached them in that order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDisks {
    /// The root: the image's, read-only, where there is an upper disk, else the VM's own.
    pub base: String,
    /// What takes the changes to the root.
    pub upper: Option<String>,
    /// /root.
    pub work: String,
    /// /lib/modules.
    pub modules: String,
}

/// The host's clock frequencies, which a translated guest cannot measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostClock {
    /// Frequency of the time-stamp counter, kHz.
    pub tsc_khz: u64,
    /// Loops per jiffy (`lpj`): cycles of that counter in one of the guest kernel's
    /// ticks (250 a second in Debian's kernels).
    pub loops_per_jiffy: u64,
}

impl HostClock {
    /// The clock of a counter with this frequency, for a kernel that ticks 250 times a
    /// second.
    pub fn of_tsc_khz(tsc_khz: u64) -> HostClock {
        HostClock {
            tsc_khz,
            loops_per_jiffy: tsc_khz * 1000 / 250,
        }
    }
}

const EVERYWHERE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 rdinit=/init i8042.noaux \
     i8042.nomux i8042.dumbkbd cryptomgr.notests random.trust_cpu=on";

/// The whole command line. `clock` is needed under [`VmmKind::QemuTcg`] only.
pub fn kernel_command_line(kind: VmmKind, disks: &GuestDisks, clock: Option<HostClock>) -> String {
    command_line("pci=off", kind, disks, clock)
}

/// The same for a machine that is to become a template of translated ones.
pub fn template_command_line(disks: &GuestDisks, clock: Option<HostClock>) -> String {
    let bus = "pcie_ports=compat banger.template";
    command_line(bus, VmmKind::QemuTcg, disks, clock)
}

fn command_line(bus: &str, kind: VmmKind, disks: &GuestDisks, clock: Option<HostClock>) -> String {
    let mut words = vec![EVERYWHERE.to_owned(), bus.to_owned()];
    match kind {
        VmmKind::Firecracker => words.push("reboot=k i8042.nopnp banger.off=reboot".to_owned()),
        VmmKind::QemuKvm => words.push("reboot=t".to_owned()),
        VmmKind::QemuTcg => {
            words.push("reboot=t no_timer_check norandmaps noreplace-smp tsc=reliable".to_owned());
            words.extend(clock.map(|clock| {
                format!(
                    "tsc_early_khz={} lpj={}",
                    clock.tsc_khz, clock.loops_per_jiffy
                )
            }));
        }
    }
    words.push(format!("banger.base={}", disks.base));
    words.extend(
        disks
            .upper
            .iter()
            .map(|upper| format!("banger.upper={upper}")),
    );
    words.push(format!(
        "banger.work={} banger.modules={}",
        disks.work, disks.modules
    ));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks() -> GuestDisks {
        GuestDisks {
            base: "vda".to_owned(),
            upper: Some("vdb".to_owned()),
            work: "vdc".to_owned(),
            modules: "vdd".to_owned(),
        }
    }

    #[test]
    fn a_translated_guest_is_told_the_clock_and_others_are_not() {
        let clock = Some(HostClock::of_tsc_khz(2_500_000));
        let tcg = kernel_command_line(VmmKind::QemuTcg, &disks(), clock);
        assert!(tcg.contains("tsc_early_khz=2500000 lpj=10000000"), "{tcg}");
        let kvm = kernel_command_line(VmmKind::QemuKvm, &disks(), clock);
        assert!(!kvm.contains("tsc"), "{kvm}");
    }

    /// The same addresses in every process, and a kernel that leaves its locked
    /// instructions alone: both spare translations, and harm a guest that has none.
    #[test]
    fn only_a_translated_guest_is_told_what_spares_translations() {
        for kind in VmmKind::ALL {
            let line = kernel_command_line(*kind, &disks(), None);
            for word in ["norandmaps", "noreplace-smp"] {
                let told = line.contains(word);
                assert_eq!(told, *kind == VmmKind::QemuTcg, "{word}: {line}");
            }
        }
    }

    #[test]
    fn only_firecrackers_guest_switches_off_by_a_reset() {
        for kind in VmmKind::ALL {
            let line = kernel_command_line(*kind, &disks(), None);
            let resets = line.contains("banger.off=reboot");
            assert_eq!(resets, *kind == VmmKind::Firecracker, "{line}");
        }
    }

    /// Half a second of a boot, for a keyboard that no guest has.
    #[test]
    fn no_guest_looks_for_a_keyboard() {
        for kind in VmmKind::ALL {
            let line = kernel_command_line(*kind, &disks(), None);
            let words: Vec<&str> = line.split(' ').collect();
            for word in ["i8042.noaux", "i8042.nomux", "i8042.dumbkbd"] {
                assert!(words.contains(&word), "{word}: {line}");
            }
            let pnp = words.contains(&"i8042.nopnp");
            assert_eq!(pnp, *kind == VmmKind::Firecracker, "{line}");
        }
    }

    #[test]
    fn every_kind_names_the_disks_and_stays_under_the_kernels_limit() {
        for kind in VmmKind::ALL {
            let line = kernel_command_line(*kind, &disks(), None);
            assert!(
                line.ends_with(
                    "banger.base=vda banger.upper=vdb banger.work=vdc banger.modules=vdd"
                )
            );
            assert!(line.len() < 2048 && !line.contains("  "), "{line}");
        }
    }

    #[test]
    fn only_a_template_has_the_bus() {
        let clock = Some(HostClock::of_tsc_khz(2_500_000));
        let plain = kernel_command_line(VmmKind::QemuTcg, &disks(), clock);
        let template = template_command_line(&disks(), clock);
        assert!(plain.contains(" pci=off "), "{plain}");
        let bus = "pcie_ports=compat banger.template";
        assert_eq!(template, plain.replace("pci=off", bus));
    }

    #[test]
    fn a_root_of_its_own_has_no_upper_disk() {
        let own = GuestDisks {
            upper: None,
            ..disks()
        };
        let line = kernel_command_line(VmmKind::QemuKvm, &own, None);
        assert!(line.ends_with("banger.base=vda banger.work=vdc banger.modules=vdd"));
    }
}
