//! IPv4 forwarding for guests with NAT: as little of it as the kernel can do with.
//!
//! The kernel forwards a packet if the interface it came in by may forward: our bridge
//! for what guests send, and each uplink for the answers. Those are switched on one by
//! one, never `net.ipv4.ip_forward`. What we switched on is remembered twice:
//!
//! - as a claim ([`super::claims`]), by which the last installation that needs an uplink
//!   switches it off again, whatever became of the tables;
//! - in the set `opened`: our rules drop what such an interface would now carry between
//!   others, so the host becomes a router for our guests and nobody else.
//!
//! A claim comes first, then the set, then the setting: a crash in between leaves too
//! many drops, never a way for others. Where one of the two was lost, it is filled from
//! the other. Where the host forwards everywhere already (Docker, libvirt), nothing is
//! changed and nothing dropped; nor where somebody else switched an uplink on.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::plan::step::{Fault, FaultKind};

use super::bridge::is_ours;
use super::claims::{Claims, Lock};
use super::fault::fault;
use super::link::{Link, Links, Route};
use super::sysctl;
use super::tables::Tables;

/// The forwarding for the guests of one bridge.
#[derive(Debug)]
pub struct Forwarding<'a> {
    tables: &'a Tables,
    bridge: &'a str,
    claims: Claims,
    links: Links,
}

impl<'a> Forwarding<'a> {
    /// Looks where the claims of all installations lie.
    pub fn of(tables: &'a Tables, bridge: &'a str, claims: &Path) -> Result<Self, Fault> {
        let failed = |error: io::Error| fault("look at the host's forwarding", error);
        Ok(Forwarding {
            tables,
            bridge,
            claims: Claims::below(claims).map_err(failed)?,
            links: Links::open().map_err(failed)?,
        })
    }

    /// Lets packets of guests with NAT pass, both ways.
    pub fn ensure(&self) -> Result<(), Fault> {
        let failed = |error: io::Error| fault("let guests reach the outside", error);
        let lock = self.lock()?;
        self.agree(&lock)?;
        if sysctl::forwards_everywhere()? {
            return Ok(());
        }
        if !sysctl::forwards(self.bridge)? {
            sysctl::set_forwards(self.bridge, true)?;
        }
        for link in uplinks(&self.links).map_err(failed)? {
            let on = sysctl::forwards(&link.name)?;
            // On and claimed by none of us: whoever switched it on keeps it.
            if on && self.claims.of(link.index).map_err(failed)?.is_empty() {
                continue;
            }
            let claimed = self.claims.add(&lock, link.index, self.bridge);
            claimed.map_err(|error| note_failed(&link, error))?;
            self.tables.note_opened(&link.name).map_err(failed)?;
            if !on {
                sysctl::set_forwards(&link.name, true)?;
            }
        }
        Ok(())
    }

    /// Whether packets of guests with NAT can pass now.
    pub fn is_ready(&self) -> Result<bool, Fault> {
        if sysctl::forwards_everywhere()? {
            return Ok(true);
        }
        let failed = |error: io::Error| fault("look at the routes", error);
        let mut ready = is_on(self.bridge)?;
        for link in uplinks(&self.links).map_err(failed)? {
            let claims = self.claims.of(link.index).map_err(failed)?;
            ready &= is_on(&link.name)? && (claims.is_empty() || claims.contains(self.bridge));
        }
        Ok(ready)
    }

    /// Has our rules guard what we switched on, also for guests without NAT: after a flush
    /// of the ruleset the tables are made anew with an empty set.
    pub fn guard(&self) -> Result<(), Fault> {
        match self.is_guarded()? {
            true => Ok(()),
            false => self.agree(&self.lock()?),
        }
    }

    /// Whether they guard that, and nothing else.
    pub fn is_guarded(&self) -> Result<bool, Fault> {
        let failed = |error: io::Error| fault("look at what forwards", error);
        let opened = self.tables.opened().map_err(failed)?;
        let wanted = match sysctl::forwards_everywhere()? {
            true => BTreeSet::new(),
            false => self.claimed().map_err(failed)?.into_iter().collect(),
        };
        Ok(opened.into_iter().collect::<BTreeSet<_>>() == wanted)
    }

    /// Switches off what we switched on, unless another installation needs it, for the
    /// removal of everything of ours. The tables may be gone.
    pub fn absent(&self) -> Result<(), Fault> {
        let failed = |error: io::Error| fault("restore forwarding", error);
        let lock = self.lock()?;
        self.adopt(&lock).map_err(failed)?;
        let everywhere = sysctl::forwards_everywhere()?;
        for index in self.claims.all_for(self.bridge).map_err(failed)? {
            let link = self.links.find_index(index).map_err(failed)?;
            let needed = everywhere || self.others_need(index).map_err(failed)?;
            if let Some(link) = link.filter(|_| !needed) {
                sysctl::set_forwards(&link.name, false)?;
            }
            // Of whoever is gone without having taken them back, too.
            for bridge in self.claims.of(index).map_err(failed)? {
                if bridge == self.bridge || !needed {
                    let removed = self.claims.remove(&lock, index, &bridge);
                    removed.map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<Lock, Fault> {
        let failed = |error: io::Error| fault("lock what notes the host's forwarding", error);
        self.claims.lock().map_err(failed)
    }

    /// Makes claims and set say the same.
    fn agree(&self, lock: &Lock) -> Result<(), Fault> {
        let failed = |error: io::Error| fault("note the host's forwarding", error);
        if sysctl::forwards_everywhere()? {
            return self.forget(lock).map_err(failed);
        }
        self.adopt(lock).map_err(failed)?;
        let claimed = self.claimed().map_err(failed)?;
        let opened = self.tables.opened().map_err(failed)?;
        for name in claimed.iter().filter(|name| !opened.contains(name)) {
            self.tables.note_opened(name).map_err(failed)?;
        }
        for name in opened.iter().filter(|name| !claimed.contains(name)) {
            self.tables.forget_opened(name).map_err(failed)?;
        }
        Ok(())
    }

    /// Claims what only the set tells of: earlier versions wrote no claims, and files in
    /// /run can be lost. They also opened bridges of other installations, which stay on:
    /// those are not ours to switch off.
    fn adopt(&self, lock: &Lock) -> io::Result<()> {
        for name in self.tables.opened()? {
            if let Some(link) = self.links.find(&name)?.filter(|link| !is_ours(link)) {
                self.claims.add(lock, link.index, self.bridge)?;
            }
        }
        Ok(())
    }

    /// Somebody else made the host a router: their decision, so no drops of ours, and
    /// nothing for us to switch off.
    fn forget(&self, lock: &Lock) -> io::Result<()> {
        for name in self.tables.opened()? {
            self.tables.forget_opened(&name)?;
        }
        for index in self.claims.all_for(self.bridge)? {
            self.claims.remove(lock, index, self.bridge)?;
        }
        Ok(())
    }

    /// The names of the interfaces that we claim, as far as they exist.
    fn claimed(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for index in self.claims.all_for(self.bridge)? {
            names.extend(self.links.find_index(index)?.map(|link| link.name));
        }
        Ok(names)
    }

    /// Whoever has no bridge has no guests either, whatever it claimed.
    fn others_need(&self, index: u32) -> io::Result<bool> {
        for bridge in self.claims.of(index)? {
            if bridge != self.bridge && self.links.find(&bridge)?.is_some_and(|l| is_ours(&l)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn note_failed(link: &Link, error: io::Error) -> Fault {
    fault(format!("note the forwarding of {}", link.name), error)
}

/// An interface that is gone carries nothing.
fn is_on(interface: &str) -> Result<bool, Fault> {
    match sysctl::forwards(interface) {
        Err(fault) if fault.kind == FaultKind::Missing => Ok(false),
        other => other,
    }
}

/// The interfaces that guests with NAT reach the outside by.
fn uplinks(links: &Links) -> io::Result<Vec<Link>> {
    let routes = links.routes()?;
    let all = links.all()?;
    let leading = all.iter().filter(|link| leads_out(link, &all, &routes));
    Ok(leading.cloned().collect())
}

/// Whether routes lead outside by an interface. A bridge that no route goes on from and
/// that has only virtual ports joins guests of this machine: containers, other VMs.
fn leads_out(link: &Link, all: &[Link], routes: &[Route]) -> bool {
    let own = |route: &&Route| route.interface == Some(link.index);
    let is_routed = routes.iter().any(|route| own(&route));
    if link.name == "lo" || is_ours(link) || !is_routed {
        return false;
    }
    let goes_on = |route: &Route| route.by_gateway || route.prefix == 0;
    let inward = |kind: &str| matches!(kind, "veth" | "tun");
    let has_way_out =
        |port: &Link| port.master == Some(link.index) && !port.kind.as_deref().is_some_and(inward);
    link.kind.as_deref() != Some("bridge")
        || routes.iter().filter(own).any(goes_on)
        || all.iter().any(has_way_out)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn link(index: u32, kind: Option<&str>, master: Option<u32>) -> Link {
        Link {
            index,
            name: format!("if{index}"),
            up: true,
            running: true,
            carrier: true,
            master,
            kind: kind.map(str::to_owned),
            alias: None,
            mac: None,
            isolated: false,
            persistent: false,
        }
    }

    fn route(interface: u32, by_gateway: bool) -> Route {
        Route {
            destination: Ipv4Addr::new(10, 0, 0, 0),
            prefix: 8,
            interface: Some(interface),
            by_gateway,
        }
    }

    #[test]
    fn only_interfaces_with_a_way_out_are_uplinks() {
        let all = [
            link(1, None, None),
            link(2, None, None),
            link(3, Some("bridge"), None),
            link(4, Some("veth"), Some(3)),
            link(5, Some("bridge"), None),
            link(6, None, Some(5)),
            link(7, Some("bridge"), None),
            link(8, Some("veth"), Some(7)),
            link(9, Some("tun"), None),
        ];
        let mut routes = [1, 3, 5, 7, 9].map(|index| route(index, false));
        routes[3].by_gateway = true;
        let out = all.iter().filter(|link| leads_out(link, &all, &routes));
        let out: Vec<u32> = out.map(|link| link.index).collect();
        // Not 2, without a route; not 3, which joins containers.
        assert_eq!(out, [1, 5, 7, 9]);
    }
}
