//! What must pass, and what lets it.

use std::net::Ipv4Addr;

use crate::case::{Case, arrives, datagram};
use crate::guard::Guard::{self, Rule};
use crate::scene::{DISCARD, GATEWAY, MACHINE, Net, OUTSIDE, Packet, Place, Probe, heading};

const HONEST: Guard = Rule("guest", "ether type ip iifname . ether saddr . ip saddr");
const TO_GUEST: Guard = Rule("to_guest", "dnat");
const REACHED: Guard = Rule("outside_to_guest", "ct status dnat");

/// Every packet that must arrive.
pub fn cases() -> Vec<Case> {
    let mut all = resolver();
    all.extend(nat());
    all.extend(published());
    all
}

/// A's question to the resolver.
pub fn question(net: &Net, number: u16) -> Vec<Probe> {
    let envelope = net.a.envelope(net.gateway_mac, GATEWAY);
    vec![datagram(Place::A, envelope, [number, 53], Place::Host)]
}

fn resolver() -> Vec<Case> {
    vec![
        arrives(
            "a question to the resolver",
            &[
                HONEST,
                Rule("guest_to_host", "ip daddr 172.30.0.1 udp dport 53"),
            ],
            question,
        ),
        arrives(
            "a connection to the resolver",
            &[
                HONEST,
                Rule("guest_to_host", "ip daddr 172.30.0.1 tcp dport 53"),
            ],
            |net, number| {
                let packet = Packet::Frame(
                    net.a
                        .envelope(net.gateway_mac, GATEWAY)
                        .tcp_syn([number, 53]),
                );
                let looks = heading(GATEWAY, net.a.address, [53, number]);
                vec![Probe {
                    by: Place::A,
                    packet,
                    at: Place::A,
                    looks,
                }]
            },
        ),
        arrives(
            "an answer to the host",
            &[HONEST, Rule("guest_to_host", "ct state")],
            |net, number| {
                let asked = Probe::from_host(GATEWAY, net.b.address, [number, DISCARD], Place::B);
                let envelope = net.b.envelope(net.gateway_mac, GATEWAY);
                vec![
                    asked,
                    datagram(Place::B, envelope, [DISCARD, number], Place::Host),
                ]
            },
        ),
    ]
}

fn nat() -> Vec<Case> {
    vec![
        arrives(
            "the outside, in the host's name",
            &[HONEST, Rule("postrouting", "ip saddr @nat")],
            |net, number| vec![to_outside(net, number)],
        ),
        arrives(
            "an answer from the outside",
            &[Rule("outside_to_guest", "ct state")],
            |net, number| {
                let looks = heading(OUTSIDE, net.a.address, [DISCARD, number]);
                let answer = Probe::from_outside(MACHINE, [DISCARD, number], Place::A);
                vec![to_outside(net, number), Probe { looks, ..answer }]
            },
        ),
    ]
}

fn to_outside(net: &Net, number: u16) -> Probe {
    let envelope = net.a.envelope(net.gateway_mac, OUTSIDE);
    let looks = heading(MACHINE, OUTSIDE, [number, DISCARD]);
    Probe {
        looks,
        ..datagram(Place::A, envelope, [number, DISCARD], Place::Outside)
    }
}

fn published() -> Vec<Case> {
    vec![
        arrives(
            "a published port, from outside",
            &[TO_GUEST, REACHED],
            |net, number| vec![asked_by_outside(net, number)],
        ),
        arrives(
            "a port published everywhere, from outside",
            &[Rule("to_guest", "fib daddr type local dnat"), REACHED],
            |net, number| {
                let looks = heading(OUTSIDE, net.b.address, [number, 7002]);
                vec![Probe {
                    looks,
                    ..Probe::from_outside(MACHINE, [number, 8082], Place::B)
                }]
            },
        ),
        arrives(
            "a guest's answer by its published port, without NAT",
            &[HONEST, Rule("guest_to_outside", "ct state")],
            |net, number| {
                let envelope = net.b.envelope(net.gateway_mac, OUTSIDE);
                let looks = heading(MACHINE, OUTSIDE, [8080, number]);
                let answer = datagram(Place::B, envelope, [7000, number], Place::Outside);
                vec![asked_by_outside(net, number), Probe { looks, ..answer }]
            },
        ),
        arrives(
            "a published port, by loopback",
            &[TO_GUEST, Rule("from_loopback", "ip saddr 127.0.0.0/8")],
            |net, number| {
                let local = Ipv4Addr::LOCALHOST;
                let looks = heading(GATEWAY, net.b.address, [number, 7001]);
                vec![Probe {
                    looks,
                    ..Probe::from_host(local, local, [number, 8081], Place::B)
                }]
            },
        ),
    ]
}

fn asked_by_outside(net: &Net, number: u16) -> Probe {
    let looks = heading(OUTSIDE, net.b.address, [number, 7000]);
    Probe {
        looks,
        ..Probe::from_outside(MACHINE, [number, 8080], Place::B)
    }
}
