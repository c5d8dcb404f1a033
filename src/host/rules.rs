//! The text of our nftables tables: what a guest may send, and to whom.
//!
//! Pure: a bridge and its network in, a script for `nft -f -` out. Everything per VM is
//! an element of a set, so that starting a VM changes no rule. Two tables of one name:
//! in family `bridge`, where a packet still has its tap, whatever does not carry the
//! guest's own addresses is dropped; in family `inet`, what comes in by our bridge
//! reaches the resolver, or the outside if its address is in `nat`, and nothing else.
//! What programs of the host and other machines send to a published port is led to its
//! guest (see [`super::published`]).
//!
//! The elements of the two `limited` sets carry each a limit of its own: the rule that
//! looks a tap up drops exactly what is over it ([`super::tap_limit`]).
//!
//! Rejected, not dropped, where the guest is honest: a program in it fails at once
//! instead of waiting for a timeout.

use sha2::{Digest, Sha256};

use super::bridge::Bridge;

/// The name of both our tables.
pub fn table(bridge: &str) -> String {
    format!("banger_{bridge}")
}

/// Set of the taps that are under our rules (family bridge).
pub const TAPS: &str = "taps";
/// Set of (tap, Ethernet address, IPv4 address) that may send (family bridge).
pub const IDENTITY: &str = "identity";
/// Set of taps with a limit on what comes from the guest (family bridge).
pub const FROM_LIMITED: &str = "from_limited";
/// Set of taps with a limit on what goes to the guest (family bridge).
pub const TO_LIMITED: &str = "to_limited";
/// Set of the guests' addresses that reach the outside (family inet).
pub const NAT: &str = "nat";
/// Map from (protocol, address, port) of the host to (address, port) of a guest (inet).
pub const PUBLISHED: &str = "published";
/// The same for ports of every address that the host has: from (protocol, port).
pub const PUBLISHED_EVERYWHERE: &str = "published_everywhere";
/// Set of (address, protocol, port) of guests that other machines reach (inet).
pub const REACHED: &str = "reached";
/// Set of the interfaces whose forwarding we switched on (family inet).
pub const OPENED: &str = "opened";
/// What the names of the sets begin with that only say which text is in force.
pub const MARKER: &str = "rules_";

/// The name of the set that exists exactly while this text's rules are in force.
pub fn marker(bridge: &Bridge<'_>) -> String {
    let digest = Sha256::digest(body(bridge));
    let [a, b, c, d] = [digest[0], digest[1], digest[2], digest[3]];
    format!("{MARKER}{a:02x}{b:02x}{c:02x}{d:02x}")
}

/// One transaction: makes the tables or replaces their rules, and keeps the elements.
/// `stale` are the markers of other texts.
pub fn script(bridge: &Bridge<'_>, stale: &[String]) -> String {
    let table = table(bridge.name);
    let marker = marker(bridge);
    let mut script = String::new();
    for family in ["inet", "bridge"] {
        script += &format!("add table {family} {table}\nflush table {family} {table}\n");
    }
    for name in stale {
        script += &format!("delete set inet {table} {name}\n");
    }
    script += &body(bridge);
    script + &format!("add set inet {table} {marker} {{ type ipv4_addr; }}\n")
}

fn body(bridge: &Bridge<'_>) -> String {
    inet(bridge) + &published(bridge.name) + &link_layer(bridge)
}

fn inet(bridge: &Bridge<'_>) -> String {
    let (table, name, gateway) = (table(bridge.name), bridge.name, bridge.subnet.gateway());
    format!(
        r#"table inet {table} {{
    set {NAT} {{
        type ipv4_addr
    }}
    set {OPENED} {{
        type ifname
    }}
    set {REACHED} {{
        type ipv4_addr . inet_proto . inet_service
    }}
    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname != {{ "{name}", "lo" }} ip daddr {gateway} drop
        iifname "{name}" jump guest_to_host
    }}
    chain guest_to_host {{
        ct state established,related accept
        ip daddr {gateway} udp dport 53 accept
        ip daddr {gateway} tcp dport 53 accept
        reject with icmpx admin-prohibited
    }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname "{name}" jump guest_to_outside
        oifname "{name}" jump outside_to_guest
        iifname @{OPENED} ct state new ct status & dnat == 0 drop
    }}
    chain guest_to_outside {{
        oifname "{name}" drop
        ip daddr 169.254.0.0/16 drop
        ct state established,related ct direction reply accept
        ip saddr != @{NAT} reject with icmpx admin-prohibited
        tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        accept
    }}
    chain outside_to_guest {{
        ct state established,related accept
        ct status dnat ip daddr . meta l4proto . th dport @{REACHED} accept
        drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr @{NAT} oifname != "{name}" masquerade
    }}
}}
"#
    )
}

/// What leads published ports to guests. The way out for loopback addresses that comes
/// with it is closed to what guests send.
fn published(name: &str) -> String {
    let table = table(name);
    format!(
        r#"table inet {table} {{
    map {PUBLISHED} {{
        type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
    }}
    map {PUBLISHED_EVERYWHERE} {{
        type inet_proto . inet_service : ipv4_addr . inet_service
    }}
    chain early {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{name}" ip daddr 127.0.0.0/8 drop
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname "{name}" return
        ip daddr 127.0.0.0/8 return
        jump to_guest
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        jump to_guest
    }}
    chain to_guest {{
        dnat ip to meta l4proto . ip daddr . th dport map @{PUBLISHED}
        fib daddr type local dnat ip to meta l4proto . th dport map @{PUBLISHED_EVERYWHERE}
    }}
    chain from_loopback {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 127.0.0.0/8 oifname "{name}" masquerade
    }}
}}
"#
    )
}

fn link_layer(bridge: &Bridge<'_>) -> String {
    let table = table(bridge.name);
    format!(
        r#"table bridge {table} {{
    set {TAPS} {{
        type ifname
    }}
    set {IDENTITY} {{
        type ifname . ether_addr . ipv4_addr
    }}
    set {FROM_LIMITED} {{ type ifname; limit rate over 1 mbytes/second; }}
    set {TO_LIMITED} {{ type ifname; limit rate over 1 mbytes/second; }}
    chain prerouting {{
        type filter hook prerouting priority dstnat; policy accept;
        iifname @{TAPS} jump guest
    }}
    chain guest {{
        iifname @{FROM_LIMITED} drop
        ether type ip ip daddr 127.0.0.0/8 drop
        ether type ip iifname . ether saddr . ip saddr @{IDENTITY} accept
        ether type arp iifname . ether saddr . arp saddr ip != @{IDENTITY} drop
        ether type arp iifname . arp saddr ether . arp saddr ip @{IDENTITY} accept
        drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname @{TAPS} oifname @{TAPS} drop
    }}
    chain postrouting {{
        type filter hook postrouting priority filter; policy accept;
        oifname @{TO_LIMITED} drop
    }}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge(name: &str) -> Bridge<'_> {
        Bridge {
            name,
            subnet: "172.30.0.0/16".parse().unwrap(),
        }
    }

    #[test]
    fn a_script_names_only_tables_of_ours() {
        let script = script(&bridge("bgr0"), &["rules_old".to_owned()]);
        let tables = script.lines().filter(|line| line.contains("table "));
        for line in tables {
            assert!(line.contains("banger_bgr0"), "{line}");
        }
        assert!(script.contains("delete set inet banger_bgr0 rules_old\n"));
    }

    #[test]
    fn the_marker_changes_with_the_rules() {
        let other = Bridge {
            subnet: "10.9.0.0/24".parse().unwrap(),
            ..bridge("bgr0")
        };
        assert_ne!(marker(&bridge("bgr0")), marker(&other));
        assert_eq!(marker(&bridge("bgr0")), marker(&bridge("bgr0")));
        assert!(marker(&other).len() < 32, "NFT_NAME_MAXLEN is 256");
    }
}
