//! A VM's elements in our nftables sets, and the tables they are in.
//!
//! The tables are made once by `nft` from the text in [`super::rules`]; a VM's elements
//! come and go by netlink in one transaction over both tables (nfnetlink,
//! linux/netfilter/nf_tables.h), in constant time and without a subprocess. The element
//! in `taps` carries a comment with what was installed for that tap, so that a probe
//! sees whether it is this, and a change or removal needs no memory of it.
//!
//! Nothing outside our own tables is read or changed.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::model::ids::VmId;
use crate::model::net::Mac;
use crate::plan::step::{Fault, FaultKind, Outside, Presence};
use crate::sys::netlink::{
    Attributes, Message, NLM_F_CREATE, Netlink, attribute, attributes, text,
};

use super::bridge::Bridge;
use super::fault::fault;
use super::forwarding;
use super::link::is;
use super::program;
use super::rules::{self, IDENTITY, MARKER, NAT, TAPS};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const DELTABLE: u16 = SUBSYSTEM << 8 | 2;
const GETSET: u16 = SUBSYSTEM << 8 | 10;
const NEWSETELEM: u16 = SUBSYSTEM << 8 | 12;
const GETSETELEM: u16 = SUBSYSTEM << 8 | 13;
const DELSETELEM: u16 = SUBSYSTEM << 8 | 14;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_DATA_VALUE: u16 = 1;
/// `NFTNL_UDATA_SET_ELEM_COMMENT` of libnftnl: one byte kind, one byte length, text, NUL.
const UDATA_COMMENT: u8 = 0;
/// `sizeof(struct nfgenmsg)`.
const NFGENMSG: usize = 4;

const NFT_DEADLINE: Duration = Duration::from_secs(20);

/// The family of a table; the numbers are NFPROTO_* of linux/netfilter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Inet = 1,
    Bridge = 7,
}

/// What a VM is allowed, as it must be.
#[derive(Debug, Clone, Copy)]
pub struct NetRules<'a> {
    /// Whose.
    pub vm: VmId,
    /// The only address the guest may use.
    pub address: Ipv4Addr,
    /// Whether the outside is reachable.
    pub outside: Outside,
    /// Our bridge, whose tables hold the elements.
    pub bridge: Bridge<'a>,
}

/// Adds the VM's elements, after the tables if those are missing or of another text.
pub fn ensure(tables: &Tables, wanted: &NetRules<'_>) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(attempt("set up", wanted.vm), error);
    tables.ensure(&wanted.bridge)?;
    if wanted.outside == Outside::Nat {
        forwarding::ensure(tables, &wanted.bridge)?;
    }
    if tables.examine(wanted).map_err(failed)? != Presence::Present {
        let mut changes = tables.removal(wanted).map_err(failed)?;
        changes.extend(tables.addition(wanted));
        tables.commit(&changes).map_err(failed)?;
    }
    match tables.examine(wanted).map_err(failed)? {
        Presence::Present => Ok(()),
        Presence::Absent | Presence::Different => Err(Fault::new(
            FaultKind::Busy,
            format!(
                "{}: something else changes them",
                attempt("set up", wanted.vm)
            ),
        )),
    }
}

/// Removes the VM's elements; missing tables hold none.
pub fn absent(tables: &Tables, unwanted: &NetRules<'_>) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(attempt("remove", unwanted.vm), error);
    let changes = tables.removal(unwanted).map_err(failed)?;
    if changes.is_empty() {
        return Ok(());
    }
    tables.commit(&changes).map_err(failed)?;
    match tables.removal(unwanted).map_err(failed)?.is_empty() {
        true => Ok(()),
        false => Err(failed(Errno::BUSY.into())),
    }
}

/// Present means: the rules are this text's, the elements are these and no others.
pub fn probe(tables: &Tables, wanted: &NetRules<'_>) -> Result<Presence, Fault> {
    let failed = |error: io::Error| fault(attempt("examine", wanted.vm), error);
    let elements = tables.examine(wanted).map_err(failed)?;
    let outdated = !tables.in_force(&wanted.bridge).map_err(failed)?;
    if elements != Presence::Present {
        return Ok(elements);
    }
    let closed = wanted.outside == Outside::Nat && !forwarding::is_ready(wanted.bridge.name)?;
    Ok(match outdated || closed {
        true => Presence::Different,
        false => Presence::Present,
    })
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

    fn in_force(&self, bridge: &Bridge<'_>) -> io::Result<bool> {
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

    /// What the elements of this VM are, compared with what they must be.
    fn examine(&self, wanted: &NetRules<'_>) -> io::Result<Presence> {
        let listed = self.find(Family::Bridge, TAPS, &tap_key(wanted.vm))?;
        let identity = self.find(
            Family::Bridge,
            IDENTITY,
            &identity_key(wanted.vm, wanted.address),
        )?;
        let nat = self.find(Family::Inet, NAT, &wanted.address.octets())?;
        let Some(element) = listed else {
            let none = identity.is_none() && nat.is_none();
            return Ok(if none {
                Presence::Absent
            } else {
                Presence::Different
            });
        };
        let right = element.comment == comment(wanted.address, wanted.outside)
            && identity.is_some()
            && nat.is_some() == (wanted.outside == Outside::Nat);
        Ok(if right {
            Presence::Present
        } else {
            Presence::Different
        })
    }

    /// The messages that remove all of this VM's elements, also those of another
    /// address that its comment tells of.
    fn removal(&self, of: &NetRules<'_>) -> io::Result<Vec<Message>> {
        let tap = tap_key(of.vm);
        let mut addresses = vec![of.address];
        let listed = self.find(Family::Bridge, TAPS, &tap)?;
        let former = listed.as_ref().and_then(|e| former_address(&e.comment));
        addresses.extend(former.filter(|former| *former != of.address));
        let mut changes = Vec::new();
        for address in addresses {
            let identity = identity_key(of.vm, address);
            if self.find(Family::Bridge, IDENTITY, &identity)?.is_some() {
                changes.push(self.element(DELSETELEM, Family::Bridge, IDENTITY, &identity));
            }
            let nat = address.octets();
            if self.find(Family::Inet, NAT, &nat)?.is_some() {
                changes.push(self.element(DELSETELEM, Family::Inet, NAT, &nat));
            }
        }
        if listed.is_some() {
            changes.push(self.element(DELSETELEM, Family::Bridge, TAPS, &tap));
        }
        Ok(changes)
    }

    fn addition(&self, wanted: &NetRules<'_>) -> Vec<Message> {
        let identity = identity_key(wanted.vm, wanted.address);
        let note = comment(wanted.address, wanted.outside);
        let mut changes = vec![
            self.commented(Family::Bridge, TAPS, &tap_key(wanted.vm), &note),
            self.element(NEWSETELEM, Family::Bridge, IDENTITY, &identity),
        ];
        if wanted.outside == Outside::Nat {
            changes.push(self.element(NEWSETELEM, Family::Inet, NAT, &wanted.address.octets()));
        }
        changes
    }

    /// Notes that we switched an interface's forwarding on.
    pub fn note_opened(&self, interface: &str) -> io::Result<()> {
        let key = interface_key(interface);
        self.commit(&[self.element(NEWSETELEM, Family::Inet, rules::OPENED, &key)])
    }

    /// Forgets that we switched an interface's forwarding on.
    pub fn forget_opened(&self, interface: &str) -> io::Result<()> {
        let key = interface_key(interface);
        self.commit(&[self.element(DELSETELEM, Family::Inet, rules::OPENED, &key)])
    }

    /// The interfaces whose forwarding we switched on.
    pub fn opened(&self) -> io::Result<Vec<String>> {
        let asked = self.element_list(rules::OPENED);
        let answers = match self.netlink.dump(&message(GETSETELEM, Family::Inet, asked)) {
            Err(error) if is(&error, Errno::NOENT) => return Ok(Vec::new()),
            other => other?,
        };
        let found = answers.iter().flat_map(|answer| elements(answer));
        Ok(found.map(|element| text(&element.key)).collect())
    }

    fn find(&self, family: Family, set: &str, key: &[u8]) -> io::Result<Option<Element>> {
        match self
            .netlink
            .call(&self.element(GETSETELEM, family, set, key))
        {
            Ok(answers) => Ok(answers.iter().flat_map(|answer| elements(answer)).next()),
            Err(error) if is(&error, Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn element_list(&self, set: &str) -> Attributes {
        Attributes::new()
            .text(NFTA_SET_ELEM_LIST_TABLE, &self.name)
            .text(NFTA_SET_ELEM_LIST_SET, set)
    }

    fn element(&self, kind: u16, family: Family, set: &str, key: &[u8]) -> Message {
        self.element_message(kind, family, set, element_attributes(key))
    }

    fn commented(&self, family: Family, set: &str, key: &[u8], note: &str) -> Message {
        let length = u8::try_from(note.len() + 1).expect("comments are short");
        let mut data = vec![UDATA_COMMENT, length];
        data.extend_from_slice(note.as_bytes());
        data.push(0);
        let attributes = element_attributes(key).bytes(NFTA_SET_ELEM_USERDATA, &data);
        self.element_message(NEWSETELEM, family, set, attributes)
    }

    fn element_message(&self, kind: u16, family: Family, set: &str, one: Attributes) -> Message {
        let list = Attributes::new().nested(NFTA_LIST_ELEM, one);
        let all = self
            .element_list(set)
            .nested(NFTA_SET_ELEM_LIST_ELEMENTS, list);
        let mut message = message(kind, family, all);
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

/// An element of a set.
struct Element {
    key: Vec<u8>,
    comment: String,
}

fn elements(answer: &[u8]) -> Vec<Element> {
    let list = answer
        .get(NFGENMSG..)
        .and_then(|all| attribute(all, NFTA_SET_ELEM_LIST_ELEMENTS))
        .unwrap_or(&[]);
    let parse = |one: &[u8]| {
        let key = attribute(attribute(one, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
        let data = attribute(one, NFTA_SET_ELEM_USERDATA).unwrap_or(&[]);
        let comment = match data {
            [UDATA_COMMENT, _, note @ ..] => text(note),
            _ => String::new(),
        };
        Some(Element {
            key: key.to_vec(),
            comment,
        })
    };
    attributes(list).filter_map(|(_, one)| parse(one)).collect()
}

fn message(kind: u16, family: Family, attributes: Attributes) -> Message {
    Message {
        kind,
        flags: 0,
        fixed: vec![family as u8, 0, 0, 0],
        attributes,
    }
}

fn element_attributes(key: &[u8]) -> Attributes {
    let value = Attributes::new().bytes(NFTA_DATA_VALUE, key);
    Attributes::new().nested(NFTA_SET_ELEM_KEY, value)
}

fn tap_key(vm: VmId) -> Vec<u8> {
    interface_key(&vm.tap())
}

/// A name as sets of type `ifname` hold it: 16 bytes, the rest zero.
fn interface_key(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(16, 0);
    key
}

/// The fields of a concatenation, each padded to four bytes.
fn identity_key(vm: VmId, address: Ipv4Addr) -> Vec<u8> {
    let mut key = tap_key(vm);
    key.extend_from_slice(&Mac::of(vm).0);
    key.extend_from_slice(&[0, 0]);
    key.extend_from_slice(&address.octets());
    key
}

/// What `nft list set` shows beside a tap.
fn comment(address: Ipv4Addr, outside: Outside) -> String {
    match outside {
        Outside::Closed => format!("{address} closed"),
        Outside::Nat => format!("{address} nat"),
    }
}

fn former_address(comment: &str) -> Option<Ipv4Addr> {
    comment.split(' ').next()?.parse().ok()
}

fn attempt(verb: &str, vm: VmId) -> String {
    format!("{verb} network rules of tap {}", vm.tap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_the_address_it_was_made_of() {
        let address = Ipv4Addr::new(172, 30, 0, 9);
        for outside in [Outside::Closed, Outside::Nat] {
            assert_eq!(former_address(&comment(address, outside)), Some(address));
        }
        assert_eq!(former_address(""), None);
    }

    #[test]
    fn an_identity_is_three_padded_fields() {
        let key = identity_key(VmId::from_bits(0x2a), Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(key.len(), 28);
        assert_eq!(&key[..13], b"bgr-0000002a\0");
        assert_eq!(&key[16..], [6, 0, 0, 0, 0, 0x2a, 0, 0, 10, 0, 0, 2]);
    }
}
