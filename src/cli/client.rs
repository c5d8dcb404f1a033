//! Talks to the daemon: one request on one connection, progress lines, a last line,
//! perhaps a descriptor with it.
//!
//! Closing the connection cancels the request, so Ctrl-C needs nothing of ours: the
//! process ends and the kernel closes. What is left of a connection after the last
//! line is kept by [`Answer`], because a `vm run --rm` lives by it.

use std::io::{self, ErrorKind, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::failure::{Failure, FailureKind};
use crate::proto::reply::{Line, Progress, Reply};
use crate::proto::request::{Call, PROTOCOL_VERSION, Request};

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
    // A daemon that refuses may close before it has read everything; its reason is
    // then already on the way, so a failed write is judged after reading.
    written: io::Result<()>,
}

impl AsFd for Asked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Asks on a connection and waits for the last line.
///
/// # Errors
/// What the daemon answered, or that it went away.
pub fn ask(
    stream: UnixStream,
    request: Request,
    on_progress: impl FnMut(&Progress),
) -> Result<Answer, Failure> {
    begin(stream, request).answer(on_progress)
}

/// Asks on a connection.
pub fn begin(mut stream: UnixStream, request: Request) -> Asked {
    let call = Call {
        v: PROTOCOL_VERSION,
        op: operation_id(),
        request,
    };
    let mut line = serde_json::to_vec(&call).expect("our own requests have string keys only");
    line.push(b'\n');
    let written = stream.write_all(&line);
    Asked { stream, written }
}

impl Asked {
    /// Waits for the last line.
    ///
    /// # Errors
    /// What the daemon answered, or that it went away.
    pub fn answer(self, mut on_progress: impl FnMut(&Progress)) -> Result<Answer, Failure> {
        let Asked { stream, written } = self;
        let mut lines = Lines::new(&stream);
        loop {
            let line = match lines.next() {
                Ok(Some(line)) => line,
                Ok(None) => return Err(lost(written.err())),
                Err(error) => return Err(lost(Some(error))),
            };
            match serde_json::from_slice(&line) {
                Ok(Line::Progress(progress)) => on_progress(&progress),
                Ok(Line::Failed(failure)) => return Err(failure.into()),
                Ok(Line::Done(reply)) => {
                    let descriptor = lines.descriptor.take();
                    return Ok(Answer {
                        reply,
                        descriptor,
                        _connection: stream,
                    });
                }
                Err(error) => {
                    return Err(Failure::failed("read the answer of bangerd")
                        .because(error)
                        .hint("It may be of another version: `banger daemon stop` lets the next command start its own. VMs keep running."));
                }
            }
        }
    }
}

fn lost(error: Option<io::Error>) -> Failure {
    let failure = Failure::new(
        FailureKind::Unreachable,
        "bangerd ended before it had answered",
    )
    .hint("`banger daemon status` names its log; the same command again starts a new one.");
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
        let answer = ask(stream, Request::Status {}, |p| stages.push(p.stage.clone())).unwrap();
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
        let answer = ask(stream, Request::Status {}, |_| {}).unwrap();
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
        let failure = ask(stream, Request::Status {}, |_| {}).unwrap_err();
        let expected = Failure::not_found("no vm").hint("h").because("c");
        assert_eq!(failure, expected);
    }

    #[test]
    fn a_daemon_that_goes_away_is_unreachable() {
        let stream = serve(|stream| drop(read_call(&stream)));
        let failure = ask(stream, Request::Status {}, |_| {}).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable);
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
