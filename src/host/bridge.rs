//! Our one bridge: the taps are its ports, the host's address on it is the gateway.
//!
//! Made when the first tap needs it and left in place afterwards. A bridge counts as
//! ours by the Ethernet address it was *created* with: an alias is set a moment later,
//! and a crash in between must not make it foreign. The fixed address also keeps the
//! guests' ARP caches right: a bridge otherwise takes the lowest one of its ports.

use std::io;

use rustix::io::Errno;

use crate::model::net::Subnet;
use crate::plan::step::{Fault, FaultKind, Presence};

use super::fault::fault;
use super::link::{Link, Links, Route, is};
use super::sysctl;

/// `bgr` in ASCII behind a locally administered prefix that no guest's address has.
const MAC: [u8; 6] = [0x06, 0x62, 0x67, 0x72, 0x00, 0x01];

/// What `ip link` shows.
const ALIAS: &str = "banger";

/// The bridge as it must be.
#[derive(Debug, Clone, Copy)]
pub struct Bridge<'a> {
    /// Its name.
    pub name: &'a str,
    /// The network that it carries.
    pub subnet: Subnet,
}

/// Makes or adopts the bridge, gives it the gateway's address and switches it on.
pub fn ensure(links: &Links, bridge: &Bridge<'_>) -> Result<Link, Fault> {
    let failed = |error: io::Error| fault(attempt(bridge), error);
    if let Some(link) = find_ready(links, bridge)? {
        return Ok(link);
    }
    if links.find(bridge.name).map_err(failed)?.is_none() {
        refuse_overlap(links, bridge)?;
        match links.create_bridge(bridge.name, MAC) {
            Err(error) if !is(&error, Errno::EXIST) => return Err(failed(error)),
            _ => {}
        }
    }
    let link = find_ours(links, bridge)?;
    links.set_alias(link.index, ALIAS).map_err(failed)?;
    sysctl::disable_ipv6(bridge.name)?;
    if !has_address(links, &link, bridge).map_err(failed)? {
        refuse_overlap(links, bridge)?;
        let (gateway, prefix) = (bridge.subnet.gateway(), bridge.subnet.prefix());
        links
            .add_address(link.index, gateway, prefix)
            .map_err(failed)?;
    }
    links.set_up(link.index).map_err(failed)?;
    find_ready(links, bridge)?.ok_or_else(|| {
        Fault::new(
            FaultKind::Busy,
            format!("{}: something else changes it", attempt(bridge)),
        )
    })
}

/// Present means ours, on, with the gateway's address.
pub fn probe(links: &Links, bridge: &Bridge<'_>) -> Result<Presence, Fault> {
    let failed = |error: io::Error| fault(attempt(bridge), error);
    if find_ready(links, bridge)?.is_some() {
        return Ok(Presence::Present);
    }
    match links.find(bridge.name).map_err(failed)? {
        Some(_) => Ok(Presence::Different),
        None => Ok(Presence::Absent),
    }
}

/// Whether the bridge is there or could be made; the fault says what is in the way.
pub fn check(links: &Links, bridge: &Bridge<'_>) -> Result<(), Fault> {
    let found = links.find(bridge.name);
    match found.map_err(|error| fault(attempt(bridge), error))? {
        Some(_) => find_ours(links, bridge).map(drop),
        None => refuse_overlap(links, bridge),
    }
}

/// Removes the bridge; a foreign one of this name is left alone.
pub fn absent(links: &Links, name: &str) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(format!("remove bridge {name}"), error);
    match links.find(name).map_err(failed)? {
        Some(link) if is_ours(&link) => links.delete(link.index).map_err(failed),
        _ => Ok(()),
    }
}

fn find_ready(links: &Links, bridge: &Bridge<'_>) -> Result<Option<Link>, Fault> {
    let failed = |error: io::Error| fault(attempt(bridge), error);
    let found = links.find(bridge.name).map_err(failed)?;
    let Some(link) = found.filter(|link| is_ours(link) && link.up) else {
        return Ok(None);
    };
    let ready = has_address(links, &link, bridge).map_err(failed)?
        && sysctl::ipv6_is_disabled(bridge.name)?;
    Ok(ready.then_some(link))
}

fn find_ours(links: &Links, bridge: &Bridge<'_>) -> Result<Link, Fault> {
    let found = links.find(bridge.name);
    match found.map_err(|error| fault(attempt(bridge), error))? {
        Some(link) if is_ours(&link) => Ok(link),
        Some(_) => Err(Fault::new(
            FaultKind::Denied,
            format!(
                "{}: an interface of that name exists and is not ours; choose another name with `banger config set network.bridge NAME`",
                attempt(bridge)
            ),
        )),
        None => Err(fault(attempt(bridge), Errno::NODEV)),
    }
}

/// Whether it is a bridge of ours, or of another installation on this machine.
pub fn is_ours(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge") && link.mac == Some(MAC)
}

fn has_address(links: &Links, link: &Link, bridge: &Bridge<'_>) -> io::Result<bool> {
    let wanted = (bridge.subnet.gateway(), bridge.subnet.prefix());
    Ok(links.addresses(link.index)?.contains(&wanted))
}

/// Refuses a network that another interface's route covers in part or whole: guests
/// would be unreachable, or the user's own network would be.
fn refuse_overlap(links: &Links, bridge: &Bridge<'_>) -> Result<(), Fault> {
    let failed = |error: io::Error| fault(attempt(bridge), error);
    // In this order: another thread may make our bridge at this moment, and a route of
    // it that we read must find its interface.
    let routes = links.routes().map_err(failed)?;
    let own = links.find(bridge.name).map_err(failed)?.map(|l| l.index);
    let conflict = routes
        .iter()
        .filter(|route| own.is_none() || route.interface != own)
        .find(|route| overlaps(bridge.subnet, route));
    let Some(route) = conflict else {
        return Ok(());
    };
    let interface = match route.interface {
        Some(index) => links.find_index(index).map_err(failed)?,
        None => None,
    };
    Err(Fault::new(
        FaultKind::Denied,
        format!(
            "{}: the network {} overlaps {}/{}, which this machine reaches by {}",
            attempt(bridge),
            bridge.subnet,
            route.destination,
            route.prefix,
            who_and_what_helps(interface.as_ref()),
        ),
    ))
}

/// Names who has a network, and what to do about it: a bridge of another configuration of
/// ours can be gone back to as well.
fn who_and_what_helps(interface: Option<&Link>) -> String {
    let other = "choose another with `banger config set network.subnet NETWORK`";
    match interface {
        Some(link) if is_ours(link) => {
            let name = &link.name;
            format!(
                "{name}, a bridge of banger's: {other}, or use that one with `banger config set network.bridge {name}`"
            )
        }
        Some(link) => format!("{}; {other}", link.name),
        None => format!("several interfaces; {other}"),
    }
}

/// The default route covers everything and is no conflict.
fn overlaps(subnet: Subnet, route: &Route) -> bool {
    if route.prefix == 0 {
        return false;
    }
    let shorter = subnet.prefix().min(route.prefix);
    let mask = u32::MAX << (32 - u32::from(shorter));
    u32::from(subnet.network()) & mask == u32::from(route.destination) & mask
}

fn attempt(bridge: &Bridge<'_>) -> String {
    format!("set up bridge {}", bridge.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_of_another_bridge_of_ours_names_both_ways_out() {
        let link = |mac| Link {
            index: 7,
            name: "bngA".to_owned(),
            kind: Some("bridge".to_owned()),
            mac: Some(mac),
            up: true,
            running: true,
            carrier: true,
            master: None,
            alias: None,
            isolated: false,
            persistent: false,
        };
        let ours = who_and_what_helps(Some(&link(MAC)));
        assert!(ours.contains("set network.subnet NETWORK"), "{ours}");
        assert!(ours.contains("set network.bridge bngA"), "{ours}");
        let foreign = who_and_what_helps(Some(&link([2; 6])));
        assert!(!foreign.contains("network.bridge"), "{foreign}");
    }

    #[test]
    fn networks_overlap_when_either_contains_the_other() {
        let subnet: Subnet = "172.30.0.0/16".parse().unwrap();
        let route = |destination: &str, prefix| Route {
            destination: destination.parse().unwrap(),
            prefix,
            interface: None,
            by_gateway: false,
        };
        for (other, expected) in [
            (route("172.30.5.0", 24), true),
            (route("172.16.0.0", 12), true),
            (route("172.30.0.0", 16), true),
            (route("172.30.0.9", 32), true),
            (route("172.31.0.0", 16), false),
            (route("10.0.0.0", 8), false),
            (route("0.0.0.0", 0), false),
        ] {
            assert_eq!(overlaps(subnet, &other), expected, "{other:?}");
        }
    }
}
