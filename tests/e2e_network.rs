//! End to end: what a guest can reach, and what not.

mod support;

use support::{Banger, is_root, skip};

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
