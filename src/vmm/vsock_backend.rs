//! `vhost-device-vsock`: gives a QEMU guest the vsock that Firecracker has built in,
//! with the same Unix sockets on the host's side. One process per VM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::host::process::Marker;
use crate::host::program::Programs;
use crate::plan::step::Fault;

use super::machine::GUEST_CID;

const NAME: &str = "vhost-device-vsock";

/// Finds the program.
pub fn program(programs: &Programs) -> Result<PathBuf, Fault> {
    programs.require(
        NAME,
        "run `./scripts/quickstart.sh` or `cargo install vhost-device-vsock --locked`",
    )
}

/// Its arguments: `vsock` is the host's side of the guest's vsock, `vhost` the socket
/// that QEMU connects to, both as seen from where it works.
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
        let (vsock, vhost) = (Path::new("0000002a/vsock"), Path::new("0000002a/v"));
        let words = arguments(vsock, vhost);
        assert_eq!(marker(vsock), Marker::new(words[2..4].to_vec()));
    }
}
