//! `vhost-device-vsock`: gives a QEMU guest the vsock that Firecracker has built in,
//! with the same Unix sockets on the host's side. One process per VM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::host::process::Marker;
use crate::host::program::find;
use crate::plan::step::{Fault, FaultKind};

use super::machine::GUEST_CID;

const NAME: &str = "vhost-device-vsock";

/// Finds the program: in our own tools, then on PATH, then where cargo installs.
pub fn program(tools: &Path) -> Result<PathBuf, Fault> {
    let ours = tools.join(NAME);
    let cargo = std::env::home_dir().map(|home| home.join(".cargo/bin").join(NAME));
    ours.is_file()
        .then_some(ours)
        .or_else(|| find(NAME))
        .or_else(|| cargo.filter(|path| path.is_file()))
        .ok_or_else(|| {
            Fault::new(
                FaultKind::Missing,
                format!(
                    "find the program {NAME}: it is not installed; run `./scripts/quickstart.sh` \
                     or `cargo install {NAME} --locked`"
                ),
            )
        })
}

/// Its arguments: `vsock` is the host's side of the guest's vsock, `vhost` the socket
/// that QEMU connects to.
pub fn arguments(vsock: &Path, vhost: &Path) -> Vec<OsString> {
    vec![
        "--guest-cid".into(),
        GUEST_CID.to_string().into(),
        "--uds-path".into(),
        vsock.into(),
        "--socket".into(),
        vhost.into(),
    ]
}

/// The words of its command line that only this VM's back end has.
pub fn marker(vsock: &Path) -> Marker {
    Marker::new([OsString::from("--uds-path"), vsock.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_in_the_arguments() {
        let (vsock, vhost) = (Path::new("/r/vms/0000002a/vsock"), Path::new("/r/v"));
        let words = arguments(vsock, vhost);
        assert_eq!(marker(vsock), Marker::new(words[2..4].to_vec()));
    }

    #[test]
    fn a_back_end_among_our_tools_comes_first() {
        let tools = tempfile::tempdir().unwrap();
        std::fs::write(tools.path().join(NAME), "").unwrap();
        assert_eq!(program(tools.path()).unwrap(), tools.path().join(NAME));
    }
}
