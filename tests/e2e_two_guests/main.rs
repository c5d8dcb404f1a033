//! End to end: every rule of ours, with two real guests. One of them means harm: it puts
//! on its wire whatever it likes.
//!
//! ```text
//!  closed, open   the cases: a packet, and the guards that stop it or let it pass
//!  case           how one is judged, with guards in place and taken away
//!  guard          a rule of ours (or port isolation), taken away and put back
//!  scene          the machine, its neighbour, the guests; whether a packet arrives
//!  eye            what sees packets
//! ```
//!
//! A packet that must be stopped arrives once its guards are taken away, so the eye can
//! see it; and each of its guards alone stops it. One that must arrive needs each of its
//! guards. And every rule is the guard of some case, or is named here with the reason.

mod case;
mod closed;
mod eye;
mod guard;
mod open;
mod scene;
#[path = "../support/mod.rs"]
mod support;

use std::net::TcpListener;

use guard::{Guard, has_ipv6, rules};
use scene::{GATEWAY, Scene, connect};
use support::namespace::{Namespace, run_program};
use support::{is_root, skip};

/// Where a server of the host listens.
const SERVER: u16 = 2222;

/// Rules that are no case's guard, and why.
const NO_GUARD: [(&str, &str, &str); 6] = [
    (
        "guest",
        "iifname @from_limited",
        "host_conformance/limits.rs counts what it drops",
    ),
    ("postrouting", "oifname @to_limited", "the same"),
    (
        "guest",
        "ether type arp iifname . arp saddr ether",
        "every marker passes by it",
    ),
    ("guest_to_outside", "tcp flags", "a size, no barrier"),
    ("guest_to_outside", "accept", "ends the chain"),
    (
        "prerouting",
        "ip daddr 127.0.0.0/8 return",
        "a kernel takes no such packet from a wire",
    ),
];

/// Before ours and after ours, of each family that ours are of, and one more.
const THEIRS: &str = "
table inet theirs {
    set nat { type ipv4_addr; elements = { 172.30.0.2 }; }
    chain before { type filter hook input priority filter - 20; policy accept;
        tcp dport 22 accept
    }
    chain after { type filter hook forward priority filter + 10; policy accept;
        ip saddr @nat accept
    }
    chain way_out { type nat hook postrouting priority srcnat + 5; policy accept;
        ip saddr 10.9.0.0/16 masquerade
    }
}
table bridge theirs {
    set taps { type ifname; elements = { \"bgr-0000002a\" }; }
    chain before { type filter hook prerouting priority dstnat - 5; policy accept;
        iifname @taps accept
    }
    chain after { type filter hook forward priority filter + 5; policy accept;
        ether type arp accept
    }
}
table ip filter {
    chain FORWARD { type filter hook forward priority filter; policy accept;
        ip daddr 10.9.0.1 drop
    }
}
";

/// The user's tables, handles and all.
fn theirs() -> String {
    let tables = ["inet theirs", "bridge theirs", "ip filter"];
    let listed = tables.map(|table| run_program("nft", &format!("-a list table {table}")));
    listed.concat()
}

#[test]
fn rules_hold_between_two_guests_and_the_users_own_stay_as_they_are() {
    let test = "rules_hold_between_two_guests_and_the_users_own_stay_as_they_are";
    if !is_root() {
        return skip(test, "not root");
    }
    let (machine, outside) = (Namespace::new("m"), Namespace::new("o"));
    connect(&machine, &outside);
    machine.inside(|| {
        guard::bridge_only_bridges();
        guard::nft([THEIRS.to_owned()].into_iter());
        let before = theirs();
        let scene = Scene::new(outside);
        assert_eq!(theirs(), before, "while they run");
        assert_eq!(unproved(), [""; 0], "rules without a case");
        let ours = guard::listed();
        let found = complaints(&scene);
        assert!(found.is_empty(), "{}", found.join("\n"));
        assert_eq!(
            planted(&scene),
            [
                r#"not needed: not Stopped without [Rule("guest_to_outside", "tcp flags")]"#,
                "not stopped: not Stopped without []",
            ]
        );
        let address = scene.banger.exec("a", &["getent", "ahostsv4", "b.vm"]);
        assert!(
            address.starts_with(&scene.net.b.address.to_string()),
            "{address}"
        );
        assert_eq!(guard::listed(), ours, "all was put back");
        users_rules_stay(&scene, &before);
    });
}

fn cases() -> Vec<case::Case> {
    let mut all = closed::cases();
    all.extend(open::cases());
    all.retain(|case| has_ipv6() || !case.guards.contains(&Guard::NoIpv6));
    all
}

/// What is wrong with which case.
fn complaints(scene: &Scene) -> Vec<String> {
    let _server = TcpListener::bind((GATEWAY, SERVER)).expect("nobody has this port");
    let cases = cases();
    let found = cases.iter().flat_map(|case| case.complaints(scene));
    found.collect()
}

/// Cases that are wrong: a guard that guards nothing, a packet that nothing stops.
fn planted(scene: &Scene) -> Vec<String> {
    const IDLE: &[Guard] = &[Guard::Rule("guest_to_outside", "tcp flags")];
    let wrong = [
        case::arrives("not needed", IDLE, open::question),
        case::stopped("not stopped", IDLE, open::question),
    ];
    let found = wrong.iter().flat_map(|case| case.complaints(scene));
    found.collect()
}

/// Rules of ours that no case would miss.
fn unproved() -> Vec<String> {
    let mut known: Vec<Guard> = cases()
        .iter()
        .flat_map(|case| case.guards)
        .copied()
        .collect();
    known.extend(NO_GUARD.map(|(chain, start, _)| Guard::Rule(chain, start)));
    let unknown = |rule: &guard::Rule| !rule.leads_on() && !known.iter().any(|one| rule.is(one));
    let rules = rules().into_iter().filter(unknown);
    rules
        .map(|rule| format!("{}: {}", rule.chain, rule.text))
        .collect()
}

/// Across all that a daemon does with the network, and its death.
fn users_rules_stay(scene: &Scene, before: &str) {
    let banger = &scene.banger;
    let same = |when: &str| assert_eq!(theirs(), before, "{when}");
    same("after the cases");
    banger.kill_daemon();
    banger.ok(&["vm", "list"]);
    same("after another daemon began");
    banger.ok(&["vm", "stop", "a"]);
    same("after a stop");
    banger.ok(&["vm", "start", "a"]);
    same("after a start");
    banger.ok(&["vm", "delete", "a", "b"]);
    same("after they were deleted");
    banger.ok(&["daemon", "stop"]);
    same("after the daemon's end");
}
