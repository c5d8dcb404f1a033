//! Carries the host's configuration out in the guest's own root, which is `/` by
//! now: names, files, clock, randomness. A file is written only when it would
//! change, so a boot dirties no more of the disk than it must.

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::record::Journal;
use super::{clock, during};
use crate::failure::Failure;
use crate::proto::guest::{GuestConfig, GuestFile};
use crate::sys::entropy;

/// Marks the line of /etc/hosts that is ours.
const OUR_LINE: &str = "# banger";

/// Applies everything but the network and the seed. What fails is noted and the boot goes on: a
/// guest that can be looked into beats one that is off.
pub fn apply(config: &GuestConfig, journal: &mut Journal) {
    journal.tolerate(clock::follow(config.host_time_ns));
    journal.tolerate(hostname(&config.hostname));
    journal.tolerate(machine_id(Path::new("/etc/machine-id"), &config.machine_id));
    for file in &config.files {
        journal.tolerate(guest_file(file));
    }
}

/// Writes a file with its parents (0755), unless it is like that already. A link is
/// followed. The file is made beside and renamed: nobody sees half of it, and a root
/// joined of two disks need not copy what is replaced.
///
/// # Errors
/// Names the file.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    let attempt = || during::<io::Error>(format!("write {}", path.display()));
    let permissions = Permissions::from_mode(mode & 0o7777);
    if is_so(path, content, &permissions) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(attempt())?;
    }
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = OsString::from(".banger-");
    name.push(target.file_name().unwrap_or_default());
    let beside = target.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&beside).map_err(attempt())?;
    file.write_all(content).map_err(attempt())?;
    file.set_permissions(permissions).map_err(attempt())?;
    fs::rename(&beside, &target).map_err(attempt())
}

fn is_so(path: &Path, content: &[u8], permissions: &Permissions) -> bool {
    let mode = |permissions: &Permissions| permissions.mode() & 0o7777;
    fs::metadata(path).is_ok_and(|found| mode(&found.permissions()) == mode(permissions))
        && fs::read(path).is_ok_and(|present| present == content)
}

fn guest_file(file: &GuestFile) -> Result<(), Failure> {
    let path = Path::new(&file.path);
    match path.is_absolute() {
        true => write_file(path, file.content.as_bytes(), file.mode),
        false => Err(Failure::failed(format!(
            "write {:?}: the path is not absolute",
            file.path
        ))),
    }
}

/// Gives the kernel's random pool its seed. A guest that went on from a template draws the
/// same numbers as any other of it until then.
///
/// # Errors
/// There is none, or the kernel does not take it.
pub fn seed(hexadecimal: &str) -> Result<(), Failure> {
    let attempt = "give the kernel's random pool its seed";
    if hexadecimal.is_empty() {
        return Err(Failure::failed(attempt).because("the host gave none"));
    }
    let bytes = decode(hexadecimal)
        .ok_or_else(|| Failure::failed(attempt).because("the seed is not hexadecimal"))?;
    let device = OpenOptions::new()
        .write(true)
        .open("/dev/random")
        .map_err(during(attempt))?;
    entropy::add(&device, &bytes).map_err(during(attempt))
}

fn decode(hexadecimal: &str) -> Option<Vec<u8>> {
    let digits = hexadecimal.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

fn hostname(name: &str) -> Result<(), Failure> {
    rustix::system::sethostname(name.as_bytes()).map_err(during("set the host name"))?;
    write_file(
        Path::new("/etc/hostname"),
        format!("{name}\n").as_bytes(),
        0o644,
    )?;
    let path = Path::new("/etc/hosts");
    let present = fs::read_to_string(path).unwrap_or_default();
    write_file(path, hosts(&present, name).as_bytes(), 0o644)
}

/// The image's lines, loopback if it is missing, and our own line at the end.
fn hosts(present: &str, name: &str) -> String {
    let kept = present.lines().filter(|line| !line.ends_with(OUR_LINE));
    let mut text: String = kept.map(|line| format!("{line}\n")).collect();
    let knows_loopback = text.lines().any(|line| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_ascii_whitespace()
            .skip(1)
            .any(|word| word == "localhost")
    });
    if !knows_loopback {
        text.push_str("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    }
    text + &format!("127.0.1.1 {name} {OUR_LINE}\n")
}

fn machine_id(path: &Path, id: &str) -> Result<(), Failure> {
    match id.is_empty() {
        true => Ok(()),
        false => write_file(path, format!("{id}\n").as_bytes(), 0o444),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_keeps_the_images_lines_and_renames_the_guest() {
        let first = hosts("127.0.0.1 localhost\n10.0.0.1 db\n", "dev");
        assert_eq!(
            first,
            "127.0.0.1 localhost\n10.0.0.1 db\n127.0.1.1 dev # banger\n"
        );
        assert_eq!(hosts(&first, "other"), first.replace("dev", "other"));
    }

    #[test]
    fn hosts_of_an_empty_image_knows_loopback() {
        assert!(hosts("", "dev").starts_with("127.0.0.1 localhost\n::1 localhost"));
    }

    #[test]
    fn a_seed_is_hexadecimal() {
        assert_eq!(decode("00ff10"), Some(vec![0, 255, 16]));
        assert_eq!(decode("0g"), None);
    }

    #[test]
    fn a_file_is_written_with_parents_and_mode_and_left_alone_when_equal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        write_file(&path, b"one", 0o600).unwrap();
        let first = fs::metadata(&path).unwrap();
        write_file(&path, b"one", 0o600).unwrap();
        let second = fs::metadata(&path).unwrap();
        assert_eq!(first.modified().unwrap(), second.modified().unwrap());
        assert_eq!(second.permissions().mode() & 0o7777, 0o600);
    }
}
