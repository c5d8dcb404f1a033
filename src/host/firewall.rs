//! Other people's firewalls, as far as they stand in our guests' way.
//!
//! Our tables can refuse what others allow, not allow what others refuse: every table's
//! verdict must be to accept. We change nothing of theirs; doctor says what is in the
//! way and what to type.

use std::fs;
use std::io;

use rustix::net::netlink::NETFILTER;

use crate::sys::netlink::{Attributes, Message, Netlink, attribute, text};

use super::rules;

/// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETCHAIN (linux/netfilter/nf_tables.h).
const GETCHAIN: u16 = 10 << 8 | 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFGENMSG: usize = 4;
const NF_INET_LOCAL_IN: u32 = 1;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;

/// Families whose chains see IPv4 packets of guests: inet and ip.
const FAMILIES: [u8; 2] = [1, 2];

/// What was found if nothing is in the way; otherwise what is, and what to type.
pub fn conflicts(bridge: &str) -> Result<String, String> {
    let chains = foreign_chains(bridge).map_err(|error| error.to_string())?;
    let mut found: Vec<String> = chains
        .iter()
        .filter_map(|chain| chain.complaint())
        .collect();
    found.extend(legacy_tables());
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Ok("no other in the way".to_owned());
    }
    Err(format!("{}; {}", found.join("; "), advice(&chains, bridge)))
}

/// A base chain of a table that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    table: String,
    hook: u32,
    drops: bool,
}

impl Chain {
    fn complaint(&self) -> Option<String> {
        let what = match self.hook {
            NF_INET_LOCAL_IN => "the guests' questions to the resolver",
            NF_INET_FORWARD => "what guests with NAT send",
            _ => return None,
        };
        if self.table == "firewalld" {
            return Some(format!("firewalld may refuse {what}"));
        }
        self.drops.then(|| {
            format!(
                "table {} drops {what} unless a rule of it allows it",
                self.table
            )
        })
    }
}

fn foreign_chains(bridge: &str) -> io::Result<Vec<Chain>> {
    let netlink = Netlink::open(Some(NETFILTER))?;
    let mut all = Vec::new();
    for family in FAMILIES {
        let message = Message {
            kind: GETCHAIN,
            flags: 0,
            fixed: vec![family, 0, 0, 0],
            attributes: Attributes::new(),
        };
        let answers = netlink.dump(&message)?;
        all.extend(answers.iter().filter_map(|answer| parse(answer)));
    }
    all.retain(|chain: &Chain| chain.table != rules::table(bridge));
    Ok(all)
}

fn parse(answer: &[u8]) -> Option<Chain> {
    let all = answer.get(NFGENMSG..)?;
    let hook = attribute(all, NFTA_CHAIN_HOOK)?;
    Some(Chain {
        table: attribute(all, NFTA_CHAIN_TABLE).map(text)?,
        hook: attribute(hook, NFTA_HOOK_HOOKNUM).and_then(big_endian)?,
        drops: attribute(all, NFTA_CHAIN_POLICY).and_then(big_endian) == Some(NF_DROP),
    })
}

/// Tables of the older iptables, which nf_tables does not list; root may read them.
fn legacy_tables() -> Option<String> {
    let names = fs::read_to_string("/proc/thread-self/net/ip_tables_names").ok()?;
    let filters = names.lines().any(|name| name == "filter");
    filters.then(|| "rules of iptables-legacy are in force and may refuse guests".to_owned())
}

fn advice(chains: &[Chain], bridge: &str) -> String {
    if chains.iter().any(|chain| chain.table == "firewalld") {
        return format!(
            "run `firewall-cmd --permanent --zone=trusted --add-interface={bridge}` and `firewall-cmd --reload`: our own rules still hold"
        );
    }
    format!(
        "with Docker run `iptables -I DOCKER-USER -i {bridge} -j ACCEPT` and `iptables -I DOCKER-USER -o {bridge} -j ACCEPT`, with ufw `ufw allow in on {bridge} to any port 53` and `ufw route allow in on {bridge}`: our own rules still hold"
    )
}

fn big_endian(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chains_that_can_refuse_guests_are_complained_of() {
        let chain = |table: &str, hook, drops| Chain {
            table: table.to_owned(),
            hook,
            drops,
        };
        for (chain, complains) in [
            (chain("filter", NF_INET_FORWARD, true), true),
            (chain("filter", NF_INET_LOCAL_IN, true), true),
            (chain("filter", NF_INET_FORWARD, false), false),
            (chain("filter", 3, true), false),
            (chain("firewalld", NF_INET_FORWARD, false), true),
        ] {
            assert_eq!(chain.complaint().is_some(), complains, "{chain:?}");
        }
    }
}
