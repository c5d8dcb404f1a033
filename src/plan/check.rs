//! What may be asked of a VM: both the command line and the mind check it.

use crate::failure::Failure;
use crate::model::ids::VmName;
use crate::model::limits::Limits;
use crate::model::net::NetMode;
use crate::model::units::Bytes;
use crate::model::vm::VmSpec;

/// Refuses zero, odd and absurd sizes, naming the option to change.
pub fn check_sizes(
    vcpu: u8,
    memory: Bytes,
    work_disk: Bytes,
    root_disk: Bytes,
) -> Result<(), Failure> {
    if !(1..=VmSpec::MAX_VCPU).contains(&vcpu) {
        let what = format!("{vcpu} virtual processors: 1 to {}", VmSpec::MAX_VCPU);
        return Err(Failure::usage(format!("{what} are possible")).hint("Change `--vcpu`."));
    }
    check_size(
        "memory",
        "--memory",
        memory,
        VmSpec::MIN_MEMORY,
        VmSpec::MAX_MEMORY,
    )?;
    check_size(
        "work disk",
        "--disk-size",
        work_disk,
        VmSpec::MIN_DISK,
        VmSpec::MAX_DISK,
    )?;
    check_size(
        "root disk",
        "--root-size",
        root_disk,
        VmSpec::MIN_DISK,
        VmSpec::MAX_DISK,
    )?;
    check_memory_for_disks(memory, Bytes(work_disk.0 + root_disk.0))
}

/// A guest keeps a record of each group of blocks of what it has mounted (ext4, 128 MiB
/// each). Measured with the kernel of the catalog: 128M are tight for 12 TiB and too little
/// for 32 TiB, for which 192M are enough.
const MEMORY_PER_TIB: Bytes = Bytes::mib(3);

/// Refuses disks for which the guest would look for memory until its start is given up.
fn check_memory_for_disks(memory: Bytes, disks: Bytes) -> Result<(), Failure> {
    let for_disks = MEMORY_PER_TIB.0 * disks.whole_mib() / Bytes::gib(1024).whole_mib();
    let least = Bytes(VmSpec::MIN_MEMORY.0 + for_disks);
    if memory.whole_mib() >= least.whole_mib() {
        return Ok(());
    }
    let least = Bytes::mib(least.whole_mib());
    let what = format!("memory of {memory}: disks of {disks} together need {least} or more");
    Err(Failure::usage(what)
        .hint("Give more with `--memory`, or smaller disks with `--disk-size` and `--root-size`."))
}

/// Refuses a target that the memory does not hold, or that starves the guest.
pub fn check_target(target: Bytes, memory: Bytes) -> Result<(), Failure> {
    if target <= memory {
        let least = VmSpec::MIN_TARGET.min(memory);
        return check_size("memory target", "--memory-target", target, least, memory);
    }
    Err(Failure::usage(format!(
        "memory target of {target}: the VM has {memory} of memory"
    ))
    .hint("Give less with `--memory-target`; more memory needs a stopped VM and `--memory`."))
}

/// Refuses limits out of bounds, naming the option to change.
pub fn check_limits(limits: &Limits) -> Result<(), Failure> {
    let refused = |(option, why)| {
        Failure::usage(format!("`{option}` of {why}")).hint(format!("Change `{option}`."))
    };
    limits.check().map_err(refused)
}

/// Refuses a limit that nobody would keep.
pub fn check_net_limit(name: &VmName, net: NetMode, limits: &Limits) -> Result<(), Failure> {
    if net != NetMode::User || limits.net_bandwidth.is_none() {
        return Ok(());
    }
    let what = format!("limit the network of vm {name}");
    Err(Failure::usage(what)
        .because("QEMU's user-mode network cannot be limited")
        .hint("Use `--net nat`, or leave `--net-bandwidth` out."))
}

/// What to say of a limit of a network that the VM has not.
pub fn net_limit_note(net: NetMode, limits: &Limits) -> Option<String> {
    let rate = limits.net_bandwidth.filter(|_| net == NetMode::None)?;
    Some(format!(
        "net bandwidth {rate} has no effect: the VM has no network"
    ))
}

fn check_size(
    object: &str,
    option: &str,
    size: Bytes,
    least: Bytes,
    most: Bytes,
) -> Result<(), Failure> {
    let whole = size.0.is_multiple_of(Bytes::mib(1).0);
    if (least..=most).contains(&size) && whole {
        return Ok(());
    }
    let what = format!("{object} of {size}: {least} to {most} in whole M are possible");
    Err(Failure::usage(what).hint(format!("Change `{option}`.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_user_mode_network_refuses_a_limit() {
        let name = "dev".parse().unwrap();
        let limited = Limits {
            net_bandwidth: Some(Bytes::mib(1)),
            ..Limits::default()
        };
        let hint = check_net_limit(&name, NetMode::User, &limited)
            .unwrap_err()
            .hint;
        assert!(hint.unwrap().contains("--net nat"));
        assert!(check_net_limit(&name, NetMode::User, &Limits::default()).is_ok());
        assert!(check_net_limit(&name, NetMode::Nat, &limited).is_ok());
    }

    #[test]
    fn target_lies_between_what_starves_a_guest_and_what_it_has() {
        let mib = Bytes::mib;
        for target in [96, 200, 512] {
            assert!(check_target(mib(target), mib(512)).is_ok());
        }
        for target in [mib(95), mib(513), Bytes(mib(200).0 + 1), Bytes(0)] {
            let failure = check_target(target, mib(512)).unwrap_err();
            assert!(failure.hint.unwrap().contains("`--memory-target`"));
        }
    }

    /// Symptom: such a guest never answered, and its image was suspected.
    #[test]
    fn disks_too_large_for_the_memory_are_refused_with_what_they_need() {
        let (mib, gib) = (Bytes::mib, Bytes::gib);
        let most = VmSpec::MAX_DISK;
        for (memory, disk) in [(96, gib(8)), (128, gib(5 * 1024)), (192, most)] {
            assert!(check_sizes(1, mib(memory), disk, disk).is_ok(), "{memory}");
        }
        for (memory, disk) in [(96, gib(1024)), (128, most), (190, most)] {
            let failure = check_sizes(1, mib(memory), disk, disk).unwrap_err();
            assert!(failure.what.contains("together need"), "{failure}");
            assert!(failure.hint.unwrap().contains("`--memory`"));
        }
    }

    #[test]
    fn zero_and_absurd_sizes_are_refused_by_name() {
        let mib = Bytes::mib;
        assert!(check_sizes(1, mib(512), mib(1024), mib(1024)).is_ok());
        let refused = [
            (check_sizes(0, mib(512), mib(1024), mib(1024)), "--vcpu"),
            (check_sizes(33, mib(512), mib(1024), mib(1024)), "--vcpu"),
            (check_sizes(1, mib(0), mib(1024), mib(1024)), "--memory"),
            (
                check_sizes(1, Bytes(mib(512).0 + 1), mib(1024), mib(1024)),
                "--memory",
            ),
            (check_sizes(1, mib(512), mib(1), mib(1024)), "--disk-size"),
            (
                check_sizes(1, mib(512), mib(1024), Bytes(u64::MAX)),
                "--root-size",
            ),
        ];
        for (result, option) in refused {
            assert!(
                result.unwrap_err().hint.unwrap().contains(option),
                "{option}"
            );
        }
    }
}
