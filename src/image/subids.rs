//! Whether an ordinary user can build in a user namespace here, and if not, what to do.
//!
//! mmdebstrap's unshare mode needs 65536 subordinate ids (subuid(5), subgid(5)) and the
//! set-uid programs that map them. Each thing that is missing is refused before any
//! work, with the command that adds it.

use std::fs;

use super::program;
use crate::failure::{Failure, FailureKind};

/// Ids that a Debian tree may use.
const NEEDED: u64 = 65536;

/// Refuses what would fail inside mmdebstrap.
///
/// # Errors
/// newuidmap is not installed, the user has no subordinate ids, or the kernel forbids
/// user namespaces.
pub fn require(what: &str) -> Result<(), Failure> {
    program::find("newuidmap", "uidmap")
        .map_err(|failure| failure.because("it maps users while an image is built without root"))?;
    let uid = rustix::process::getuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = user_name(&passwd, uid).unwrap_or_else(|| uid.to_string());
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        if !has_range(&text, &name, uid) {
            let option = file.trim_start_matches("/etc/sub");
            return Err(Failure::new(FailureKind::Denied, what)
                .because(format!("{file} gives {name} no {NEEDED} subordinate ids"))
                .hint(format!(
                    "Run `sudo usermod --add-sub{option}s 100000-165535 {name}` (with a range that nobody has), then try again."
                )));
        }
    }
    let forbidden = fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone")
        .is_ok_and(|value| value.trim() == "0");
    match forbidden {
        true => Err(Failure::new(FailureKind::Denied, what)
            .because("kernel.unprivileged_userns_clone is 0")
            .hint("Run `sudo sysctl kernel.unprivileged_userns_clone=1`.")),
        false => Ok(()),
    }
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    })
}

fn has_range(text: &str, name: &str, uid: u32) -> bool {
    let uid = uid.to_string();
    text.lines().any(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [user, _, count] = fields.as_slice() else {
            return false;
        };
        (*user == name || *user == uid) && count.parse::<u64>().is_ok_and(|n| n >= NEEDED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_by_name_or_number_if_large_enough() {
        let text = "root:1:2\nada:100000:65536\n1001:200000:65536\nbob:300000:100\n";
        assert!(has_range(text, "ada", 1000));
        assert!(has_range(text, "eve", 1001));
        assert!(!has_range(text, "bob", 1002));
        assert!(!has_range(text, "zoe", 1003));
        assert!(!has_range("ada", "ada", 1000));
    }

    #[test]
    fn a_user_is_named_by_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("ada"));
        assert_eq!(user_name(passwd, 1), None);
    }
}
