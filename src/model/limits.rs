//! What a VM may take of its host, beyond its sizes.
//!
//! Disk limits hold for each disk of the VM by itself, the network limit for each
//! direction by itself. A VM without a limit takes what is there.

use super::units::Bytes;

/// The limits of one VM; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Requests per second, of each disk.
    pub disk_iops: Option<u32>,
    /// Bytes per second, of each disk.
    pub disk_bandwidth: Option<Bytes>,
    /// Bytes per second, to the guest and from the guest.
    pub net_bandwidth: Option<Bytes>,
    /// The VM's share of the processors when they are all busy; others have 100.
    pub cpu_weight: Option<u16>,
}

/// Under ten requests a second no guest boots in time.
const IOPS: (i64, i64) = (10, 10_000_000);
/// Under it a single large request takes seconds.
const DISK: (Bytes, Bytes) = (Bytes(256 << 10), Bytes::gib(64));
/// Under it a single coalesced packet takes more than a second.
const NET: (Bytes, Bytes) = (Bytes(64 << 10), Bytes::gib(64));
/// `cpu.weight` (Linux, Documentation/admin-guide/cgroup-v2.rst).
const WEIGHT: (i64, i64) = (1, 10_000);

impl Limits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }

    /// The option at fault with the reason, if one of them is out of bounds.
    ///
    /// # Errors
    /// `--disk-iops` and `0: 10 to 10000000 are possible`.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let checks = [
            ("--disk-iops", self.disk_iops.map(|n| check_iops(n.into()))),
            ("--disk-bandwidth", self.disk_bandwidth.map(check_disk_rate)),
            ("--net-bandwidth", self.net_bandwidth.map(check_net_rate)),
            (
                "--cpu-weight",
                self.cpu_weight.map(|n| check_weight(n.into())),
            ),
        ];
        for (option, outcome) in checks {
            if let Some(Err(why)) = outcome {
                return Err((option, why));
            }
        }
        Ok(())
    }
}

/// Whether a disk can be held to so many requests per second.
///
/// # Errors
/// The reason why not, for people.
pub fn check_iops(iops: i64) -> Result<(), String> {
    between(iops, IOPS)
}

/// Whether a disk can be held to so many bytes per second.
///
/// # Errors
/// The reason why not, for people.
pub fn check_disk_rate(rate: Bytes) -> Result<(), String> {
    between(rate, DISK)
}

/// Whether a network device can be held to so many bytes per second.
///
/// # Errors
/// The reason why not, for people.
pub fn check_net_rate(rate: Bytes) -> Result<(), String> {
    between(rate, NET)
}

/// Whether the kernel knows such a weight.
///
/// # Errors
/// The reason why not, for people.
pub fn check_weight(weight: i64) -> Result<(), String> {
    between(weight, WEIGHT)
}

fn between<T: PartialOrd + std::fmt::Display>(
    value: T,
    (least, most): (T, T),
) -> Result<(), String> {
    match value >= least && value <= most {
        true => Ok(()),
        false => Err(format!("{value}: {least} to {most} are possible")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_negative_and_absurd_limits_are_refused_by_option() {
        assert_eq!(Limits::default().check(), Ok(()));
        let none = Limits::default;
        let refused = [
            (
                Limits {
                    disk_iops: Some(0),
                    ..none()
                },
                "--disk-iops",
            ),
            (
                Limits {
                    disk_bandwidth: Some(Bytes(1)),
                    ..none()
                },
                "--disk-bandwidth",
            ),
            (
                Limits {
                    net_bandwidth: Some(Bytes(u64::MAX)),
                    ..none()
                },
                "--net-bandwidth",
            ),
            (
                Limits {
                    cpu_weight: Some(10_001),
                    ..none()
                },
                "--cpu-weight",
            ),
        ];
        for (limits, option) in refused {
            assert_eq!(limits.check().unwrap_err().0, option);
        }
        assert!(check_iops(-5).is_err() && check_weight(0).is_err());
        assert_eq!(check_weight(0).unwrap_err(), "0: 1 to 10000 are possible");
    }
}
