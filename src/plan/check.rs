//! What may be asked of a VM: both the command line and the mind check it.

use crate::failure::Failure;
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
