//! The host forwards for guests with NAT and for nobody else, whatever becomes of the
//! ruleset and whoever else has guests here; and is afterwards as it was.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};

use banger::host::{Host, RealHost, Settings};
use banger::model::ids::VmId;
use banger::plan::step::{Outside, Presence, Step};

use super::guest::Guest;
use super::lab::{self, INTERNET, Lab, PATIENCE, UPLINK, ip, run_program};
use super::packets::{A, B, address_of, is_answer, next_payload};
use super::{rules, tap};
use crate::support::census::settings;

/// Of the machine in the network that its other interface leads to, and of a server there.
const INSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const INNER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Runs a test on a machine that is no router: a namespace begins with the settings of the
/// one that this machine's programs run in.
fn run(name: &str, test: impl FnOnce(&mut Lab) + Send) {
    lab::run(name, |lab| {
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        test(lab);
    });
}

fn forwards(interface: &str) -> bool {
    settings().contains(&format!("forwarding {interface}"))
}

/// A guest of the lab's installation.
fn start(lab: &Lab, vm: VmId, outside: Outside) {
    lab.host.ensure(&tap(vm)).unwrap();
    lab.host
        .ensure(&rules(vm, address_of(vm), outside))
        .unwrap();
}

/// Another installation on the same machine.
fn other(lab: &Lab) -> RealHost {
    let settings = Settings {
        bridge: "other0".to_owned(),
        ..lab.host.settings().clone()
    };
    RealHost::new(lab.host.layout().clone(), settings)
}

const OTHERS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 9);

/// B as a guest of the other one: its tap, and its rules.
fn of_other(outside: Outside) -> [Step; 2] {
    let subnet = "172.31.0.0/24".parse().unwrap();
    let rules = Step::NetRules {
        vm: B,
        address: OTHERS,
        subnet,
        outside,
        publish: Vec::new(),
    };
    [Step::Tap { vm: B, subnet }, rules]
}

fn start_of_other(host: &RealHost, outside: Outside) {
    for step in of_other(outside) {
        host.ensure(&step).unwrap();
    }
}

fn stop_of_other(host: &RealHost) {
    for step in of_other(Outside::Nat).iter().rev() {
        host.absent(step).unwrap();
    }
}

/// A packet of the other's guest arrives at the server, and the answer at the guest: that
/// is what the uplink must be switched on for.
fn reaches(server: &UdpSocket, word: &[u8]) {
    let guest = Guest::of(B, OTHERS);
    // All bridges of ours have this address.
    let gateway = [0x06, 0x62, 0x67, 0x72, 0x00, 0x01];
    guest.send_udp(guest.envelope(gateway, INTERNET), 9, word);
    let mut buffer = [0; 64];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], word);
    server.send_to(b"answer", from).unwrap();
    guest.receive_until(is_answer);
}

/// A neighbour at the uplink, and a network behind us that is none of its business.
struct Neighbours {
    outer: UdpSocket,
    inner: UdpSocket,
}

impl Neighbours {
    fn of(lab: &mut Lab) -> Neighbours {
        let outer = lab.connect_to_internet();
        let inner = lab.connect_inside(INSIDE, INNER);
        lab.route_from_internet(&format!("{INNER} via {UPLINK}"));
        Neighbours { outer, inner }
    }

    /// Whether a packet of the neighbour arrives behind us, before one that we send there
    /// once a later one of the neighbour's has reached us.
    fn get_through(&self) -> bool {
        let witness = UdpSocket::bind((UPLINK, 0)).unwrap();
        witness.set_read_timeout(Some(PATIENCE)).unwrap();
        self.outer.send_to(b"intruder", (INNER, 9)).unwrap();
        let us = witness.local_addr().unwrap();
        self.outer.send_to(b"last", us).unwrap();
        assert_eq!(next_payload(&witness), b"last");
        let own = UdpSocket::bind((INSIDE, 0)).unwrap();
        own.send_to(b"honest", (INNER, 9)).unwrap();
        let first = next_payload(&self.inner);
        if first == b"intruder" {
            assert_eq!(next_payload(&self.inner), b"honest");
        }
        first == b"intruder"
    }
}

#[test]
fn neighbours_do_not_get_through_once_the_tables_are_back_after_a_flush() {
    run("neighbours_do_not_get_through", |lab: &mut Lab| {
        let neighbours = Neighbours::of(lab);
        assert!(!neighbours.get_through(), "before any guest");
        start(lab, A, Outside::Nat);
        assert!(!neighbours.get_through(), "with a guest that has NAT");
        run_program("nft", "flush ruleset");
        assert!(neighbours.get_through(), "control: no ruleset");
        start(lab, B, Outside::Closed);
        assert!(!neighbours.get_through(), "a guest without NAT came");
        run_program("nft", "flush ruleset");
        start(lab, A, Outside::Nat);
        assert!(!neighbours.get_through(), "the rules were mended");
        run_program("nft", "flush set inet banger_banger0 opened");
        let closed = rules(B, address_of(B), Outside::Closed);
        assert_eq!(lab.host.probe(&closed), Ok(Presence::Absent));
        let nat = rules(A, address_of(A), Outside::Nat);
        assert_eq!(lab.host.probe(&nat), Ok(Presence::Different));
        run_program("nft", "flush ruleset");
        lab.host.remove_network().unwrap();
        assert!(!neighbours.get_through(), "the network was removed");
    });
}

#[test]
fn settings_are_as_before_once_the_network_is_removed_whichever_memory_was_lost() {
    run("settings_are_as_before", |lab: &mut Lab| {
        let _neighbours = Neighbours::of(lab);
        let before = settings();
        let claims = lab.host.settings().claims.clone();
        let losses: [&dyn Fn(); 3] = [
            &|| (),
            &|| drop(run_program("nft", "flush ruleset")),
            &|| fs::remove_dir_all(&claims).unwrap(),
        ];
        for lose in losses {
            start(lab, A, Outside::Nat);
            assert!(forwards("up0"));
            lose();
            lab.host
                .absent(&rules(A, address_of(A), Outside::Nat))
                .unwrap();
            lab.host.absent(&tap(A)).unwrap();
            lab.host.remove_network().unwrap();
            assert_eq!(settings(), before);
            let mut left = fs::read_dir(&claims).unwrap().flatten();
            assert!(left.all(|entry| entry.file_name() == ".lock"), "no claim");
        }
    });
}

#[test]
fn bridges_that_lead_inwards_are_left_alone_and_their_guests_reached() {
    run("bridges_that_lead_inwards", |lab: &mut Lab| {
        let server = lab.connect_to_internet();
        ip("link add inward0 type bridge");
        ip("addr add 192.0.2.1/24 dev inward0");
        ip("link set inward0 up");
        let other = other(lab);
        start_of_other(&other, Outside::Closed);
        start(lab, A, Outside::Nat);
        assert!(forwards("up0"));
        assert!(!forwards("inward0"));
        assert!(!forwards("other0"), "it has no guest with NAT");
        start_of_other(&other, Outside::Nat);
        reaches(&server, b"hello");
        let nat = rules(A, address_of(A), Outside::Nat);
        assert_eq!(lab.host.probe(&nat), Ok(Presence::Present), "no concern");
    });
}

#[test]
fn another_installations_bridge_that_was_opened_by_mistake_is_given_back() {
    run("a_bridge_is_given_back", |lab: &mut Lab| {
        let server = lab.connect_to_internet();
        start(lab, A, Outside::Nat);
        let other = other(lab);
        start_of_other(&other, Outside::Nat);
        // As versions did that took every interface with a route.
        run_program(
            "nft",
            "add element inet banger_banger0 opened { \"other0\" }",
        );
        start(lab, A, Outside::Nat);
        reaches(&server, b"hello");
    });
}

#[test]
fn the_last_installation_that_needs_an_uplink_switches_it_off() {
    run("the_last_installation_switches_off", |lab: &mut Lab| {
        let server = lab.connect_to_internet();
        let before = settings();
        start(lab, A, Outside::Nat);
        let other = other(lab);
        start_of_other(&other, Outside::Nat);
        lab.host
            .absent(&rules(A, address_of(A), Outside::Nat))
            .unwrap();
        lab.host.absent(&tap(A)).unwrap();
        lab.host.remove_network().unwrap();
        reaches(&server, b"still");
        stop_of_other(&other);
        other.remove_network().unwrap();
        assert_eq!(settings(), before);
    });
}

#[test]
fn an_installation_whose_bridge_is_gone_needs_no_uplink() {
    run("an_installation_whose_bridge_is_gone", |lab: &mut Lab| {
        let _server = lab.connect_to_internet();
        let before = settings();
        let other = other(lab);
        start_of_other(&other, Outside::Nat);
        start(lab, A, Outside::Nat);
        stop_of_other(&other);
        ip("link delete other0");
        lab.host.remove_network().unwrap();
        assert_eq!(settings(), before);
    });
}

#[test]
fn what_somebody_else_switched_on_stays_on() {
    run("what_somebody_else_switched_on", |lab: &mut Lab| {
        let neighbours = Neighbours::of(lab);
        for interface in ["up0", "in0"] {
            let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
            fs::write(path, "1").unwrap();
        }
        let before = settings();
        start(lab, A, Outside::Nat);
        assert!(neighbours.get_through(), "their decision");
        lab.host.remove_network().unwrap();
        assert_eq!(settings(), before);
    });
}
