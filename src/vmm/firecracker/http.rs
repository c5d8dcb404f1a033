//! HTTP/1.1 as far as Firecracker speaks it: one request, one response, kept alive.
//!
//! Its server knows neither chunks nor compression and wants a `Content-Length` with
//! every body; an answer without one has no body.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::host::fault::fault;
use crate::host::socket;
use crate::plan::step::{Fault, FaultKind};

use super::super::Deadline;

/// Largest answer that is believed, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;
/// Most header lines of an answer.
const HEADERS: usize = 32;

/// A connection to a server on a Unix socket.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    deadline: Deadline,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, maybe empty.
    pub body: Vec<u8>,
}

impl Connection {
    /// Connects; the deadline is for everything that is exchanged.
    pub fn open(path: &Path, deadline: Deadline) -> Result<Connection, Fault> {
        let attempt = format!("call firecracker at {}", path.display());
        let stream = socket::connect(path).map_err(|error| fault(attempt, error))?;
        Ok(Connection { stream, deadline })
    }

    /// Sends a request and reads its answer, whatever the status.
    pub fn exchange(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Response, Fault> {
        let attempt = format!("ask firecracker {method} {path}");
        let left = self.deadline.left(&attempt)?;
        self.stream
            .set_write_timeout(Some(left))
            .and_then(|()| self.send(method, path, body))
            .map_err(|error| io_fault(&attempt, error))?;
        let mut answer = Vec::new();
        loop {
            if let Some(response) = parse(&answer)
                .map_err(|why| Fault::new(FaultKind::Other, format!("{attempt}: {why}")))?
            {
                return Ok(response);
            }
            let left = self.deadline.left(&attempt)?;
            self.receive(left, &mut answer)
                .map_err(|error| io_fault(&attempt, error))?;
        }
    }

    fn send(&mut self, method: &str, path: &str, body: &[u8]) -> std::io::Result<()> {
        let length = match body.is_empty() {
            true => String::new(),
            false => format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            ),
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n{length}\r\n"
        );
        self.stream.write_all(&[head.as_bytes(), body].concat())
    }

    fn receive(&mut self, left: std::time::Duration, answer: &mut Vec<u8>) -> std::io::Result<()> {
        self.stream.set_read_timeout(Some(left))?;
        let mut part = [0_u8; 4096];
        match self.stream.read(&mut part) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                answer.extend_from_slice(&part[..length]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The answer in these bytes; `None` while it is incomplete.
fn parse(bytes: &[u8]) -> Result<Option<Response>, String> {
    if bytes.len() > ANSWER_LIMIT {
        return Err(format!("the answer is longer than {ANSWER_LIMIT} bytes"));
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let start = match head.parse(bytes).map_err(|error| error.to_string())? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(start) => start,
    };
    let length = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |header| {
            let text = std::str::from_utf8(header.value).unwrap_or_default();
            text.trim().parse::<usize>()
        })
        .map_err(|error| format!("content-length: {error}"))?;
    let body = bytes[start..].get(..length);
    Ok(body.map(|body| Response {
        status: head.code.unwrap_or_default(),
        body: body.to_vec(),
    }))
}

fn io_fault(attempt: &str, error: std::io::Error) -> Fault {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            Fault::new(FaultKind::Exited, format!("{attempt}: it has ended"))
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            Fault::new(FaultKind::Timeout, format!("{attempt}: no answer in time"))
        }
        _ => fault(attempt, error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_is_complete_with_its_last_byte_and_not_before() {
        let whole = b"HTTP/1.1 400 \r\nServer: x\r\nContent-Length: 5\r\n\r\nhello";
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]).unwrap(), None, "{end}");
        }
        let response = parse(whole).unwrap().unwrap();
        assert_eq!(
            (response.status, response.body.as_slice()),
            (400, b"hello".as_slice())
        );
    }

    #[test]
    fn no_length_is_no_body_and_nonsense_is_an_error() {
        let response = parse(b"HTTP/1.1 204 \r\n\r\n").unwrap().unwrap();
        assert_eq!(response.status, 204);
        assert!(parse(b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n").is_err());
        assert!(parse(b"SSH-2.0\r\n").is_err());
        assert!(parse(&vec![b'x'; ANSWER_LIMIT + 1]).is_err());
    }

    #[test]
    fn a_server_that_hangs_up_has_ended_and_a_silent_one_times_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api");
        let listener = UnixListener::bind(&path).unwrap();
        let silent = Deadline::after(Duration::from_millis(30));
        let mut connection = Connection::open(&path, silent).unwrap();
        let fault = connection.exchange("GET", "/", b"").unwrap_err();
        assert_eq!(fault.kind, FaultKind::Timeout);

        let mut connection =
            Connection::open(&path, Deadline::after(Duration::from_secs(20))).unwrap();
        drop(listener);
        let fault = connection.exchange("GET", "/", b"").unwrap_err();
        assert_eq!(fault.kind, FaultKind::Exited);
    }
}
