//! Ethernet frames, written byte by byte: what a guest may put on its wire, true or not.

use std::net::{Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Everybody's Ethernet address.
pub const BROADCAST: Mac = [0xff; 6];
/// The EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// The EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// The EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// The protocol numbers of IP.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Who sends a packet to whom.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<Address = Ipv4Addr> {
    /// The Ethernet address that it claims to come from.
    pub from_mac: Mac,
    /// The Ethernet address that it goes to.
    pub to_mac: Mac,
    /// The address that it claims to come from.
    pub from: Address,
    /// The address that it goes to.
    pub to: Address,
}

impl<Address> Envelope<Address> {
    fn frame(&self, kind: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = [self.to_mac, self.from_mac].concat();
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(packet);
        frame
    }
}

/// The same frame with a tag of no network, priority only (IEEE 802.1Q).
pub fn tagged(mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(12..12, [0x81, 0, 0, 0]);
    frame
}

impl Envelope {
    /// A datagram.
    pub fn udp(&self, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        self.ipv4(UDP, &datagram(ports, payload))
    }

    /// The first segment of a connection.
    pub fn tcp_syn(&self, [from, to]: [u16; 2]) -> Vec<u8> {
        let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
        segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        let mut pseudo = [self.from.octets(), self.to.octets()].concat();
        pseudo.extend_from_slice(&[0, TCP, 0, 20]);
        pseudo.extend_from_slice(&segment);
        segment[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        self.ipv4(TCP, &segment)
    }

    /// An ARP packet: operation 1 asks who has `to`, 2 claims `from`.
    pub fn arp(&self, operation: u8, sender_mac: Mac) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
        packet.extend_from_slice(&sender_mac);
        packet.extend_from_slice(&self.from.octets());
        packet.extend_from_slice(&[0; 6]);
        packet.extend_from_slice(&self.to.octets());
        self.frame(ARP, &packet)
    }

    fn ipv4(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = length(20 + payload.len());
        let mut packet = vec![
            0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0,
        ];
        packet.extend_from_slice(&self.from.octets());
        packet.extend_from_slice(&self.to.octets());
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        packet.extend_from_slice(payload);
        self.frame(IPV4, &packet)
    }
}

impl Envelope<Ipv6Addr> {
    /// A datagram.
    pub fn udp(&self, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        self.ipv6(UDP, datagram(ports, payload), 6)
    }

    /// Asks who has `target` (RFC 4861, 4.3), and says where to answer.
    pub fn neighbour_solicitation(&self, target: Ipv6Addr) -> Vec<u8> {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&target.octets());
        message.extend_from_slice(&[1, 1]);
        message.extend_from_slice(&self.from_mac);
        self.ipv6(ICMPV6, message, 2)
    }

    /// `sum_at` is where the payload's checksum lies, which IPv6 demands.
    fn ipv6(&self, protocol: u8, mut payload: Vec<u8>, sum_at: usize) -> Vec<u8> {
        let length = length(payload.len());
        let addresses = [self.from.octets(), self.to.octets()].concat();
        let pseudo = [&addresses[..], &[0, 0], &length, &[0, 0, 0, protocol]].concat();
        let sum = checksum(&[pseudo, payload.clone()].concat());
        payload[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 255];
        packet.extend_from_slice(&addresses);
        packet.extend_from_slice(&payload);
        self.frame(IPV6, &packet)
    }
}

/// Without a checksum, which IPv4 allows.
fn datagram([from, to]: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let length = length(8 + payload.len());
    let mut datagram = [from.to_be_bytes(), to.to_be_bytes(), length, [0, 0]].concat();
    datagram.extend_from_slice(payload);
    datagram
}

fn length(bytes: usize) -> [u8; 2] {
    let length = u16::try_from(bytes).expect("a frame is short");
    length.to_be_bytes()
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        rest => u32::from(rest[0]) << 8,
    });
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice")
}
