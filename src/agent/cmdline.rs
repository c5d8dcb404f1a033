//! The words for `/init` on the kernel's command line; all others are the kernel's.
//!
//! | word | meaning |
//! |---|---|
//! | `banger.base=vda` | the image: read-only below an upper disk, writable without one |
//! | `banger.upper=vdb` | the ext4 disk that takes changes to the root; may be absent |
//! | `banger.work=vdc` | the ext4 disk that becomes /root; may be absent |
//! | `banger.modules=vdd` | the ext4 disk that holds the kernel's module tree; may be absent |
//! | `banger.template` | this machine is to become a template: see `template.rs` |
//! | `banger.off=poweroff` | how to switch off: `poweroff` (default) or `reboot` (Firecracker) |

use std::fs;

use super::during;
use super::power::Off;
use crate::failure::Failure;

/// What the host wants of this boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    /// Device name of the image's disk, without /dev/.
    pub base: Option<String>,
    /// Device name of the disk for changes to the root.
    pub upper: Option<String>,
    /// Device name of the disk for /root.
    pub work: Option<String>,
    /// Device name of the disk of kernel modules.
    pub modules: Option<String>,
    /// Whether this machine stops to be written down, before it sees any device.
    pub template: bool,
    /// How this machine is switched off.
    pub off: Off,
}

/// Reads the command line of the running kernel.
///
/// # Errors
/// /proc is not mounted, or a word of ours is malformed.
pub fn read() -> Result<Words, Failure> {
    let line = fs::read_to_string("/proc/cmdline").map_err(during("read /proc/cmdline"))?;
    parse(&line)
}

fn parse(line: &str) -> Result<Words, Failure> {
    let mut words = Words::default();
    let ours = line
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("banger."));
    for word in ours {
        match word.split_once('=') {
            Some(("base", name)) => words.base = Some(device(name)?),
            Some(("upper", name)) => words.upper = Some(device(name)?),
            Some(("work", name)) => words.work = Some(device(name)?),
            Some(("modules", name)) => words.modules = Some(device(name)?),
            Some(("off", way)) => words.off = way.parse()?,
            None if word == "template" => words.template = true,
            _ => {
                return Err(Failure::failed(format!(
                    "read the kernel command line: banger.{word} means nothing to this agent"
                )));
            }
        }
    }
    Ok(words)
}

fn device(name: &str) -> Result<String, Failure> {
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match plain {
        true => Ok(name.to_owned()),
        false => Err(Failure::failed(format!(
            "read the kernel command line: {name:?} is no device name"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_found_among_the_kernels() {
        let line = "console=ttyS0 quiet banger.base=vda banger.upper=vdb banger.work=vdc banger.modules=vdd banger.off=reboot\n";
        let words = parse(line).unwrap();
        assert_eq!(words.base.as_deref(), Some("vda"));
        assert_eq!(words.upper.as_deref(), Some("vdb"));
        assert_eq!(words.work.as_deref(), Some("vdc"));
        assert_eq!(words.modules.as_deref(), Some("vdd"));
        assert_eq!(words.off, Off::Reboot);
        assert!(!words.template);
        assert!(parse("banger.base=vda banger.template").unwrap().template);
    }

    #[test]
    fn a_line_without_our_words_is_an_empty_wish() {
        assert_eq!(parse("root=/dev/vda rw").unwrap(), Words::default());
    }

    #[test]
    fn a_word_that_is_ours_and_unknown_is_refused() {
        assert!(parse("banger.bass=vda").is_err());
        assert!(parse("banger.base=../vda").is_err());
        assert!(parse("banger.off=maybe").is_err());
        assert!(parse("banger.template=1").is_err());
    }
}
