//! A VM's elements in our nftables sets and maps.
//!
//! They come and go in one transaction over both tables, in constant time. The element
//! in `taps` carries a comment with what was installed for that tap, so that a probe
//! sees whether it is this, and a change or removal needs no memory of it.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use rustix::io::Errno;

use crate::model::ids::VmId;
use crate::model::net::{Mac, PortForward};
use crate::plan::step::{Fault, FaultKind, Outside, Presence};
use crate::sys::netlink::text;

use super::bridge::Bridge;
use super::fault::fault;
use super::forwarding::Forwarding;
use super::link::Links;
use super::published;
use super::rules::{IDENTITY, NAT, TAPS};
use super::tables::{Element, Family, Tables, interface_key};

/// What a VM is allowed, as it must be.
#[derive(Debug, Clone, Copy)]
pub struct NetRules<'a> {
    /// Whose.
    pub vm: VmId,
    /// The only address the guest may use.
    pub address: Ipv4Addr,
    /// Whether the outside is reachable.
    pub outside: Outside,
    /// Ports of the host that lead to the guest.
    pub publish: &'a [PortForward],
    /// Our bridge, whose tables hold the elements.
    pub bridge: Bridge<'a>,
    /// Where all installations note whose guests need which interface's forwarding.
    pub claims: &'a Path,
}

/// Adds the VM's elements, after the tables if those are missing or of another text.
pub fn ensure(tables: &Tables, wanted: &NetRules<'_>) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(attempt("set up", wanted.vm), error);
    tables.ensure(&wanted.bridge)?;
    let forwarding = wanted.forwarding(tables)?;
    match wanted.is_forwarded() {
        true => forwarding.ensure()?,
        false => forwarding.guard()?,
    }
    if wanted.examine(tables).map_err(failed)? != Presence::Present {
        let removed = wanted.found(tables).map_err(failed)?;
        published::refuse_taken(tables, wanted.vm, wanted.publish, &removed)?;
        let added = wanted.elements();
        tables.change(&removed, &added).map_err(failed)?;
    }
    if wanted.faces_loopback() {
        published::open_loopback(wanted.bridge.name)?;
    }
    match wanted.examine(tables).map_err(failed)? {
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
    let removed = unwanted.found(tables).map_err(failed)?;
    if !removed.is_empty() {
        tables.change(&removed, &[]).map_err(failed)?;
    }
    if unwanted.faces_loopback() || removed.iter().any(published::is_published) {
        published::close_loopback(tables, unwanted.bridge.name)?;
    }
    match unwanted.found(tables).map_err(failed)?.is_empty() {
        true => Ok(()),
        false => Err(failed(Errno::BUSY.into())),
    }
}

/// Present means: the rules are this text's, the elements are these and no others.
pub fn probe(tables: &Tables, wanted: &NetRules<'_>) -> Result<Presence, Fault> {
    let failed = |error: io::Error| fault(attempt("examine", wanted.vm), error);
    let elements = wanted.examine(tables).map_err(failed)?;
    if elements != Presence::Present {
        return Ok(elements);
    }
    let name = wanted.bridge.name;
    let forwarding = wanted.forwarding(tables)?;
    let ready = tables.in_force(&wanted.bridge).map_err(failed)?
        && forwarding.is_guarded()?
        && (!wanted.is_forwarded() || forwarding.is_ready()?)
        && (!wanted.faces_loopback() || published::loopback_is_open(name)?);
    Ok(match ready {
        true => Presence::Present,
        false => Presence::Different,
    })
}

/// VMs that have elements and no tap. The tap is made before them and removed after
/// them, so nobody's VM is among these.
pub fn without_tap(tables: &Tables) -> Result<Vec<(VmId, Ipv4Addr)>, Fault> {
    let failed = |error: io::Error| fault("list the firewall's elements", error);
    // Elements first: whose tap is made after this look has none of these yet.
    let with_elements = listed(tables).map_err(failed)?;
    let links = Links::open()
        .and_then(|links| links.all())
        .map_err(failed)?;
    let taps: BTreeSet<VmId> = links.iter().filter_map(|l| VmId::of_tap(&l.name)).collect();
    let without = with_elements.into_iter();
    Ok(without.filter(|(vm, _)| !taps.contains(vm)).collect())
}

/// Every VM that has elements, with the address that they tell of.
fn listed(tables: &Tables) -> io::Result<Vec<(VmId, Ipv4Addr)>> {
    let unspecified = Ipv4Addr::UNSPECIFIED;
    let mut found: Vec<(VmId, Ipv4Addr)> = Vec::new();
    for element in tables.all(Family::Bridge, TAPS)? {
        let vm = VmId::of_tap(&text(&element.key));
        let address = former(&element.comment).0.unwrap_or(unspecified);
        found.extend(vm.map(|vm| (vm, address)));
    }
    for element in tables.all(Family::Bridge, IDENTITY)? {
        let vm = element.key.get(..16).map(text);
        let vm = vm.and_then(|name| VmId::of_tap(&name));
        let octets = element.key.get(24..28).and_then(<[u8]>::first_chunk::<4>);
        found.extend(vm.zip(octets.copied().map(Ipv4Addr::from)));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

impl NetRules<'_> {
    fn forwarding<'b>(&'b self, tables: &'b Tables) -> Result<Forwarding<'b>, Fault> {
        Forwarding::of(tables, self.bridge.name, self.claims)
    }

    fn is_forwarded(&self) -> bool {
        self.outside == Outside::Nat || self.publish.iter().any(|port| port.faces_outside())
    }

    fn faces_loopback(&self) -> bool {
        self.publish.iter().any(|port| port.faces_loopback())
    }

    /// Every element that the VM must have.
    fn elements(&self) -> Vec<Element> {
        let mut all = vec![
            Element {
                comment: comment(self.address, self.outside, self.publish.len()),
                ..tap_element(self.vm)
            },
            identity_element(self.vm, self.address),
        ];
        if self.outside == Outside::Nat {
            all.push(nat_element(self.address));
        }
        all.extend(published::elements(self.address, self.publish));
        all
    }

    /// What the elements of this VM are, compared with what they must be.
    fn examine(&self, tables: &Tables) -> io::Result<Presence> {
        let mut right = true;
        for wanted in self.elements() {
            let there = tables.find(&wanted)?;
            right &= there.is_some_and(|there| there.says_as(&wanted));
        }
        if self.outside == Outside::Closed {
            right &= tables.find(&nat_element(self.address))?.is_none();
        }
        Ok(match right {
            true => Presence::Present,
            false if self.found(tables)?.is_empty() => Presence::Absent,
            false => Presence::Different,
        })
    }

    /// All elements of this VM that are there, also those of another address that its
    /// comment tells of.
    fn found(&self, tables: &Tables) -> io::Result<Vec<Element>> {
        let listed = tables.find(&tap_element(self.vm))?;
        let (former, ports) = match &listed {
            Some(element) => former(&element.comment),
            None => (None, self.publish.len()),
        };
        let mut addresses = vec![self.address];
        addresses.extend(former.filter(|former| *former != self.address));
        let mut found = Vec::new();
        for address in &addresses {
            found.extend(tables.find(&identity_element(self.vm, *address))?);
            found.extend(tables.find(&nat_element(*address))?);
        }
        if ports > 0 {
            found.extend(published::found(tables, &addresses, self.publish, ports)?);
        }
        found.extend(listed);
        Ok(found)
    }
}

fn tap_element(vm: VmId) -> Element {
    Element::of(Family::Bridge, TAPS, interface_key(&vm.tap()))
}

/// The fields of a concatenation, each padded to four bytes.
fn identity_element(vm: VmId, address: Ipv4Addr) -> Element {
    let mut key = interface_key(&vm.tap());
    key.extend_from_slice(&Mac::of(vm).0);
    key.extend_from_slice(&[0, 0]);
    key.extend_from_slice(&address.octets());
    Element::of(Family::Bridge, IDENTITY, key)
}

fn nat_element(address: Ipv4Addr) -> Element {
    Element::of(Family::Inet, NAT, address.octets().to_vec())
}

/// What `nft list set` shows beside a tap.
fn comment(address: Ipv4Addr, outside: Outside, ports: usize) -> String {
    let outside = match outside {
        Outside::Closed => "closed",
        Outside::Nat => "nat",
    };
    match ports {
        0 => format!("{address} {outside}"),
        ports => format!("{address} {outside} published {ports}"),
    }
}

/// The address that a comment tells of, and how many ports were published.
fn former(comment: &str) -> (Option<Ipv4Addr>, usize) {
    let mut words = comment.split(' ');
    let address = words.next().and_then(|word| word.parse().ok());
    let ports = words.nth(2).and_then(|word| word.parse().ok());
    (address, ports.unwrap_or(0))
}

fn attempt(verb: &str, vm: VmId) -> String {
    format!("{verb} network rules of tap {}", vm.tap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_what_it_was_made_of() {
        let address = Ipv4Addr::new(172, 30, 0, 9);
        for outside in [Outside::Closed, Outside::Nat] {
            for ports in [0, 3] {
                let told = former(&comment(address, outside, ports));
                assert_eq!(told, (Some(address), ports));
            }
        }
        assert_eq!(former(""), (None, 0));
    }

    #[test]
    fn an_identity_is_three_padded_fields() {
        let element = identity_element(VmId::from_bits(0x2a), Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(element.key.len(), 28);
        assert_eq!(&element.key[..13], b"bgr-0000002a\0");
        assert_eq!(&element.key[16..], [6, 0, 0, 0, 0, 0x2a, 0, 0, 10, 0, 0, 2]);
    }
}
