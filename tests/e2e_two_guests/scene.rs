//! A machine with two real guests, a neighbour outside, and an eye wherever a packet may
//! arrive.
//!
//! ```text
//!   a ── station ── tap ─┐
//!   (--nat)              ├─ banger0 [machine] up0 ── eth0 [outside]
//!   b ── station ── tap ─┘
//!   (-p, no NAT)
//! ```
//!
//! Whether a packet arrives is decided without waiting for it not to. Behind it its sender
//! sends a *marker*, which is answered whatever the rules say; so the packet has been
//! dealt with, since a card, a tap and a bridge keep the order of frames. Then the host
//! sends a *sentinel* to where the packet is looked for; what is not there before it
//! does not come.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use banger::model::ids::VmId;
use banger::model::net;
use rustix::net::AddressFamily;

use crate::eye::Eye;
use crate::guard::BRIDGE;
use crate::support::frame::{BROADCAST, Envelope, Mac};
use crate::support::namespace::{Namespace, ip, run_program};
use crate::support::{Banger, DEADLINE};

const IMAGE: &str = "debian-minimal";

/// The host's address on the bridge.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// The host's address towards the outside.
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The neighbour's.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Where clouds keep credentials; the neighbour has it too.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Nobody listens there; that is the kernel's business, after the filters.
pub const DISCARD: u16 = 9;
const SENTINEL: u16 = 7;

/// How long a packet may take that must arrive; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who sends, and where a packet is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    A,
    B,
    Host,
    /// The host, by IPv6.
    HostV6,
    Outside,
}

/// One guest as the network knows it.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    pub mac: Mac,
    pub address: Ipv4Addr,
}

/// Who is who.
#[derive(Debug, Clone, Copy)]
pub struct Net {
    pub a: Guest,
    pub b: Guest,
    pub gateway_mac: Mac,
}

/// What is sent.
#[derive(Debug, Clone)]
pub enum Packet {
    /// Put on its wire by a guest.
    Frame(Vec<u8>),
    /// Sent by the kernel of the host or of the neighbour.
    Datagram {
        from: SocketAddrV4,
        to: SocketAddrV4,
    },
}

/// A packet, and how it looks where it arrives.
#[derive(Debug, Clone)]
pub struct Probe {
    pub by: Place,
    pub packet: Packet,
    pub at: Place,
    pub looks: Vec<u8>,
}

impl Probe {
    /// A datagram of the neighbour's kernel.
    pub fn from_outside(to: Ipv4Addr, ports: [u16; 2], at: Place) -> Probe {
        Probe::sent(Place::Outside, [OUTSIDE, to], ports, at)
    }

    /// A datagram of the host's kernel.
    pub fn from_host(from: Ipv4Addr, to: Ipv4Addr, ports: [u16; 2], at: Place) -> Probe {
        Probe::sent(Place::Host, [from, to], ports, at)
    }

    fn sent(by: Place, [from, to]: [Ipv4Addr; 2], ports: [u16; 2], at: Place) -> Probe {
        let looks = heading(from, to, ports);
        let (from, to) = (
            SocketAddrV4::new(from, ports[0]),
            SocketAddrV4::new(to, ports[1]),
        );
        Probe {
            by,
            packet: Packet::Datagram { from, to },
            at,
            looks,
        }
    }
}

/// The machine, the neighbour, and their guests.
pub struct Scene {
    pub net: Net,
    pub taps: Vec<String>,
    pub banger: Banger,
    outside: Namespace,
    eyes: [(Place, Eye); 5],
    last_number: Cell<u16>,
}

/// The machine's way out leads to the outside, which knows the way to the guests.
pub fn connect(machine: &Namespace, outside: &Namespace) {
    let (machine, outside) = (&machine.name, &outside.name);
    for arguments in [
        format!("-n {machine} link add up0 type veth peer name eth0 netns {outside}"),
        format!("-n {machine} addr add {MACHINE}/24 dev up0"),
        // Every address of it is the host's own (the local table of ip-route(8)).
        format!("-n {machine} addr add {}/16 dev lo", own_address(0)),
        format!("-n {machine} link set up0 up"),
        format!("-n {outside} addr add {OUTSIDE}/24 dev eth0"),
        format!("-n {outside} addr add {METADATA}/32 dev lo"),
        format!("-n {outside} link set eth0 up"),
        format!("-n {outside} route add 172.30.0.0/16 via {MACHINE}"),
        format!("-n {machine} route add default via {OUTSIDE}"),
    ] {
        ip(&arguments);
    }
}

/// One of the host's own addresses, of which no guest has ever heard.
pub fn own_address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

/// Addresses and ports as they follow each other in a packet.
pub fn heading(from: Ipv4Addr, to: Ipv4Addr, ports: [u16; 2]) -> Vec<u8> {
    let addresses = [from.octets(), to.octets()].concat();
    [addresses, ports.map(u16::to_be_bytes).concat()].concat()
}

impl Scene {
    /// Boots both guests; in the machine's namespace.
    pub fn new(outside: Namespace) -> Scene {
        let banger = Banger::with_images(&[IMAGE]);
        let run = ["vm", "run", "-d", "--image", IMAGE, "--name"];
        let both = [
            banger.start(&[&run[..], &["a", "--nat"]].concat()),
            banger.start(&[&run[..], &["b"], &PUBLISHED].concat()),
        ];
        for starting in both {
            let ran = starting.finish(DEADLINE);
            assert_eq!(ran.code(), Some(0), "{ran:?}");
        }
        let ids = ["a", "b"].map(|vm| id(&banger, vm));
        let guests = ["a", "b"].map(|vm| Guest::of(&banger, vm));
        for guest in guests {
            // The host never has to ask: a slow guest's answer would be waited for.
            let mac = net::Mac(guest.mac);
            ip(&format!(
                "neighbour replace {} lladdr {mac} dev {BRIDGE} nud permanent",
                guest.address
            ));
        }
        Scene {
            net: Net {
                a: guests[0],
                b: guests[1],
                gateway_mac: gateway_mac(),
            },
            taps: ids.map(VmId::tap).to_vec(),
            eyes: [
                (Place::A, Eye::in_guest(&banger, "a")),
                (Place::B, Eye::in_guest(&banger, "b")),
                (Place::Host, Eye::in_this_namespace(AddressFamily::INET)),
                (Place::HostV6, Eye::in_this_namespace(AddressFamily::INET6)),
                (
                    Place::Outside,
                    outside.inside(|| Eye::in_this_namespace(AddressFamily::INET)),
                ),
            ],
            banger,
            outside,
            last_number: Cell::new(20_000),
        }
    }

    /// A number that no packet has had: a port, or a part of an address.
    pub fn number(&self) -> u16 {
        self.last_number.set(self.last_number.get() + 1);
        self.last_number.get()
    }

    /// Whether a packet arrives.
    pub fn arrives(&self, probe: &Probe) -> bool {
        let eye = self.eye(probe.at);
        self.eyes.iter().for_each(|(_, eye)| eye.forget());
        self.send(probe.by, &probe.packet);
        self.mark(probe.by);
        self.watch(probe.at);
        eye.has_seen(&probe.looks)
    }

    /// Whether it arrives in the end. Between this host's own namespaces packets may
    /// overtake each other, by another processor.
    pub fn arrives_at_last(&self, probe: &Probe) -> bool {
        self.arrives(probe) || self.eye(probe.at).wait_for(&probe.looks, PATIENCE)
    }

    /// Has the bridge learn again at which port each guest is.
    pub fn settle(&self) {
        self.mark(Place::A);
        self.mark(Place::B);
    }

    fn eye(&self, place: Place) -> &Eye {
        let mut eyes = self.eyes.iter();
        let found = eyes.find(|(at, _)| *at == place);
        &found.expect("there is an eye everywhere").1
    }

    fn send(&self, by: Place, packet: &Packet) {
        match packet {
            Packet::Frame(frame) => self.eye(by).send(frame),
            Packet::Datagram { from, to } if by == Place::Outside => {
                self.outside.inside(|| send(*from, *to))
            }
            Packet::Datagram { from, to } => send(*from, *to),
        }
    }

    /// Returns when all that was sent from there before has been dealt with.
    fn mark(&self, by: Place) {
        let number = self.number();
        let (packet, answer) = match by {
            Place::A => self.question(self.net.a, number),
            Place::B => self.question(self.net.b, number),
            Place::Outside => {
                let (from, to) = (
                    SocketAddrV4::new(OUTSIDE, number),
                    SocketAddrV4::new(MACHINE, DISCARD),
                );
                (
                    Packet::Datagram { from, to },
                    heading(OUTSIDE, MACHINE, [number, DISCARD]),
                )
            }
            // Whoever sends it has done all of it when the call returns.
            Place::Host | Place::HostV6 => return,
        };
        self.send(by, &packet);
        let seen_at = if by == Place::Outside {
            Place::Host
        } else {
            by
        };
        assert!(
            self.eye(seen_at).wait_for(&answer, DEADLINE),
            "the marker of {by:?} is lost"
        );
    }

    /// A guest's honest question for an address of the host, and the host's answer.
    fn question(&self, guest: Guest, number: u16) -> (Packet, Vec<u8>) {
        let host = own_address(number);
        let honest = guest.envelope(BROADCAST, host);
        (
            Packet::Frame(honest.arp(1, guest.mac)),
            self.net.arp_answer(host),
        )
    }

    /// Returns when the eye there has seen a packet that the host sends it now.
    fn watch(&self, at: Place) {
        let number = self.number();
        let (from, to) = match at {
            Place::A => (GATEWAY, self.net.a.address),
            Place::B => (GATEWAY, self.net.b.address),
            Place::Host => (Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST),
            Place::Outside => (MACHINE, OUTSIDE),
            Place::HostV6 => return self.watch_v6(number),
        };
        send(
            SocketAddrV4::new(from, number),
            SocketAddrV4::new(to, SENTINEL),
        );
        let seen = self
            .eye(at)
            .wait_for(&heading(from, to, [number, SENTINEL]), DEADLINE);
        assert!(seen, "the sentinel to {at:?} is lost");
    }

    /// A raw socket of IPv6 tells a datagram without its addresses (raw(7)): the ports alone.
    fn watch_v6(&self, number: u16) {
        let socket = UdpSocket::bind(("::1", number)).expect("loopback has IPv6");
        socket
            .send_to(b"", ("::1", SENTINEL))
            .expect("loopback takes a packet");
        let ports = [number, SENTINEL].map(u16::to_be_bytes).concat();
        assert!(
            self.eye(Place::HostV6).wait_for(&ports, DEADLINE),
            "the sentinel by IPv6 is lost"
        );
    }
}

/// What `b` has of published ports: of one address, of loopback, of every address.
const PUBLISHED: [&str; 6] = [
    "-p",
    "198.51.100.1:8080:7000/udp",
    "-p",
    "8081:7001/udp",
    "-p",
    "0.0.0.0:8082:7002/udp",
];

impl Guest {
    fn of(banger: &Banger, vm: &str) -> Guest {
        let view = banger.json(&["vm", "show", vm]);
        let address = view["address"].as_str().and_then(|text| text.parse().ok());
        Guest {
            mac: net::Mac::of(id(banger, vm)).0,
            address: address.expect("a VM with a tap has an address"),
        }
    }

    /// An honest envelope.
    pub fn envelope(&self, to_mac: Mac, to: Ipv4Addr) -> Envelope {
        Envelope {
            from_mac: self.mac,
            to_mac,
            from: self.address,
            to,
        }
    }
}

impl Net {
    /// How the host's answer looks: who asked for one of its addresses is told.
    pub fn arp_answer(&self, host: Ipv4Addr) -> Vec<u8> {
        let [a, b, c, d] = host.octets();
        [
            &[0, 1, 8, 0, 6, 4, 0, 2][..],
            &self.gateway_mac,
            &[a, b, c, d],
        ]
        .concat()
    }
}

fn id(banger: &Banger, vm: &str) -> VmId {
    let view = banger.json(&["vm", "show", vm]);
    let id = view["id"].as_str().and_then(|text| text.parse().ok());
    id.expect("a VM has an id")
}

fn gateway_mac() -> Mac {
    let shown = run_program("ip", &format!("-o link show {BRIDGE}"));
    let mut words = shown
        .split_whitespace()
        .skip_while(|word| *word != "link/ether");
    let mac: net::Mac = words
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("a bridge has an address");
    mac.0
}

/// Sends an empty datagram, by the kernel of the calling thread's namespace.
fn send(from: SocketAddrV4, to: SocketAddrV4) {
    let socket = UdpSocket::bind(from).expect("no packet has had this port");
    socket.send_to(b"", to).expect("there is a route");
}
