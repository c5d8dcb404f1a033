//! IPv4 forwarding for guests with NAT: as little of it as the kernel can do with.
//!
//! The kernel forwards a packet if the interface it came in by may forward: our bridge
//! for what guests send, and each interface of a route for the answers. Those are
//! switched on one by one, never `net.ipv4.ip_forward`, and noted in the set `opened`:
//! our rules drop what such an interface would now carry between others, so the host
//! becomes a router for our guests and nobody else. Where the host forwards everywhere
//! already (Docker, libvirt), nothing is changed and nothing dropped.

use std::io;

use crate::plan::step::{Fault, FaultKind};

use super::bridge::Bridge;
use super::fault::fault;
use super::link::Links;
use super::sysctl;
use super::tables::Tables;

/// Lets packets of guests with NAT pass, both ways.
pub fn ensure(tables: &Tables, bridge: &Bridge<'_>) -> Result<(), Fault> {
    let failed = |error: io::Error| fault("let guests reach the outside", error);
    if sysctl::forwards_everywhere()? {
        // Somebody else made the host a router: their decision, so no drops of ours.
        for interface in tables.opened().map_err(failed)? {
            tables.forget_opened(&interface).map_err(failed)?;
        }
        return Ok(());
    }
    if !sysctl::forwards(bridge.name)? {
        sysctl::set_forwards(bridge.name, true)?;
    }
    for interface in uplinks(bridge.name).map_err(failed)? {
        if !sysctl::forwards(&interface)? {
            tables.note_opened(&interface).map_err(failed)?;
            sysctl::set_forwards(&interface, true)?;
        }
    }
    Ok(())
}

/// Whether packets of guests with NAT can pass now.
pub fn is_ready(bridge: &str) -> Result<bool, Fault> {
    if sysctl::forwards_everywhere()? {
        return Ok(true);
    }
    let failed = |error: io::Error| fault("look at the routes", error);
    let mut needed = uplinks(bridge).map_err(failed)?;
    needed.push(bridge.to_owned());
    for interface in &needed {
        match sysctl::forwards(interface) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            // A bridge that somebody removed carries nothing.
            Err(fault) if fault.kind == FaultKind::Missing => return Ok(false),
            Err(fault) => return Err(fault),
        }
    }
    Ok(true)
}

/// Switches off what [`ensure`] switched on, for the removal of everything of ours.
pub fn absent(tables: &Tables) -> Result<(), Fault> {
    let failed = |error: io::Error| fault("restore forwarding", error);
    let opened = tables.opened().map_err(failed)?;
    if sysctl::forwards_everywhere()? {
        return Ok(());
    }
    let links = Links::open().map_err(failed)?;
    for interface in opened {
        if links.find(&interface).map_err(failed)?.is_some() {
            sysctl::set_forwards(&interface, false)?;
        }
    }
    Ok(())
}

/// The names of the interfaces that routes lead out by, our bridge's left out.
fn uplinks(bridge: &str) -> io::Result<Vec<String>> {
    let links = Links::open()?;
    let mut indices: Vec<u32> = links.routes()?.iter().filter_map(|r| r.interface).collect();
    indices.sort_unstable();
    indices.dedup();
    let mut names = Vec::new();
    for index in indices {
        let link = links.find_index(index)?;
        names.extend(link.map(|link| link.name));
    }
    names.retain(|name| name != bridge && name != "lo");
    Ok(names)
}
