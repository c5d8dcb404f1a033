//! End to end: what a guest reaches of the world outside, with and without `--nat`.
//!
//! ```text
//!  guest ── tap ── bridge ── [machine] up0 ──veth── eth0 [outside] ── server
//! ```
//!
//! The machine and the outside are network namespaces of this test: the daemon and all
//! of its objects live in the one, nothing of this host's own network is touched, and
//! the outside knows no way back to a guest's address.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use support::namespace::{Namespace, ip};
use support::{Banger, is_root, skip};

const IMAGE: &str = "debian-minimal";
const MACHINE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// In the guest: says a word to the server and shows its answer.
const CLIENT: &str = "exec 3<>/dev/tcp/198.51.100.2/7000 && echo hello >&3 && cat <&3";

/// Joins the two by a wire; the machine's way out leads through it.
fn connect(machine: &Namespace, outside: &Namespace) {
    let (machine, outside) = (&machine.name, &outside.name);
    ip(&format!(
        "-n {machine} link add up0 type veth peer name eth0 netns {outside}"
    ));
    ip(&format!("-n {machine} addr add {MACHINE}/24 dev up0"));
    ip(&format!("-n {outside} addr add {OUTSIDE}/24 dev eth0"));
    ip(&format!("-n {machine} link set up0 up"));
    ip(&format!("-n {outside} link set eth0 up"));
    ip(&format!("-n {machine} route add default via {OUTSIDE}"));
}

/// Answers every client with the address that it seems to come from and what it said.
/// For as long as the process lives: nobody waits for it.
fn serve(outside: &Namespace) {
    let listener = outside.inside(|| TcpListener::bind((OUTSIDE, 7000)));
    let listener = listener.expect("the namespace is our own");
    thread::spawn(move || listener.incoming().flatten().for_each(|one| answer(&one)));
}

fn answer(client: &TcpStream) {
    let peer = client.peer_addr().expect("a connected socket has a peer");
    let mut word = String::new();
    let mut reader = BufReader::new(client);
    reader.read_line(&mut word).expect("the client speaks");
    let mut writer = client;
    write!(writer, "{} said {word}", peer.ip()).expect("the client listens");
}

#[test]
fn guest_reaches_the_outside_with_nat_only_and_in_the_hosts_name() {
    if !is_root() {
        return skip(
            "guest_reaches_the_outside_with_nat_only_and_in_the_hosts_name",
            "not root",
        );
    }
    let (machine, outside) = (Namespace::new("m"), Namespace::new("o"));
    connect(&machine, &outside);
    serve(&outside);
    machine.inside(from_guests);
}

/// Runs in the machine's namespace, daemon and all.
fn from_guests() {
    let banger = Banger::with_images(&[IMAGE]);
    let run = ["vm", "run", "-d", "--image", IMAGE, "--name"];
    banger.ok(&[&run[..], &["open", "--nat"]].concat());
    banger.ok(&[&run[..], &["closed"]].concat());
    let masqueraded = format!("{MACHINE} said hello");

    assert_eq!(banger.exec("open", &["bash", "-c", CLIENT]), masqueraded);

    let ran = banger.run(&["vm", "exec", "closed", "--", "bash", "-c", CLIENT]);
    assert_eq!((ran.code(), ran.text().as_str()), (Some(1), ""), "{ran:?}");
    // It is told at once that there is no way, and does not wait for a time-out.
    assert!(ran.error().contains("No route to host"), "{ran:?}");
    // It was the guest, not the server: the other one still gets through.
    assert_eq!(banger.exec("open", &["bash", "-c", CLIENT]), masqueraded);
    banger.ok(&["vm", "delete", "open", "closed"]);
}
