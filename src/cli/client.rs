//! Talks to the daemon: one request on one connection, progress lines, a last line,
//! perhaps a descriptor with it.
//!
//! Closing the connection cancels the request, so Ctrl-C needs nothing of ours: the
//! process ends and the kernel closes. What is left of a connection after the last
//! line is kept by [`Answer`], because a `vm run --rm` lives by it.
//!
//! A daemon that is being killed may still take a connection. Whether it read the request
//! is known for sure: the kernel ends a connection whose other side had something left to
//! read with ECONNRESET (`unix_release_sock` in Linux), and one that was read to the end
//! without. What nobody heard is asked again.

use std::io::{self, ErrorKind, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::failure::{Failure, FailureKind};
use crate::proto::reply::{Line, Progress, Reply};
use crate::proto::request::{Call, PROTOCOL_VERSION, Request};

/// How often a request that nobody heard is asked: a dying daemon's connections may end
/// before the socket that it takes them on.
const ATTEMPTS: usize = 3;
/// Longest line that is believed of a daemon, bytes.
const MAX_LINE: usize = 64 * 1024 * 1024;

/// The last line of a request that succeeded.
#[derive(Debug)]
pub struct Answer {
    /// What it says.
    pub reply: Reply,
    /// The descriptor that came with it.
    pub descriptor: Option<OwnedFd>,
    /// Kept, not read: closing it tells the daemon that we are gone.
    _connection: UnixStream,
}

/// Connects to the daemon's socket; `None` when nobody listens there.
///
/// # Errors
/// The socket exists and may not be used.
pub fn connect(socket: &Path) -> Result<Option<UnixStream>, Failure> {
    match UnixStream::connect(socket) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(None),
            ErrorKind::PermissionDenied => Err(Failure::new(
                FailureKind::Denied,
                format!("connect to bangerd at {}", socket.display()),
            )
            .because(error)
            .hint(
                "It belongs to another user: set BANGER_RUNTIME_DIR to a directory of your own.",
            )),
            _ => Err(Failure::new(
                FailureKind::Unreachable,
                format!("connect to bangerd at {}", socket.display()),
            )
            .because(error)
            .hint("Set BANGER_RUNTIME_DIR to a directory of your own with a short path.")),
        },
    }
}

/// A request that was sent; readable when something of its answer is there.
#[derive(Debug)]
pub struct Asked {
    stream: UnixStream,
    /// What to do when the daemon ends before it has answered.
    then: String,
    // A daemon that refuses may close before it has read everything; its reason is
    // then already on the way, so a failed write is judged after reading.
    written: io::Result<()>,
}

impl AsFd for Asked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Asks on a connection and waits for the last line; on another connection if the daemon
/// went away before it had read what was asked.
///
/// # Errors
/// No connection, what the daemon answered, or that it went away.
pub fn ask(
    mut connect: impl FnMut() -> Result<UnixStream, Failure>,
    request: &Request,
    mut on_progress: impl FnMut(&Progress),
) -> Result<Answer, Failure> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match begin(connect()?, request.clone()).outcome(&mut on_progress) {
            Err(Unanswered::Unheard(_)) if left > 0 => {}
            Err(Unanswered::Unheard(failure) | Unanswered::Failed(failure)) => return Err(failure),
            Ok(answer) => return Ok(answer),
        }
    }
}

/// Why there is no answer.
enum Unanswered {
    /// The daemon went away before it had read the request: nothing of it was done.
    Unheard(Failure),
    /// What the daemon answered, or that it went away later.
    Failed(Failure),
}

/// Asks on a connection.
pub fn begin(mut stream: UnixStream, request: Request) -> Asked {
    let then = after_loss(&request);
    let call = Call {
        v: PROTOCOL_VERSION,
        op: operation_id(),
        request,
    };
    let mut line = serde_json::to_vec(&call).expect("our own requests have string keys only");
    line.push(b'\n');
    let written = stream.write_all(&line);
    Asked {
        stream,
        then,
        written,
    }
}

impl Asked {
    /// Waits for the last line.
    ///
    /// # Errors
    /// What the daemon answered, or that it went away.
    pub fn answer(self, mut on_progress: impl FnMut(&Progress)) -> Result<Answer, Failure> {
        self.outcome(&mut on_progress)
            .map_err(|unanswered| match unanswered {
                Unanswered::Unheard(failure) | Unanswered::Failed(failure) => failure,
            })
    }

    fn outcome(self, on_progress: &mut impl FnMut(&Progress)) -> Result<Answer, Unanswered> {
        let Asked {
            stream,
            then,
            written,
        } = self;
        let mut lines = Lines::new(&stream);
        let mut heard = false;
        loop {
            let line = match lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => return Err(gone(written.err(), heard, &then)),
                Err(error) => return Err(gone(Some(error), heard, &then)),
            };
            heard = true;
            match serde_json::from_slice(&line) {
                Ok(Line::Progress(progress)) => on_progress(&progress),
                Ok(Line::Failed(failure)) => return Err(Unanswered::Failed(failure.into())),
                Ok(Line::Done(reply)) => {
                    let descriptor = lines.descriptor.take();
                    return Ok(Answer {
                        reply,
                        descriptor,
                        _connection: stream,
                    });
                }
                Err(error) => {
                    let failure = Failure::failed("read the answer of bangerd")
                        .because(error)
                        .hint("It may be of another version: `banger daemon stop` lets the next command start its own. VMs keep running.");
                    return Err(Unanswered::Failed(failure));
                }
            }
        }
    }
}

/// Without an answer to the end. A request that was not written to its end, or not read to
/// its end, is a line without its end: nobody carried it out.
fn gone(error: Option<io::Error>, heard: bool, then: &str) -> Unanswered {
    let cut = |error: &io::Error| {
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        )
    };
    match !heard && error.as_ref().is_some_and(cut) {
        true => Unanswered::Unheard(lost(error, AGAIN)),
        false => Unanswered::Failed(lost(error, then)),
    }
}

/// What helps where nothing was done, or what is done already is no hindrance.
const AGAIN: &str = "the same command again starts a new one.";

/// What to do after a daemon ended that may have begun with this: a VM that it made stays
/// and has the name, unless it goes with its client.
fn after_loss(request: &Request) -> String {
    let Request::VmRun {
        vm,
        delete_on_disconnect: false,
        ..
    } = request
    else {
        return AGAIN.to_owned();
    };
    match &vm.name {
        Some(name) => format!(
            "`banger vm list` shows whether {name} was made: then `banger vm start {name}` or `banger vm delete {name}`, else the same command again."
        ),
        None => "`banger vm list` shows whether a VM was made: then `banger vm start NAME` or `banger vm delete NAME`, else the same command again.".to_owned(),
    }
}

fn lost(error: Option<io::Error>, then: &str) -> Failure {
    let failure = Failure::new(
        FailureKind::Unreachable,
        "bangerd ended before it had answered",
    )
    .hint(format!("`banger daemon status` names its log; {then}"));
    match error {
        Some(error) => failure.because(error),
        None => failure,
    }
}

/// Random, so that log lines of one operation can be told from all others.
fn operation_id() -> String {
    let mut bytes = [0_u8; 6];
    // Without randomness the process id still tells concurrent clients apart.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        return format!("pid{}", std::process::id());
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lines of a connection, with the last descriptor that came along.
struct Lines<'a> {
    stream: &'a UnixStream,
    buffer: Vec<u8>,
    scanned: usize,
    descriptor: Option<OwnedFd>,
}

impl<'a> Lines<'a> {
    fn new(stream: &'a UnixStream) -> Lines<'a> {
        Lines {
            stream,
            buffer: Vec::new(),
            scanned: 0,
            descriptor: None,
        }
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let fresh = &self.buffer[self.scanned..];
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.scanned + at + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.scanned = 0;
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            if self.scanned > MAX_LINE {
                return Err(io::Error::other("a line without end"));
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
    }

    /// Takes what has come; false at the end of the stream.
    fn receive(&mut self) -> io::Result<bool> {
        let mut part = [0_u8; 16 * 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut part)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = loop {
            match rustix::net::recvmsg(self.stream, &mut slices, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        for received in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = received {
                self.descriptor = descriptors.last().or(self.descriptor.take());
            }
        }
        self.buffer.extend_from_slice(&part[..message.bytes]);
        Ok(message.bytes > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::os::fd::AsFd;

    fn serve(script: impl FnOnce(UnixStream) + Send + 'static) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || script(theirs));
        ours
    }

    /// Asks on one connection; there is no second.
    fn ask_on(stream: UnixStream, on_progress: impl FnMut(&Progress)) -> Result<Answer, Failure> {
        let mut only = Some(stream);
        let none = || Failure::bug("a second connection");
        let connect = || only.take().ok_or_else(none);
        ask(connect, &Request::Status {}, on_progress)
    }

    fn read_call(stream: &UnixStream) -> Call {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn send_with(stream: &UnixStream, bytes: &[u8], descriptor: &OwnedFd) {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let slices = [std::io::IoSlice::new(bytes)];
        rustix::net::sendmsg(stream, &slices, &mut control, SendFlags::empty()).unwrap();
    }

    #[test]
    fn progress_comes_before_the_answer_in_any_split() {
        let stream = serve(|mut stream| {
            let call = read_call(&stream);
            assert_eq!(
                (call.v, call.request),
                (PROTOCOL_VERSION, Request::Status {})
            );
            let text = "{\"progress\":{\"stage\":\"boot\"}}\n{\"done\":{\"is\":\"ok\"}}\n";
            for byte in text.as_bytes() {
                stream.write_all(&[*byte]).unwrap();
            }
        });
        let mut stages = Vec::new();
        let answer = ask_on(stream, |p| stages.push(p.stage.clone())).unwrap();
        assert_eq!(answer.reply, Reply::Ok {});
        assert_eq!(stages, ["boot"]);
    }

    #[test]
    fn a_descriptor_arrives_with_the_last_line() {
        let stream = serve(|stream| {
            read_call(&stream);
            let (read, write) = rustix::pipe::pipe().unwrap();
            rustix::io::write(&write, b"hello").unwrap();
            let line = b"{\"done\":{\"is\":\"dialed\",\"id\":\"0a000001\",\"name\":\"dev\"}}\n";
            send_with(&stream, line, &read);
        });
        let answer = ask_on(stream, |_| {}).unwrap();
        let mut file = std::fs::File::from(answer.descriptor.unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_failure_of_the_daemon_comes_through_whole() {
        let stream = serve(|mut stream| {
            read_call(&stream);
            let line = "{\"failed\":{\"kind\":\"not_found\",\"what\":\"no vm\",\"hint\":\"h\",\"causes\":[\"c\"]}}\n";
            stream.write_all(line.as_bytes()).unwrap();
        });
        let failure = ask_on(stream, |_| {}).unwrap_err();
        let expected = Failure::not_found("no vm").hint("h").because("c");
        assert_eq!(failure, expected);
    }

    #[test]
    fn a_daemon_that_goes_away_is_unreachable() {
        let stream = serve(|stream| drop(read_call(&stream)));
        let failure = ask_on(stream, |_| {}).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable);
    }

    #[test]
    fn a_daemon_that_goes_away_while_it_makes_a_vm_may_have_made_it() {
        let sample = include_str!("../proto/samples/request-vm_run.json");
        let run = |kept: &str| -> Request {
            let text = sample.replace("\"delete_on_disconnect\": true", kept);
            serde_json::from_str::<Call>(&text).unwrap().request
        };
        let hint = |request: Request| {
            let mut only = Some(serve(|stream| drop(read_call(&stream))));
            let connect = || {
                only.take()
                    .ok_or_else(|| Failure::bug("a second connection"))
            };
            ask(connect, &request, |_| {}).unwrap_err().hint.unwrap()
        };
        let made = hint(run("\"delete_on_disconnect\": false"));
        assert!(made.contains("`banger vm list` shows whether"), "{made}");
        assert!(made.contains("`banger vm delete dev`"), "{made}");
        let goes_along = hint(run("\"delete_on_disconnect\": true"));
        for hint in [goes_along, hint(Request::VmList {})] {
            assert!(hint.contains("the same command again starts"), "{hint}");
        }
    }

    #[test]
    fn what_a_dying_daemon_did_not_read_is_asked_of_the_next_one() {
        let mut daemons = [deaf(), serve(overhear), serve(answer_ok)].into_iter();
        let connect = || Ok(daemons.next().unwrap());
        let answer = ask(connect, &Request::VmList {}, |_| {}).unwrap();
        assert_eq!(answer.reply, Reply::Ok {});
    }

    #[test]
    fn daemons_that_all_die_are_not_asked_for_ever() {
        let mut asked = 0;
        let connect = || {
            asked += 1;
            Ok(deaf())
        };
        let failure = ask(connect, &Request::VmList {}, |_| {}).unwrap_err();
        assert_eq!((failure.kind, asked), (FailureKind::Unreachable, ATTEMPTS));
    }

    /// A listener that dies with a connection that it never took.
    fn deaf() -> UnixStream {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("bangerd.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let stream = connect(&socket).unwrap().unwrap();
        drop(listener);
        stream
    }

    /// Dies when a request has come, without having read it.
    fn overhear(stream: UnixStream) {
        let flags = RecvFlags::PEEK;
        rustix::net::recv(&stream, &mut [0_u8; 1], flags).unwrap();
    }

    fn answer_ok(mut stream: UnixStream) {
        read_call(&stream);
        stream.write_all(b"{\"done\":{\"is\":\"ok\"}}\n").unwrap();
    }

    #[test]
    fn nobody_listening_is_not_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("bangerd.sock");
        assert!(connect(&socket).unwrap().is_none());
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(connect(&socket).unwrap().is_none());
    }
}
