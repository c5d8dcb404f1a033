//! Published ports: from a program of the host and from another machine to a guest, with
//! real packets, and nobody else by that way.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use banger::host::Host;
use banger::model::ids::VmId;
use banger::plan::step::{FaultKind, Outside, Presence, Step};

use super::guest::{PORT, Seen};
use super::lab::{self, INTERNET, Lab, PATIENCE, UPLINK, run_program};
use super::packets::{A, B, Scene, address_of, is_answer, next_payload, resolver, scene};
use super::{make_and_remove_twice, subnet, tap};
use crate::support::frame::Envelope;

fn publishing(vm: VmId, outside: Outside, ports: &[&str]) -> Step {
    Step::NetRules {
        vm,
        address: address_of(vm),
        subnet: subnet(),
        outside,
        publish: ports.iter().map(|port| port.parse().unwrap()).collect(),
    }
}

/// Two guests without NAT, the first with this published port.
fn scene_with(lab: &Lab, port: &str) -> Scene {
    let scene = scene(lab, Outside::Closed);
    let rules = publishing(A, Outside::Closed, &[port]);
    lab.host.ensure(&rules).unwrap();
    assert_eq!(lab.host.probe(&rules), Ok(Presence::Present));
    scene
}

fn client(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn says<'a>(text: &'a [u8]) -> impl Fn(&Seen) -> bool + 'a {
    move |seen| matches!(seen, Seen::Udp { payload, .. } if payload == text)
}

fn routes_loopback() -> String {
    std::fs::read_to_string("/proc/sys/net/ipv4/conf/banger0/route_localnet").unwrap()
}

#[test]
fn ports_are_published_and_withdrawn_twice_whatever_their_address() {
    lab::run("ports_are_published_and_withdrawn", |lab: &mut Lab| {
        let _server = lab.connect_to_internet();
        lab.host.ensure(&tap(A)).unwrap();
        let ports = [
            "8080:80",
            "8080:80/udp",
            "0.0.0.0:8081:80",
            "203.0.113.1:8082:80",
        ];
        for outside in [Outside::Closed, Outside::Nat] {
            make_and_remove_twice(&lab.host, &publishing(A, outside, &ports));
        }
        let rules = publishing(A, Outside::Closed, &ports);
        lab.host.ensure(&rules).unwrap();
        assert_eq!(routes_loopback(), "1\n");
        // Whoever does not know what was published removes it all the same.
        lab.host
            .absent(&publishing(A, Outside::Closed, &[]))
            .unwrap();
        assert_eq!(lab.host.probe(&rules), Ok(Presence::Absent));
        assert_eq!(routes_loopback(), "0\n");
        let left = run_program("nft", "list table inet banger_banger0");
        assert!(!left.contains(&address_of(A).to_string()), "{left}");
    });
}

#[test]
fn a_program_of_the_host_reaches_the_guest_by_its_loopback_address_and_nobody_else_does() {
    lab::run("a_program_reaches_the_guest", |lab: &mut Lab| {
        let server = lab.connect_to_internet();
        let scene = scene_with(lab, "18080:4000/udp");
        let (resolver, client) = (resolver(), client("127.0.0.1:5555"));
        client.send_to(b"question", "127.0.0.1:18080").unwrap();
        let seen = scene.a.receive_until(says(b"question"));
        let from_gateway = Seen::Udp {
            from: subnet().gateway(),
            payload: b"question".to_vec(),
        };
        assert!(seen.contains(&from_gateway), "{seen:?}");
        scene.a.send_udp(scene.to_gateway(), 5555, b"answer");
        let mut buffer = [0; 64];
        let (length, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from.to_string().as_str()),
            (b"answer".as_slice(), "127.0.0.1:18080")
        );
        server.send_to(b"intruder", (UPLINK, 18080)).unwrap();
        server.send_to(b"intruder", (UPLINK, PORT)).unwrap();
        let other = scene.b.envelope(scene.gateway_mac, subnet().gateway());
        scene.b.send_udp(other, 18080, b"intruder");
        scene.b.receive_until(|seen| *seen == Seen::Prohibited);
        resolver
            .send_to(b"answer", (scene.a.address, PORT))
            .unwrap();
        let seen = scene.a.receive_until(is_answer);
        assert!(!seen.iter().any(says(b"intruder")), "{seen:?}");
    });
}

#[test]
fn without_its_element_a_published_port_leads_nowhere() {
    lab::run("without_its_element_a_published_port", |lab: &mut Lab| {
        let scene = scene_with(lab, "18080:4000/udp");
        let (resolver, client) = (resolver(), client("127.0.0.1:5555"));
        run_program("nft", "flush map inet banger_banger0 published");
        client.send_to(b"question", "127.0.0.1:18080").unwrap();
        resolver
            .send_to(b"answer", (scene.a.address, PORT))
            .unwrap();
        let seen = scene.a.receive_until(is_answer);
        assert!(!seen.iter().any(says(b"question")), "{seen:?}");
    });
}

#[test]
fn a_guest_does_not_reach_the_loopback_address_that_a_port_is_published_on() {
    lab::run("a_guest_does_not_reach_loopback", |lab: &mut Lab| {
        let scene = scene_with(lab, "18080:4000/udp");
        let (resolver, database) = (resolver(), client("127.0.0.1:5432"));
        let to_loopback = Envelope {
            to: Ipv4Addr::LOCALHOST,
            ..scene.to_gateway()
        };
        let blocked = |with: &str| {
            scene.a.send_udp(to_loopback, 5432, b"select");
            scene.a.send_udp(scene.to_gateway(), 53, b"honest");
            assert_eq!(next_payload(&resolver), b"honest", "{with}");
            database.set_nonblocking(true).unwrap();
            assert!(database.recv(&mut [0; 64]).is_err(), "{with}");
            database.set_nonblocking(false).unwrap();
        };
        // Three barriers, taken away one after the other.
        blocked("all");
        run_program("nft", "flush chain bridge banger_banger0 prerouting");
        blocked("without that of the link layer");
        run_program("nft", "flush chain inet banger_banger0 early");
        blocked("without that before the routing");
        run_program("nft", "flush chain inet banger_banger0 input");
        scene.a.send_udp(to_loopback, 5432, b"select");
        assert_eq!(next_payload(&database), b"select", "control: none");
    });
}

#[test]
fn another_machine_reaches_what_is_published_for_it_and_no_more() {
    lab::run(
        "another_machine_reaches_what_is_published",
        |lab: &mut Lab| {
            let server = lab.connect_to_internet();
            let scene = scene_with(lab, "0.0.0.0:18080:4000/udp");
            server.send_to(b"question", (UPLINK, 18080)).unwrap();
            let seen = scene.a.receive_until(says(b"question"));
            let from_outside = Seen::Udp {
                from: INTERNET,
                payload: b"question".to_vec(),
            };
            assert!(seen.contains(&from_outside), "{seen:?}");
            // The guest has no NAT: it answers, and begins nothing.
            scene.a.send_udp(scene.to_internet(), 9, b"answer");
            let mut buffer = [0; 64];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (&buffer[..length], from.to_string()),
                (b"answer".as_slice(), format!("{UPLINK}:18080"))
            );
            scene.a.send_udp(scene.to_internet(), 10, b"beginning");
            scene.a.receive_until(|seen| *seen == Seen::Prohibited);
            lab.route_from_internet(&format!("{} via {UPLINK}", subnet()));
            let intrudes = |payload: &[u8]| {
                // Another port: the answers of both ways would look alike.
                let direct = (scene.a.address, 7);
                server.send_to(payload, direct).unwrap();
                server.send_to(payload, (UPLINK, PORT)).unwrap();
                server.send_to(b"last", (UPLINK, 18080)).unwrap();
                let seen = scene.a.receive_until(says(b"last"));
                seen.iter().any(says(payload))
            };
            assert!(!intrudes(b"intruder"));
            // Two barriers: one before the guest, one for what we forward at all.
            run_program("nft", "flush set inet banger_banger0 opened");
            assert!(!intrudes(b"intruder"));
            run_program("nft", "flush chain inet banger_banger0 outside_to_guest");
            assert!(intrudes(b"control"));
        },
    );
}

#[test]
fn a_port_of_another_program_or_guest_is_refused_and_nothing_is_left() {
    lab::run("a_port_of_another_is_refused", |lab: &mut Lab| {
        let program = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = program.local_addr().unwrap().port();
        for vm in [A, B] {
            lab.host.ensure(&tap(vm)).unwrap();
        }
        let wanted = format!("{port}:80");
        let rules = |vm| publishing(vm, Outside::Closed, &[&wanted]);
        let fault = lab.host.ensure(&rules(A)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied);
        assert!(fault.what.contains("a program of this host"), "{fault}");
        assert!(fault.remedy.unwrap().contains("--publish"));
        assert_eq!(lab.host.probe(&rules(A)), Ok(Presence::Absent));
        drop(program);
        lab.host.ensure(&rules(A)).unwrap();
        lab.host.ensure(&rules(A)).unwrap();
        let fault = lab.host.ensure(&rules(B)).unwrap_err();
        let holder = address_of(A).to_string();
        assert!(fault.what.contains(&holder), "{fault}");
        let nowhere = publishing(B, Outside::Closed, &["192.0.2.7:8080:80"]);
        let fault = lab.host.ensure(&nowhere).unwrap_err();
        assert!(fault.what.contains("no address 192.0.2.7"), "{fault}");
    });
}
