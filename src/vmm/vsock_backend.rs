//! `vhost-device-vsock`: gives a QEMU guest the vsock that Firecracker has built in,
//! with the same Unix sockets on the host's side. One process per VM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

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

/// What the thread is called that serves a guest's queues (vhost-user-backend 0.20).
const WORKER: &str = "vring_worker";

/// Whether a back end still has the thread that serves its guest; a process that has ended
/// has none.
///
/// # Errors
/// `/proc` cannot be read.
pub fn has_worker(pid: u32) -> io::Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        match fs::read_to_string(task?.path().join("comm")) {
            Ok(name) if name.trim_end() == WORKER => return Ok(true),
            // It may end while it is looked at.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(false)
}

/// The words of its command line that only this VM's back end has.
pub fn marker(vsock: &Path) -> Marker {
    Marker::new([OsString::from("--uds-path"), vsock.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_found_by_its_name() {
        let (say, hear) = std::sync::mpsc::channel::<()>();
        assert!(!has_worker(std::process::id()).unwrap());
        let named = std::thread::Builder::new().name(WORKER.to_owned());
        let worker = named.spawn(move || hear.recv().is_err()).unwrap();
        // A thread names itself, a moment after it was made.
        while !has_worker(std::process::id()).unwrap() {
            std::thread::yield_now();
        }
        drop(say);
        assert!(worker.join().unwrap());
    }

    #[test]
    fn the_marker_is_in_the_arguments() {
        let (vsock, vhost) = (Path::new("0000002a/vsock"), Path::new("0000002a/v"));
        let words = arguments(vsock, vhost);
        assert_eq!(marker(vsock), Marker::new(words[2..4].to_vec()));
    }
}
