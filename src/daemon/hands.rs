//! The daemon's host: this process, and the root helper for the steps that need root.
//!
//! Used only where we may not make taps ourselves and a helper answers.

use std::io::{self, BufRead, BufReader, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::fail_point;
use crate::host::fault::fault;
use crate::host::{Host, RealHost};
use crate::model::net::Subnet;
use crate::plan::step::{Fault, FaultKind, Presence, Step};
use crate::proto::helper::{
    HELPER_VERSION, HelperCall, HelperReply, HelperRequest, HelperStep, HelperVerb, MAX_LINE,
};

/// The variable that names another helper's socket.
pub const VARIABLE: &str = "BANGER_HELPER_SOCKET";
/// How long the helper may take: a step of the kernel's takes milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

/// See the head of this file.
#[derive(Debug)]
pub struct Hands {
    real: RealHost,
    helper: Option<PathBuf>,
}

impl Hands {
    /// `helper` is its socket, where it is needed.
    pub fn new(real: RealHost, helper: Option<PathBuf>) -> Hands {
        Hands { real, helper }
    }

    /// The host of this process.
    pub fn real(&self) -> &RealHost {
        &self.real
    }

    /// Whether taps and rules are made by this process, not by the root helper.
    pub fn makes_taps_itself(&self) -> bool {
        self.helper.is_none()
    }

    fn by_helper(&self, verb: HelperVerb, step: &Step) -> Option<Result<Option<Presence>, Fault>> {
        let socket = self.helper.as_ref()?;
        let step = HelperStep::of(step)?;
        let asked = ask(socket, HelperRequest::Step { verb, step });
        Some(asked.and_then(|(reply, _)| reply.outcome()))
    }
}

/// A place at which a test can interrupt a step; nothing in a release.
fn place(step: &Step, verb: &str, moment: &str) -> Result<(), Fault> {
    if !fail_point::ARMED {
        return Ok(());
    }
    let kind = step.kind().word();
    fail_point::hit(&format!("{kind}.{verb}.{moment}"))
        .map_err(|error| fault(format!("{verb} {kind}"), error))
}

impl Host for Hands {
    fn ensure(&self, step: &Step) -> Result<(), Fault> {
        place(step, "ensure", "before")?;
        match self.by_helper(HelperVerb::Ensure, step) {
            Some(outcome) => outcome.map(drop),
            None => self.real.ensure(step),
        }?;
        place(step, "ensure", "after")
    }

    fn absent(&self, step: &Step) -> Result<(), Fault> {
        place(step, "absent", "before")?;
        match self.by_helper(HelperVerb::Absent, step) {
            Some(outcome) => outcome.map(drop),
            None => self.real.absent(step),
        }?;
        place(step, "absent", "after")
    }

    fn probe(&self, step: &Step) -> Result<Presence, Fault> {
        match self.by_helper(HelperVerb::Probe, step) {
            Some(outcome) => outcome.map(|seen| seen.unwrap_or(Presence::Different)),
            None => self.real.probe(step),
        }
    }
}

/// The resolver's sockets, bound by the helper: UDP, then TCP. Also the test whether a
/// helper of this network answers.
///
/// # Errors
/// None answers, it refuses, or the port is taken.
pub fn resolver(socket: &Path, subnet: Subnet) -> Result<(OwnedFd, OwnedFd), Fault> {
    let (reply, descriptors) = ask(socket, HelperRequest::Resolver { subnet })?;
    reply.outcome()?;
    match <[OwnedFd; 2]>::try_from(descriptors) {
        Ok([udp, tcp]) => Ok((udp, tcp)),
        Err(other) => {
            let what = format!(
                "take the resolver's sockets: {} came instead of 2",
                other.len()
            );
            Err(Fault::new(FaultKind::Other, what))
        }
    }
}

fn ask(socket: &Path, request: HelperRequest) -> Result<(HelperReply, Vec<OwnedFd>), Fault> {
    let call = HelperCall {
        v: HELPER_VERSION,
        request,
    };
    converse(socket, &call).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => FaultKind::Timeout,
            io::ErrorKind::PermissionDenied => FaultKind::Denied,
            _ => FaultKind::Missing,
        };
        Fault::new(
            kind,
            format!("ask the root helper at {}: {error}", socket.display()),
        )
    })
}

fn converse(socket: &Path, call: &HelperCall) -> io::Result<(HelperReply, Vec<OwnedFd>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut line = serde_json::to_vec(call).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut bytes = vec![0_u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let seen = rustix::net::recvmsg(&stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            descriptors.extend(sent);
        }
    }
    bytes.truncate(seen.bytes);
    if !bytes.ends_with(b"\n") {
        BufReader::new((&stream).take(MAX_LINE)).read_until(b'\n', &mut bytes)?;
    }
    let reply = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
    Ok((reply, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("helper.sock");
        let fault = resolver(&socket, "172.30.0.0/16".parse().unwrap()).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Missing);
        assert!(fault.what.contains("helper.sock"), "{fault}");
    }
}
