//! Values of options, checked while the command line is parsed, so that a wrong
//! one is a usage error (status 2) before anything else happens.

use std::str::FromStr;

use crate::config::keys::{check_disk, check_memory, check_vcpu};
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
        check_memory(size).map_err(|why| format!("{text} of memory: {why}"))?;
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
        check_disk(size).map_err(|why| format!("a disk of {text}: {why}"))?;
        Ok(DiskSize(size))
    }
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
        assert_eq!(memory, "0 of memory: 96M to 1T are possible");
        assert!("99999T".parse::<DiskSize>().is_err());
        assert_eq!("8G".parse(), Ok(DiskSize(Bytes::gib(8))));
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
