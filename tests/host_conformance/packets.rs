//! What guests can send to whom, with real frames on real taps.
//!
//! "Nothing arrives" is proved without waiting: after the forbidden packet an allowed
//! one is sent the same way, and the receiver must see that one first. Each rule has a
//! control in which it is taken away, and the forbidden packet must then arrive.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use banger::daemon::dns::zone::Names;
use banger::daemon::dns::{Dns, Place};
use banger::host::Host;
use banger::host::link::Links;
use banger::model::ids::VmId;
use banger::plan::step::Outside;

use super::guest::{Guest, Seen};
use super::lab::{self, INTERNET, Lab, PATIENCE, UPLINK, ip, run_program};
use super::{rules, subnet, tap};
use crate::support::frame::{BROADCAST, Envelope};

pub const A: VmId = VmId::from_bits(0xa);
pub const B: VmId = VmId::from_bits(0xb);

/// A machine with two guests, and the gateway's Ethernet address.
pub struct Scene {
    pub a: Guest,
    pub b: Guest,
    pub gateway_mac: [u8; 6],
}

pub fn address_of(vm: VmId) -> Ipv4Addr {
    subnet().guest(vm.bits()).unwrap()
}

pub fn scene(lab: &Lab, outside: Outside) -> Scene {
    for vm in [A, B] {
        lab.host.ensure(&tap(vm)).unwrap();
        lab.host
            .ensure(&rules(vm, address_of(vm), outside))
            .unwrap();
    }
    let bridge = Links::open().unwrap().find("banger0").unwrap().unwrap();
    Scene {
        a: Guest::of(A, address_of(A)),
        b: Guest::of(B, address_of(B)),
        gateway_mac: bridge.mac.unwrap(),
    }
}

impl Scene {
    pub fn to_gateway(&self) -> Envelope {
        self.a.envelope(self.gateway_mac, subnet().gateway())
    }

    pub fn to_internet(&self) -> Envelope {
        self.a.envelope(self.gateway_mac, INTERNET)
    }
}

pub fn resolver() -> UdpSocket {
    let socket = UdpSocket::bind((subnet().gateway(), 53)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub fn next_payload(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer).unwrap();
    buffer[..length].to_vec()
}

pub fn is_answer(seen: &Seen) -> bool {
    matches!(seen, Seen::Udp { payload, .. } if payload == b"answer")
}

#[test]
fn a_guest_reaches_the_resolver_and_no_other_port_of_the_host() {
    lab::run("a_guest_reaches_the_resolver_only", |lab: &mut Lab| {
        let scene = scene(lab, Outside::Closed);
        let resolver = resolver();
        let _shell = TcpListener::bind((subnet().gateway(), 22)).unwrap();
        let _dns = TcpListener::bind((subnet().gateway(), 53)).unwrap();
        scene.a.send_udp(scene.to_gateway(), 53, b"question");
        assert_eq!(next_payload(&resolver), b"question");
        resolver
            .send_to(b"answer", (scene.a.address, 4000))
            .unwrap();
        scene.a.receive_until(is_answer);
        scene.a.send_udp(scene.to_gateway(), 8080, b"other port");
        scene.a.receive_until(|seen| *seen == Seen::Prohibited);
        scene.a.send_tcp_syn(scene.to_gateway(), 22);
        scene.a.send_tcp_syn(scene.to_gateway(), 53);
        let seen = scene
            .a
            .receive_until(|seen| *seen == Seen::TcpSynAck { port: 53 });
        assert!(seen.contains(&Seen::Prohibited), "{seen:?}");
        assert!(!seen.contains(&Seen::TcpSynAck { port: 22 }), "{seen:?}");
    });
}

/// A question for the address of `dev.vm`: id 7, recursion wanted (RFC 1035, 4.1).
const QUESTION: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03dev\x02vm\0\0\x01\0\x01";

#[test]
fn the_resolver_answers_a_guest_though_it_began_before_the_bridge() {
    lab::run("the_resolver_answers_a_guest", |lab: &mut Lab| {
        let dns = Dns::bind(&Place::of(subnet())).unwrap();
        let scene = scene(lab, Outside::Closed);
        let address = address_of(A);
        let (end, ended) = smol::channel::bounded::<()>(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let names = Names::default();
                names.replace([("dev".parse().unwrap(), address)]);
                let until_end = async {
                    let _ = ended.recv().await;
                };
                let serving = async {
                    panic!("{}", dns.serve(names).await);
                };
                smol::block_on(smol::future::or(until_end, serving));
            });
            scene.a.send_udp(scene.to_gateway(), 53, QUESTION);
            let answered = |seen: &Seen| {
                matches!(seen, Seen::Udp { from, payload }
                    if *from == subnet().gateway() && payload.ends_with(&address.octets()))
            };
            scene.a.receive_until(answered);
            drop(end);
        });
    });
}

#[test]
fn without_the_tables_the_hosts_other_ports_are_open() {
    lab::run(
        "without_the_tables_other_ports_are_open",
        |lab: &mut Lab| {
            let scene = scene(lab, Outside::Closed);
            let _shell = TcpListener::bind((subnet().gateway(), 22)).unwrap();
            run_program("nft", "flush ruleset");
            scene.a.send_tcp_syn(scene.to_gateway(), 22);
            scene
                .a
                .receive_until(|seen| *seen == Seen::TcpSynAck { port: 22 });
        },
    );
}

/// The packets of A that carry somebody else's address in one place or another.
fn send_spoofed(scene: &Scene) {
    let honest = scene.to_gateway();
    let foreign_address = Envelope {
        from: scene.b.address,
        ..honest
    };
    let foreign_mac = Envelope {
        from_mac: scene.b.mac,
        ..honest
    };
    let outside_address = Envelope {
        from: Ipv4Addr::new(192, 0, 2, 1),
        ..honest
    };
    for envelope in [foreign_address, foreign_mac, outside_address] {
        scene.a.send_udp(envelope, 53, b"spoofed");
    }
}

#[test]
fn a_packet_with_a_foreign_address_never_arrives() {
    lab::run(
        "a_packet_with_a_foreign_address_never_arrives",
        |lab: &mut Lab| {
            let scene = scene(lab, Outside::Closed);
            let resolver = resolver();
            send_spoofed(&scene);
            scene.a.send_udp(scene.to_gateway(), 53, b"honest");
            assert_eq!(next_payload(&resolver), b"honest");
        },
    );
}

#[test]
fn without_its_elements_a_foreign_address_arrives() {
    lab::run(
        "without_its_elements_a_foreign_address_arrives",
        |lab: &mut Lab| {
            let scene = scene(lab, Outside::Closed);
            let resolver = resolver();
            run_program("nft", "flush set bridge banger_banger0 taps");
            send_spoofed(&scene);
            assert_eq!(next_payload(&resolver), b"spoofed");
        },
    );
}

#[test]
fn an_arp_packet_with_a_foreign_address_is_not_believed() {
    lab::run("an_arp_packet_with_a_foreign_address", |lab: &mut Lab| {
        let scene = scene(lab, Outside::Closed);
        let honest = scene.a.envelope(BROADCAST, subnet().gateway());
        let stolen = Envelope {
            from: scene.b.address,
            ..honest
        };
        let neighbours = || run_program("ip", "neighbour show dev banger0");
        scene.a.send_arp(stolen, 1, scene.a.mac);
        scene.a.send_arp(honest, 1, scene.b.mac);
        scene.a.send_arp(stolen, 2, scene.a.mac);
        assert_eq!(neighbours(), "");
        scene.a.send_arp(honest, 1, scene.a.mac);
        let gateway = Seen::ArpReply {
            from: subnet().gateway(),
        };
        let seen = scene.a.receive_until(|seen| *seen == gateway);
        assert_eq!(seen.iter().filter(|seen| **seen == gateway).count(), 1);
        run_program("nft", "flush ruleset");
        scene.a.send_arp(stolen, 1, scene.a.mac);
        scene.a.receive_until(|seen| *seen == gateway);
        assert!(
            neighbours().contains(&scene.b.address.to_string()),
            "control"
        );
    });
}

/// Whether a packet of A to B arrives, before one that the host sends to B afterwards.
fn a_reaches_b(scene: &Scene, resolver: &UdpSocket) -> bool {
    for to_mac in [scene.b.mac, BROADCAST] {
        let direct = scene.a.envelope(to_mac, scene.b.address);
        scene.a.send_udp(direct, 7, b"from a");
    }
    resolver
        .send_to(b"answer", (scene.b.address, 4000))
        .unwrap();
    let seen = scene.b.receive_until(is_answer);
    seen.iter()
        .any(|seen| matches!(seen, Seen::Udp { payload, .. } if payload == b"from a"))
}

#[test]
fn guests_do_not_reach_each_other_by_either_of_two_barriers() {
    lab::run("guests_do_not_reach_each_other", |lab: &mut Lab| {
        let scene = scene(lab, Outside::Nat);
        let resolver = resolver();
        assert!(!a_reaches_b(&scene, &resolver), "both barriers");
        for vm in [A, B] {
            ip(&format!(
                "link set {} type bridge_slave isolated off",
                vm.tap()
            ));
        }
        assert!(!a_reaches_b(&scene, &resolver), "the tables alone");
        run_program("nft", "flush ruleset");
        assert!(a_reaches_b(&scene, &resolver), "control: neither");
        for vm in [A, B] {
            ip(&format!(
                "link set {} type bridge_slave isolated on",
                vm.tap()
            ));
        }
        assert!(!a_reaches_b(&scene, &resolver), "port isolation alone");
    });
}

#[test]
fn guests_do_not_reach_each_other_through_the_hosts_routing() {
    lab::run(
        "guests_do_not_reach_each_other_through_routing",
        |lab: &mut Lab| {
            let scene = scene(lab, Outside::Nat);
            let resolver = resolver();
            std::fs::write("/proc/sys/net/ipv4/conf/banger0/forwarding", "1").unwrap();
            let by_gateway = scene.a.envelope(scene.gateway_mac, scene.b.address);
            scene.a.send_udp(by_gateway, 7, b"from a");
            resolver
                .send_to(b"answer", (scene.b.address, 4000))
                .unwrap();
            let seen = scene.b.receive_until(is_answer);
            let arrived =
                |seen: &Seen| matches!(seen, Seen::Udp { payload, .. } if payload == b"from a");
            assert!(!seen.iter().any(arrived), "{seen:?}");
            run_program("nft", "flush ruleset");
            scene.a.send_udp(by_gateway, 7, b"from a");
            scene.b.receive_until(arrived);
        },
    );
}

#[test]
fn a_guest_with_nat_reaches_the_outside_by_the_hosts_address() {
    lab::run("a_guest_with_nat_reaches_the_outside", |lab: &mut Lab| {
        let server = lab.connect_to_internet();
        let scene = scene(lab, Outside::Nat);
        scene.a.send_udp(scene.to_internet(), 9, b"hello");
        let mut buffer = [0; 64];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from.ip()),
            (b"hello".as_slice(), UPLINK.into())
        );
        server.send_to(b"answer", from).unwrap();
        let seen = scene.a.receive_until(is_answer);
        let from_server = Seen::Udp {
            from: INTERNET,
            payload: b"answer".to_vec(),
        };
        assert!(seen.contains(&from_server), "{seen:?}");
    });
}

#[test]
fn a_guest_without_nat_is_told_so_and_nothing_leaves() {
    lab::run("a_guest_without_nat_is_told_so", |lab: &mut Lab| {
        let server = lab.connect_to_internet();
        let scene = scene(lab, Outside::Nat);
        lab.host
            .ensure(&rules(A, address_of(A), Outside::Closed))
            .unwrap();
        scene.a.send_udp(scene.to_internet(), 9, b"closed");
        scene.a.receive_until(|seen| *seen == Seen::Prohibited);
        let open = scene.b.envelope(scene.gateway_mac, INTERNET);
        scene.b.send_udp(open, 9, b"open");
        assert_eq!(next_payload(&server), b"open");
        lab.host
            .ensure(&rules(A, address_of(A), Outside::Nat))
            .unwrap();
        scene.a.send_udp(scene.to_internet(), 9, b"control");
        assert_eq!(next_payload(&server), b"control");
    });
}

#[test]
fn link_local_addresses_of_a_cloud_are_closed_to_guests_with_nat() {
    lab::run("link_local_addresses_are_closed", |lab: &mut Lab| {
        let server = lab.connect_to_internet();
        lab.address_in_internet("169.254.169.254/32 dev lo");
        let scene = scene(lab, Outside::Nat);
        let cloud = Ipv4Addr::new(169, 254, 169, 254);
        let metadata = scene.a.envelope(scene.gateway_mac, cloud);
        scene.a.send_udp(metadata, 9, b"credentials");
        scene.a.send_udp(scene.to_internet(), 9, b"hello");
        assert_eq!(next_payload(&server), b"hello");
        run_program("nft", "flush ruleset");
        scene.a.send_udp(metadata, 9, b"control");
        assert_eq!(next_payload(&server), b"control");
    });
}

#[test]
fn the_outside_reaches_neither_guest_nor_gateway_address() {
    lab::run(
        "the_outside_reaches_neither_guest_nor_gateway",
        |lab: &mut Lab| {
            let server = lab.connect_to_internet();
            let scene = scene(lab, Outside::Nat);
            let resolver = resolver();
            lab.route_from_internet(&format!("{} via {UPLINK}", subnet()));
            server.send_to(b"intruder", (scene.a.address, 7)).unwrap();
            server
                .send_to(b"intruder", (subnet().gateway(), 53))
                .unwrap();
            scene.a.send_udp(scene.to_gateway(), 53, b"guest");
            assert_eq!(next_payload(&resolver), b"guest");
            resolver
                .send_to(b"answer", (scene.a.address, 4000))
                .unwrap();
            let seen = scene.a.receive_until(is_answer);
            let intruder =
                |seen: &Seen| matches!(seen, Seen::Udp { payload, .. } if payload == b"intruder");
            assert!(!seen.iter().any(intruder), "{seen:?}");
            run_program("nft", "flush ruleset");
            server.send_to(b"intruder", (scene.a.address, 7)).unwrap();
            scene.a.receive_until(intruder);
            server
                .send_to(b"intruder", (subnet().gateway(), 53))
                .unwrap();
            assert_eq!(next_payload(&resolver), b"intruder");
        },
    );
}
