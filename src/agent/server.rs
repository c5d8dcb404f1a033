//! The agent of a booted guest: one thread per stream of the host, one request each.
//!
//! The host is trusted, its bytes are not: whatever is no frame, or no request of
//! ours, ends that one stream; so does whoever else dials. The first frame decides what the stream is for.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::nice;
use serde::Serialize;
use serde_json::Value;

use super::exec::{self, Defaults};
use super::power::{self, Off};
use super::record::{self, uptime_ms};
use super::stream::FrameStream;
use super::{adjust, clock, console, dial, during, init, modules, unpack};
use crate::failure::Failure;
use crate::proto::agent::{
    AGENT_PORT, AGENT_VERSION, Adjust, AgentCall, AgentFailure, AgentFailureKind, AgentRequest,
    Done, Exec,
};
use crate::proto::frame::{Frame, Kind};
use crate::proto::guest::BootRecord;
use crate::sys::vsock;

/// Streams served at once. A command needs five descriptors at most, so all of them
/// stay below the usual soft limit of 1024, which commands inherit and should.
const STREAMS: usize = 160;
/// Streams that are being refused at once; each has a descriptor until its peer has read
/// why and closed.
const REFUSALS: usize = 64;
/// Streams that may wait to be accepted. Beyond it the kernel refuses them, and nobody
/// can say why.
const BACKLOG: i32 = 4096;
/// How long a stream may be open before it says what it is for.
const FIRST_FRAME_LIMIT: Duration = Duration::from_secs(30);
/// How long the reply to a power-off, or a refusal, may take to be taken.
const LAST_WORD_LIMIT: Duration = Duration::from_millis(500);

/// What the agent knows of its guest.
#[derive(Debug)]
pub struct Guest {
    record: BootRecord,
    /// `None` on a machine that is no guest: its clock and power are left alone.
    off: Option<Off>,
}

/// Serves this guest until it is switched off.
///
/// # Errors
/// The boot record cannot be read, or the port cannot be listened on.
pub fn main(directory: &Path) -> Result<(), Failure> {
    let mut record = record::find(directory)?;
    let off = record.off.parse()?;
    let listener = vsock::listen(AGENT_PORT, BACKLOG)
        .map_err(during(format!("listen on vsock port {AGENT_PORT}")))?;
    record.phases.push(("agent".to_owned(), uptime_ms()));
    let (news, token) = (record.clone(), record::token(directory)?);
    let directory = directory.to_owned();
    thread::spawn(move || {
        let told = token.map_or(Ok(()), |token| tell_ready(&news, token, &directory));
        // The first command goes first: this is the niceness of this thread alone.
        let behind = nice(19).map(drop).map_err(during("be the last to run"));
        let late = modules::load_late(&init::kernel_release());
        for failure in [told, behind, late].into_iter().filter_map(Result::err) {
            console::say(&failure.to_string());
        }
    });
    accept(&listener, Arc::new(Guest::new(record, Some(off))))
}

/// An agent that is started again in this boot has nothing to tell: the host knows, and
/// listens no more.
fn tell_ready(news: &BootRecord, token: String, directory: &Path) -> Result<(), Failure> {
    dial::ready(news, token)?;
    record::forget_token(directory)
}

fn accept(listener: &OwnedFd, guest: Arc<Guest>) -> Result<(), Failure> {
    let places = Arc::new(AtomicUsize::new(0));
    loop {
        match vsock::accept(listener) {
            Ok((socket, Some(vsock::HOST_CID))) => admit(socket, &guest, &places),
            // A process of this guest, through vsock_loopback: it may ask for nothing.
            Ok(_) => {}
            // The one that dialled has gone again.
            Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(during("accept a stream")(error)),
        }
    }
}

/// Gives a stream a thread, or refuses it.
fn admit(socket: OwnedFd, guest: &Arc<Guest>, places: &Arc<AtomicUsize>) {
    let taken = places.fetch_add(1, Ordering::Relaxed);
    let place = Place(Arc::clone(places));
    let Ok(stream) = FrameStream::new(socket) else {
        return;
    };
    if taken >= STREAMS + REFUSALS {
        return;
    }
    let guest = Arc::clone(guest);
    let spawned = thread::Builder::new().spawn(move || {
        match taken >= STREAMS {
            true => refuse(stream),
            false => serve(stream, &guest),
        }
        drop(place);
    });
    if let Err(error) = spawned {
        console::say(&format!("start a thread for a stream: {error}"));
    }
}

/// One of the places for streams, given back when it is dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Says no and goes. What the peer has not read when we close is lost, so it is given
/// some time.
fn refuse(mut stream: FrameStream) {
    let failure = AgentFailure {
        kind: AgentFailureKind::Busy,
        what: format!("{STREAMS} commands run in this guest, it takes no more at once"),
    };
    stream.queue_json(Kind::Failed, &failure);
    stream.finish_within(LAST_WORD_LIMIT);
}

/// Serves one stream to its end.
pub fn serve(mut stream: FrameStream, guest: &Guest) {
    let Ok(frame) = stream.next_frame(Some(FIRST_FRAME_LIMIT)) else {
        return;
    };
    match read_call(&frame) {
        Ok(call) => {
            guest.follow_clock(call.host_time_ns);
            guest.carry_out(stream, call.request);
        }
        Err(failure) => answer::<Done>(stream, Err(failure)),
    }
}

fn read_call(frame: &Frame) -> Result<AgentCall, AgentFailure> {
    let malformed = |what: String| AgentFailure {
        kind: AgentFailureKind::Malformed,
        what,
    };
    if frame.kind != Kind::Request {
        return Err(malformed(format!(
            "a stream begins with a request, not {:?}",
            frame.kind
        )));
    }
    // The version first: another one may hold what this one cannot read.
    let value: Value = frame.json().map_err(|error| malformed(error.to_string()))?;
    let version = value.get("version").and_then(Value::as_u64);
    if version != Some(u64::from(AGENT_VERSION)) {
        return Err(AgentFailure {
            kind: AgentFailureKind::Version,
            what: "the guest's agent is of another version; restart the VM".to_owned(),
        });
    }
    serde_json::from_value(value).map_err(|error| malformed(format!("read the request: {error}")))
}

/// Sends the last frame of a stream and waits for the peer to close.
fn answer<T: Serialize>(mut stream: FrameStream, result: Result<T, AgentFailure>) {
    match result {
        Ok(reply) => stream.queue_json(Kind::Reply, &reply),
        Err(failure) => stream.queue_json(Kind::Failed, &failure),
    }
    stream.finish();
}

impl Guest {
    /// The guest of this boot.
    pub fn new(record: BootRecord, off: Option<Off>) -> Guest {
        Guest { record, off }
    }

    fn follow_clock(&self, host_time_ns: u64) {
        let followed = self.off.map(|_| clock::follow(host_time_ns));
        if let Some(Err(failure)) = followed {
            console::say(&failure.to_string());
        }
    }

    fn carry_out(&self, mut stream: FrameStream, request: AgentRequest) {
        match request {
            AgentRequest::Exec(wanted) => self.exec(stream, &wanted),
            AgentRequest::Unpack(wanted) => {
                let unpacked = unpack::receive(&mut stream, Path::new(&wanted.path));
                answer(stream, unpacked);
            }
            AgentRequest::Adjust(wanted) => answer(stream, self.adjust(&wanted)),
            AgentRequest::PowerOff => self.power_off(stream),
        }
    }

    fn exec(&self, stream: FrameStream, wanted: &Exec) {
        let defaults = Defaults {
            env: &self.record.env,
            directory: self.record.workdir.as_deref(),
        };
        exec::run(stream, wanted, defaults);
    }

    fn adjust(&self, wanted: &Adjust) -> Result<Done, AgentFailure> {
        match self.off {
            Some(_) => adjust::adjust(wanted),
            None => Err(no_guest("adjust")),
        }
    }

    fn power_off(&self, mut stream: FrameStream) {
        let Some(off) = self.off else {
            let failure = no_guest("switch off");
            return answer::<Done>(stream, Err(failure));
        };
        stream.queue_json(Kind::Reply, &Done {});
        stream.finish_within(LAST_WORD_LIMIT);
        console::say(&power::switch_off(off).to_string());
    }
}

fn no_guest(attempt: &str) -> AgentFailure {
    let kind = AgentFailureKind::Other;
    let what = format!("{attempt}: this machine is no guest");
    AgentFailure { kind, what }
}
