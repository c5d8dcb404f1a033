//! The host's own nameservers, asked on a guest's behalf.
//!
//! The guest's message is passed on as it is but for its id, and so is the answer: what
//! we do not understand we do not break. Each question has a socket of its own with a
//! random port and a random id, and an answer must repeat both id and question, so that
//! a guest cannot have another's answers forged (RFC 5452).

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpStream, UdpSocket};
use smol::{Timer, future};

use super::{DATAGRAM_LIMIT, zone};

/// As many nameservers as the C library uses (MAXNS of resolv.h).
const SERVER_LIMIT: usize = 3;

/// A guest's C library asks again after 5 s: we have gone through two servers by then.
const SERVER_DEADLINE: Duration = Duration::from_secs(2);

/// How a question came in, and so how it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In one datagram.
    Udp,
    /// In a stream, behind its length.
    Tcp,
}

/// The host's nameservers.
#[derive(Debug)]
pub struct Upstream {
    resolv_conf: PathBuf,
    port: u16,
    own: Ipv4Addr,
    cached: RefCell<Cached>,
}

/// What the file said, and which state of it: inode, size, seconds and nanoseconds.
#[derive(Debug, Default)]
struct Cached {
    state: Option<(u64, u64, i64, i64)>,
    servers: Vec<SocketAddr>,
}

impl Upstream {
    /// Those that a file in the form of resolv.conf(5) names, without our own address:
    /// a host whose resolver is ourselves would have us ask ourselves.
    pub fn new(resolv_conf: PathBuf, port: u16, own: Ipv4Addr) -> Upstream {
        Upstream {
            resolv_conf,
            port,
            own,
            cached: RefCell::default(),
        }
    }

    /// The first answer that a nameserver gives; `None` if none does in time.
    pub async fn ask(&self, message: &[u8], over: Transport) -> Option<Vec<u8>> {
        for server in self.servers() {
            let asked = future::or(ask_server(server, message, over), async {
                Timer::after(SERVER_DEADLINE).await;
                Err(io::ErrorKind::TimedOut.into())
            });
            match asked.await {
                Ok(answer) => return Some(answer),
                Err(error) => log::debug!("ask nameserver {server}: {error}"),
            }
        }
        None
    }

    /// The nameservers, read again if the file is another than the last time.
    fn servers(&self) -> Vec<SocketAddr> {
        let mut cached = self.cached.borrow_mut();
        let state = fs::metadata(&self.resolv_conf)
            .map(|found| (found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
            .ok();
        if state != cached.state || state.is_none() {
            let text = fs::read_to_string(&self.resolv_conf).unwrap_or_default();
            cached.servers = self.parse(&text);
            cached.state = state;
        }
        cached.servers.clone()
    }

    fn parse(&self, text: &str) -> Vec<SocketAddr> {
        text.lines()
            .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
            .filter(|rest| rest.starts_with([' ', '\t']))
            .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
            .filter(|address| *address != IpAddr::V4(self.own))
            .take(SERVER_LIMIT)
            .map(|address| SocketAddr::new(address, self.port))
            .collect()
    }
}

async fn ask_server(server: SocketAddr, message: &[u8], over: Transport) -> io::Result<Vec<u8>> {
    let id = random_id()?;
    let mut question = message.to_vec();
    let own_id: [u8; 2] = message
        .get(..2)
        .and_then(|id| id.try_into().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    question[..2].copy_from_slice(&id);
    let mut answer = match over {
        Transport::Udp => ask_udp(server, &question).await?,
        Transport::Tcp => ask_tcp(server, &question).await?,
    };
    answer[..2].copy_from_slice(&own_id);
    Ok(answer)
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    // With room for a byte too many, by which one that was cut is known.
    let mut buffer = vec![0; DATAGRAM_LIMIT + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if !answers(&buffer[..length], question) {
            continue;
        }
        if length > DATAGRAM_LIMIT {
            return zone::truncated(&buffer).ok_or(io::ErrorKind::InvalidData.into());
        }
        buffer.truncate(length);
        return Ok(buffer);
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(question).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, question) {
        Ok(answer)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Whether a message answers this question: a response with its id and its name, type
/// and class. A server that could not read the question may leave that out.
fn answers(message: &[u8], question: &[u8]) -> bool {
    const RESPONSE: u8 = 0x80;
    let same_id = message.get(..2) == question.get(..2);
    let responds = message.get(2).is_some_and(|flags| flags & RESPONSE != 0);
    let repeats = match (zone::question(message), zone::question(question)) {
        (Some(theirs), Some(ours)) => theirs.eq_ignore_ascii_case(ours),
        _ => message.get(4..6) == Some(&[0, 0]),
    };
    same_id && responds && repeats
}

fn random_id() -> io::Result<[u8; 2]> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream() -> Upstream {
        Upstream::new(
            PathBuf::from("/nonexistent"),
            53,
            Ipv4Addr::new(172, 30, 0, 1),
        )
    }

    #[test]
    fn nameservers_are_read_as_the_c_library_does_and_ourselves_left_out() {
        let text = "# nameserver 1.1.1.1\nnameserver 127.0.0.53\n  nameserver\t2001:db8::1 \n\
                    nameserver 172.30.0.1\nnameservers 9.9.9.9\nnameserver bad\n\
                    nameserver 10.0.0.1\nnameserver 10.0.0.2\n";
        let found: Vec<String> = upstream()
            .parse(text)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, ["127.0.0.53:53", "[2001:db8::1]:53", "10.0.0.1:53"]);
    }

    #[test]
    fn a_message_answers_only_its_own_question() {
        let mut question = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        question.extend_from_slice(&[1, b'a', 0, 0, 1, 0, 1]);
        let mut answer = question.clone();
        assert!(!answers(&answer, &question), "a question is no answer");
        answer[2] |= 0x80;
        answer[13] = b'A';
        assert!(answers(&answer, &question));
        answer[13] = b'b';
        assert!(!answers(&answer, &question), "another name");
        answer[13] = b'a';
        answer[0] = 9;
        assert!(!answers(&answer, &question), "another id");
        assert!(!answers(&[], &question));
    }
}
