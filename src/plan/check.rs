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
    )
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
