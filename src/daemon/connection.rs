//! One client: reads its one request, writes its lines, notices when it goes.
//!
//! The loop never waits for a client: it puts lines into the bounded channel of
//! [`Outbox`], and a client that lets it fill is dropped. Reading and writing happen
//! in the client's own task.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use smol::Async;
use smol::channel::{Receiver, Sender};
use smol::io::AsyncReadExt;

use crate::failure::{Failure, FailureKind};
use crate::proto::reply::Line;
use crate::proto::request::{Call, MAX_REQUEST, PROTOCOL_VERSION};
use crate::sys::descriptors::send_with;

/// Lines that may wait for a client that does not read.
const BACKLOG: usize = 256;

/// One line on its way to a client.
#[derive(Debug)]
pub struct Outgoing {
    /// The line.
    pub line: Line,
    /// A descriptor that travels with it.
    pub descriptor: Option<OwnedFd>,
}

/// Where the loop puts a client's lines.
pub type Outbox = Sender<Outgoing>;

/// Makes a client's channel.
pub fn outbox() -> (Outbox, Receiver<Outgoing>) {
    smol::channel::bounded(BACKLOG)
}

/// Whether the peer of this connection may talk to us: our own user or root.
pub fn admitted(stream: &UnixStream, own_uid: u32) -> Result<(), Failure> {
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|error| Failure::failed("ask who is calling").because(error))?;
    let uid = peer.uid.as_raw();
    match uid == own_uid || uid == 0 {
        true => Ok(()),
        false => Err(Failure::new(
            FailureKind::Denied,
            format!("serve uid {uid}: this daemon belongs to uid {own_uid}"),
        )),
    }
}

/// Reads the client's one line.
///
/// # Errors
/// It ends early, is too long, is no request, or is of another version.
pub async fn read_call(stream: &Async<UnixStream>) -> Result<Call, Failure> {
    let mut line = Vec::new();
    let mut part = [0_u8; 4096];
    let mut reader = stream;
    let end = loop {
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            break end;
        }
        if line.len() > MAX_REQUEST {
            return Err(Failure::usage(format!(
                "read a request: over {MAX_REQUEST} bytes"
            ))
            .hint("Long values of `--env` are the likely cause: put them in a file, and copy that into the sandbox with `banger vm exec NAME -- sh -c 'cat > FILE' < FILE`."));
        }
        match reader.read(&mut part).await {
            Ok(0) => {
                return Err(Failure::usage(
                    "read a request: the connection ended before it",
                ));
            }
            Ok(count) => line.extend_from_slice(&part[..count]),
            Err(error) => return Err(Failure::failed("read a request").because(error)),
        }
    };
    parse_call(&line[..end])
}

/// The version is read by itself first: a request of another version need not parse.
fn parse_call(line: &[u8]) -> Result<Call, Failure> {
    let value: serde_json::Value = serde_json::from_slice(line)
        .map_err(|error| Failure::usage("read a request: it is no JSON").because(error))?;
    let version = value.get("v").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(PROTOCOL_VERSION)) {
        let theirs = version.map_or("none".to_owned(), |version| version.to_string());
        return Err(Failure::usage(format!(
            "serve a client of protocol version {theirs}: this daemon speaks {PROTOCOL_VERSION}"
        ))
        .hint("Run `banger daemon stop`; the next command starts a daemon of its own version. VMs keep running."));
    }
    serde_json::from_value(value)
        .map_err(|error| Failure::usage("read a request: it is not one of ours").because(error))
}

/// Writes lines as they come until the channel closes or the client is gone.
pub async fn write_lines(stream: &Async<UnixStream>, lines: Receiver<Outgoing>) -> io::Result<()> {
    while let Ok(outgoing) = lines.recv().await {
        write_line(stream, &outgoing).await?;
    }
    Ok(())
}

/// Writes one line, its descriptor with its first byte.
pub async fn write_line(stream: &Async<UnixStream>, outgoing: &Outgoing) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(&outgoing.line).map_err(io::Error::other)?;
    bytes.push(b'\n');
    let mut sent = 0;
    while sent < bytes.len() {
        let descriptor = outgoing.descriptor.as_ref().filter(|_| sent == 0);
        let rest = &bytes[sent..];
        sent += stream
            .write_with(|stream| send_with(stream, rest, descriptor.map(AsFd::as_fd)))
            .await?;
    }
    Ok(())
}

/// Returns when the client has closed its end. What it still sends is thrown away:
/// a connection carries one request.
pub async fn gone(stream: &Async<UnixStream>) {
    let mut reader = stream;
    let mut part = [0_u8; 512];
    while matches!(reader.read(&mut part).await, Ok(count) if count > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::reply::Reply;

    #[test]
    fn another_version_is_refused_with_what_to_type() {
        let failure = parse_call(br#"{"v":99,"anything":true}"#).unwrap_err();
        assert!(failure.what.contains("99"), "{failure}");
        assert!(failure.hint.unwrap().contains("daemon stop"));
    }

    #[test]
    fn a_request_without_end_is_refused_at_the_limit() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            use std::io::Write as _;
            let part = vec![b'x'; 1 << 16];
            let mut theirs = theirs;
            while theirs.write_all(&part).is_ok() {}
        });
        let stream = Async::new(ours).unwrap();
        let failure = smol::block_on(read_call(&stream)).unwrap_err();
        assert!(failure.what.contains("over"), "{failure}");
        drop(stream);
        writer.join().unwrap();
    }

    #[test]
    fn a_descriptor_travels_with_its_line() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let outgoing = Outgoing {
            line: Line::Done(Reply::Ok {}),
            descriptor: Some(file.into()),
        };
        let stream = Async::new(ours).unwrap();
        smol::block_on(write_line(&stream, &outgoing)).unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0_u8; 64];
        let mut slices = [io::IoSliceMut::new(&mut bytes)];
        let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
        let seen = rustix::net::recvmsg(&theirs, &mut slices, &mut control, flags).unwrap();
        assert_eq!(&bytes[..seen.bytes], b"{\"done\":{\"is\":\"ok\"}}\n");
        let rights = control.drain().map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(fds) => fds.count(),
            _ => 0,
        });
        assert_eq!(rights.sum::<usize>(), 1);
    }
}
