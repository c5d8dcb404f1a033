//! End to end: what a guest can reach, and what not.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use support::census::Census;
use support::{Banger, DEADLINE, is_root, skip};

const IMAGE: &str = "debian-minimal";

#[test]
fn net_none_gives_no_device_at_all() {
    let banger = Banger::with_images(&[IMAGE]);
    let links = banger.ok(&[
        "vm",
        "run",
        "--rm",
        "--net",
        "none",
        "--image",
        IMAGE,
        "--",
        "ls",
        "/sys/class/net",
    ]);
    assert_eq!(links, "lo");
}

#[test]
fn guest_has_its_address_and_route_without_any_tool_of_the_image() {
    if !is_root() {
        return skip(
            "guest_has_its_address_and_route_without_any_tool_of_the_image",
            "not root",
        );
    }
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    let view = banger.json(&["vm", "show", "a"]);
    let address = view["address"]
        .as_str()
        .expect("a VM with a tap has an address");
    let table = banger.exec("a", &["cat", "/proc/net/fib_trie"]);
    assert!(table.contains(address), "{address} not in {table}");
    let links = banger.exec("a", &["ls", "/sys/class/net"]);
    assert_eq!(links.split_whitespace().count(), 2, "{links}");
}

#[test]
fn guests_do_not_reach_each_other_nor_the_host() {
    if !is_root() {
        return skip("guests_do_not_reach_each_other_nor_the_host", "not root");
    }
    let banger = Banger::with_images(&[IMAGE]);
    banger.boot("a");
    banger.boot("b");
    let address = |vm: &str| {
        banger.json(&["vm", "show", vm])["address"]
            .as_str()
            .map(str::to_owned)
    };
    let other = address("b").expect("a VM with a tap has an address");
    // bash opens /dev/tcp by itself; a refused connection would say so at once.
    let script = format!("timeout 3 bash -c 'echo > /dev/tcp/{other}/22'; echo $?");
    assert_eq!(banger.exec("a", &["sh", "-c", &script]), "124");
}

/// A port of this host that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr();
    address.expect("a bound socket has an address").port()
}

/// Answers one client on port 7000 of the guest. perl is part of every Debian.
const SERVER: &str = r#"
    $l = IO::Socket::INET->new(Listen => 1, LocalPort => 7000) or die "listen: $!";
    $| = 1; print "listening\n";
    $c = $l->accept; $line = <$c>; print $c "guest heard $line"; close $c;
"#;

#[test]
fn published_port_leads_a_client_of_the_host_to_a_server_in_the_guest() {
    port_leads_to_the_guest("user");
}

#[test]
fn published_port_of_a_guest_with_a_tap_is_the_same_to_its_client() {
    let test = "published_port_of_a_guest_with_a_tap_is_the_same_to_its_client";
    match is_root() {
        true => port_leads_to_the_guest("auto"),
        false => skip(test, "not root"),
    }
}

fn port_leads_to_the_guest(net: &str) {
    let banger = Banger::with_images(&[IMAGE]);
    let port = free_port();
    let publish = format!("{port}:7000");
    let run = ["vm", "run", "-d", "--net", net, "--image", IMAGE];
    let run = |name: &str| banger.run(&[&run[..], &["-p", &publish, "--name", name]].concat());
    let first = run("a");
    assert_eq!(first.code(), Some(0), "{first:?}");
    let server = banger.start(&[
        "vm",
        "exec",
        "a",
        "--",
        "perl",
        "-MIO::Socket",
        "-e",
        SERVER,
    ]);
    server.wait_for_output("listening");

    // Ports of a tap are the kernel's: they need no daemon.
    banger.kill_daemon();
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("the port is published");
    client.write_all(b"hello\n").expect("the guest reads");
    let mut answer = String::new();
    client
        .read_to_string(&mut answer)
        .expect("the guest answers");

    assert_eq!(answer, "guest heard hello\n");
    assert_eq!(server.finish(DEADLINE).code(), Some(0));

    // The port is taken now: the next VM that wants it is refused, and leaves nothing.
    banger.ok(&["vm", "list"]);
    let before = Census::take(&banger);
    let second = run("b");
    assert_eq!(second.code(), Some(125), "{second:?}");
    for word in ["--publish", &port.to_string()] {
        assert!(second.error().contains(word), "no {word}: {second:?}");
    }
    assert_eq!(banger.ok(&["vm", "list", "--quiet"]), "a");
    assert_eq!(before.changes(&Census::take(&banger)), [""; 0]);
    assert_eq!(banger.phase("a"), "running");
}
