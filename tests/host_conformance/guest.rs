//! A guest played by the test: a descriptor on its tap, frames written byte by byte.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use banger::host::link::{LinkEvents, Links};
use banger::model::{self, ids::VmId};
use banger::sys::tun::{self, FrameHeader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lab::PATIENCE;
use crate::support::frame::{ARP, Envelope, IPV4, Mac, TCP, UDP};

/// The guest's own port in every packet that it sends.
pub const PORT: u16 = 4000;

pub struct Guest {
    tap: OwnedFd,
    pub mac: Mac,
    pub address: Ipv4Addr,
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
            mac: model::net::Mac::of(vm).0,
            address,
        }
    }

    pub fn envelope(&self, to_mac: Mac, to: Ipv4Addr) -> Envelope {
        Envelope {
            from_mac: self.mac,
            to_mac,
            from: self.address,
            to,
        }
    }

    pub fn send_udp(&self, envelope: Envelope, port: u16, payload: &[u8]) {
        self.send(&envelope.udp([PORT, port], payload));
    }

    pub fn send_tcp_syn(&self, envelope: Envelope, port: u16) {
        self.send(&envelope.tcp_syn([PORT, port]));
    }

    /// An ARP packet: operation 1 asks who has `to`, 2 claims `from`.
    pub fn send_arp(&self, envelope: Envelope, operation: u8, sender_mac: Mac) {
        self.send(&envelope.arp(operation, sender_mac));
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::io::write(&self.tap, frame).unwrap(), frame.len());
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
            let asker: Mac = packet[8..14].try_into().unwrap();
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
    let port = links.find(name).unwrap().unwrap();
    for passes in [port.index, port.master.unwrap()] {
        while !links.find_index(passes).unwrap().unwrap().running {
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
