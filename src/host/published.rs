//! Ports of the host that lead to a guest with a tap: elements of our maps.
//!
//! ```text
//!  127.0.0.1:8080, any program here --output--+
//!                                             +--> published, published_everywhere --> guest:80
//!  192.0.2.7:8080, another machine --prerouting+        (reached lets it through `forward`)
//! ```
//!
//! A packet of a program to 127.0.0.1 leaves by the bridge only if the kernel lets
//! loopback addresses pass there (`route_localnet`). That is switched on for our bridge
//! alone, while a port of a loopback address is published on it; both tables drop what a
//! guest sends to 127.0.0.0/8 itself.
//!
//! Two holders of a port are refused twice: by the plan, which knows our VMs, and here
//! by asking the kernel for the port, which knows everybody else.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

use crate::model::ids::VmId;
use crate::model::net::{PortForward, Protocol};
use crate::plan::step::{Fault, FaultKind};

use super::fault::fault;
use super::rules::{PUBLISHED, PUBLISHED_EVERYWHERE, REACHED};
use super::sysctl;
use super::tables::{Element, Family, Tables};

/// IPPROTO_TCP and IPPROTO_UDP.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// The elements that lead these ports to the guest at `address`.
pub fn elements(address: Ipv4Addr, ports: &[PortForward]) -> Vec<Element> {
    let mut all: Vec<Element> = ports
        .iter()
        .map(|port| Element {
            data: guest_end(address, port.guest),
            ..host_end(*port)
        })
        .collect();
    // Two ports of the host may lead to one of the guest.
    let reached: BTreeSet<(Protocol, u16)> = ports
        .iter()
        .filter(|port| port.faces_outside())
        .map(|port| (port.protocol, port.guest))
        .collect();
    let reached = reached.iter().map(|(protocol, port)| {
        let mut key = address.octets().to_vec();
        key.extend_from_slice(&[number(*protocol), 0, 0, 0]);
        key.extend_from_slice(&service(*port));
        Element::of(Family::Inet, REACHED, key)
    });
    all.extend(reached);
    all
}

/// What is there of a guest's published ports. `count` is how many there were said to be:
/// where these are not they, because the step that made them is not known, the maps are
/// searched for them.
pub fn found(
    tables: &Tables,
    addresses: &[Ipv4Addr],
    ports: &[PortForward],
    count: usize,
) -> io::Result<Vec<Element>> {
    let mut found: Vec<Element> = Vec::new();
    for address in addresses {
        for element in elements(*address, ports) {
            let there = tables.find(&element)?;
            found.extend(there.filter(|there| there.data == element.data));
        }
    }
    if found.iter().filter(|one| is_published(one)).count() == count {
        return Ok(found);
    }
    let of_guest = |element: &Element| {
        let bytes = match element.set {
            REACHED => &element.key,
            _ => &element.data,
        };
        let starts = |address: &Ipv4Addr| bytes.starts_with(&address.octets());
        addresses.iter().any(starts)
    };
    let mut all = tables.all(Family::Inet, PUBLISHED)?;
    all.extend(tables.all(Family::Inet, PUBLISHED_EVERYWHERE)?);
    all.extend(tables.all(Family::Inet, REACHED)?);
    Ok(all.into_iter().filter(of_guest).collect())
}

/// Whether it leads a port of the host to a guest.
pub fn is_published(element: &Element) -> bool {
    matches!(element.set, PUBLISHED | PUBLISHED_EVERYWHERE)
}

/// Refuses ports that another guest or a program of this host has. `own` is what this VM
/// has already: nobody listens behind that.
pub fn refuse_taken(
    tables: &Tables,
    vm: VmId,
    ports: &[PortForward],
    own: &[Element],
) -> Result<(), Fault> {
    for port in ports {
        let element = host_end(*port);
        if own
            .iter()
            .any(|one| (one.set, &one.key) == (element.set, &element.key))
        {
            continue;
        }
        let attempt = format!("publish port {port} of vm {vm}");
        let there = tables.find(&element);
        if let Some(other) = there.map_err(|error| fault(&attempt, error))? {
            let holder = other.data.first_chunk::<4>().copied().map(Ipv4Addr::from);
            let holder = holder.map_or_else(String::new, |address| format!(" at {address}"));
            return Err(taken(format!(
                "{attempt}: it leads to another guest{holder}"
            )));
        }
        bind(*port).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                let listening = format!("a program of this host has port {}", port.host);
                taken(format!("{attempt}: {listening}"))
            }
            io::ErrorKind::AddrNotAvailable => Fault::new(
                FaultKind::Missing,
                format!("{attempt}: this host has no address {}", port.address),
            ),
            _ => fault(&attempt, error),
        })?;
    }
    Ok(())
}

fn taken(what: String) -> Fault {
    let remedy =
        "Choose another port of the host with `--publish`, or see with `ss -lntup` who has it.";
    Fault::new(FaultKind::Denied, what).remedy(Some(remedy.to_owned()))
}

/// The first port that a program without privilege may take (ip(7)).
pub fn first_for_everybody() -> u16 {
    sysctl::first_unprivileged_port().unwrap_or(1024)
}

/// Takes the port as a server would, and gives it back.
fn bind(port: PortForward) -> io::Result<()> {
    let place = SocketAddrV4::new(port.address, port.host);
    match port.protocol {
        Protocol::Tcp => TcpListener::bind(place).map(drop),
        Protocol::Udp => UdpSocket::bind(place).map(drop),
    }
}

/// Lets packets of programs of this host to loopback addresses leave by the bridge.
pub fn open_loopback(bridge: &str) -> Result<(), Fault> {
    match sysctl::routes_loopback(bridge)? {
        true => Ok(()),
        false => sysctl::set_routes_loopback(bridge, true),
    }
}

/// Whether they can.
pub fn loopback_is_open(bridge: &str) -> Result<bool, Fault> {
    match sysctl::routes_loopback(bridge) {
        // A bridge that somebody removed carries nothing.
        Err(fault) if fault.kind == FaultKind::Missing => Ok(false),
        other => other,
    }
}

/// Switches that off again, unless a published port needs it.
pub fn close_loopback(tables: &Tables, bridge: &str) -> Result<(), Fault> {
    let failed = |error: io::Error| fault("look at the published ports", error);
    let everywhere = tables.all(Family::Inet, PUBLISHED_EVERYWHERE);
    let named = tables.all(Family::Inet, PUBLISHED).map_err(failed)?;
    // The address is the key's second field.
    let loopback = |element: &Element| element.key.get(4) == Some(&127);
    let needed = !everywhere.map_err(failed)?.is_empty() || named.iter().any(loopback);
    match needed || !loopback_is_open(bridge)? {
        true => Ok(()),
        false => sysctl::set_routes_loopback(bridge, false),
    }
}

/// The key of a published port.
fn host_end(port: PortForward) -> Element {
    let mut key = vec![number(port.protocol), 0, 0, 0];
    if port.address.is_unspecified() {
        key.extend_from_slice(&service(port.host));
        return Element::of(Family::Inet, PUBLISHED_EVERYWHERE, key);
    }
    key.extend_from_slice(&port.address.octets());
    key.extend_from_slice(&service(port.host));
    Element::of(Family::Inet, PUBLISHED, key)
}

fn guest_end(address: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut data = address.octets().to_vec();
    data.extend_from_slice(&service(port));
    data
}

/// A port as a field of a concatenation: network order, padded to four bytes.
fn service(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(texts: &[&str]) -> Vec<PortForward> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_element_is_keyed_by_protocol_address_and_port() {
        let guest = Ipv4Addr::new(172, 30, 0, 2);
        let all = elements(guest, &ports(&["8081:80"]));
        assert_eq!(all.len(), 1, "nothing is reached from outside");
        // As nft 1.0.6 sends it.
        assert_eq!(all[0].key, [6, 0, 0, 0, 127, 0, 0, 1, 0x1f, 0x91, 0, 0]);
        assert_eq!(all[0].data, [172, 30, 0, 2, 0, 80, 0, 0]);
    }

    #[test]
    fn two_ports_of_the_host_may_lead_to_one_of_the_guest() {
        let guest = Ipv4Addr::new(172, 30, 0, 2);
        let all = elements(guest, &ports(&["0.0.0.0:8080:80", "192.0.2.7:9090:80"]));
        let of = |set| all.iter().filter(|one| one.set == set).count();
        assert_eq!(
            [of(PUBLISHED), of(PUBLISHED_EVERYWHERE), of(REACHED)],
            [1, 1, 1]
        );
    }
}
