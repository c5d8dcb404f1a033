//! Our two nftables tables and the elements of their sets and maps, by netlink.
//!
//! The tables are made once by `nft` from the text in [`super::rules`]; elements come and
//! go by netlink in one transaction over both tables (nfnetlink,
//! linux/netfilter/nf_tables.h), in constant time and without a subprocess. What elements
//! a VM has is decided in [`super::nft`].
//!
//! Nothing outside our own tables is read or changed.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::model::units::Bytes;
use crate::plan::step::{Fault, FaultKind};
use crate::sys::netlink::{
    Attributes, Message, NLM_F_CREATE, Netlink, attribute, attributes, text,
};

use super::bridge::Bridge;
use super::fault::fault;
use super::link::is;
use super::program;
use super::rules::{self, MARKER};
use super::tap_limit;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;
const GETSET: u16 = SUBSYSTEM << 8 | 10;
const NEWSETELEM: u16 = SUBSYSTEM << 8 | 12;
const GETSETELEM: u16 = SUBSYSTEM << 8 | 13;
const DELSETELEM: u16 = SUBSYSTEM << 8 | 14;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_SET_ELEM_EXPR: u16 = 7;
const NFTA_DATA_VALUE: u16 = 1;
/// `NFTNL_UDATA_SET_ELEM_COMMENT` of libnftnl: one byte kind, one byte length, text, NUL.
const UDATA_COMMENT: u8 = 0;
/// `sizeof(struct nfgenmsg)`.
const NFGENMSG: usize = 4;

const NFT_DEADLINE: Duration = Duration::from_secs(20);

/// The family of a table; the numbers are NFPROTO_* of linux/netfilter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Where packets are routed.
    Inet = 1,
    /// Where a packet still has its tap.
    Bridge = 7,
}

/// An element of one of our sets or maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Of which table.
    pub family: Family,
    /// Of which set or map.
    pub set: &'static str,
    /// The fields of the key, each padded to four bytes.
    pub key: Vec<u8>,
    /// What a map leads to, padded likewise; nothing in a set.
    pub data: Vec<u8>,
    /// What `nft list set` shows beside it.
    pub comment: String,
    /// A lookup finds it only beyond so many bytes per second; not read back.
    pub beyond: Option<Bytes>,
}

impl Element {
    /// An element of a set.
    pub fn of(family: Family, set: &'static str, key: Vec<u8>) -> Element {
        Element {
            family,
            set,
            key,
            data: Vec::new(),
            comment: String::new(),
            beyond: None,
        }
    }

    /// Whether both say the same of one key.
    pub fn says_as(&self, other: &Element) -> bool {
        (&self.data, &self.comment) == (&other.data, &other.comment)
    }

    fn attributes(&self) -> Attributes {
        let value = |bytes: &[u8]| Attributes::new().bytes(NFTA_DATA_VALUE, bytes);
        let mut all = Attributes::new().nested(NFTA_SET_ELEM_KEY, value(&self.key));
        if !self.data.is_empty() {
            all = all.nested(NFTA_SET_ELEM_DATA, value(&self.data));
        }
        if !self.comment.is_empty() {
            let length = u8::try_from(self.comment.len() + 1).expect("comments are short");
            let mut note = vec![UDATA_COMMENT, length];
            note.extend_from_slice(self.comment.as_bytes());
            note.push(0);
            all = all.bytes(NFTA_SET_ELEM_USERDATA, &note);
        }
        match self.beyond {
            Some(rate) => all.nested(NFTA_SET_ELEM_EXPR, tap_limit::expression(rate)),
            None => all,
        }
    }
}

/// Both tables of one bridge, and the socket to them.
///
/// Kept open: closing any nfnetlink socket waits until the kernel has freed what was
/// removed before (nft_rcv_nl_event), 5 to 25 ms that a stop would pay.
#[derive(Debug)]
pub struct Tables {
    netlink: Netlink,
    name: String,
}

impl Tables {
    /// Opens a socket to them; they need not exist.
    pub fn open(bridge: &str) -> io::Result<Tables> {
        Ok(Tables {
            netlink: Netlink::open(Some(NETFILTER))?,
            name: rules::table(bridge),
        })
    }

    /// Whether they exist, in whatever version.
    ///
    /// # Errors
    /// We may not ask, or the kernel has no nf_tables.
    pub fn exist(&self) -> io::Result<bool> {
        Ok(!self.markers()?.is_empty())
    }

    /// Puts our rules in force, by one transaction, unless they are.
    pub fn ensure(&self, bridge: &Bridge<'_>) -> Result<(), Fault> {
        let attempt = || format!("set up nftables table {}", self.name);
        let failed = |error: io::Error| fault(attempt(), error);
        if self.in_force(bridge).map_err(failed)? {
            return Ok(());
        }
        let nft = program::require("nft", "nftables")?;
        let stale = self.markers().map_err(failed)?;
        let script = rules::script(bridge, &stale);
        let outcome = program::run(&nft, ["-f", "-"], script.as_bytes(), NFT_DEADLINE)?;
        if outcome.success && self.in_force(bridge).map_err(failed)? {
            return Ok(());
        }
        let complaint = outcome.complaint.lines().next().unwrap_or("no message");
        Err(Fault::new(
            FaultKind::Other,
            format!("{}: nft: {complaint}", attempt()),
        ))
    }

    /// Removes both tables with all they hold.
    pub fn absent(&self) -> io::Result<()> {
        for family in [Family::Inet, Family::Bridge] {
            let named = Attributes::new().text(NFTA_TABLE_NAME, &self.name);
            match self.commit(&[message(DELTABLE, family, named)]) {
                Err(error) if !is(&error, Errno::NOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the kernel knows this expression: a table with it comes and goes in one
    /// transaction, which nobody else ever sees. It is of our name and of a family where we
    /// have none.
    ///
    /// # Errors
    /// `ENOENT`: it does not. `EPERM`: we may not ask.
    pub fn try_out(&self, expression: Attributes) -> io::Result<()> {
        const ARP: u8 = 3;
        let of_arp = |kind, attributes, flags| Message {
            flags,
            fixed: vec![ARP, 0, 0, 0],
            ..message(kind, Family::Inet, attributes)
        };
        let table = || Attributes::new().text(NFTA_TABLE_NAME, &self.name);
        let chain = Attributes::new()
            .text(NFTA_CHAIN_TABLE, &self.name)
            .text(NFTA_CHAIN_NAME, "try");
        let one = Attributes::new().nested(NFTA_LIST_ELEM, expression);
        let rule = Attributes::new()
            .text(NFTA_RULE_TABLE, &self.name)
            .text(NFTA_RULE_CHAIN, "try")
            .nested(NFTA_RULE_EXPRESSIONS, one);
        self.commit(&[
            of_arp(NEWTABLE, table(), NLM_F_CREATE),
            of_arp(NEWCHAIN, chain, NLM_F_CREATE),
            of_arp(NEWRULE, rule, NLM_F_CREATE),
            of_arp(DELTABLE, table(), 0),
        ])
    }

    /// Whether the rules are those of this text.
    pub fn in_force(&self, bridge: &Bridge<'_>) -> io::Result<bool> {
        Ok(self.markers()? == [rules::marker(bridge)])
    }

    fn markers(&self) -> io::Result<Vec<String>> {
        let named = Attributes::new().text(NFTA_SET_TABLE, &self.name);
        let answers = match self.netlink.dump(&message(GETSET, Family::Inet, named)) {
            Err(error) if is(&error, Errno::NOENT) => return Ok(Vec::new()),
            other => other?,
        };
        let names = answers.iter().filter_map(|answer| {
            let all = answer.get(NFGENMSG..)?;
            let ours = attribute(all, NFTA_SET_TABLE).map(text)? == self.name;
            let name = attribute(all, NFTA_SET_NAME).map(text)?;
            (ours && name.starts_with(MARKER)).then_some(name)
        });
        Ok(names.collect())
    }

    /// The element with this one's key.
    pub fn find(&self, like: &Element) -> io::Result<Option<Element>> {
        let asked = Element::of(like.family, like.set, like.key.clone());
        match self.netlink.call(&self.message(GETSETELEM, &asked)) {
            Ok(answers) => Ok(answers
                .iter()
                .flat_map(|answer| parse(like.family, like.set, answer))
                .next()),
            Err(error) if is(&error, Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All elements of a set or map; a missing one has none.
    pub fn all(&self, family: Family, set: &'static str) -> io::Result<Vec<Element>> {
        let asked = message(GETSETELEM, family, self.element_list(set));
        let answers = match self.netlink.dump(&asked) {
            Err(error) if is(&error, Errno::NOENT) => return Ok(Vec::new()),
            other => other?,
        };
        let found = answers.iter().flat_map(|answer| parse(family, set, answer));
        Ok(found.collect())
    }

    /// Removes elements that are there, then adds others, in one transaction.
    pub fn change(&self, removed: &[Element], added: &[Element]) -> io::Result<()> {
        let bare = |element: &Element| {
            let bare = Element::of(element.family, element.set, element.key.clone());
            self.message(DELSETELEM, &bare)
        };
        let removals = removed.iter().map(bare);
        let additions = added.iter().map(|one| self.message(NEWSETELEM, one));
        self.commit(&removals.chain(additions).collect::<Vec<_>>())
    }

    /// Notes that we switched an interface's forwarding on.
    pub fn note_opened(&self, interface: &str) -> io::Result<()> {
        self.change(&[], &[opened_element(interface)])
    }

    /// Forgets that we switched an interface's forwarding on.
    pub fn forget_opened(&self, interface: &str) -> io::Result<()> {
        self.change(&[opened_element(interface)], &[])
    }

    /// The interfaces whose forwarding we switched on.
    pub fn opened(&self) -> io::Result<Vec<String>> {
        let found = self.all(Family::Inet, rules::OPENED)?.into_iter();
        Ok(found.map(|element| text(&element.key)).collect())
    }

    fn element_list(&self, set: &str) -> Attributes {
        Attributes::new()
            .text(NFTA_SET_ELEM_LIST_TABLE, &self.name)
            .text(NFTA_SET_ELEM_LIST_SET, set)
    }

    fn message(&self, kind: u16, element: &Element) -> Message {
        let list = Attributes::new().nested(NFTA_LIST_ELEM, element.attributes());
        let all = self
            .element_list(element.set)
            .nested(NFTA_SET_ELEM_LIST_ELEMENTS, list);
        let mut message = message(kind, element.family, all);
        if kind == NEWSETELEM {
            message.flags = NLM_F_CREATE;
        }
        message
    }

    fn commit(&self, changes: &[Message]) -> io::Result<()> {
        // The number of the subsystem takes the place of a resource, in network order.
        let [high, low] = SUBSYSTEM.to_be_bytes();
        let edge = |kind| Message {
            kind,
            flags: 0,
            fixed: vec![0, 0, high, low],
            attributes: Attributes::new(),
        };
        self.netlink
            .transaction(&edge(BATCH_BEGIN), changes, &edge(BATCH_END))
    }
}

fn parse(family: Family, set: &'static str, answer: &[u8]) -> Vec<Element> {
    let list = answer
        .get(NFGENMSG..)
        .and_then(|all| attribute(all, NFTA_SET_ELEM_LIST_ELEMENTS))
        .unwrap_or(&[]);
    let parse = |one: &[u8]| {
        let data = value_of(one, NFTA_SET_ELEM_DATA).unwrap_or(&[]);
        let note = attribute(one, NFTA_SET_ELEM_USERDATA).unwrap_or(&[]);
        Some(Element {
            data: data.to_vec(),
            comment: match note {
                [UDATA_COMMENT, _, note @ ..] => text(note),
                _ => String::new(),
            },
            ..Element::of(family, set, value_of(one, NFTA_SET_ELEM_KEY)?.to_vec())
        })
    };
    attributes(list).filter_map(|(_, one)| parse(one)).collect()
}

fn value_of(element: &[u8], kind: u16) -> Option<&[u8]> {
    attribute(attribute(element, kind)?, NFTA_DATA_VALUE)
}

fn message(kind: u16, family: Family, attributes: Attributes) -> Message {
    Message {
        kind,
        flags: 0,
        fixed: vec![family as u8, 0, 0, 0],
        attributes,
    }
}

fn opened_element(interface: &str) -> Element {
    Element::of(Family::Inet, rules::OPENED, interface_key(interface))
}

/// A name as sets of type `ifname` hold it: 16 bytes, the rest zero.
pub fn interface_key(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(16, 0);
    key
}
