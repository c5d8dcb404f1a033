//! Netlink: the messages by which the kernel's network is read and changed.
//!
//! Only the framing lives here (linux/netlink.h): messages, attributes, one socket,
//! answers matched by sequence number. What the attributes mean is the caller's.
//! Safe throughout; in this room because every layer that talks to the kernel's
//! network, on the host and in a guest, needs it.

use std::cell::{Cell, Ref, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send,
    socket_with,
};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
/// The object must not exist yet.
pub const NLM_F_EXCL: u16 = 0x200;
/// The object is made if it does not exist.
pub const NLM_F_CREATE: u16 = 0x400;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_HEADER: usize = 4;

/// The kernel answers at once; this bounds a broken one.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Dumps come in pieces of at most 32 KiB (netlink_dump of the kernel).
const RECEIVE_BUFFER: usize = 64 << 10;

/// How often a dump that changed under our eyes is read again.
const DUMP_ATTEMPTS: usize = 5;

/// Attributes being written, one after another, each padded to four bytes.
#[derive(Debug, Clone, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub fn new() -> Attributes {
        Attributes::default()
    }

    /// Adds an attribute with these bytes.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        let length = u16::try_from(NLA_HEADER + value.len()).expect("attributes are small");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a number of one byte.
    pub fn u8(self, kind: u16, value: u8) -> Attributes {
        self.bytes(kind, &[value])
    }

    /// Adds a number of four bytes in the host's order.
    pub fn u32(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a text with its closing NUL.
    pub fn text(self, kind: u16, value: &str) -> Attributes {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds attributes inside an attribute.
    pub fn nested(self, kind: u16, inner: Attributes) -> Attributes {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }
}

/// The attributes in these bytes, by kind; a malformed tail is left out.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & NLA_TYPE_MASK;
        let value = rest.get(NLA_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The first attribute of this kind.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// A number of four bytes in the host's order.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// A text up to its NUL.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

/// A message: what it asks, the fixed part of its kind, its attributes.
#[derive(Debug, Clone)]
pub struct Message {
    /// The message's type.
    pub kind: u16,
    /// Flags beyond the request and acknowledgement ones, which are set for you.
    pub flags: u16,
    /// The fixed part, such as `struct ifinfomsg`; its length is a multiple of four.
    pub fixed: Vec<u8>,
    /// What follows it.
    pub attributes: Attributes,
}

impl Message {
    fn encode(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = HEADER + self.fixed.len() + self.attributes.0.len();
        let length = u32::try_from(length).expect("messages are small");
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&(self.flags | flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&self.fixed);
        bytes.extend_from_slice(&self.attributes.0);
        bytes
    }
}

/// A received message: its kind, flags, sequence and payload.
struct Received<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn messages(bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::try_from(number(rest.get(..4)?)?).ok()?;
        let message = Received {
            kind: u16::from_ne_bytes([*rest.get(4)?, *rest.get(5)?]),
            flags: u16::from_ne_bytes([*rest.get(6)?, *rest.get(7)?]),
            sequence: number(rest.get(8..12)?)?,
            payload: rest.get(HEADER..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

impl Received<'_> {
    /// What an acknowledgement says: nothing, or the error.
    fn verdict(&self) -> io::Result<()> {
        let code = self.payload.get(..4).and_then(number).unwrap_or(0);
        match code.cast_signed() {
            0 => Ok(()),
            code => Err(Errno::from_raw_os_error(-code).into()),
        }
    }
}

/// A socket to one part of the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: Cell<u32>,
    /// Kept, because one of this size is mapped and unmapped each time.
    buffer: RefCell<Vec<u8>>,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Netlink {
    /// Opens a socket to this part (`None` means NETLINK_ROUTE) of the network
    /// namespace that the calling thread is in.
    pub fn open(protocol: Option<Protocol>) -> io::Result<Netlink> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_DEADLINE))?;
        Ok(Netlink {
            socket,
            sequence: Cell::new(0),
            buffer: RefCell::new(vec![0; RECEIVE_BUFFER]),
        })
    }

    /// Sends one message and waits for its acknowledgement; gives the payloads of
    /// what came before that.
    pub fn call(&self, message: &Message) -> io::Result<Vec<Vec<u8>>> {
        let sequence = self.next_sequence();
        self.send(&message.encode(NLM_F_ACK, sequence))?;
        let mut answers = Vec::new();
        loop {
            let buffer = self.receive()?;
            for received in messages(&buffer).filter(|m| m.sequence == sequence) {
                if received.kind == NLMSG_ERROR {
                    return received.verdict().map(|()| answers);
                }
                answers.push(received.payload.to_vec());
            }
        }
    }

    /// Asks for all objects of a kind; gives their payloads.
    pub fn dump(&self, message: &Message) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(answers) = self.dump_once(message)? {
                return Ok(answers);
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// `None` if the objects changed while they were read.
    fn dump_once(&self, message: &Message) -> io::Result<Option<Vec<Vec<u8>>>> {
        let sequence = self.next_sequence();
        self.send(&message.encode(NLM_F_DUMP, sequence))?;
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let buffer = self.receive()?;
            for received in messages(&buffer).filter(|m| m.sequence == sequence) {
                interrupted |= received.flags & NLM_F_DUMP_INTR != 0;
                match received.kind {
                    NLMSG_DONE => return Ok((!interrupted).then_some(answers)),
                    NLMSG_ERROR => received.verdict()?,
                    _ => answers.push(received.payload.to_vec()),
                }
            }
        }
    }

    /// Sends messages as one transaction between two that open and close it (as
    /// nfnetlink wants); either all take effect or none.
    pub fn transaction(&self, open: &Message, body: &[Message], close: &Message) -> io::Result<()> {
        let first = self.next_sequence();
        let mut bytes = open.encode(0, first);
        for message in body {
            bytes.extend_from_slice(&message.encode(NLM_F_ACK, self.next_sequence()));
        }
        let last = self.sequence.get();
        bytes.extend_from_slice(&close.encode(0, self.next_sequence()));
        self.send(&bytes)?;
        let mut waiting = body.len();
        while waiting > 0 {
            let buffer = self.receive()?;
            let ours = first..=last;
            for received in messages(&buffer).filter(|m| ours.contains(&m.sequence)) {
                if received.kind == NLMSG_ERROR {
                    // What follows a refusal stays unread and is skipped later: its
                    // sequence numbers never come again.
                    received.verdict()?;
                    waiting = waiting.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    /// Subscribes to the news of these groups (a bit mask).
    pub fn join(&self, groups: u32) -> io::Result<()> {
        bind(&self.socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(())
    }

    /// Waits for the next piece of news, whatever it is; `ETIMEDOUT` after the deadline.
    pub fn wait(&self, deadline: Duration) -> io::Result<()> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(deadline))?;
        match self.receive() {
            // More happened than the socket can hold: that is news too.
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => Ok(()),
            other => other.map(drop),
        }
    }

    fn next_sequence(&self) -> u32 {
        self.sequence.set(self.sequence.get().wrapping_add(1));
        self.sequence.get()
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(&self.socket, bytes, SendFlags::empty())?;
        Ok(())
    }

    /// The next datagram's bytes.
    fn receive(&self) -> io::Result<Ref<'_, [u8]>> {
        loop {
            let mut buffer = self.buffer.borrow_mut();
            match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length, _)) => {
                    drop(buffer);
                    return Ok(Ref::map(self.buffer.borrow(), |all| &all[..length]));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_with_their_padding_and_nests() {
        let written = Attributes::new()
            .text(3, "bgr0")
            .u8(5, 7)
            .nested(9, Attributes::new().u32(1, 99));
        let found: Vec<_> = attributes(&written.0).collect();
        assert_eq!(found[0], (3, b"bgr0\0".as_slice()));
        assert_eq!(found[1], (5, [7].as_slice()));
        assert_eq!(attribute(found[2].1, 1).and_then(number), Some(99));
    }

    #[test]
    fn malformed_attributes_end_the_list_quietly() {
        for bytes in [
            &[][..],
            &[3, 0],
            &[200, 0, 1, 0, 1],
            &[0, 0, 1, 0],
            &[2, 0, 1, 0],
        ] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn messages_cut_at_any_byte_end_quietly() {
        let message = Message {
            kind: 18,
            flags: 0,
            fixed: vec![0; 4],
            attributes: Attributes::new(),
        };
        let bytes = message.encode(0, 7);
        assert_eq!(messages(&bytes).count(), 1);
        for length in 0..bytes.len() {
            assert_eq!(messages(&bytes[..length]).count(), 0, "{length}");
        }
    }

    #[test]
    fn the_loopback_interface_is_found_by_a_dump() {
        let netlink = Netlink::open(None).unwrap();
        let message = Message {
            kind: 18,
            flags: 0,
            fixed: vec![0; 16],
            attributes: Attributes::new(),
        };
        let links = netlink.dump(&message).unwrap();
        let names: Vec<_> = links
            .iter()
            .filter_map(|link| attribute(link.get(16..)?, 3).map(text))
            .collect();
        assert!(names.contains(&"lo".to_owned()), "{names:?}");
    }
}
