//! A guest played by the test: a descriptor on its tap, frames written byte by byte.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use banger::host::link::{LinkEvents, Links};
use banger::model::ids::VmId;
use banger::model::net::Mac;
use banger::sys::tun::{self, FrameHeader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lab::PATIENCE;

pub const BROADCAST: [u8; 6] = [0xff; 6];
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const UDP: u8 = 17;
const TCP: u8 = 6;

pub struct Guest {
    tap: OwnedFd,
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
}

/// Who sends a packet to whom; by default the guest itself to the gateway.
#[derive(Clone, Copy)]
pub struct Envelope {
    pub from_mac: [u8; 6],
    pub to_mac: [u8; 6],
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
}

/// What a guest received, as far as the tests tell things apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Udp {
        from: Ipv4Addr,
        payload: Vec<u8>,
    },
    /// Destination unreachable, administratively prohibited (RFC 1812).
    Prohibited,
    TcpSynAck {
        port: u16,
    },
    ArpReply {
        from: Ipv4Addr,
    },
    Other,
}

impl Guest {
    pub fn of(vm: VmId, address: Ipv4Addr) -> Guest {
        Guest {
            tap: plug_in(&vm.tap()),
            mac: Mac::of(vm).0,
            address,
        }
    }

    pub fn envelope(&self, to_mac: [u8; 6], to: Ipv4Addr) -> Envelope {
        Envelope {
            from_mac: self.mac,
            to_mac,
            from: self.address,
            to,
        }
    }

    pub fn send_udp(&self, envelope: Envelope, port: u16, payload: &[u8]) {
        let length = u16::try_from(8 + payload.len()).unwrap();
        let mut packet = Vec::new();
        for word in [4000, port, length, 0] {
            packet.extend_from_slice(&u16::to_be_bytes(word));
        }
        packet.extend_from_slice(payload);
        self.send_ipv4(envelope, UDP, &packet);
    }

    pub fn send_tcp_syn(&self, envelope: Envelope, port: u16) {
        let mut packet = Vec::new();
        packet.extend_from_slice(&4000_u16.to_be_bytes());
        packet.extend_from_slice(&port.to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        let mut pseudo = envelope.from.octets().to_vec();
        pseudo.extend_from_slice(&envelope.to.octets());
        pseudo.extend_from_slice(&[0, TCP, 0, 20]);
        pseudo.extend_from_slice(&packet);
        packet[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        self.send_ipv4(envelope, TCP, &packet);
    }

    fn send_ipv4(&self, envelope: Envelope, protocol: u8, payload: &[u8]) {
        let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let mut packet = vec![
            0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0,
        ];
        packet.extend_from_slice(&envelope.from.octets());
        packet.extend_from_slice(&envelope.to.octets());
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        packet.extend_from_slice(payload);
        self.send_frame(envelope.from_mac, envelope.to_mac, IPV4, &packet);
    }

    /// An ARP packet: operation 1 asks who has `to`, 2 claims `from`.
    pub fn send_arp(&self, envelope: Envelope, operation: u8, sender_mac: [u8; 6]) {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
        packet.extend_from_slice(&sender_mac);
        packet.extend_from_slice(&envelope.from.octets());
        packet.extend_from_slice(&[0; 6]);
        packet.extend_from_slice(&envelope.to.octets());
        self.send_frame(envelope.from_mac, envelope.to_mac, ARP, &packet);
    }

    fn send_frame(&self, from: [u8; 6], to: [u8; 6], kind: u16, payload: &[u8]) {
        let mut frame = to.to_vec();
        frame.extend_from_slice(&from);
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(payload);
        assert_eq!(rustix::io::write(&self.tap, &frame).unwrap(), frame.len());
    }

    /// Everything that arrives up to and with what is waited for. Requests for the
    /// guest's own address are answered on the way, as a guest's kernel would.
    pub fn receive_until(&self, wanted: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let mut all = Vec::new();
        loop {
            let seen = self.receive(&all);
            let done = wanted(&seen);
            all.push(seen);
            if done {
                return all;
            }
        }
    }

    fn receive(&self, so_far: &[Seen]) -> Seen {
        let mut watched = [PollFd::new(&self.tap, PollFlags::IN)];
        let ready = poll(&mut watched, Some(&patience())).unwrap();
        assert!(ready > 0, "nothing more arrived after {so_far:?}");
        let mut frame = vec![0; 4096];
        let length = rustix::io::read(&self.tap, frame.as_mut_slice()).unwrap();
        self.parse(&frame[..length])
    }

    /// Bytes of UDP payload in the frames that are there already.
    pub fn bytes_waiting(&self) -> usize {
        let mut bytes = 0;
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        while poll(&mut [PollFd::new(&self.tap, PollFlags::IN)], Some(&now)).unwrap() > 0 {
            if let Seen::Udp { payload, .. } = self.receive(&[]) {
                bytes += payload.len();
            }
        }
        bytes
    }

    fn parse(&self, frame: &[u8]) -> Seen {
        match u16::from_be_bytes([frame[12], frame[13]]) {
            ARP => self.parse_arp(&frame[14..]),
            IPV4 => parse_ipv4(&frame[14..]),
            _ => Seen::Other,
        }
    }

    fn parse_arp(&self, packet: &[u8]) -> Seen {
        let (from, to) = (address(&packet[14..18]), address(&packet[24..28]));
        if packet[7] == 2 {
            return Seen::ArpReply { from };
        }
        if to == self.address {
            let asker: [u8; 6] = packet[8..14].try_into().unwrap();
            self.send_arp(self.envelope(asker, from), 2, self.mac);
        }
        Seen::Other
    }
}

/// Opens a tap and waits until the kernel has noticed: that is when the bridge's port
/// begins to forward, and after it the bridge itself (net/core/link_watch.c); frames
/// before that are lost.
fn plug_in(name: &str) -> OwnedFd {
    let events = LinkEvents::open().unwrap();
    let tap = tun::open(name, FrameHeader::None).unwrap();
    let links = Links::open().unwrap();
    for passes in [name, "banger0"] {
        while !links.find(passes).unwrap().unwrap().running {
            events.wait(PATIENCE).unwrap();
        }
    }
    tap
}

fn patience() -> Timespec {
    Timespec {
        tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap(),
        tv_nsec: 0,
    }
}

fn parse_ipv4(packet: &[u8]) -> Seen {
    let header = usize::from(packet[0] & 15) * 4;
    let (from, rest) = (address(&packet[12..16]), &packet[header..]);
    match (packet[9], rest) {
        (1, [3, 13, ..]) => Seen::Prohibited,
        (UDP, _) => Seen::Udp {
            from,
            payload: rest[8..].to_vec(),
        },
        (TCP, _) if rest[13] & 0x12 == 0x12 => Seen::TcpSynAck {
            port: u16::from_be_bytes([rest[0], rest[1]]),
        },
        _ => Seen::Other,
    }
}

fn address(bytes: &[u8]) -> Ipv4Addr {
    Ipv4Addr::from(<[u8; 4]>::try_from(bytes).unwrap())
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        rest => u32::from(rest[0]) << 8,
    });
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}
