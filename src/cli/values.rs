//! Values of options, checked while the command line is parsed, so that a wrong
//! one is a usage error (status 2) before anything else happens.

use std::env::VarError;
use std::str::FromStr;

use crate::config::keys::{check_disk, check_memory, check_vcpu};
use crate::model::limits::{check_disk_rate, check_iops, check_net_rate, check_weight};
use crate::model::units::Bytes;

/// A number of virtual processors (`--vcpu`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpu(pub u8);

impl FromStr for Vcpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Vcpu, String> {
        let count: i64 = text
            .parse()
            .map_err(|_| format!("{text:?} is not a whole number"))?;
        check_vcpu(count).map_err(|why| format!("{count} virtual processors: {why}"))?;
        Ok(Vcpu(count as u8))
    }
}

/// A size of guest memory (`--memory`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySize(pub Bytes);

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<MemorySize, String> {
        let size: Bytes = text
            .parse()
            .map_err(|e: crate::model::units::SizeError| e.to_string())?;
        check_memory(size).map_err(|why| format!("{size} of memory: {why}"))?;
        Ok(MemorySize(size))
    }
}

/// A size of a disk (`--disk-size`, `--root-size`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSize(pub Bytes);

impl FromStr for DiskSize {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskSize, String> {
        let size: Bytes = text
            .parse()
            .map_err(|e: crate::model::units::SizeError| e.to_string())?;
        check_disk(size).map_err(|why| format!("a disk of {size}: {why}"))?;
        Ok(DiskSize(size))
    }
}

/// Requests per second of each disk (`--disk-iops`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskIops(pub u32);

impl FromStr for DiskIops {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskIops, String> {
        number(text, check_iops).map(DiskIops)
    }
}

/// A share of the processors (`--cpu-weight`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuWeight(pub u16);

impl FromStr for CpuWeight {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuWeight, String> {
        number(text, check_weight).map(CpuWeight)
    }
}

fn number<T: TryFrom<i64>>(text: &str, check: fn(i64) -> Result<(), String>) -> Result<T, String> {
    let no_number = || format!("{text:?} is not a whole number");
    let number: i64 = text.parse().map_err(|_| no_number())?;
    check(number)?;
    T::try_from(number).map_err(|_| no_number())
}

/// Bytes per second of each disk (`--disk-bandwidth`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskRate(pub Bytes);

impl FromStr for DiskRate {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskRate, String> {
        rate(text, check_disk_rate).map(DiskRate)
    }
}

/// Bytes per second each way (`--net-bandwidth`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetRate(pub Bytes);

impl FromStr for NetRate {
    type Err = String;

    fn from_str(text: &str) -> Result<NetRate, String> {
        rate(text, check_net_rate).map(NetRate)
    }
}

fn rate(text: &str, check: fn(Bytes) -> Result<(), String>) -> Result<Bytes, String> {
    let parsed: Result<Bytes, crate::model::units::SizeError> = text.parse();
    let rate = parsed.map_err(|error| error.to_string())?;
    check(rate).map(|()| rate)
}

/// A variable for the guest (`--env KEY=VALUE`, or `--env KEY` for the caller's own value).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvPair {
    /// The variable.
    pub key: String,
    /// Its value; `None` means that of this process, if it has one.
    pub value: Option<String>,
}

impl FromStr for EnvPair {
    type Err = String;

    fn from_str(text: &str) -> Result<EnvPair, String> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        if key.is_empty() || text.contains('\0') {
            return Err(format!("{text:?} is not KEY=VALUE"));
        }
        // One that is not there is left out; one that is must not be dropped unsaid.
        if value.is_none() && matches!(std::env::var(key), Err(VarError::NotUnicode(_))) {
            return Err(format!(
                "the value of {key} is not UTF-8, so it cannot be passed on"
            ));
        }
        Ok(EnvPair {
            key: key.to_owned(),
            value,
        })
    }
}

/// The variables to set in the guest; one that this process lacks is left out, as
/// other tools do with `--env KEY`.
pub fn environment(
    pairs: &[EnvPair],
    variable: impl Fn(&str) -> Option<String>,
) -> Vec<(String, String)> {
    let pair = |pair: &EnvPair| {
        let value = pair.value.clone().or_else(|| variable(&pair.key))?;
        Some((pair.key.clone(), value))
    };
    pairs.iter().filter_map(pair).collect()
}

/// A directory in the guest (`--workdir`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDirectory(pub String);

impl FromStr for GuestDirectory {
    type Err = String;

    fn from_str(text: &str) -> Result<GuestDirectory, String> {
        match text.starts_with('/') && !text.contains('\0') {
            true => Ok(GuestDirectory(text.to_owned())),
            false => Err(format!(
                "{text:?} is not an absolute directory of the guest, such as /root/repo"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_sizes_name_what_is_possible() {
        let vcpu = |text: &str| text.parse::<Vcpu>().unwrap_err();
        assert_eq!(vcpu("0"), "0 virtual processors: 1 to 32 are possible");
        assert_eq!(vcpu("-2"), "-2 virtual processors: 1 to 32 are possible");
        assert_eq!(vcpu("two"), "\"two\" is not a whole number");
        let memory = "0".parse::<MemorySize>().unwrap_err();
        assert_eq!(memory, "0B of memory: 96M to 1T are possible");
        let memory = "1".parse::<MemorySize>().unwrap_err();
        assert_eq!(memory, "1M of memory: 96M to 1T are possible");
        let disk = "1".parse::<DiskSize>().unwrap_err();
        assert!(disk.starts_with("a disk of 1M:"), "{disk}");
        assert!("99999T".parse::<DiskSize>().is_err());
        assert_eq!("8G".parse(), Ok(DiskSize(Bytes::gib(8))));
    }

    #[test]
    fn limits_of_zero_below_it_and_beyond_reason_are_refused() {
        for text in ["0", "-1", "99999999999", "many", ""] {
            assert!(text.parse::<DiskIops>().is_err(), "{text}");
            assert!(text.parse::<CpuWeight>().is_err(), "{text}");
        }
        for text in ["0", "-1M", "1B", "9999T", "fast"] {
            assert!(text.parse::<DiskRate>().is_err(), "{text}");
            assert!(text.parse::<NetRate>().is_err(), "{text}");
        }
        let refused = "0".parse::<NetRate>().unwrap_err();
        assert_eq!(refused, "0B: 64K to 64G are possible");
        assert_eq!("200".parse(), Ok(CpuWeight(200)));
        assert_eq!("20M".parse(), Ok(DiskRate(Bytes::mib(20))));
    }

    #[test]
    fn variables_are_split_at_the_first_equals_sign() {
        let pair: EnvPair = "A=b=c".parse().unwrap();
        assert_eq!(pair.value.as_deref(), Some("b=c"));
        assert!("=x".parse::<EnvPair>().is_err());
        assert!("".parse::<EnvPair>().is_err());
    }

    #[test]
    fn a_bare_variable_takes_the_callers_value_or_is_left_out() {
        let pairs = ["HERE".parse().unwrap(), "GONE".parse().unwrap()];
        let own = |key: &str| (key == "HERE").then(|| "1".to_owned());
        assert_eq!(environment(&pairs, own), [("HERE".into(), "1".into())]);
    }
}
