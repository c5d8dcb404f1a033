//! The guest's calls to the host: hello, ready, failed. One stream each; the host is
//! listening before the guest is started and until it is ready; who refuses is not asked
//! twice.

use std::time::Duration;

use rustix::io::Errno;

use super::during;
use super::stream::{FrameStream, StreamError};
use crate::failure::Failure;
use crate::proto::agent::{AGENT_VERSION, CONTROL_PORT};
use crate::proto::frame::{Frame, Kind};
use crate::proto::guest::{BootRecord, GuestCall, GuestConfig};
use crate::sys::vsock;

/// How often a dial may time out, after 2 s each.
const DIAL_TRIES: u32 = 15;
/// How long the host may take to answer: it is busy with others at most.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Asks for this guest's configuration.
///
/// # Errors
/// The host cannot be reached, or its answer is not ours.
pub fn hello(kernel_release: String) -> Result<GuestConfig, Failure> {
    let attempt = "ask the host for the configuration";
    let call = GuestCall::Hello {
        version: AGENT_VERSION,
        kernel_release,
    };
    let frame = call_host(&call).map_err(during(attempt))?;
    frame.json().map_err(during(attempt))
}

/// Says that the agent listens.
///
/// # Errors
/// The host cannot be reached, or does not take us for its guest.
pub fn ready(record: &BootRecord, token: String) -> Result<(), Failure> {
    let call = GuestCall::Ready {
        version: AGENT_VERSION,
        token,
        init: record.init.clone(),
        phases: record.phases.clone(),
        warnings: record.warnings.clone(),
    };
    call_host(&call)
        .map(drop)
        .map_err(during("tell the host that the guest is ready"))
}

/// Says that the boot cannot go on. The token is the configuration's, if that has come.
///
/// # Errors
/// The host cannot be reached, or listens no more: the guest was ready.
pub fn failed(what: String, token: Option<String>) -> Result<(), Failure> {
    call_host(&GuestCall::Failed { token, what })
        .map(drop)
        .map_err(during("tell the host what failed"))
}

/// One call and its answer; the stream is closed when it is here.
fn call_host(call: &GuestCall) -> Result<Frame, StreamError> {
    let mut tries = 1;
    let socket = loop {
        match vsock::dial_host(CONTROL_PORT) {
            // The kernel gives up after 2 s, which a back end on a busy host may need.
            Err(Errno::TIMEDOUT) if tries < DIAL_TRIES => tries += 1,
            dialled => break dialled.map_err(std::io::Error::from)?,
        }
    };
    converse(FrameStream::new(socket)?, call)
}

fn converse(mut stream: FrameStream, call: &GuestCall) -> Result<Frame, StreamError> {
    stream.queue_json(Kind::Request, call);
    stream.flush(Some(ANSWER_LIMIT))?;
    let frame = stream.next_frame(Some(ANSWER_LIMIT))?;
    match frame.kind {
        Kind::Reply => Ok(frame),
        other => Err(StreamError::OutOfTurn(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn answered_with(kind: Kind) -> Result<Frame, StreamError> {
        let (guest, host) = UnixStream::pair().unwrap();
        let mut host = FrameStream::new(host.into()).unwrap();
        let answer = std::thread::spawn(move || {
            let call: GuestCall = host.next_frame(None).unwrap().json().unwrap();
            host.queue(kind, b"{}");
            host.finish();
            call
        });
        let call = GuestCall::Failed {
            token: None,
            what: "x".to_owned(),
        };
        let seen = converse(FrameStream::new(guest.into()).unwrap(), &call);
        assert_eq!(answer.join().unwrap(), call);
        seen
    }

    #[test]
    fn the_answer_ends_a_call() {
        assert_eq!(answered_with(Kind::Reply).unwrap().payload, b"{}");
    }

    #[test]
    fn an_answer_of_another_kind_is_refused() {
        let error = answered_with(Kind::Output).unwrap_err();
        assert!(matches!(error, StreamError::OutOfTurn(Kind::Output)));
    }
}
