//! What must not pass, and what stops it.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::case::{Case, datagram, discarded, stopped};
use crate::guard::Guard::{self, Isolation, NoIpv6, Rule};
use crate::scene::{
    DISCARD, GATEWAY, MACHINE, METADATA, Net, OUTSIDE, Packet, Place, Probe, heading, own_address,
};
use crate::support::frame::{BROADCAST, Envelope, Mac, tagged};

/// Drops whatever of a guest is not its own.
const OWN_ONLY: Guard = Rule("guest", "drop");
/// Drops ARP in an Ethernet frame of somebody else, or for an address of somebody else.
const OWN_ARP: Guard = Rule("guest", "ether type arp iifname . ether saddr . arp saddr");
/// The two barriers between guests.
const APART: Guard = Rule("forward", "iifname @taps oifname @taps");
const TO_HOST: Guard = Rule("guest_to_host", "reject");
/// Nothing comes back to a guest by the host's routing.
const NO_ROUTE: Guard = Rule("guest_to_outside", "oifname");

const NOBODY: Ipv4Addr = Ipv4Addr::new(172, 30, 200, 200);
/// The host does not become a router by what NAT needs.
const NO_ROUTER: Guard = Rule("forward", "iifname @opened");

/// IPv4's Ethernet addresses of multicast begin so (RFC 1112, 6.4).
const MDNS: (Mac, Ipv4Addr) = ([1, 0, 0x5e, 0, 0, 0xfb], Ipv4Addr::new(224, 0, 0, 251));
const ALL_NODES: (Mac, Ipv6Addr) = (
    [0x33, 0x33, 0, 0, 0, 1],
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
);

/// Every packet that must be stopped.
pub fn cases() -> Vec<Case> {
    let mut all = spoofed();
    all.extend(spoofed_arp());
    all.extend(ipv6());
    all.extend(between_guests());
    all.extend(to_the_host());
    all.extend(by_the_host());
    all.extend(from_outside());
    all
}

fn to_resolver(net: &Net) -> Envelope {
    net.a.envelope(net.gateway_mac, GATEWAY)
}

fn question(envelope: Envelope, number: u16) -> Vec<Probe> {
    vec![datagram(Place::A, envelope, [number, 53], Place::Host)]
}

fn spoofed() -> Vec<Case> {
    vec![
        stopped(
            "the other guest's Ethernet address",
            &[OWN_ONLY],
            |net, number| {
                let from_mac = net.b.mac;
                question(
                    Envelope {
                        from_mac,
                        ..to_resolver(net)
                    },
                    number,
                )
            },
        ),
        stopped("the other guest's address", &[OWN_ONLY], |net, number| {
            let from = net.b.address;
            question(
                Envelope {
                    from,
                    ..to_resolver(net)
                },
                number,
            )
        }),
        stopped("an address of nobody", &[OWN_ONLY], |net, number| {
            let from = NOBODY;
            question(
                Envelope {
                    from,
                    ..to_resolver(net)
                },
                number,
            )
        }),
        stopped(
            "an address of nobody in a tagged frame",
            &[OWN_ONLY],
            |net, number| {
                let from = NOBODY;
                let envelope = Envelope {
                    from,
                    ..to_resolver(net)
                };
                let packet = Packet::Frame(tagged(envelope.udp([number, 53], b"")));
                vec![Probe {
                    packet,
                    ..datagram(Place::A, envelope, [number, 53], Place::Host)
                }]
            },
        ),
    ]
}

/// A question for an address of the host's, whose answer is seen by whoever is told to
/// have asked.
fn asked(net: &Net, envelope: Envelope, sender_mac: Mac, at: Place) -> Vec<Probe> {
    vec![Probe {
        by: Place::A,
        packet: Packet::Frame(envelope.arp(1, sender_mac)),
        at,
        looks: net.arp_answer(envelope.to),
    }]
}

fn spoofed_arp() -> Vec<Case> {
    vec![
        stopped(
            "ARP for the other guest's address",
            &[OWN_ARP, OWN_ONLY],
            |net, number| {
                let honest = net.a.envelope(BROADCAST, own_address(number));
                let from = net.b.address;
                asked(net, Envelope { from, ..honest }, net.a.mac, Place::A)
            },
        ),
        stopped(
            "ARP with the other guest's Ethernet address inside",
            &[OWN_ONLY],
            |net, number| {
                let honest = net.a.envelope(BROADCAST, own_address(number));
                asked(net, honest, net.b.mac, Place::B)
            },
        ),
        stopped(
            "honest ARP in a frame of the other guest",
            &[OWN_ARP],
            |net, number| {
                let honest = net.a.envelope(BROADCAST, own_address(number));
                let from_mac = net.b.mac;
                asked(net, Envelope { from_mac, ..honest }, net.a.mac, Place::A)
            },
        ),
        stopped(
            "ARP that makes a guest the gateway",
            &[OWN_ARP, OWN_ONLY, APART, Isolation],
            |net, number| {
                let (from, to) = (GATEWAY, own_address(number));
                let claim = Envelope {
                    from,
                    ..net.a.envelope(BROADCAST, to)
                }
                .arp(2, net.a.mac);
                vec![at_b(claim)]
            },
        ),
    ]
}

/// A frame that B sees as it is.
fn at_b(frame: Vec<u8>) -> Probe {
    let looks = frame.clone();
    Probe {
        by: Place::A,
        packet: Packet::Frame(frame),
        at: Place::B,
        looks,
    }
}

fn link_local(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last)
}

fn ipv6() -> Vec<Case> {
    vec![
        stopped(
            "IPv6 to the other guest",
            &[OWN_ONLY, APART, Isolation],
            |net, number| {
                let (to_mac, to) = ALL_NODES;
                let from = link_local(number);
                let envelope = Envelope {
                    from_mac: net.a.mac,
                    to_mac,
                    from,
                    to,
                };
                vec![at_b(envelope.neighbour_solicitation(link_local(0xb)))]
            },
        ),
        stopped(
            "IPv6 to the host",
            &[OWN_ONLY, NoIpv6, TO_HOST],
            |net, number| {
                let (to_mac, to) = ALL_NODES;
                let from = link_local(0xa);
                let envelope = Envelope {
                    from_mac: net.a.mac,
                    to_mac,
                    from,
                    to,
                };
                let ports = [number, DISCARD];
                let looks = ports.map(u16::to_be_bytes).concat();
                let packet = Packet::Frame(envelope.udp(ports, b""));
                vec![Probe {
                    by: Place::A,
                    packet,
                    at: Place::HostV6,
                    looks,
                }]
            },
        ),
    ]
}

fn between_guests() -> Vec<Case> {
    const BOTH: &[Guard] = &[APART, Isolation];
    vec![
        stopped("a packet to the other guest", BOTH, |net, number| {
            let envelope = net.a.envelope(net.b.mac, net.b.address);
            discarded(Place::A, envelope, number, Place::B)
        }),
        stopped("a broadcast", BOTH, |net, number| {
            let envelope = net.a.envelope(BROADCAST, Ipv4Addr::BROADCAST);
            discarded(Place::A, envelope, number, Place::B)
        }),
        stopped("a multicast", BOTH, |net, number| {
            let envelope = net.a.envelope(MDNS.0, MDNS.1);
            discarded(Place::A, envelope, number, Place::B)
        }),
        stopped(
            "an honest ARP question for the other guest",
            BOTH,
            |net, _| {
                let envelope = net.a.envelope(BROADCAST, net.b.address);
                vec![at_b(envelope.arp(1, net.a.mac))]
            },
        ),
        stopped("by the host's routing", &[NO_ROUTE], |net, number| {
            let envelope = net.a.envelope(net.gateway_mac, net.b.address);
            discarded(Place::A, envelope, number, Place::B)
        }),
        stopped(
            "to a published port",
            &[Rule("prerouting", "iifname \"banger0\" return"), NO_ROUTE],
            |net, number| {
                let envelope = net.a.envelope(net.gateway_mac, MACHINE);
                let looks = heading(net.a.address, net.b.address, [number, 7000]);
                vec![Probe {
                    looks,
                    ..datagram(Place::A, envelope, [number, 8080], Place::B)
                }]
            },
        ),
    ]
}

fn to_the_host() -> Vec<Case> {
    vec![
        stopped("UDP to the gateway's address", &[TO_HOST], |net, number| {
            discarded(
                Place::A,
                net.a.envelope(net.gateway_mac, GATEWAY),
                number,
                Place::Host,
            )
        }),
        stopped(
            "TCP to a server on the gateway's address",
            &[TO_HOST],
            |net, number| {
                let ports = [number, crate::SERVER];
                let packet = Packet::Frame(net.a.envelope(net.gateway_mac, GATEWAY).tcp_syn(ports));
                let looks = heading(GATEWAY, net.a.address, [crate::SERVER, number]);
                vec![Probe {
                    by: Place::A,
                    packet,
                    at: Place::A,
                    looks,
                }]
            },
        ),
        stopped(
            "UDP to the host's address outside",
            &[TO_HOST],
            |net, number| {
                discarded(
                    Place::A,
                    net.a.envelope(net.gateway_mac, MACHINE),
                    number,
                    Place::Host,
                )
            },
        ),
        stopped(
            "UDP to another address of the host",
            &[TO_HOST],
            |net, number| {
                let envelope = net.a.envelope(net.gateway_mac, own_address(number));
                discarded(Place::A, envelope, number, Place::Host)
            },
        ),
        stopped("a broadcast to the host", &[TO_HOST], |net, number| {
            let envelope = net.a.envelope(BROADCAST, Ipv4Addr::BROADCAST);
            discarded(Place::A, envelope, number, Place::Host)
        }),
        stopped(
            "UDP to the host's loopback",
            &[
                Rule("guest", "ether type ip ip daddr 127.0.0.0/8"),
                Rule("early", "iifname \"banger0\" ip daddr 127.0.0.0/8"),
                TO_HOST,
            ],
            |net, number| {
                let envelope = net.a.envelope(net.gateway_mac, Ipv4Addr::LOCALHOST);
                discarded(Place::A, envelope, number, Place::Host)
            },
        ),
    ]
}

fn by_the_host() -> Vec<Case> {
    vec![
        stopped(
            "a cloud's metadata, with NAT",
            &[Rule("guest_to_outside", "ip daddr 169.254.0.0/16")],
            |net, number| {
                let envelope = net.a.envelope(net.gateway_mac, METADATA);
                let looks = heading(MACHINE, METADATA, [number, DISCARD]);
                vec![Probe {
                    looks,
                    ..datagram(Place::A, envelope, [number, DISCARD], Place::Outside)
                }]
            },
        ),
        stopped(
            "the outside, without NAT",
            &[Rule("guest_to_outside", "ip saddr != @nat")],
            |net, number| {
                let envelope = net.b.envelope(net.gateway_mac, OUTSIDE);
                discarded(Place::B, envelope, number, Place::Outside)
            },
        ),
    ]
}

fn from_outside() -> Vec<Case> {
    vec![
        stopped(
            "the outside to a guest's published port, not by the host's",
            &[Rule("outside_to_guest", "drop"), NO_ROUTER],
            |net, number| vec![Probe::from_outside(net.b.address, [number, 7000], Place::B)],
        ),
        stopped(
            "the outside to the gateway's address",
            &[Rule("input", "iifname != ")],
            |_, number| vec![Probe::from_outside(GATEWAY, [number, DISCARD], Place::Host)],
        ),
    ]
}
