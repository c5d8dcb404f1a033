//! What keeps a packet from passing, or lets it pass, and taking that away for a while.
//!
//! A rule is taken away by putting one in its place that does nothing: so its place is
//! kept, and what is put back is in the end the same text; [`listed`] compares it.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::support::namespace::{ip, run_program};

/// The bridge of a daemon that was told nothing else.
pub const BRIDGE: &str = "banger0";
/// Our two tables, by family and name.
pub const TABLES: [&str; 2] = ["inet banger_banger0", "bridge banger_banger0"];

const IPV6_OFF: &str = "/proc/sys/net/ipv6/conf/banger0/disable_ipv6";

/// One thing that decides whether a packet passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The rule of ours in this chain whose text begins so, or is that.
    Rule(&'static str, &'static str),
    /// The taps are isolated ports of the bridge.
    Isolation,
    /// IPv6 is off on the bridge.
    NoIpv6,
}

/// A rule in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Family and name of its table.
    table: &'static str,
    /// The name of its chain.
    pub chain: String,
    handle: String,
    /// As nft prints it.
    pub text: String,
}

impl Rule {
    /// Whether a guard means this one.
    pub fn is(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Rule(chain, whole @ ("drop" | "accept")) => {
                self.chain == *chain && self.text == *whole
            }
            Guard::Rule(chain, start) => {
                let (_, printed) = unprinted(start);
                self.chain == *chain
                    && (self.text.starts_with(printed) || self.text.starts_with(start))
            }
            Guard::Isolation | Guard::NoIpv6 => false,
        }
    }

    /// Whether it decides nothing: what it leads to does.
    pub fn leads_on(&self) -> bool {
        self.text.contains("jump ")
    }

    fn replaced_by(&self, text: &str) -> String {
        let Rule {
            table,
            chain,
            handle,
            ..
        } = self;
        format!("replace rule {table} {chain} handle {handle} {text}\n")
    }
}

/// Every rule in force, of both tables.
pub fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    for table in TABLES {
        let listed = run_program("nft", &format!("-a list table {table}"));
        let mut chain = "";
        for line in listed.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("chain ") {
                chain = rest.split(' ').next().unwrap_or_default();
            } else if line == "}" {
                chain = "";
            } else if let (Some((text, handle)), false) =
                (line.split_once(" # handle "), chain.is_empty())
            {
                rules.push(Rule {
                    table,
                    chain: chain.to_owned(),
                    handle: handle.to_owned(),
                    text: text.to_owned(),
                });
            }
        }
    }
    rules
}

/// Both tables as they are.
pub fn listed() -> String {
    let tables = TABLES.map(|table| run_program("nft", &format!("list table {table}")));
    tables.concat()
}

/// Guards that are taken away for as long as this lives.
#[must_use]
pub struct Without<'a> {
    guards: &'a [Guard],
    taps: &'a [String],
    rules: Vec<Rule>,
}

impl<'a> Without<'a> {
    /// Takes these away; `taps` are the two guests'.
    pub fn new(guards: &'a [Guard], taps: &'a [String]) -> Without<'a> {
        let has_rule = guards.iter().any(|guard| matches!(guard, Guard::Rule(..)));
        let now = if has_rule { rules() } else { Vec::new() };
        let without = Without {
            guards,
            taps,
            rules: guards
                .iter()
                .filter_map(|guard| find(&now, guard))
                .collect(),
        };
        let nothing = |(index, rule): (usize, &Rule)| rule.replaced_by(&placeholder(index));
        nft(without.rules.iter().enumerate().map(nothing));
        without.switch(Now::Away);
        without
    }

    /// Puts all back.
    pub fn put_back(self) {
        self.switch(Now::Back);
        if self.rules.is_empty() {
            return;
        }
        let now = rules();
        let place = |index| now.iter().find(|rule| rule.text == placeholder(index));
        let back = |(index, rule): (usize, &Rule)| {
            let place = place(index).expect("a rule that does nothing holds its place");
            place.replaced_by(&rule.text)
        };
        nft(self.rules.iter().enumerate().map(back));
    }

    fn switch(&self, now: Now) {
        let (isolated, ipv6_off) = match now {
            Now::Away => ("off", "0"),
            Now::Back => ("on", "1"),
        };
        if self.guards.contains(&Guard::Isolation) {
            for tap in self.taps {
                let setting = format!("type bridge_slave isolated {isolated}");
                ip(&format!("link set {tap} {setting}"));
            }
        }
        if self.guards.contains(&Guard::NoIpv6) {
            fs::write(IPV6_OFF, ipv6_off).expect("a setting can be changed");
        }
    }
}

enum Now {
    Away,
    Back,
}

/// Keeps bridged packets from the rules of routed ones, where br_netfilter (which Docker
/// loads) would lead them there: one more barrier, but not on every host, and no rule's.
pub fn bridge_only_bridges() {
    for protocol in ["arptables", "iptables", "ip6tables"] {
        let setting = format!("/proc/sys/net/bridge/bridge-nf-call-{protocol}");
        if Path::new(&setting).exists() {
            fs::write(setting, "0").expect("a setting can be changed");
        }
    }
}

/// Whether this kernel has IPv6 at all.
pub fn has_ipv6() -> bool {
    Path::new(IPV6_OFF).exists()
}

fn placeholder(index: usize) -> String {
    format!("continue comment \"taken away {index}\"")
}

fn find(now: &[Rule], guard: &Guard) -> Option<Rule> {
    let Guard::Rule(_, start) = guard else {
        return None;
    };
    let found: Vec<&Rule> = now.iter().filter(|rule| rule.is(guard)).collect();
    let [rule] = found[..] else {
        panic!("{guard:?} must mean one rule: {found:?}");
    };
    let (kind, printed) = unprinted(start);
    let kind = if rule.text.starts_with(printed) {
        kind
    } else {
        ""
    };
    Some(Rule {
        text: format!("{kind}{}", rule.text),
        ..rule.clone()
    })
}

/// The beginning of a rule that nft prints or not, where the rest of it means the same.
fn unprinted(start: &str) -> (&str, &str) {
    let kinds = ["ether type ip ", "ether type arp "];
    let length = kinds
        .iter()
        .find(|kind| start.starts_with(**kind))
        .map_or(0, |kind| kind.len());
    start.split_at(length)
}

/// Carries out changes in one transaction.
pub fn nft(changes: impl Iterator<Item = String>) {
    let mut changes = changes.peekable();
    if changes.peek().is_none() {
        return;
    }
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    for change in changes {
        file.write_all(change.as_bytes()).expect("it takes a line");
    }
    run_program("nft", &format!("-f {}", file.path().display()));
}
