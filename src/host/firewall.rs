//! Other people's firewalls, as far as they stand in our guests' way.
//!
//! Our tables can refuse what others allow, not allow what others refuse: every table's
//! verdict must be to accept. We change nothing of theirs; doctor says what is in the
//! way and what to type.
//!
//! | firewall | recognised by | in the way if |
//! |---|---|---|
//! | firewalld | table `firewalld` | always: it refuses what no zone allows |
//! | Docker | chain `DOCKER-USER` | its table drops what is forwarded |
//! | ufw | chains `ufw-…`, or enabled in /etc/ufw/ufw.conf | its table drops |
//! | any other | | a base chain of it drops |
//!
//! A table that names our bridge was told of it, and is not complained of.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::net::netlink::NETFILTER;

use crate::sys::netlink::{Attributes, Message, Netlink, attribute, text};

use super::{program, rules};

/// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETCHAIN (linux/netfilter/nf_tables.h).
const GETCHAIN: u16 = 10 << 8 | 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFGENMSG: usize = 4;
const NF_INET_LOCAL_IN: u32 = 1;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;

const NFT_DEADLINE: Duration = Duration::from_secs(10);

/// Families whose chains see IPv4 packets of guests: inet and ip, with nft's words.
const FAMILIES: [(u8, &str); 2] = [(1, "inet"), (2, "ip")];

/// What was found if nothing is in the way; otherwise what is, and what to type.
///
/// # Errors
/// The complaint, or that we may not look.
pub fn conflicts(bridge: &str) -> Result<String, String> {
    conflicts_below(Path::new("/"), bridge)
}

/// The same with the files of firewalls below this folder.
///
/// # Errors
/// The complaint, or that we may not look.
pub fn conflicts_below(root: &Path, bridge: &str) -> Result<String, String> {
    let tables = foreign_tables(bridge).map_err(|error| error.to_string())?;
    let mut told: BTreeSet<Whose> = BTreeSet::new();
    let mut found: Vec<String> = Vec::new();
    for table in &tables {
        let complaints = table.complaints();
        if !complaints.is_empty() && !table.names(bridge) {
            told.insert(table.whose());
            found.extend(complaints);
        }
    }
    if let Some(complaint) = legacy_tables() {
        told.extend(installed_below(root));
        found.push(complaint);
    }
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Ok("no other in the way".to_owned());
    }
    let advice: Vec<String> = told.iter().map(|whose| whose.advice(bridge)).collect();
    Err(format!(
        "{}; {}: our own rules still hold",
        found.join("; "),
        advice.join("; ")
    ))
}

/// Who made a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Firewalld,
    Docker,
    Ufw,
    Unknown,
}

impl Whose {
    fn name(self) -> &'static str {
        match self {
            Whose::Firewalld => "firewalld",
            Whose::Docker => "Docker",
            Whose::Ufw => "ufw",
            Whose::Unknown => "another firewall",
        }
    }

    fn advice(self, bridge: &str) -> String {
        match self {
            Whose::Firewalld => format!(
                "for firewalld run `firewall-cmd --permanent --zone=trusted --add-interface={bridge}` and `firewall-cmd --reload`"
            ),
            Whose::Docker => format!(
                "for Docker run `iptables -I DOCKER-USER -i {bridge} -j ACCEPT` and `iptables -I DOCKER-USER -o {bridge} -j ACCEPT`"
            ),
            Whose::Ufw => format!(
                "for ufw run `ufw allow in on {bridge} to any port 53` and `ufw route allow in on {bridge}`"
            ),
            Whose::Unknown => format!("allow what comes in by {bridge}, and what leaves by it"),
        }
    }
}

/// A table that is not ours, with its chains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Table {
    family: &'static str,
    name: String,
    chains: Vec<String>,
    /// Hooks of its base chains, and whether each drops what no rule accepts.
    hooks: Vec<(u32, bool)>,
}

impl Table {
    fn whose(&self) -> Whose {
        let has = |test: fn(&str) -> bool| self.chains.iter().any(|chain| test(chain));
        if self.name == "firewalld" {
            Whose::Firewalld
        } else if has(|chain| chain.starts_with("ufw-")) {
            Whose::Ufw
        } else if has(|chain| chain == "DOCKER-USER") {
            Whose::Docker
        } else {
            Whose::Unknown
        }
    }

    fn complaints(&self) -> Vec<String> {
        let whose = self.whose();
        let refuses = |drops: bool| drops || whose == Whose::Firewalld;
        let what = |hook: u32| match hook {
            NF_INET_LOCAL_IN => Some("the guests' questions to the resolver"),
            NF_INET_FORWARD => Some("what guests with NAT send"),
            _ => None,
        };
        let chains = self.hooks.iter().filter(|(_, drops)| refuses(*drops));
        chains
            .filter_map(|(hook, _)| {
                let (name, table) = (whose.name(), &self.name);
                Some(format!(
                    "{name} (table {table}) drops {} unless a rule of it allows it",
                    what(*hook)?
                ))
            })
            .collect()
    }

    /// Whether a rule of it is about our bridge. Asked of nft, which knows every kind of
    /// expression; without it nobody has rules of nftables.
    fn names(&self, bridge: &str) -> bool {
        let Some(nft) = program::find("nft") else {
            return false;
        };
        let words = ["list", "table", self.family, &self.name];
        let listed = program::run(&nft, words, b"", NFT_DEADLINE);
        let named = format!("\"{bridge}\"");
        listed.is_ok_and(|listed| listed.output.contains(&named))
    }
}

fn foreign_tables(bridge: &str) -> io::Result<Vec<Table>> {
    let netlink = Netlink::open(Some(NETFILTER))?;
    let mut all: Vec<Table> = Vec::new();
    for (number, family) in FAMILIES {
        let message = Message {
            kind: GETCHAIN,
            flags: 0,
            fixed: vec![number, 0, 0, 0],
            attributes: Attributes::new(),
        };
        for answer in netlink.dump(&message)? {
            note(&mut all, family, &answer);
        }
    }
    all.retain(|table| table.name != rules::table(bridge));
    Ok(all)
}

/// Adds a chain to the table that it is of.
fn note(tables: &mut Vec<Table>, family: &'static str, answer: &[u8]) -> Option<()> {
    let all = answer.get(NFGENMSG..)?;
    let name = attribute(all, NFTA_CHAIN_TABLE).map(text)?;
    let known = tables
        .iter()
        .position(|table| (table.family, &table.name) == (family, &name));
    let at = known.unwrap_or(tables.len());
    if known.is_none() {
        tables.push(Table {
            family,
            name,
            ..Table::default()
        });
    }
    tables[at]
        .chains
        .extend(attribute(all, NFTA_CHAIN_NAME).map(text));
    let hook = attribute(all, NFTA_CHAIN_HOOK)?;
    let hook = attribute(hook, NFTA_HOOK_HOOKNUM).and_then(big_endian)?;
    let drops = attribute(all, NFTA_CHAIN_POLICY).and_then(big_endian) == Some(NF_DROP);
    tables[at].hooks.push((hook, drops));
    Some(())
}

/// Tables of the older iptables, which nf_tables does not list; root may read them.
fn legacy_tables() -> Option<String> {
    let names = fs::read_to_string("/proc/thread-self/net/ip_tables_names").ok()?;
    let filters = names.lines().any(|name| name == "filter");
    filters.then(|| "rules of iptables-legacy are in force and may refuse guests".to_owned())
}

/// The firewalls that are switched on by their files: all there is to go by where their
/// rules cannot be listed.
fn installed_below(root: &Path) -> BTreeSet<Whose> {
    let ufw = fs::read_to_string(root.join("etc/ufw/ufw.conf")).unwrap_or_default();
    let on = |line: &str| line.trim().eq_ignore_ascii_case("ENABLED=yes");
    let mut found = BTreeSet::new();
    if ufw.lines().any(on) {
        found.insert(Whose::Ufw);
    }
    if root.join("run/docker.sock").exists() || root.join("run/docker.pid").exists() {
        found.insert(Whose::Docker);
    }
    if root.join("run/firewalld.pid").exists() {
        found.insert(Whose::Firewalld);
    }
    if found.is_empty() {
        found.insert(Whose::Unknown);
    }
    found
}

fn big_endian(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, chains: &[&str], hooks: &[(u32, bool)]) -> Table {
        Table {
            family: "ip",
            name: name.to_owned(),
            chains: chains.iter().map(|chain| (*chain).to_owned()).collect(),
            hooks: hooks.to_vec(),
        }
    }

    #[test]
    fn only_chains_that_can_refuse_guests_are_complained_of() {
        for (table, complaints) in [
            (table("filter", &["F"], &[(NF_INET_FORWARD, true)]), 1),
            (table("filter", &["I"], &[(NF_INET_LOCAL_IN, true)]), 1),
            (table("filter", &["F"], &[(NF_INET_FORWARD, false)]), 0),
            (table("filter", &["O"], &[(3, true)]), 0),
            (table("firewalld", &["F"], &[(NF_INET_FORWARD, false)]), 1),
        ] {
            assert_eq!(table.complaints().len(), complaints, "{table:?}");
        }
    }

    #[test]
    fn each_firewall_is_known_by_its_chains() {
        for (table, whose) in [
            (table("firewalld", &["filter_INPUT"], &[]), Whose::Firewalld),
            (
                table("filter", &["INPUT", "ufw-before-input"], &[]),
                Whose::Ufw,
            ),
            (
                table("filter", &["FORWARD", "DOCKER-USER"], &[]),
                Whose::Docker,
            ),
            (table("mine", &["forward"], &[]), Whose::Unknown),
        ] {
            assert_eq!(table.whose(), whose, "{table:?}");
        }
    }

    #[test]
    fn where_rules_cannot_be_listed_the_files_of_firewalls_tell() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(installed_below(root.path()), [Whose::Unknown].into());
        put("etc/ufw/ufw.conf", "# Set to yes\nENABLED=no\n");
        assert_eq!(installed_below(root.path()), [Whose::Unknown].into());
        put("etc/ufw/ufw.conf", "ENABLED=yes\nLOGLEVEL=low\n");
        put("run/docker.pid", "7");
        put("run/firewalld.pid", "8");
        let all = [Whose::Firewalld, Whose::Docker, Whose::Ufw];
        assert_eq!(installed_below(root.path()), all.into());
    }
}
