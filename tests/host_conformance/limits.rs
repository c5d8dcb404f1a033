//! That a limited tap lets no more through than its limit, in both directions.
//!
//! No time is asserted on: in whatever time the frames took, a second's worth and the
//! burst on top are the most that may have passed. A marker on another tap, which is not
//! limited, follows each round on the same way, so that whatever passed has arrived.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::process::Command;
use std::time::Instant;

use banger::host::tables::Tables;
use banger::host::{Host, tap_limit};
use banger::model::units::Bytes;
use banger::sys::netlink::Attributes;

use super::lab::{self, Lab};
use super::net_limit;
use super::packets::{A, Scene, resolver, scene};
use banger::plan::step::Outside;

/// The least that can be asked for.
const RATE: Bytes = Bytes(64 << 10);
/// What may pass at once: a second's worth, and the burst of `host::tap_limit`.
const AT_ONCE: u64 = RATE.0 + (256 << 10);
const PAYLOAD: usize = 1400;
const ROUNDS: usize = 50;
const FRAMES: usize = 20;

/// Bytes that arrive of those that A sends in a round.
fn round_from_guest(scene: &Scene, resolver: &UdpSocket) -> usize {
    for _ in 0..FRAMES {
        scene.a.send_udp(scene.to_gateway(), 53, &[7; PAYLOAD]);
    }
    let marker = scene.b.envelope(scene.gateway_mac, scene.to_gateway().to);
    scene.b.send_udp(marker, 53, b"round");
    let mut passed = 0;
    let mut buffer = [0; 2048];
    loop {
        let (length, _) = resolver.recv_from(&mut buffer).unwrap();
        if &buffer[..length] == b"round" {
            return passed;
        }
        passed += length;
    }
}

fn rounds_from_guest(lab: &Lab) -> (usize, u64) {
    let scene = scene(lab, Outside::Closed);
    let resolver = resolver();
    let begun = Instant::now();
    let passed = (0..ROUNDS)
        .map(|_| round_from_guest(&scene, &resolver))
        .sum();
    (passed, begun.elapsed().as_secs())
}

#[test]
fn a_limited_guest_sends_no_more_than_its_limit() {
    lab::run("a_limited_guest_sends_no_more", |lab: &mut Lab| {
        lab.host.ensure(&net_limit(A, RATE)).unwrap();
        let (passed, seconds) = rounds_from_guest(lab);
        let most = AT_ONCE + RATE.0 * (seconds + 1);
        assert!(passed > 0, "what is within the limit passes");
        assert!(passed as u64 <= most, "{passed} bytes in {seconds} s");
    });
}

#[test]
fn without_its_limit_everything_passes() {
    lab::run("without_its_limit_everything_passes", |lab: &mut Lab| {
        lab.host.ensure(&net_limit(A, RATE)).unwrap();
        lab.host.absent(&net_limit(A, RATE)).unwrap();
        let (passed, _) = rounds_from_guest(lab);
        assert_eq!(passed, ROUNDS * FRAMES * PAYLOAD);
    });
}

/// What of the host's frames reaches A before a question of B's that is sent after them.
#[test]
fn a_limited_guest_is_sent_no_more_than_its_limit() {
    lab::run("a_limited_guest_is_sent_no_more", |lab: &mut Lab| {
        let scene = scene(lab, Outside::Closed);
        let resolver = resolver();
        scene.a.send_udp(scene.to_gateway(), 53, b"question");
        let (_, peer) = resolver.recv_from(&mut [0; 64]).unwrap();
        resolver.send_to(b"answer", peer).unwrap();
        scene.a.receive_until(super::packets::is_answer);
        lab.host.ensure(&net_limit(A, RATE)).unwrap();
        let begun = Instant::now();
        let mut passed = 0;
        for _ in 0..ROUNDS {
            for _ in 0..FRAMES {
                resolver.send_to(&[7; PAYLOAD], peer).unwrap();
            }
            // A frame to a tap is in its queue when the call that sent it returns.
            passed += scene.a.bytes_waiting();
        }
        let most = AT_ONCE + RATE.0 * (begun.elapsed().as_secs() + 1);
        assert!(passed > 0, "what is within the limit passes");
        assert!(passed as u64 <= most, "{passed} bytes");
    });
}

#[test]
fn whether_the_kernel_can_limit_is_tried_out_and_leaves_nothing() {
    lab::run(
        "whether_the_kernel_can_limit_is_tried_out",
        |_: &mut Lab| {
            assert_eq!(tap_limit::fitness("bgr-try"), Ok(()));
            let tables = Tables::open("bgr-try").unwrap();
            let unknown = Attributes::new().text(1, "no-such-expression");
            let error = tables.try_out(unknown).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            let listed = Command::new("nft").args(["list", "tables"]).output();
            let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
            assert!(!listed.contains("arp"), "{listed}");
        },
    );
}
